import math

import numpy as np
import pytest

from fornix.common.errors import (
    EvictedError,
    FencedError,
    WaitTimeoutError,
)
from fornix.common.messages import (
    Batch,
    CreateTable,
    Done,
    Hello,
    Info,
    OpenWriter,
    Report,
    StackQuery,
    Stacks,
    TableCreated,
    Welcome,
)
from fornix.common.specs import Episode, LimiterSpec, SamplerSpec

from .builders import CUT, END, F, M, a_stack, observe, sample, signature, spec
from .desk import RATIO, Desk, a_desk, write

# waiting and being released ------------------------------------------------------------------------


def test_a_sample_waits_for_the_minimum_size_and_is_released_by_the_insert_that_reaches_it():
    desk = a_desk(LimiterSpec(min_size=2))
    asked = desk.send(sample(5))
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    assert asked not in desk.answers
    assert desk.table()["limiter"]["waiting_samples"] == 1
    desk.clock.now += 1.5
    write(desk, 3, (0, M, 2))
    batch = desk.answers[asked]
    assert isinstance(batch, Batch)
    assert len(batch.key) == 5
    assert batch.held_s == 1.5
    assert desk.table()["limiter"]["waiting_samples"] == 0
    assert desk.service.patience_s() is None


def test_an_insert_waits_for_samples_and_is_released_by_them():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        assert isinstance(desk.answers[write(desk, sequence, (0, kind, sequence))], Stacks)
    # 4 inserts: d = 4 · (4 - 2) = 8 = ρ·E
    held = write(desk, 6, (0, M, 6))
    assert held not in desk.answers
    assert desk.table()["limiter"] | {"waiting_inserts": 1, "may_insert": False} == desk.table()["limiter"]
    desk.clock.now += 0.25
    assert isinstance(desk.ask(sample(1)), Batch)
    answer = desk.answers[held]
    assert np.array_equal(answer.stack[0], a_stack(4, 5, 6))
    assert answer.held_s == 0.25
    assert desk.table()["inserts"] == 5


def test_samples_wait_for_inserts_when_they_are_ahead():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    assert isinstance(desk.ask(sample(8)), Batch)  # d = -8 = -ρ·E
    asked = desk.send(sample(1))
    assert asked not in desk.answers
    write(desk, 4, (0, M, 4))
    assert isinstance(desk.answers[asked], Batch)


def test_those_who_wait_are_served_in_their_order():
    desk = a_desk(LimiterSpec(min_size=1, samples_per_insert=1.0, error_buffer_inserts=1.0))
    asked = [desk.send(sample(1), who=f"client {at}") for at in range(6)]
    served = []
    for sequence, kind in enumerate([F, *[M] * 7], 1):
        write(desk, sequence, (0, kind, sequence))
        served += [ticket for ticket in asked if ticket in desk.answers and ticket not in served]
    assert served == asked


def test_one_who_comes_later_does_not_overtake():
    desk = a_desk(LimiterSpec(min_size=1, samples_per_insert=1.0, error_buffer_inserts=1.0))
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    assert isinstance(desk.ask(sample(1)), Batch)
    large, small = desk.send(sample(100)), desk.send(sample(1))
    assert not desk.answers.keys() & {large, small}
    write(desk, 3, (0, M, 2))
    assert large in desk.answers
    assert small not in desk.answers


def test_samples_of_sixteen_kinds_of_unit_may_wait_and_all_are_answered():
    desk = a_desk()
    waiting = [desk.send(sample(1, n_step=steps)) for steps in range(1, 17)]
    assert "samples of 16 kinds of unit wait at table 't'" in desk.refusal(sample(1, n_step=17))
    waiting.append(desk.send(sample(1, n_step=16)))
    write(desk, 1, (0, F, 0))
    assert not desk.answers.keys() & set(waiting)
    write(desk, 2, (0, END, 1))
    assert desk.answers.keys() >= set(waiting)
    assert desk.ask(sample(1, n_step=17)).key.tolist() == [0]


def test_who_waits_for_fewer_starts_need_not_wait_for_those_who_want_more():
    desk = Desk()
    desk.ask(CreateTable(table="t", spec=spec(sampler=SamplerSpec(kind="fifo"))))
    desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1))
    many, few, more = (desk.send(sample(count)) for count in (5, 2, 6))
    for at, row in enumerate([(0, F, 0), (0, M, 1), (0, M, 2)]):
        write(desk, at + 1, row)
    assert desk.answers.pop(few).key.tolist() == [0, 1]
    for at in range(3, 14):
        write(desk, at + 1, (0, M, at))
    assert desk.answers[many].key.tolist() == [2, 3, 4, 5, 6]
    assert desk.answers[more].key.tolist() == [7, 8, 9, 10, 11, 12]


def write_until_held(desk, sequence):
    """Write steps of one lane until the limiter holds one back; return the next sequence number."""
    while True:
        ticket = write(desk, sequence, (0, F if sequence == 1 else M, 0), timeout_s=0.0)
        desk.pass_time(0.01)
        if not isinstance(desk.answers.pop(ticket), Stacks):
            return sequence
        sequence += 1


def drain(desk, table="t"):
    """Return how many samples can be had one at a time."""
    count = 0
    while True:
        ticket = desk.send(sample(1, table=table, timeout_s=0.0))
        desk.pass_time(0.01)
        if not isinstance(desk.answers.pop(ticket), Batch):
            return count
        count += 1


@pytest.mark.parametrize("draws", [1, 3, 7])
@pytest.mark.parametrize("kind", ["lifo", "uniform", "epoch", "fifo"])
def test_a_stack_holds_as_many_however_often_the_ring_turns(kind, draws):
    """A lifo leaves its oldest starts lying until they are overwritten: nobody will ever draw those."""
    desk = Desk()
    made = spec(60, 1, sampler=SamplerSpec(kind=kind, max_times_sampled=1), limiter=LimiterSpec.stack(10))
    desk.ask(CreateTable(table="t", spec=made))
    desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1))
    sequence = 1
    for _ in range(400 // draws):
        sequence = write_until_held(desk, sequence)
        assert len(desk.ask(sample(draws)).key) == draws
    write_until_held(desk, sequence)
    assert drain(desk) == 10


def test_a_queue_on_rows_that_were_there_counts_them():
    desk = a_desk(lanes=1)
    for sequence in range(1, 32):
        write(desk, sequence, (0, F if sequence == 1 else M, 0))
    queue = spec(100, sampler=SamplerSpec(kind="fifo"), limiter=LimiterSpec.queue(10), rows_of="t")
    desk.ask(CreateTable(table="q", spec=queue))
    sequence = write_until_held(desk, 32)
    assert drain(desk, "q") == 31  # of 30 that were there, and the one that opens the table
    sequence = write_until_held(desk, sequence)
    assert drain(desk, "q") == 10


def test_who_waits_for_what_never_comes_lets_no_more_than_a_ring_of_steps_through():
    desk = a_desk(RATIO, lanes=1, capacity=50)
    sequence = write_until_held(desk, 1)
    desk.send(sample(1, unit=Episode(max_steps=1), timeout_s=3600.0))
    assert write_until_held(desk, sequence) - sequence == 50


def test_a_refused_sample_acknowledges_nothing():
    desk = a_desk()
    for at, kind in enumerate([F, M, M]):
        write(desk, at + 1, (0, kind, at))
    desk.ask(sample(2, session="s", lease=1))
    assert "lease 1 is asked for, and all up to 1" in desk.refusal(
        sample(2, session="s", lease=1, consumed=1)
    )
    assert (desk.table()["samples"], desk.table()["leased"]) == (0, 2)


def test_no_more_is_drawn_at_once_than_can_be_in_a_moment_where_starts_are_used_up():
    desk = Desk()
    for kind in ("uniform", "prioritized", "epoch", "lifo"):
        limited = SamplerSpec(kind=kind, max_times_sampled=3)
        desk.ask(CreateTable(table=kind, spec=spec(10_000, sampler=limited)))
        if kind == "lifo":
            desk.send(sample(4097, table=kind))  # these are taken off the end in one go
        else:
            assert "batch_size 4097 is more than the 4096" in desk.refusal(sample(4097, table=kind))


def test_two_writers_inserts_wait_in_their_order():
    desk = a_desk(RATIO)
    desk.ask(OpenWriter(table="t", writer="x", incarnation=1, lanes=1))
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    first = write(desk, 6, (0, M, 6))
    second = write(desk, 1, (0, F, 20), writer="x")
    assert not desk.answers.keys() & {first, second}
    desk.ask(sample(9))
    assert desk.answers[first].key.tolist() == [5]
    assert desk.answers[second].key.tolist() == [6]


@pytest.mark.parametrize("other_n_step", [None, 1])
def test_an_insert_is_let_through_when_samplers_can_find_no_start_without_it(other_n_step):
    """The limiter alone would hold both sides for ever: inserts are ahead, and no start is complete."""
    desk = a_desk(LimiterSpec(min_size=1, samples_per_insert=1.0, error_buffer_inserts=1.0), lanes=3)
    write(desk, 1, *((lane, F, lane) for lane in range(3)))
    write(desk, 2, *((lane, M, lane) for lane in range(3)))
    if other_n_step:
        desk.ask(sample(1, other_n_step))
    held = write(desk, 3, *((lane, M, lane) for lane in range(3)))
    assert held not in desk.answers
    asked = desk.send(sample(4, n_step=3))
    assert held in desk.answers
    assert asked not in desk.answers
    write(desk, 4, *((lane, M, lane) for lane in range(3)))
    assert isinstance(desk.answers[asked], Batch)
    assert desk.answers[asked].key.tolist()


def test_a_parked_write_that_comes_again_is_applied_once():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    first = write(desk, 6, (0, M, 6))
    again = desk.send(observe(6, [(0, M, 6)]), who="me, through a new socket")
    assert desk.table()["limiter"]["waiting_inserts"] == 1
    desk.ask(sample(1))
    assert first not in desk.answers
    assert desk.answers[again].key.tolist() == [5]
    assert desk.table()["steps_ever"] == 6
    once_more = desk.ask(observe(6, [(0, M, 6)]))
    assert once_more.stack.tobytes() == desk.answers[again].stack.tobytes()
    assert desk.table()["steps_ever"] == 6


def test_a_write_that_timed_out_may_come_again():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6), timeout_s=2.0)
    desk.pass_time(2.0)
    assert desk.answers[held].code == WaitTimeoutError.code
    desk.ask(sample(1))
    assert desk.ask(observe(6, [(0, M, 6)])).key.tolist() == [5]


def test_a_parked_write_of_a_replaced_incarnation_is_fenced():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6))
    desk.ask(OpenWriter(table="t", writer="w", incarnation=2, lanes=1))
    desk.ask(sample(1))
    assert desk.answers[held].code == "FENCED"
    assert desk.table()["steps_ever"] == 5


def test_a_write_that_fits_no_table_is_refused_without_waiting():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    reward = np.array([np.nan], np.float32)
    assert "the reward of lane 0 is nan" in desk.refusal(observe(6, [(0, M, 6)], reward=reward))
    assert desk.table()["limiter"]["waiting_inserts"] == 0


def test_a_parked_write_that_cannot_be_stored_is_refused_when_its_turn_comes():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, F, 6))
    desk.ask(sample(1))
    assert "got FIRST while its episode is open" in desk.answers[held].message
    assert desk.ask(observe(6, [(0, M, 6)])).key.tolist() == [5]


# time-outs -----------------------------------------------------------------------------------------


def test_a_sample_from_an_empty_table_times_out_and_says_what_it_waited_for():
    desk = a_desk()
    asked = desk.send(sample(5, timeout_s=3.0))
    assert desk.service.patience_s() == 3.0
    desk.pass_time(2.9)
    assert asked not in desk.answers
    assert desk.service.patience_s() == pytest.approx(0.1)
    desk.pass_time(0.1)
    reply = desk.answers[asked]
    assert reply.code == WaitTimeoutError.code
    for part in ("'sample' at table 't' waited 3 s", "has 0 inserts and needs 1", "1 more insert"):
        assert part in reply.message
    assert desk.service.patience_s() is None


def test_a_sample_that_found_no_start_says_so():
    desk = a_desk()
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    asked = desk.send(sample(5, n_step=4, timeout_s=0.0))
    desk.pass_time(0.0)
    assert "none of the 2 steps can be started from yet" in desk.answers[asked].message
    assert "the 4 steps after it" in desk.answers[asked].message


@pytest.mark.parametrize("side", ["insert", "sample"])
def test_who_waits_for_the_other_side_is_told_the_numbers(side):
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    if side == "insert":
        asked = write(desk, 6, (0, M, 6), timeout_s=1.0)
        said = ["'observe'", "4 inserts have been made and 0 transitions drawn", "to be drawn: 1"]
    else:
        desk.ask(sample(16))
        asked = desk.send(sample(1, timeout_s=1.0))
        said = ["'sample'", "16 transitions have been drawn for 4 inserts", "still needed: 1"]
    desk.pass_time(1.0)
    for part in (*said, "samples_per_insert 4.0", "error_buffer_inserts 2.0"):
        assert part in desk.answers[asked].message
    assert desk.table()["limiter"]["waiting_inserts"] == desk.table()["limiter"]["waiting_samples"] == 0


def test_only_those_whose_time_has_come_are_sent_away():
    desk = a_desk()
    short, long = desk.send(sample(1, timeout_s=1.0)), desk.send(sample(1, timeout_s=9.0))
    shorter = desk.send(sample(1, timeout_s=0.5))
    desk.pass_time(1.0)
    assert desk.answers.keys() >= {short, shorter}
    assert long not in desk.answers
    assert desk.service.patience_s() == 8.0


def test_a_sample_that_finds_no_start_holds_up_nobody():
    desk = a_desk()
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    lacks_a_start = desk.send(sample(1, n_step=9, timeout_s=1.0))
    assert isinstance(desk.ask(sample(1, timeout_s=5.0)), Batch)
    desk.pass_time(1.0)
    assert desk.answers[lacks_a_start].code == WaitTimeoutError.code


def test_a_new_incarnation_has_the_old_ones_parked_write_refused():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    parked = write(desk, 6, (0, M, 6), timeout_s=1000.0)
    assert parked not in desk.answers
    desk.ask(OpenWriter(table="t", writer="w", incarnation=9, lanes=1))
    assert desk.answers[parked].code == FencedError.code


def test_an_opening_that_is_refused_leaves_the_parked_write_alone():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    parked = write(desk, 6, (0, M, 6), timeout_s=1000.0)
    desk.ask(OpenWriter(table="t", writer="w", incarnation=9, lanes=60_000))
    assert parked not in desk.answers


def test_an_end_that_a_new_incarnation_brings_wakes_who_waits_for_a_start():
    desk = a_desk()
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    waits = desk.send(sample(1, n_step=3, timeout_s=5.0))
    assert waits not in desk.answers
    desk.ask(OpenWriter(table="t", writer="w", incarnation=9, lanes=1))
    assert isinstance(desk.answers[waits], Batch)


# hello, info, reports ------------------------------------------------------------------------------


def test_a_hello_is_answered_with_version_and_tables():
    desk = a_desk(version="1.2.3")
    assert desk.ask(Hello(client="c")) == Welcome(server="1.2.3", tables={"t": signature()})
    assert isinstance(desk.ask(Hello(client="c", expects={"t": signature()})), Welcome)


def test_creating_the_same_table_again_finds_it():
    desk = a_desk()
    assert desk.ask(CreateTable(table="t", spec=spec())) == TableCreated(created=False)


def test_info_tells_what_is_there():
    desk = a_desk(capacity=4 * 3)
    for sequence, kind in enumerate([F, M, CUT, *[F, M, CUT] * 5], 1):
        write(desk, sequence, (0, kind, 1))
        desk.clock.now += 0.5
    desk.ask(sample(8))
    desk.ask(Report(source="actor-0", doing="plays", metrics={"score": 3.0, "loss": math.nan}))
    desk.clock.now += 2.0
    desk.ask(sample(1, table="nowhere"))
    info = desk.info()
    assert isinstance(info, Info)
    assert info.server["uptime_s"] == 11.0
    assert info.server["refused_requests"] == 1
    table = info.tables["t"]
    wanted = {
        "capacity_steps": 12,
        "steps": 12,
        "steps_ever": 18,
        "inserts": 12,
        "samples": 8,
        "episodes": 6,
        "mean_return": 20.0,
        "mean_length": 2.0,
    }
    assert table | wanted == table
    assert table["signature"]["frame"] == "(2,) <i4"
    assert table["signature"]["n_frames"] == "3"
    assert table["inserts_per_s"] == pytest.approx(12 / 10, rel=0.2)
    writer = table["writers"]["w"]
    assert writer == {
        "incarnation": 1,
        "sequence": 18,
        "lanes": 2,
        "memory": "socket",
        "idle_s": 2.5,
    }
    report = info.reports["actor-0"]
    assert (report["age_s"], report["doing"], report["metrics"]["score"]) == (2.0, "plays", 3.0)


def test_a_source_has_one_report_and_the_newest_sources_are_kept():
    desk = Desk()
    assert desk.ask(Report(source="a", doing="old")) == Done()
    desk.ask(Report(source="a", doing="new"))
    assert [report["doing"] for report in desk.info().reports.values()] == ["new"]
    for at in range(256):
        desk.ask(Report(source=f"s{at}"))
    assert len(desk.info().reports) == 256
    assert "a" not in desk.info().reports
    desk.pass_time(61.0)
    assert desk.info().reports == {}


def test_steps_of_a_memory_that_is_gone_are_not_mistaken_for_those_under_the_same_keys():
    desk = a_desk()
    write(desk, 1, (0, F, 0))
    number = desk.service._catalog["t"].table.memory.number
    key = np.array([0])
    assert isinstance(desk.ask(StackQuery(table="t", key=key, memory=number)), Stacks)
    assert isinstance(desk.ask(StackQuery(table="t", key=key)), Stacks)
    said = desk.refusal(StackQuery(table="t", key=key, memory=number + 1), EvictedError)
    assert "it was made anew; open the writer again" in said
