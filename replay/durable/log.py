"""What a memory puts down in its file, beside its rows: its writers, resets, and what the disk has.

A request is atomic in the file: each of its rows says how many there are. One that has none, or lets
lanes leave, has rows that say so (LEFT), which no one can draw: so whatever a request did is in the
order of the rows, and a beginning of that order is a state that the memory was in.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import Observe
from fornix.replay.durable.columns import DurableColumns
from fornix.replay.durable.file import MAX_WRITERS, State, WriterRecord
from fornix.replay.lanes import Writer
from fornix.replay.stacking import Numbers

_MAX_GUARD = 131_072
_IDENTITY_BITS = 40
_STARTS_BITS = 13


def guard_of(steps: int) -> int:
    """Return how many rows a memory has beyond those of its table.

    So many rows may not be on the disk yet: they overwrite none that a power cut would bring back.
    """
    return max(2, min(steps // 2, _MAX_GUARD))


class MemoryLog:
    """Keeps the file of one memory in step with it.

    Args:
        columns: in that file.
        state: of the memory.
        opening: above all that a writer has had.
        durable: all rows below it are on the disk.

    Attributes:
        guard: how many rows may be ahead of the disk.
    """

    def __init__(self, columns: DurableColumns, state: State, opening: int, durable: int) -> None:
        self.columns = columns
        self._file = columns.file
        self._state = state
        self._state_at = durable  # how many rows there were when it was put down
        self._opening = opening
        self._free = list(reversed(range(MAX_WRITERS)))
        self._recorded: dict[int, tuple[int, int]] = {}  # by writer's cell: sequence and head
        self.guard = self._file.meta.slots - self._file.meta.steps
        self.durable = durable
        self._syncing: tuple[int, dict[str, tuple[int, int]]] | None = None
        self._synced_version = -1
        self._version = 0

    @property
    def steps(self) -> int:
        """How many steps the memory's own table has."""
        return self._file.meta.steps

    @property
    def number(self) -> int:
        """What clients know the memory by: its identity, and how often a server has begun with it."""
        return (self._state.identity << _STARTS_BITS) | (self._state.starts % (1 << _STARTS_BITS))

    @property
    def life(self) -> int:
        """Another number each time when what was acknowledged may have been lost; never 0."""
        return self._state.identity + 1

    def is_known_as(self, number: int) -> bool:
        """Whether this, or an earlier start, is what clients know by a number."""
        return number >> _STARTS_BITS == self._state.identity

    def has_room(self, head: int, rows: int) -> bool:
        """Whether so many rows may be written now, without overwriting what a power cut brings back."""
        return head == self.durable or head + rows - self.durable <= self.guard

    def wants_sync(self, head: int) -> bool:
        """Whether half of the room is used."""
        return head - self.durable > self.guard // 2

    def resume(self, head: int, writers: Mapping[int, WriterRecord]) -> None:
        """Go on after a start: put down the state and the writers that were found; close all others.

        Args:
            head: that was found, from base.
            writers: by cell.
        """
        self._file.state.recover(head)
        self.put_state(head + self.columns.base)
        for at in self._file.used_writers():
            cell = self._file.writer(at)
            cell.recover(head)
            record = writers.get(at, WriterRecord(0, False, 1, 0, 0, ""))
            cell.write(record.packed(), head)
            self._recorded[at] = record.sequence, head + self.columns.base
            if at in writers:
                self._free.remove(at)

    def opened(self, writer: Writer, head: int) -> None:
        """A writer has taken its place."""
        writer.at = self._free.pop()
        writer.opening = self._opening
        self._opening += 1
        self._put(writer, head, True)

    def grown(self, writer: Writer, head: int) -> None:
        """A writer has more lanes."""
        self._put(writer, head, True)

    def forgot(self, writer: Writer, head: int) -> None:
        """A writer has lost its place."""
        self._put(writer, head, False)
        self._free.append(writer.at)

    def left(self, writer: Writer, request: Observe, numbers: Numbers, lanes: Numbers, rows: int) -> None:
        """Lanes have left with a request: put down one row for each, or one for none.

        Args:
            writer: of the lanes.
            request: that has `rows` rows of its own after these.
            numbers: int64 [J], of these rows.
            lanes: int64 [J], or of none.
            rows: of the request.
        """
        fields = self._request_fields(writer, request) | {
            "index": np.arange(len(numbers)),
            "count": len(numbers) + rows,
        }
        self.columns.record_left(numbers, lanes, fields)
        self._version += 1

    def records(
        self,
        writer: Writer,
        request: Observe,
        numbers: Numbers,
        payload: Mapping[str, NDArray[Any]],
        links: Mapping[str, NDArray[Any]],
        before: int,
    ) -> NDArray[Any]:
        """Return the records that will close rows, RECORD [K].

        Args:
            writer: of the rows.
            request: that they come with.
            numbers: int64 [K].
            payload: [K, ...] of each payload column, and `policy_version`.
            links: `back`, `first`, `position` and `returned` of each.
            before: rows that the request has before these.
        """
        fields = self._request_fields(writer, request) | {
            "index": np.arange(before, before + len(numbers)),
            "count": before + len(numbers),
            "lane": request.lane,
            "step_type": request.step_type,
            "terminated": request.terminated,
            "policy_version": payload["policy_version"],
        }
        return self.columns.closed(numbers, fields | dict(links), payload)

    def wrote(self, numbers: Numbers, records: NDArray[Any]) -> None:
        """Rows have been written, all but their records."""
        self.columns.put(numbers, records)
        self._version += 1

    def reset(self, head: int) -> None:
        """All rows below `head` have been forgotten."""
        self.put_state(head, forgotten=head - self.columns.base, episodes=0)

    def put_state(self, head: int, **changes: Any) -> None:
        """Put down the state, with changes."""
        self._state = self._state._replace(**changes)
        self._file.state.write(self._state.packed(), head - self.columns.base)
        self._state_at = head
        self._version += 1

    @property
    def dirty(self) -> bool:
        """Whether there is anything that the last sync didn't cover."""
        return self._version != self._synced_version

    def sync_begins(self, head: int, writers: Mapping[str, Writer], episodes: int) -> bool:
        """Note what a sync that begins now covers; return whether there is anything new.

        Args:
            head: of the memory.
            writers: of the memory.
            episodes: that have ended in it; those since the state was put down follow from the rows.
        """
        if head - self._state_at > self.guard:
            self.put_state(head, episodes=episodes)
        for writer in writers.values():
            sequence, put_at = self._recorded[writer.at]
            if writer.sequence != sequence and head - put_at > self.guard:
                self._put(writer, head, True)
        if not self.dirty:
            return False
        for cell in self._file.cells():
            cell.sync_begins()
        covered = {name: (writer.opening, writer.sequence) for name, writer in writers.items()}
        self._syncing = head, covered
        self._synced_version = self._version
        return True

    def synced(self, writers: Mapping[str, Writer]) -> None:
        """The disk has all that was there when the sync began: say so in the file, and to the writers."""
        if self._syncing is None:
            return
        head, covered = self._syncing
        self._syncing = None
        for cell in self._file.cells():
            cell.synced()
        self.durable = max(self.durable, head)
        self._file.publish(self.durable - self.columns.base)
        for name, (opening, sequence) in covered.items():
            writer = writers.get(name)
            if writer is not None and writer.opening == opening:
                writer.durable = sequence

    def _request_fields(self, writer: Writer, request: Observe) -> dict[str, Any]:
        return {"sequence": request.sequence, "opening": writer.opening, "writer": writer.at}

    def _put(self, writer: Writer, head: int, is_open: bool) -> None:
        record = WriterRecord(
            writer.opening, is_open, writer.lanes, writer.incarnation, writer.sequence, writer.name
        )
        self._file.writer(writer.at).write(record.packed(), head - self.columns.base)
        self._recorded[writer.at] = writer.sequence, head
        self._version += 1
