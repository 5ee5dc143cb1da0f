"""Several tables that draw from the same rows, each by a sampler and a limiter of its own."""

import numpy as np
import pytest

from fornix.common.errors import InvalidRequestError, SignatureError, UnknownTableError, WaitTimeoutError
from fornix.common.messages import (
    Batch,
    CreateTable,
    Done,
    DropTable,
    ListTables,
    OpenWriter,
    ResetTable,
    StackQuery,
    Stacks,
    TableCreated,
    UpdatePriorities,
)
from fornix.common.signature import ArraySpec
from fornix.common.specs import Episode, LimiterSpec, SamplerSpec, Sequence, Transition

from .builders import CUT, END, Episodes, F, M, a_stack, a_table, a_table_on, drawn, observe, sample, spec
from .desk import RATIO, Desk, a_desk, write

PRIORITIZED = SamplerSpec(kind="prioritized", priority_exponent=1.0)


def a_group(limiters=(None, None), **options):
    """Return a desk with a table `t` and a writer `w`, and a table `u` that draws from the same rows."""
    desk = a_desk(limiters[0], **options)
    created = desk.ask(CreateTable(table="u", spec=spec(limiter=limiters[1], rows_of="t")))
    assert created == TableCreated(created=True)
    return desk


# what is drawn -------------------------------------------------------------------------------------


def test_tables_draw_from_the_same_rows_each_in_its_own_way():
    table = a_table(n_frames=3)
    queue = a_table_on(table.memory, 100, 2, SamplerSpec(kind="fifo"))
    writer = Episodes(table)
    writer.steps(F, M, M, END)
    assert queue.sample(sample(2)).key.tolist() == [0, 1]
    assert queue.sample(sample(1)).key.tolist() == [2]
    assert queue.starts(Transition()).tolist() == []
    assert table.starts(Transition()).tolist() == [0, 1, 2]
    assert (table.limiter.samples, queue.limiter.samples) == (0, 3)
    assert (table.limiter.inserts, queue.limiter.inserts) == (3, 3)


def test_a_table_of_fewer_frames_has_shorter_stacks():
    table = a_table(n_frames=4)
    short = a_table_on(table.memory, 100, 2)
    Episodes(table).steps(F, M, M, M, CUT)
    row = drawn(short, Transition(n_step=2))[3]
    assert np.array_equal(row["window"], a_stack(2, 3, 4, None))
    assert np.array_equal(drawn(table, Transition(n_step=2))[3]["window"], a_stack(0, 1, 2, 3, 4, None))
    assert np.array_equal(short.stacks(np.array([0, 3])).stack, [a_stack(None, 0), a_stack(2, 3)])


def test_a_smaller_table_draws_from_its_newest_steps():
    table = a_table(capacity=12, n_frames=2)
    small = a_table_on(table.memory, 5, 2)
    for unit in (Transition(), Sequence(length=2)):
        small.starts(unit)
    writer = Episodes(table)
    writer.steps(F, *[M] * 9)
    assert table.starts(Transition()).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert small.starts(Transition()).tolist() == [5, 6, 7, 8]
    assert small.starts(Sequence(length=2)).tolist() == [6]
    assert len(small) == 5
    # what is in a stack may be older than what may be drawn
    assert np.array_equal(drawn(small, Transition())[5]["stack"], a_stack(4, 5))
    writer.steps(*[M] * 5, begin=10)
    assert table.starts(Transition()).tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert small.starts(Transition()).tolist() == [10, 11, 12, 13]


def test_a_request_may_have_more_rows_than_a_small_table():
    table = a_table(capacity=30, n_frames=2)
    small = a_table_on(table.memory, 4, 2, PRIORITIZED)
    small.starts(Transition())
    writer = Episodes(table, lanes=2)
    for begin in (0, 15):
        rows = [(at % 2, F if begin + at < 2 else M, at) for at in range(15)]
        writer.write(*rows, stacks=False)
        head = begin + 15
        starts = [key for key in table.starts(Transition()).tolist() if key >= head - 4]
        assert small.starts(Transition()).tolist() == starts != []
        assert set(drawn(small, Transition())) == set(starts)
    assert small.limiter.inserts == table.limiter.inserts


def test_a_table_that_comes_later_draws_from_what_is_there_and_counts_what_comes():
    table = a_table(capacity=20, n_frames=2)
    writer = Episodes(table)
    writer.steps(F, *[M] * 7)
    late = a_table_on(table.memory, 5, 2, limiter=LimiterSpec(min_size=2))
    assert len(late) == 5
    assert late.starts(Transition()).tolist() == [3, 4, 5, 6]
    assert late.sample(sample(1)) is None
    assert "has 0 inserts and needs 2" in late.why_no_sample(sample(1))
    writer.steps(M, M)
    assert late.starts(Transition()).tolist() == [5, 6, 7, 8]
    assert (late.limiter.inserts, table.limiter.inserts) == (2, 9)
    assert late.sample(sample(4)) is not None


def test_priorities_are_each_tables_own():
    table = a_table(n_frames=2, sampler=PRIORITIZED)
    other = a_table_on(table.memory, 3, 2, PRIORITIZED)
    Episodes(table).steps(F, M, M, M, M)
    request = UpdatePriorities(table="t", key=np.array([1, 3]), priority=np.array([0.0, 9.0]))
    reply = other.update_priorities(request)
    assert (reply.applied, reply.ignored) == (1, 1)  # it has the steps from 2 on
    assert {key: row["probability"] for key, row in drawn(other, Transition()).items()} == {2: 0.1, 3: 0.9}
    assert {row["probability"] for row in drawn(table, Transition()).values()} == {0.25}


def test_a_table_that_draws_no_more_is_told_of_no_steps():
    table = a_table(n_frames=2)
    other = a_table_on(table.memory, 50, 2)
    other.close()
    Episodes(table).steps(F, M)
    assert (table.limiter.inserts, other.limiter.inserts) == (1, 0)


# who waits for whom --------------------------------------------------------------------------------


def test_an_insert_waits_while_any_table_of_the_group_holds_it():
    desk = a_group((None, RATIO))
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6), timeout_s=9.0)
    assert held not in desk.answers
    assert desk.table("t")["limiter"]["waiting_inserts"] == 1
    assert desk.table("u")["limiter"]["waiting_inserts"] == 0
    desk.ask(sample(50))  # of the other table: opens nothing
    assert held not in desk.answers
    assert isinstance(desk.ask(sample(1, table="u")), Batch)
    assert isinstance(desk.answers[held], Stacks)
    assert (desk.table("t")["inserts"], desk.table("u")["inserts"]) == (5, 5)


@pytest.mark.parametrize("closed", ["t", "u"])
def test_an_insert_that_waited_in_vain_is_told_which_table_held_it(closed):
    desk = a_group((RATIO, None) if closed == "t" else (None, RATIO))
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6), timeout_s=1.0)
    desk.pass_time(1.0)
    reply = desk.answers[held]
    assert reply.code == WaitTimeoutError.code
    who = {"t": "", "u": "table 'u', which draws from the same rows: "}[closed]
    wanted = f"'observe' at table 't' waited 1 s: {who}4 inserts have been made and 0 transitions drawn"
    assert reply.message.startswith(wanted)
    assert "transitions still to be drawn: 1" in reply.message


def test_an_insert_wakes_who_waits_at_any_table_of_the_group():
    desk = a_group((LimiterSpec(min_size=1), LimiterSpec(min_size=2)))
    one, two = desk.send(sample(1)), desk.send(sample(1, table="u"))
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    assert one in desk.answers
    assert two not in desk.answers
    write(desk, 3, (0, M, 2))
    assert isinstance(desk.answers[two], Batch)


def test_an_insert_is_let_through_where_a_sample_of_another_table_lacks_a_start():
    """Both limiters would hold inserts; the one table's sampler waits for its third step."""
    tight = LimiterSpec(min_size=1, samples_per_insert=1.0, error_buffer_inserts=1.0)
    desk = a_group((None, tight), lanes=1)
    for sequence, kind in enumerate([F, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 4, (0, M, 4))
    assert held not in desk.answers
    waits = desk.send(sample(1, n_step=3, table="u"))
    assert isinstance(desk.answers[held], Stacks)
    assert isinstance(desk.answers[waits], Batch)


def test_a_table_that_is_dropped_holds_nobody_back_and_sends_away_who_waits_at_it():
    desk = a_group((None, LimiterSpec(min_size=2, samples_per_insert=1.0, error_buffer_inserts=1.0)))
    waits = desk.send(sample(1, table="u", timeout_s=500.0))
    for sequence, kind in enumerate([F, M], 1):
        write(desk, sequence, (0, kind, sequence))
    assert waits not in desk.answers
    write(desk, 3, (0, M, 3))
    assert isinstance(desk.answers.pop(waits), Batch)
    for sequence in (4, 5):
        write(desk, sequence, (0, M, sequence))
    held = write(desk, 6, (0, M, 6), timeout_s=500.0)
    lacks = desk.send(sample(1, n_step=60, table="u", timeout_s=500.0))
    assert isinstance(desk.answers.pop(held), Stacks)  # since a sample lacks a start
    assert desk.ask(DropTable(table="u")) == Done()
    reply = desk.answers[lacks]
    assert (reply.code, reply.message) == (
        UnknownTableError.code,
        "table 'u' was dropped; create it first",
    )
    assert isinstance(desk.ask(observe(7, [(0, M, 7)])), Stacks)


def test_an_insert_that_a_dropped_table_held_goes_ahead():
    desk = a_group((None, RATIO))
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6))
    assert held not in desk.answers
    desk.ask(DropTable(table="u"))
    assert desk.answers[held].key.tolist() == [5]


# together at the server ----------------------------------------------------------------------------


def test_rows_that_others_draw_from_can_not_be_dropped():
    desk = a_group()
    desk.ask(CreateTable(table="v", spec=spec(rows_of="t")))
    message = desk.refusal(DropTable(table="t"))
    assert message == "u, v draw from the rows of table 't'; drop them first"
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    assert isinstance(desk.ask(sample(1, table="v")), Batch)
    for name in ("v", "u", "t"):
        assert desk.ask(DropTable(table=name)) == Done()
    assert desk.info().tables == {}


def test_a_reset_forgets_for_all_tables_of_the_group():
    desk = a_group((None, RATIO))
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6), timeout_s=500.0)
    waits = desk.send(sample(1, n_step=30, table="u", timeout_s=500.0))
    assert held in desk.answers
    write(desk, 7, (0, M, 7))
    assert desk.ask(ResetTable(table="t")) == Done()
    for name in ("t", "u"):
        table = desk.table(name)
        assert (table["steps"], table["inserts"], table["samples"], table["leased"]) == (0, 0, 0, 0)
    assert waits not in desk.answers  # new steps can still bring what it waits for
    assert desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1)).sequence == 1
    for sequence in range(1, 32):
        write(desk, sequence, (0, F if sequence == 1 else M, sequence))
    assert isinstance(desk.answers[waits], Batch)


@pytest.mark.parametrize(
    "request_",
    [
        OpenWriter(table="u", writer="x", incarnation=1, lanes=1),
        observe(1, [(0, F, 0)], table="u"),
        ResetTable(table="u"),
    ],
    ids=["open", "observe", "reset"],
)
def test_what_is_for_the_rows_is_refused_at_a_table_that_has_none(request_):
    desk = a_group()
    assert desk.refusal(request_) == (
        "table 'u' draws from the rows of 't', and has none of its own; name 't' instead"
    )


BAD_GROUPS = {
    "rows of a table that has none": (
        spec(rows_of="u"),
        InvalidRequestError,
        ["'u' draws from the rows of 't', and has none of its own"],
    ),
    "rows of an unknown table": (
        spec(rows_of="tt"),
        UnknownTableError,
        ["no table 'tt'; did you mean 't'?"],
    ),
    "rows of itself": (spec(rows_of="v"), UnknownTableError, ["no table 'v'", "create it first"]),
    "more steps": (
        spec(101, rows_of="t"),
        InvalidRequestError,
        ["'v' asks for n_frames 3 and 101 steps", "which has n_frames 3 and 100 steps; ask for no more"],
    ),
    "more frames": (
        spec(100, n_frames=4, rows_of="t"),
        InvalidRequestError,
        ["asks for n_frames 4 and 100 steps", "ask for no more than it has"],
    ),
    "other frames": (
        spec(frame=ArraySpec.of((3,), np.int32), rows_of="t"),
        SignatureError,
        ["table 't' has another signature", "frame: the table holds (2,) <i4", "expects (3,) <i4"],
    ),
    "too few steps": (
        spec(3, rows_of="t"),
        InvalidRequestError,
        ["3 steps can't hold a stack of 3 frames", "raise capacity_steps to 4"],
    ),
    "a size that it could never have": (
        spec(50, limiter=LimiterSpec(min_size=51), rows_of="t"),
        InvalidRequestError,
        ["min_size 51", "50 steps"],
    ),
}


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_a_table_that_can_not_draw_from_the_rows_is_refused_and_disturbs_nobody(name):
    wrong, kind, said = BAD_GROUPS[name]
    desk = a_group()
    before = desk.info().tables
    message = desk.refusal(CreateTable(table="v", spec=wrong), kind)
    assert all(part in message for part in said), message
    assert desk.info().tables == before
    for sequence, at in ((1, F), (2, M)):
        assert isinstance(desk.ask(observe(sequence, [(0, at, sequence)])), Stacks)
    assert isinstance(desk.ask(sample(1, table="u")), Batch)


def test_stacks_are_asked_for_at_any_table_of_the_group():
    desk = a_desk()
    desk.ask(CreateTable(table="u", spec=spec(10, n_frames=1, rows_of="t")))
    for sequence, kind in enumerate([F, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    assert np.array_equal(desk.ask(StackQuery(table="u", key=np.array([2]))).stack, [a_stack(3)])
    assert np.array_equal(desk.ask(StackQuery(table="t", key=np.array([2]))).stack, [a_stack(1, 2, 3)])


def test_the_list_and_the_info_tell_whose_rows_a_table_draws():
    desk = a_group()
    write(desk, 1, (0, F, 0))
    specs = desk.ask(ListTables()).tables
    assert {name: made.rows_of for name, made in specs.items()} == {"t": None, "u": "t"}
    own, other = desk.table("t"), desk.table("u")
    assert (own["rows_of"], other["rows_of"]) == (None, "t")
    assert (own["writers_open"], other["writers_open"], other["writers"]) == (1, 0, {})
    assert own["steps_ever"] == other["steps_ever"] == 1


def test_a_small_table_takes_memory_for_all_rows_that_it_looks_at():
    desk = Desk(memory_bytes=100_000)
    desk.ask(CreateTable(table="t", spec=spec(1000)))
    before = desk.info().server["memory_bytes"]
    desk.ask(CreateTable(table="u", spec=spec(10, rows_of="t")))
    taken = desk.info().server["memory_bytes"] - before
    assert taken == desk.table("u")["memory_bytes"] >= 1000
    refused = None
    for at in range(20):
        reply = desk.ask(CreateTable(table=f"v{at}", spec=spec(10, rows_of="t")))
        if not isinstance(reply, TableCreated):
            refused = reply.message
            break
    assert f"table 'v{at}' would take {taken:,} bytes" in refused
    assert "drop a table, or start the server with more memory" in refused
    assert desk.info().server["memory_bytes"] <= 100_000


def test_episodes_are_drawn_from_shared_rows_too():
    desk = a_group()
    for sequence, kind in enumerate([F, M, CUT], 1):
        write(desk, sequence, (0, kind, sequence))
    batch = desk.ask(sample(2, table="u", unit=Episode()))
    assert (batch.key.tolist(), batch.steps.tolist()) == ([0, 0], [2, 2])
