"""Tables that are created, listed, changed, reset and dropped."""

import os

import numpy as np
import pytest

from fornix.common.errors import (
    SignatureError,
    UnknownTableError,
    UnknownWriterError,
)
from fornix.common.messages import (
    Batch,
    CreateTable,
    Done,
    DropTable,
    ListTables,
    MapTable,
    OpenWriter,
    ResetTable,
    SetLimiter,
    Stacks,
    TableCreated,
    TableMap,
)
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, SamplerSpec, Sequence, TableSpec

from .builders import END, F, M, observe, sample, signature, spec
from .desk import RATIO, Desk, a_desk, lasting, write


def in_bytes(nbytes, **changes):
    return TableSpec(signature=signature(), capacity_bytes=nbytes, **changes)


# created and listed --------------------------------------------------------------------------------


def test_tables_are_listed_with_what_they_are():
    desk = Desk()
    assert desk.ask(ListTables()).tables == {}
    made = {"a": spec(50), "b": spec(60, limiter=RATIO), "c": spec(9, sampler=SamplerSpec(kind="lifo"))}
    for name, one in made.items():
        desk.ask(CreateTable(table=name, spec=one))
    assert desk.ask(ListTables()).tables == made


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (spec(99), "capacity_steps: the table has 100, asked for is 99"),
        (spec(limiter=LimiterSpec(min_size=2)), "limiter: the table has LimiterSpec(min_size=1, "),
        (spec(sampler=SamplerSpec(kind="fifo")), "sampler: the table has SamplerSpec(kind='uniform', "),
        (spec(rows_of="s"), "rows_of: the table has None, asked for is 's'"),
        (
            spec(frame=ArraySpec.of((3,), np.int32)),
            "frame: the table holds (2,) <i4, the client expects",
        ),
        (spec(n_frames=2), "n_frames: the table holds 3, the client expects 2"),
    ],
)
def test_a_table_that_is_there_is_found_or_the_difference_told(other, said):
    desk = a_desk()
    assert desk.ask(CreateTable(table="t", spec=spec())) == TableCreated(created=False)
    message = desk.refusal(CreateTable(table="t", spec=other), SignatureError)
    assert said in message
    assert message.endswith("use another table name")
    assert desk.ask(ListTables()).tables == {"t": spec()}


def test_nested_frames_differ_leaf_by_leaf():
    board, flag = ArraySpec.of((2,), np.int32), ArraySpec.of((), np.bool_)
    desk = Desk()
    desk.ask(CreateTable(table="t", spec=spec(frame={"board": board, "more": (flag, flag)})))
    other = spec(frame={"board": board, "more": (flag, board)})
    message = desk.refusal(CreateTable(table="t", spec=other), SignatureError)
    assert "frame.more.1: the table holds () |b1, the client expects (2,) <i4" in message
    assert "frame.board" not in message


def test_a_capacity_in_bytes_becomes_as_many_steps_as_fit():
    desk = Desk(memory_bytes=1_000_000)
    assert desk.ask(CreateTable(table="t", spec=in_bytes(100_000))) == TableCreated(created=True)
    made = desk.ask(ListTables()).tables["t"]
    assert made.capacity_bytes is None
    taken = desk.table()["memory_bytes"]
    one_more = made.model_copy(update={"capacity_steps": made.steps + 1})
    assert taken <= 100_000
    desk.ask(CreateTable(table="u", spec=one_more))
    assert desk.table("u")["memory_bytes"] > 100_000
    assert desk.ask(CreateTable(table="t", spec=in_bytes(100_000))) == TableCreated(created=False)
    assert desk.ask(CreateTable(table="t", spec=made)) == TableCreated(created=False)
    assert "capacity_steps: the table has" in desk.refusal(
        CreateTable(table="t", spec=in_bytes(90_000)), SignatureError
    )


def test_each_kind_of_unit_that_is_drawn_takes_memory():
    desk = a_desk(capacity=100)
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, END, 1))
    units = [Sequence(length=4), Sequence(length=4, burn_in=1), Sequence(length=5)]
    taken = []
    for unit in units:
        desk.ask(sample(1, unit=unit))
        taken.append(desk.table()["memory_bytes"])
    assert taken[0] == taken[1] == taken[2] - 100 * 17


@pytest.mark.parametrize("nbytes", [1, 60])
def test_a_capacity_in_bytes_that_holds_no_two_steps_is_refused(nbytes):
    desk = Desk()
    message = desk.refusal(CreateTable(table="t", spec=in_bytes(nbytes)))
    assert f"capacity_bytes {nbytes:,} makes" in message
    assert "a table has 2 to 2,147,483,647" in message


@pytest.mark.parametrize("both", [{}, {"capacity_steps": 5, "capacity_bytes": 5}])
def test_a_table_has_one_capacity(both):
    with pytest.raises(ValueError, match="give either capacity_steps or capacity_bytes"):
        TableSpec(signature=signature(), **both)


def test_a_server_has_so_many_tables_and_no_more():
    desk = Desk()
    for at in range(128):
        desk.ask(CreateTable(table=f"t{at}", spec=spec(5)))
    message = desk.refusal(CreateTable(table="more", spec=spec(5)))
    assert message == (
        "the server has 128 tables, and that is the limit; drop one, or start another server"
    )
    assert desk.ask(CreateTable(table="t5", spec=spec(5))) == TableCreated(created=False)
    desk.ask(DropTable(table="t7"))
    assert desk.ask(CreateTable(table="more", spec=spec(5))) == TableCreated(created=True)


REFUSED = {
    "limits that never open": spec(limiter=LimiterSpec(min_size=101)),
    "half a limiter": spec(limiter=LimiterSpec(samples_per_insert=2.0)),
    "too few steps": spec(3),
    "too much memory": spec(2_000_000_000, frame=ArraySpec.of((2**20,), np.int32)),
    "a stack that no message holds": spec(frame=ArraySpec.of((2**28,), np.uint8)),
    "rows of nobody": spec(rows_of="nobody"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("share", [False, True])
def test_a_table_that_is_refused_leaves_nothing_behind(name, share):
    desk = a_desk(share=share)
    before, files = desk.info(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert ";" in desk.ask(CreateTable(table="u", spec=REFUSED[name])).message
    assert lasting(desk.info()) == lasting(before)
    assert len(os.listdir("/proc/self/fd")) == files
    assert desk.ask(CreateTable(table="u", spec=spec())) == TableCreated(created=True)
    desk.service.close()


def test_tables_are_drawn_from_by_seeds_of_their_own():
    desk = Desk()
    for name in ("t", "u"):
        desk.ask(CreateTable(table=name, spec=spec()))
        desk.ask(OpenWriter(table=name, writer="w", incarnation=1, lanes=1))
        for sequence, kind in enumerate([F, *[M] * 30], 1):
            write(desk, sequence, (0, kind, sequence), table=name)
    keys = [desk.ask(sample(20, table=name)).key.tolist() for name in ("t", "u")]
    assert keys[0] != keys[1]


# dropped -------------------------------------------------------------------------------------------


def test_a_table_that_is_dropped_is_gone_with_its_memory():
    desk = a_desk(memory_bytes=10_000)
    write(desk, 1, (0, F, 0))
    assert desk.info().server["memory_bytes"] > 0
    assert desk.ask(DropTable(table="t")) == Done()
    assert desk.info().server["memory_bytes"] == 0
    for request in (observe(2, [(0, M, 1)]), sample(), DropTable(table="t"), ResetTable(table="t")):
        assert "there is no table 't'" in desk.refusal(request, UnknownTableError)
    assert desk.ask(CreateTable(table="t", spec=spec(20, n_frames=1))) == TableCreated(created=True)
    assert desk.table()["steps_ever"] == 0


def test_who_waits_at_a_table_that_is_dropped_is_sent_away_and_no_other():
    desk = a_desk(RATIO)
    desk.ask(CreateTable(table="u", spec=spec()))
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    insert = write(desk, 6, (0, M, 6), timeout_s=500.0)
    desk.ask(OpenWriter(table="u", writer="w", incarnation=1, lanes=1))
    other = desk.send(sample(1, table="u", timeout_s=500.0))
    desk.ask(DropTable(table="t"))
    assert desk.answers[insert].code == UnknownTableError.code
    assert desk.answers[insert].message == "table 't' was dropped; create it first"
    assert other not in desk.answers
    assert desk.service.patience_s() == 500.0
    write(desk, 1, (0, F, 0), table="u")
    write(desk, 2, (0, M, 1), table="u")
    assert isinstance(desk.answers[other], Batch)


def test_samples_that_wait_at_a_table_that_is_dropped_are_sent_away():
    desk = a_desk()
    asked = [desk.send(sample(1, timeout_s=500.0)) for _ in range(3)]
    desk.ask(DropTable(table="t"))
    assert {desk.answers[one].code for one in asked} == {UnknownTableError.code}
    assert desk.service.patience_s() is None


# reset ---------------------------------------------------------------------------------------------


def test_a_reset_sends_away_who_waits_to_write_and_lets_who_samples_wait():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    insert = write(desk, 6, (0, M, 6), timeout_s=500.0)
    assert desk.ask(ResetTable(table="t")) == Done()
    reply = desk.answers[insert]
    assert reply.code == UnknownWriterError.code
    assert reply.message == "table 't' was reset while this waited; open the writer again"
    assert "writer 'w' is not open" in desk.refusal(observe(6, [(0, M, 6)]), UnknownWriterError)
    waits = desk.send(sample(1, timeout_s=500.0))
    assert desk.ask(ResetTable(table="t")) == Done()
    assert waits not in desk.answers
    assert desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1)).sequence == 1
    for sequence, kind in enumerate([F, M, M], 1):
        assert desk.ask(observe(sequence, [(0, kind, sequence)])).key.tolist() == [4 + sequence]
    assert desk.answers[waits].key.tolist()[0] in (5, 6)
    table = desk.table()
    assert (table["steps"], table["steps_ever"], table["inserts"], table["samples"]) == (3, 8, 2, 1)


# limits that change --------------------------------------------------------------------------------


def test_new_limits_release_who_waits_to_write():
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6))
    desk.clock.now += 2.0
    assert desk.ask(SetLimiter(table="t", limiter=LimiterSpec())) == Done()
    assert (desk.answers[held].key.tolist(), desk.answers[held].held_s) == ([5], 2.0)


def test_new_limits_release_who_waits_to_sample():
    desk = a_desk(LimiterSpec(min_size=50))
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    waits = desk.send(sample(3))
    assert desk.ask(SetLimiter(table="t", limiter=LimiterSpec(min_size=2))) == Done()
    assert waits not in desk.answers
    assert desk.ask(SetLimiter(table="t", limiter=LimiterSpec(min_size=1))) == Done()
    assert isinstance(desk.answers[waits], Batch)


def test_a_table_is_found_again_by_what_it_was_created_as():
    desk = a_desk()
    desk.ask(SetLimiter(table="t", limiter=RATIO))
    assert desk.ask(ListTables()).tables["t"].limiter == RATIO
    assert desk.ask(CreateTable(table="t", spec=spec())) == TableCreated(created=False)
    assert desk.ask(ListTables()).tables["t"].limiter == RATIO
    message = desk.refusal(CreateTable(table="t", spec=spec(limiter=RATIO)), SignatureError)
    assert "limiter: the table has LimiterSpec(min_size=1, samples_per_insert=None" in message


def test_limits_must_fit_what_a_table_holds_at_any_time():
    """From 256 steps on, the tail of a ring moves ahead, in blocks: here of two."""
    desk = Desk()
    once = SamplerSpec(kind="fifo")
    fits, too_many = (
        spec(512, limiter=LimiterSpec.queue(size)).model_copy(update={"sampler": once})
        for size in (508, 509)
    )
    message = desk.refusal(CreateTable(table="t", spec=too_many))
    assert "may fall 509 inserts behind and the table holds 508 steps" in message
    assert desk.ask(CreateTable(table="t", spec=fits)) == TableCreated(created=True)
    assert "holds 508 steps" in desk.refusal(SetLimiter(table="t", limiter=LimiterSpec.queue(509)))


def test_a_minimum_size_counts_all_inserts_and_may_be_as_large_as_the_table():
    desk = Desk()
    fits, too_many = (spec(512, limiter=LimiterSpec(min_size=size)) for size in (512, 513))
    assert "min_size 513 is more than the 512" in desk.refusal(CreateTable(table="t", spec=too_many))
    assert desk.ask(CreateTable(table="t", spec=fits)) == TableCreated(created=True)


@pytest.mark.parametrize(
    ("limiter", "said"),
    [
        (LimiterSpec(min_size=101), "min_size 101 is more than the 100 steps"),
        (LimiterSpec(samples_per_insert=1.0), "belong together"),
        (
            LimiterSpec(samples_per_insert=1.0, min_surplus=5.0, max_surplus=5.0),
            "min_surplus 5 is not below max_surplus 5",
        ),
    ],
)
def test_bad_limits_are_refused_and_the_old_ones_stay(limiter, said):
    desk = a_desk(RATIO)
    for sequence, kind in enumerate([F, M, M, M, M], 1):
        write(desk, sequence, (0, kind, sequence))
    held = write(desk, 6, (0, M, 6))
    before = desk.table()
    assert said in desk.refusal(SetLimiter(table="t", limiter=limiter))
    assert desk.table() == before
    assert held not in desk.answers
    desk.ask(sample(1))
    assert isinstance(desk.answers[held], Stacks)


# mapped --------------------------------------------------------------------------------------------


def test_a_memory_that_is_not_shared_can_not_be_mapped():
    desk = a_desk()
    message = desk.refusal(MapTable(table="t"))
    assert message == "the memory of table 't' can't be mapped: this server shares none; use the socket"


def test_tables_of_the_same_rows_have_the_same_memory():
    desk = a_desk(share=True)
    desk.ask(CreateTable(table="u", spec=spec(rows_of="t")))
    desk.ask(CreateTable(table="v", spec=spec()))
    maps = {name: desk.ask(MapTable(table=name)) for name in "tuv"}
    assert all(isinstance(one, TableMap) for one in maps.values())
    assert maps["t"].memory == maps["u"].memory != maps["v"].memory
    assert maps["t"].path == maps["u"].path != maps["v"].path
    write(desk, 1, (0, F, 0))
    answer = desk.ask(observe(2, [(0, M, 1)], mapped=True))
    assert (answer.memory, answer.key.tolist(), answer.stack) == (maps["t"].memory, [1], None)
    batch = desk.ask(sample(2, table="u", mapped=True))
    assert (batch.memory, batch.frame) == (maps["t"].memory, None)
    assert batch.index.tolist() == [[100, 100, 0, 1]] * 2
    desk.service.close()


# signatures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"frame": {}}, "not empty"),
        ({"frame": {"a b": ArraySpec.of((), np.int32)}}, "a part of a frame is named 'a b'"),
        ({"frame": tuple([ArraySpec.of((), np.int32)] * 17)}, "a frame of 17 arrays is refused"),
        ({"frame": ((((({"x": 1},),),),),)}, "at most 4 deep"),
        ({"reward": ArraySpec.of((2,), np.float32)}, "reward is .*; it must be a scalar <f4 or <f8"),
    ],
)
def test_a_signature_that_no_table_can_have_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        signature(**fields)


def test_a_signature_is_the_same_from_lists_and_tuples():
    leaf = {"shape": (2,), "dtype": "<i4"}
    made = Signature(frame=[leaf, {"x": leaf}], action=ArraySpec.of((), np.int32), n_frames=3)
    same = signature(frame=(ArraySpec.of((2,), np.int32), {"x": ArraySpec.of((2,), np.int32)}))
    assert made == same
    assert list(made.frames) == ["0", "1.x"]


def test_a_batch_that_only_its_frame_of_zeros_makes_too_large_is_refused():
    """128 transitions of two frames of 1 MiB each, less a little, just fit a message; not the one more."""
    desk = Desk()
    wide = ArraySpec.of((2**20 - 100,), np.uint8)
    desk.ask(CreateTable(table="t", spec=spec(300, n_frames=1, frame=wide)))
    message = desk.refusal(sample(128))
    assert "a batch of 128 takes 269,468,700 bytes, 2,097,033 for each transition" in message
    assert message.endswith("ask for at most 127")
    asked = desk.send(sample(127))
    assert asked not in desk.answers


def test_the_refusal_of_an_unknown_table_lists_those_that_there_are():
    desk = Desk()
    assert "tables: none yet; create it first" in desk.refusal(sample(), UnknownTableError)
    for name in ("train", "eval"):
        desk.ask(CreateTable(table=name, spec=spec()))
    message = desk.refusal(SetLimiter(table="trian", limiter=LimiterSpec()), UnknownTableError)
    assert message == (
        "there is no table 'trian'; did you mean 'train'?; tables: eval, train; create it first"
    )
