"""What a memory's file holds, found by one scan after any death of its server.

Of the history that was acknowledged, what is found is a beginning of it:

- After the death of the process all of it: what was written is the kernel's. The rows of the one request
  that was being applied may be there in part; these are dropped.
- After a power cut, at least all that a sync had covered (the watermark), and on from there as far as
  there is no gap: rows go on as long as each record and payload is whole, its request is complete, and
  its writer is known as of then. All behind is wiped, so that it never comes back, and numbers go on
  far above: nobody may hold a key of a row that is lost, and find another under it.

A record below the watermark that is not whole is damage. The row is gone, and so is the stack of each
step after it that reaches back to it; episodes end before it. It isn't known whose row it was, so no
writer may go on: a lane could go on past the hole.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import StorageError
from fornix.common.messages import LAST
from fornix.common.signature import frame_name
from fornix.replay.durable.cells import Copy
from fornix.replay.durable.columns import DurableColumns
from fornix.replay.durable.file import MAX_WRITERS, RowsFile, State, WriterRecord, rows_are_whole
from fornix.replay.durable.records import LEFT, NO_LANE, record_checks
from fornix.replay.stacking import Numbers

_CHUNK = 65_536


class FoundWriter(NamedTuple):
    """A writer that is open."""

    at: int
    record: WriterRecord
    newest: Numbers
    """int64 [lanes]: the newest row of each lane's open episode, from base; 0 while none is open."""
    returned: NDArray[np.float64]
    """float64 [lanes]: rewards summed over that episode."""
    answers: list[tuple[int, Numbers]]
    """Its last requests, oldest first: the number of each, and the rows that answer it, from base."""


class Found(NamedTuple):
    """What a file holds; all rows are numbered from base."""

    state: State
    tail: int
    head: int
    watermark: int
    lossy: bool
    """Whether what was acknowledged may be lost."""
    broken: Numbers
    """Rows that are not there, or not whole, in [tail, head)."""
    writers: list[FoundWriter]
    newest_policy_version: int
    opening: int
    """Above all that a writer has had."""


class Scan:
    """The records of a file, checked.

    Args:
        file: of a memory.
        state: of it.
    """

    def __init__(self, file: RowsFile, state: State) -> None:
        self.file = file
        self.state = state
        self.slots = file.meta.slots
        self.numbers: NDArray[np.int64] = file.records["number"].astype(np.int64)
        used = np.flatnonzero(self.numbers)
        at_place = used[(self.numbers[used] % self.slots == used) & (self.numbers[used] >= self.slots)]
        self.whole = np.zeros(self.slots, np.bool_)
        for low in range(0, len(at_place), _CHUNK):
            part = at_place[low : low + _CHUNK]
            records = file.records[part]
            self.whole[part] = records["check"] == record_checks(records)

    def there(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Return which rows have whole records."""
        slots = numbers % self.slots
        there: NDArray[np.bool_] = self.whole[slots] & (self.numbers[slots] == numbers)
        return there

    def field(self, name: str, numbers: Numbers) -> NDArray[Any]:
        """Return a copy of a field of rows, int64 where it is a number."""
        values: NDArray[Any] = self.file.records[name][numbers % self.slots]
        return values.astype(np.int64) if values.dtype.kind == "u" else values

    def run_from(self, number: int) -> int:
        """Return the end of the rows that are there from `number` on, without a gap."""
        low = number
        while low < number + self.slots:
            rows = np.arange(low, min(low + _CHUNK, number + self.slots))
            there = self.there(rows)
            if not there.all():
                return low + int(np.argmin(there))
            low += len(rows)
        return low


def find(file: RowsFile, boot: str) -> tuple[Found, Scan]:
    """Return what a file holds; nothing is changed.

    Args:
        file: of a memory.
        boot: tells this running of the machine; what was written in it is not lost.

    Raises:
        StorageError: if not even the state of the memory is there.
    """
    state, _ = _state_at(file, None)
    scan = Scan(file, state)
    writers = _writers(file)
    watermark = told = file.watermark()
    if watermark is None:  # both are damaged
        known = scan.numbers[scan.whole]
        watermark = int(known.min()) if len(known) else state.first
    same_boot = bool(boot) and boot == state.boot
    end = scan.run_from(watermark)
    if not same_boot:  # else all that was written is there, and a record was written after its payload
        end = _end_of_whole(scan, watermark, end, writers if told is not None else None)
    head = _whole_requests(scan, watermark, end)
    state, since = _state_at(file, head)
    lossy = not state.clean and not same_boot
    tail = _tail(file, state, head, lossy)
    rows = np.arange(tail, head)
    there = scan.there(rows)
    broken = rows[~there]
    found = [] if len(broken) else _found_writers(scan, writers, rows, head)
    kept = rows[there]
    step_type = scan.field("step_type", kept)
    openings = [WriterRecord.of(copy.record).opening for copies in writers.values() for copy in copies]
    return (
        Found(
            state=state._replace(episodes=state.episodes + _ended(kept, step_type, since)),
            tail=tail,
            head=head,
            watermark=watermark,
            lossy=lossy,
            broken=broken,
            writers=found,
            newest_policy_version=_newest_policy(scan, kept, step_type),
            opening=1 + max([0, *openings, int(scan.field("opening", kept).max(initial=0))]),
        ),
        scan,
    )


def restore(columns: DurableColumns, found: Found, scan: Scan) -> None:
    """Fill the columns that are not in the file, and wipe what lies behind the head.

    Rows that nothing follows end their episodes, but for the newest ones of open lanes.
    """
    file, slots = columns.file, scan.slots
    behind = np.flatnonzero(scan.numbers >= found.head)
    if len(behind):
        file.records[behind] = np.zeros(1, file.records.dtype)
    for path in file.meta.signature.frames:
        columns.arrays[frame_name(path)][slots] = 0  # the frame of zeros, which no checksum closes
    rows = np.arange(found.tail, found.head)
    rows = rows[scan.there(rows)]
    at = rows % slots
    for name in ("back", "first", "position", "policy_version", "terminated"):
        columns.arrays[name][at] = file.records[name][at]
    _link(columns, found, scan, rows)
    columns.not_checked(at)


def _link(columns: DurableColumns, found: Found, scan: Scan, rows: Numbers) -> None:
    slots, forward = scan.slots, columns.arrays["forward"]
    step_type, back = scan.field("step_type", rows), scan.field("back", rows)
    follows = (back > 0) & (rows - back >= found.tail)
    forward[rows % slots] = 0
    forward[(rows - back)[follows] % slots] = back[follows]
    ends = np.uint32(2**32 - 1)
    last = (forward[rows % slots] == 0) & (step_type != LEFT)
    open_rows = [writer.newest[writer.newest > 0] for writer in found.writers]
    still_open = np.isin(rows, np.concatenate([np.empty(0, np.int64), *open_rows]))
    forward[rows[last & ~still_open] % slots] = ends
    forward[rows[step_type == LAST] % slots] = ends


def _state_at(file: RowsFile, head: int | None) -> tuple[State, int]:
    """Return the newest state, or the newest of a time when there were no more than `head` rows.

    Beside it, how many there were.
    """
    copies = file.state.copies()
    if not copies:
        raise StorageError(
            "the file of a memory is damaged where it says how its numbers count; restore it from a "
            "snapshot"
        )
    fitting = (copy for copy in copies if head is None or copy.head <= head)
    copy = next(fitting, copies[-1])
    return State.of(copy.record), copy.head


def _writers(file: RowsFile) -> dict[int, list[Copy]]:
    return {at: copies for at in file.used_writers() if (copies := file.writer(at).copies())}


def _end_of_whole(scan: Scan, low: int, end: int, writers: dict[int, list[Copy]] | None) -> int:
    """Return up to where rows [low, end) are whole, and their writers known if any are given."""
    rows = np.arange(low, end)
    good = rows_are_whole(scan.file, rows % scan.slots)
    if writers is not None:
        good &= _writer_known(scan, writers, rows)
    return end if good.all() else low + int(np.argmin(good))


def _writer_known(scan: Scan, writers: dict[int, list[Copy]], rows: Numbers) -> NDArray[np.bool_]:
    """Return whether a cell tells of the opening that each row's writer had."""
    known = np.zeros(len(rows), np.bool_)
    writer, opening = scan.field("writer", rows), scan.field("opening", rows)
    for at, copies in writers.items():
        openings = [WriterRecord.of(copy.record).opening for copy in copies]
        known |= (writer == at) & np.isin(opening, openings)
    return known


def _whole_requests(scan: Scan, low: int, end: int) -> int:
    """Return the end of the last request of rows [low, end) that is complete; `low` if there is none."""
    if end == low:
        return low
    last = np.array([end - 1])
    begin = int(last[0] - scan.field("index", last)[0])
    return end if begin + int(scan.field("count", last)[0]) == end else max(begin, low)


def _tail(file: RowsFile, state: State, head: int, lossy: bool) -> int:
    floor = int(file.marks[0]) - state.base
    oldest = [state.first, state.forgotten, head - file.meta.slots]
    if lossy:
        oldest.append(head - file.meta.steps)
    elif 0 <= floor <= head:
        oldest.append(floor)
    return min(max(oldest), head)


def _found_writers(
    scan: Scan, writers: dict[int, list[Copy]], rows: Numbers, head: int
) -> list[FoundWriter]:
    """Return the writers that are open after rows, int64 [K], of which there are `head`."""
    last_opening = np.zeros(MAX_WRITERS, np.int64)
    np.maximum.at(last_opening, scan.field("writer", rows), scan.field("opening", rows))
    chosen = {
        at: record
        for at, copies in writers.items()
        if (record := _record_of(copies, int(last_opening[at]), head)) is not None and record.is_open
    }
    opening = np.zeros(MAX_WRITERS, np.int64)
    for at, record in chosen.items():
        opening[at] = record.opening
    mine = rows[scan.field("opening", rows) == opening[scan.field("writer", rows)]]
    chosen = _with_lanes(scan, chosen, mine)
    newest = _newest_of_lanes(scan, chosen, mine)
    sequence, writer = scan.field("sequence", mine), scan.field("writer", mine)
    found = []
    for at, record in chosen.items():
        own = writer == at
        answers = _answers(scan, mine[own], sequence[own])
        last = max(record.sequence, int(sequence[own].max(initial=0)))
        returned = scan.field("returned", newest[at]).astype(np.float64)
        found.append(FoundWriter(at, record._replace(sequence=last), newest[at], returned, answers))
    return found


def _record_of(copies: list[Copy], opening: int, head: int) -> WriterRecord | None:
    """Return what a cell says of its writer at `head`, when its last rows were of an opening."""
    records = [(copy.head, WriterRecord.of(copy.record)) for copy in copies]
    known = next((record for then, record in records if then <= head), None)
    if known is not None and known.opening >= opening:
        return known
    # it was opened after the last sync, and the copy that says so is of a time that is lost: what came of
    # it since then stands in its rows, all of which are there
    later = next((record for _, record in records if record.opening == opening), known)
    return None if later is None else later._replace(is_open=True, sequence=0)


def _with_lanes(scan: Scan, chosen: dict[int, WriterRecord], rows: Numbers) -> dict[int, WriterRecord]:
    """Return writers with all lanes that their rows, int64 [K], have."""
    writer, lane = scan.field("writer", rows), scan.field("lane", rows)
    lanes = np.zeros(MAX_WRITERS, np.int64)
    np.maximum.at(lanes, writer[lane != NO_LANE], lane[lane != NO_LANE] + 1)
    return {at: record._replace(lanes=max(record.lanes, int(lanes[at]))) for at, record in chosen.items()}


def _newest_of_lanes(scan: Scan, chosen: dict[int, WriterRecord], rows: Numbers) -> dict[int, Numbers]:
    """Return the newest row of each lane whose episode is open, by writer; 0 where none is."""
    offsets = np.zeros(MAX_WRITERS + 1, np.int64)
    for at, record in chosen.items():
        offsets[at + 1] = record.lanes
    offsets = np.cumsum(offsets)
    newest = np.zeros(offsets[-1] + 1, np.int64)
    writer, lane = scan.field("writer", rows), scan.field("lane", rows)
    lanes = offsets[writer + 1] - offsets[writer]
    real = lane < lanes
    newest[(offsets[writer] + lane)[real]] = rows[real]  # numpy assigns in order: the last stays
    step_type = scan.field("step_type", newest)
    newest[(step_type == LAST) | (step_type == LEFT)] = 0
    return {at: newest[offsets[at] : offsets[at + 1]].copy() for at in chosen}


def _answers(scan: Scan, rows: Numbers, sequence: Numbers) -> list[tuple[int, Numbers]]:
    """Return the last requests of one writer, and the newest row of each lane in order of appearance.

    Those that have lost a row to the tail can't be answered again.
    """
    answers = []
    for number in np.unique(sequence)[-8:]:
        mine = rows[sequence == number]
        if len(mine) < int(scan.field("count", mine[:1])[0]):
            continue
        mine = mine[scan.field("step_type", mine) != LEFT]
        lane = scan.field("lane", mine)
        _, appearance = np.unique(lane, return_index=True)
        _, from_end = np.unique(lane[::-1], return_index=True)
        newest = mine[len(mine) - 1 - from_end]
        answers.append((int(number), newest[np.argsort(appearance)]))
    return answers


def _ended(rows: Numbers, step_type: NDArray[Any], since: int) -> int:
    """Return how many episodes have ended with rows, int64 [K], from `since` on."""
    return int(np.count_nonzero((rows >= since) & (step_type == LAST)))


def _newest_policy(scan: Scan, rows: Numbers, step_type: NDArray[Any]) -> int:
    acted = rows[step_type != LEFT]
    return int(scan.field("policy_version", acted[-1:]).max(initial=0))
