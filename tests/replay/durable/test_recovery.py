"""What a server finds in a memory's file: torn requests, rows behind the head, damage, and many rows."""

import numpy as np
import pytest

from fornix.common.errors import EvictedError, UnknownWriterError
from fornix.common.messages import Refused, ResetTable, StackQuery, Stacks
from fornix.common.specs import Episode, SamplerSpec, Sequence, Transition
from fornix.replay.durable.records import RECORD

from ..builders import CUT, END, F, M, a_stack, observe, sample
from .machine import Machine


def a_machine(capacity=100, lanes=2, n_frames=3, **options):
    return Machine().table(capacity=capacity, n_frames=n_frames, **options).writer(lanes=lanes)


def values(machine):
    """Return what the rows hold, oldest first."""
    ring = machine.memory.ring
    frames = ring.read("frame", np.arange(ring.tail, ring.head))
    return (frames[:, 0] - 1).tolist()


def take_out(machine, key):
    """Take a row's record away, as if it had never been written."""
    records = machine.memory.log.columns.file.records
    records[key % len(records)] = np.zeros((), RECORD)


# --- torn requests ---


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_request_of_which_any_row_is_missing_is_dropped_whole(missing):
    machine = a_machine(lanes=4)
    machine.write(*[(lane, F, lane) for lane in range(4)])
    answer = machine.write(*[(lane, M, 10 + lane) for lane in range(4)])
    take_out(machine, int(answer.key[missing]))
    machine.host.kill()
    assert values(machine) == [0, 1, 2, 3]
    assert machine.memory.writers["w"].sequence == 1
    machine.writer(lanes=4)  # the same incarnation goes on
    again = machine.write(*[(lane, M, 20 + lane) for lane in range(4)])
    assert np.array_equal(again.key, answer.key)
    assert np.array_equal(again.stack[1], a_stack(None, 1, 21))


def test_a_request_whose_payload_is_torn_is_dropped_whole():
    machine = a_machine()
    machine.write((0, F, 0), (1, F, 1))
    answer = machine.write((0, M, 2), (1, M, 3))
    machine.damage(int(answer.key[0]), "frame")
    machine.disk.boot = "boot-7"  # the power was gone, and the disk had all but that
    machine.host.kill()
    assert values(machine) == [0, 1]


def test_lanes_that_left_with_a_torn_request_have_not_left():
    machine = a_machine()
    machine.write((0, F, 0), (1, F, 1))
    answer = machine.write((0, M, 2), leave=np.array([1], np.int32))
    take_out(machine, int(answer.key[0]))
    machine.host.kill()
    assert values(machine) == [0, 1]
    assert (machine.memory.writers["w"].newest >= 0).all()


def test_rows_behind_a_gap_are_wiped_and_never_come_back():
    machine = a_machine(lanes=1)
    keys = [int(machine.write((0, M if at else F, at)).key[0]) for at in range(6)]
    take_out(machine, keys[3])
    machine.host.kill()
    assert values(machine) == [0, 1, 2]
    machine.writer()
    machine.write((0, M, 30))  # closes the gap
    machine.host.kill()
    assert values(machine) == [0, 1, 2, 30]
    machine.host.cut_power()
    assert values(machine) == [0, 1, 2, 30][: len(values(machine))]


def test_rows_of_writers_that_came_and_went_between_two_syncs_are_all_there():
    """Their cell has fewer copies than it had openings."""
    machine = a_machine(lanes=1)
    machine.sync()
    machine.flusher.lets = False
    for incarnation in range(2, 12):
        machine.writer(incarnation=incarnation)
        machine.write((0, F, incarnation), incarnation=incarnation)
    machine.host.kill()
    assert values(machine) == list(range(2, 12))
    assert machine.memory.writers["w"].incarnation == 11


# --- damage ---


def six_steps(n_frames=1, **options):
    """Return a machine with one whole episode on its disk, and its keys, as the next server finds it."""
    machine = a_machine(lanes=2, n_frames=n_frames, **options)
    kinds = [F, M, M, M, M, END]
    keys = [int(machine.write((0, kind, at)).key[0]) for at, kind in enumerate(kinds)]
    others = [int(machine.write((1, kind, 10 + at)).key[0]) for at, kind in enumerate([F, M, CUT])]
    machine.sync()
    return machine, keys, others


@pytest.mark.parametrize("column", ["frame", "action", "reward"])
def test_a_damaged_payload_is_found_when_it_is_asked_for_and_only_then(column):
    machine, keys, others = six_steps()
    machine.damage(keys[2], column)
    machine.host.kill()
    assert not len(machine.memory.broken)
    assert isinstance(machine.ask(StackQuery(table="t", key=np.array(others))), Stacks)
    assert not len(machine.memory.broken)
    machine.refusal(StackQuery(table="t", key=np.array(keys[2:3])), EvictedError)
    assert machine.memory.broken.tolist() == keys[2:3]
    whole = [key for key in keys + others if key != keys[2]]
    assert isinstance(machine.ask(StackQuery(table="t", key=np.array(whole))), Stacks)
    assert machine.memory.writers["w"].sequence == 9  # nobody has to begin anew


def test_stacks_with_a_damaged_row_are_refused():
    machine, keys, others = six_steps(n_frames=3)
    machine.damage(keys[2], "frame")
    machine.host.kill()
    for at, key in enumerate(keys):
        answer = machine.ask(StackQuery(table="t", key=np.array([key])))
        assert isinstance(answer, Refused) == (at in (2, 3, 4)), at
    assert isinstance(machine.ask(StackQuery(table="t", key=np.array(others))), Stacks)


UNITS = (Transition(n_step=1), Transition(n_step=3), Sequence(length=2), Episode(max_steps=9))


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("unit", UNITS, ids=str)
@pytest.mark.parametrize("place", [0, 1, 2, 4, 5])
def test_batches_leave_damaged_rows_out_and_episodes_end_before_them(place, unit, asked_before):
    machine, keys, others = six_steps()
    machine.damage(keys[place], "frame")
    machine.host.kill()
    if asked_before:
        assert len(machine.inside().starts(unit))  # they are known before the damage is
    else:
        machine.refusal(StackQuery(table="t", key=np.array(keys[place : place + 1])), EvictedError)
    found = {}
    for _ in range(4):
        batch = machine.ask(sample(64, unit=unit))
        for key, next_key, steps in zip(batch.key, batch.next_key, batch.steps, strict=True):
            found[int(key)] = int(next_key), int(steps)
    for key, (last, steps) in found.items():
        assert steps >= 1
        assert key not in keys or (keys.index(key) < place) == (keys.index(last) < place)
        assert keys[place] not in (key, last)
        assert key not in keys or keys.index(last) - keys.index(key) == steps
    assert others[0] in found
    assert sorted(found) == machine.inside().starts(unit).tolist()
    if isinstance(unit, Transition):  # no other start is lost
        ends = {keys[place], keys[place - 1] if place else None, keys[5], others[2]}
        assert set(found) == set(keys + others) - ends


def test_damaged_rows_are_as_lost_after_the_next_start():
    machine, keys, _ = six_steps()
    machine.damage(keys[2], "frame")
    for _ in range(2):
        machine.host.kill()
        machine.ask(sample(512, unit=Transition(n_step=2)))
        assert keys[2] not in machine.inside().starts(Transition(n_step=2))
        assert keys[1] not in machine.inside().starts(Transition(n_step=2))


def test_a_damaged_row_of_an_open_lanes_stack_makes_its_writer_begin_anew():
    machine = a_machine(lanes=1)
    keys = [int(machine.write((0, M if at else F, at)).key[0]) for at in range(4)]
    machine.sync()
    machine.damage(keys[2], "frame")
    machine.host.kill()
    machine.refusal(observe(5, [(0, M, 9)]), UnknownWriterError)
    machine.writer(incarnation=2)
    assert isinstance(machine.write((0, F, 9), incarnation=2), Stacks)


def test_a_damaged_record_that_the_disk_had_is_lost_and_writers_begin_anew():
    machine, keys, others = six_steps()
    machine.damage(keys[2])
    machine.host.kill()
    assert machine.memory.broken.tolist() == keys[2:3]
    assert machine.memory.writers == {}
    machine.refusal(observe(10, [(0, F, 9)]), UnknownWriterError)
    machine.refusal(StackQuery(table="t", key=np.array(keys[2:3])), EvictedError)
    starts = machine.inside().starts(Transition(n_step=1)).tolist()
    assert starts == [keys[0], *keys[3:5], *others[:2]]
    machine.writer(incarnation=2)
    answer = machine.write((0, F, 9), incarnation=2)
    assert int(answer.key[0]) == others[-1] + 1


def test_damage_in_rows_that_a_reset_forgot_harms_no_new_row():
    machine = a_machine(capacity=8, lanes=1, n_frames=1)
    for at in range(20):
        machine.write((0, M if at else F, at))
        machine.sync()
    head = machine.memory.ring.head
    machine.damage(machine.memory.ring.tail, "frame")  # in the slot that the next row takes
    machine.host.kill()
    machine.ask(ResetTable(table="t"))
    machine.refusal(StackQuery(table="t", key=np.array([head - 1])), EvictedError)
    assert not len(machine.memory.broken)
    machine.writer(incarnation=2)
    assert machine.write((0, F, 1), incarnation=2).key.tolist() == [head]


# --- requests that are repeated ---


def test_a_repeated_request_is_answered_with_the_same_keys_and_stacks_by_the_next_server():
    machine = a_machine()
    answers = {}
    for at in range(12):
        rows = [(0, M if at else F, at), (1, M if at else F, 50 + at)]
        answers[at + 1] = machine.write(*rows if at % 2 else rows[::-1]), machine.request
    left = machine.write(leave=np.array([1], np.int32))
    answers[13] = left, machine.request
    for _ in range(2):
        for number in range(6, 14):
            answer, request = answers[number]
            again = machine.ask(request)
            assert np.array_equal(again.key, answer.key), number
            if number < 13:
                assert np.array_equal(again.stack, answer.stack), number
        head = machine.memory.ring.head
        machine.host.kill()
        assert machine.memory.ring.head == head


def test_a_request_of_which_a_row_is_gone_is_not_answered_in_part():
    machine = a_machine(capacity=12, lanes=2, n_frames=1).writer("x", lanes=2)
    machine.write((0, F, 0), (1, F, 1), stacks=False)
    request = machine.request
    machine.write((0, F, 0), writer="x")
    for _ in range(16):
        machine.write((0, M, 1), writer="x", stacks=False)
        machine.sync()
    assert machine.memory.ring.tail - machine.memory._first == 1
    machine.host.kill()
    assert isinstance(machine.ask(request), Refused)


# --- many rows ---


def test_a_hundred_thousand_rows_are_found():
    machine = a_machine(capacity=100_000, lanes=100, n_frames=4, sampler=SamplerSpec(kind="prioritized"))
    for at in range(10):
        rows = [(lane, F if not at and not step else M, at) for step in range(100) for lane in range(100)]
        machine.write(*rows, stacks=False)
        machine.sync()
    ring = machine.memory.ring
    assert ring.head - machine.memory._first == 100_000
    before = machine.inside().starts(Transition(n_step=3))
    machine.host.kill()
    assert np.array_equal(machine.inside().starts(Transition(n_step=3)), before)
    batch = machine.ask(sample(256, n_step=3))
    assert (batch.steps == 3).all()
