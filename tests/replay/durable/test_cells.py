"""A cell's record is there whole, whatever happens while it is written."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.replay.durable.cells import OVERHEAD, Cell

NBYTES = 64
AT = 100
MOST = NBYTES - OVERHEAD

records = st.binary(max_size=MOST)
#: What happens to a cell: a record is written, a sync begins, the sync is done.
steps = st.lists(st.one_of(records, st.sampled_from(["begins", "done"])), max_size=20)


class Kept:
    """A cell in a file, of which a disk has what was synced."""

    def __init__(self):
        self.memory = bytearray(AT + 4 * NBYTES + AT)
        self.cell = Cell(self.memory, AT, NBYTES)
        self.head = 0
        self.written = []
        self.disk = bytes(self.memory)
        self.promised = self._syncing = 0
        self._image = None

    def play(self, steps):
        """Do each step; a sync takes what there is when it begins. Yield before each write."""
        for step in steps:
            if step == "begins" and self._image is None:
                self.cell.sync_begins()
                self._image, self._syncing = bytes(self.memory), len(self.written)
            elif step == "done" and self._image is not None:
                self.disk, self.promised, self._image = self._image, self._syncing, None
                self.cell.synced()
            elif isinstance(step, bytes):
                yield step
                self.write(step)

    def write(self, record):
        self.head += 1
        self.written.append(record)
        self.cell.write(record, self.head)

    def newest(self, memory=None):
        """The newest record that a process finds."""
        copies = Cell(bytearray(self.memory if memory is None else memory), AT, NBYTES).copies()
        return copies[0].record if copies else None


def last(records):
    return records[-1] if records else None


@given(steps, records, st.integers(0, NBYTES))
def test_a_process_may_die_at_any_byte_of_a_write(steps, record, cut):
    kept = Kept()
    for _ in kept.play([*steps, "begins", record]):
        pass
    kept = Kept()
    for coming in kept.play([*steps, "begins", record]):
        before, found = bytes(kept.memory), kept.newest()
        assert found == last(kept.written)
        trial = bytearray(before)
        cell = Cell(trial, AT, NBYTES)
        cell.write(coming, kept.head + 1)
        differ = [at for at in range(len(trial)) if trial[at] != before[at]]
        assert not differ or differ[-1] - differ[0] < NBYTES
        begin = AT + (differ[0] - AT) // NBYTES * NBYTES if differ else AT
        torn = bytearray(before)
        torn[begin : begin + cut] = trial[begin : begin + cut]
        assert kept.newest(torn) in (found, coming)


@given(steps, records, st.data())
def test_a_power_cut_may_keep_any_bytes_of_what_was_not_synced(steps, record, data):
    kept = Kept()
    for _ in kept.play([*steps, record]):
        pass
    old, new = np.frombuffer(kept.disk, np.uint8), np.frombuffer(bytes(kept.memory), np.uint8)
    taken = np.random.default_rng(data.draw(st.integers(0, 2**32))).random(len(old)) < data.draw(
        st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
    )
    found = kept.newest(np.where(taken, new, old).tobytes())
    promised = kept.written[: kept.promised]
    assert found in kept.written[kept.promised :] or found == last(promised)


@given(steps, records, st.data())
def test_a_power_cut_may_keep_any_copies_of_what_was_not_synced(steps, record, data):
    """Bytes of two copies seldom make a whole one: here each copy is kept or lost as a whole."""
    kept = Kept()
    for _ in kept.play([*steps, record]):
        pass
    found = bytearray(kept.disk)
    for at in range(4):
        part = slice(AT + at * NBYTES, AT + (at + 1) * NBYTES)
        if data.draw(st.booleans()):
            found[part] = kept.memory[part]
    newest = kept.newest(found)
    assert newest in kept.written[kept.promised :] or newest == last(kept.written[: kept.promised])


@given(st.lists(st.tuples(records, st.integers(0, 2)), min_size=1, max_size=12), st.integers(0, 30))
def test_copies_of_a_time_that_is_lost_are_passed_over(writes, head):
    memory = bytearray(AT + 4 * NBYTES)
    cell, now, written = Cell(memory, AT, NBYTES), 0, []
    for record, later in writes:
        now += later
        cell.write(record, now)
        written.append((now, record))
    again = Cell(memory, AT, NBYTES)
    fitting = [record for then, record in written if then <= head]
    found = again.recover(head)
    there = [copy for copy in again.copies() if copy.head <= head]
    assert found == (there[0].record if there else None)
    assert found is None or found in fitting
    if len(written) < 3:
        assert found == last(fitting)
    # what was found stays until what is written now has been synced
    if found is not None:
        for number in range(6):
            again.write(bytes([number]), head)
            assert found in [copy.record for copy in again.copies()]
        again.sync_begins()
        again.synced()
        assert Cell(memory, AT, NBYTES).recover(head) == bytes([5])


@settings(max_examples=60)
@given(steps, st.integers(0, 4 * NBYTES - 1), st.integers(1, 255))
def test_a_damaged_byte_loses_one_copy_and_is_told_of(steps, at, flip):
    kept = Kept()
    for _ in kept.play(steps):
        pass
    whole = kept.cell.copies()
    kept.memory[AT + at] ^= flip
    cell = Cell(kept.memory, AT, NBYTES)
    found = cell.copies()
    assert set(found) <= set(whole)
    assert len(found) >= len(whole) - 1
    if len(found) < len(whole):
        assert cell.broken == 1


def test_an_empty_cell_has_no_record():
    kept = Kept()
    assert kept.newest() is None
    assert kept.cell.recover(10) is None
    assert kept.cell.broken == 0


def test_a_record_may_be_as_long_as_a_copy_holds():
    kept = Kept()
    kept.write(bytes(range(MOST)))
    assert kept.newest() == bytes(range(MOST))
    assert not any(kept.memory[:AT])
    assert not any(kept.memory[AT + 4 * NBYTES :])
