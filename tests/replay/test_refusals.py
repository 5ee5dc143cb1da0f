import numpy as np
import pytest

from fornix.common.errors import (
    EvictedError,
    InvalidRequestError,
    SignatureError,
    UnknownTableError,
    UnknownWriterError,
)
from fornix.common.messages import (
    Batch,
    CreateTable,
    Hello,
    LimiterSpec,
    OpenWriter,
    Refused,
    StackQuery,
    TableCreated,
)
from fornix.common.signature import ArraySpec

from .builders import F, M, a_stack, observe, sample, signature, spec
from .desk import RATIO, Desk, a_desk, lasting, write

WIDE = spec(100, frame=ArraySpec.of((1000,), np.uint8))
BAD = {
    "frame of another shape": (
        observe(3, [(0, M, 2)], frame=np.zeros((1, 1, 2), np.int32)),
        InvalidRequestError,
        ["(1, 1, 2)", "(1, 2)"],
    ),
    "frame of another dtype": (
        observe(3, [(0, M, 2)], frame=np.zeros((1, 2), np.float32)),
        InvalidRequestError,
        ["<f4", "<i4"],
    ),
    "too many frames": (
        observe(3, [(0, M, 2)], frame=np.zeros((2, 2), np.int32)),
        InvalidRequestError,
        ["(2, 2)", "(1, 2)"],
    ),
    "no lanes": (
        observe(3, [(0, M, 2)], lane=np.zeros(0, np.int32)),
        InvalidRequestError,
        ["(0,)", "K from 1 to 50"],
    ),
    "a lane too far": (observe(3, [(2, M, 2)]), InvalidRequestError, ["lane holds 2", "0 to 1"]),
    "NaN": (
        observe(3, [(0, M, 2)], reward=np.array([np.nan], np.float32)),
        InvalidRequestError,
        ["lane 0 is nan", "finite"],
    ),
    "infinity": (
        observe(3, [(0, M, 2)], reward=np.array([-np.inf], np.float32)),
        InvalidRequestError,
        ["lane 0 is -inf", "finite"],
    ),
    "a gap": (observe(4, [(0, M, 2)]), None, ["request 4", "3 is expected"]),
    "an old incarnation": (observe(3, [(0, M, 2)], incarnation=0), None, ["0", "replaced by 1"]),
    "an unknown writer": (
        observe(3, [(0, M, 2)], writer="v"),
        UnknownWriterError,
        ["'v'", "open it first"],
    ),
    "write to an unknown table": (
        observe(3, [(0, M, 2)], table="tt"),
        UnknownTableError,
        ["'tt'", "did you mean 't'?", "tables: t, wide;", "create it first"],
    ),
    "sample from an unknown table": (sample(table="T"), UnknownTableError, ["'T'", "tables: t"]),
    "stack of an unknown table": (
        StackQuery(table="u", key=np.zeros(1, np.int64)),
        UnknownTableError,
        ["'u'", "tables: t"],
    ),
    "writer of an unknown table": (
        OpenWriter(table="u", writer="w", incarnation=1, lanes=1),
        UnknownTableError,
        ["'u'"],
    ),
    "hello with an unknown table": (
        Hello(client="c", expects={"u": signature()}),
        UnknownTableError,
        ["'u'", "tables: t"],
    ),
    "keys of another dtype": (
        StackQuery(table="t", key=np.zeros(1, np.int32)),
        InvalidRequestError,
        ["<i4", "<i8 [K]"],
    ),
    "keys of another shape": (
        StackQuery(table="t", key=np.zeros((1, 1), np.int64)),
        InvalidRequestError,
        ["(1, 1)", "<i8 [K]"],
    ),
    "a key that is gone": (
        StackQuery(table="t", key=np.array([77])),
        EvictedError,
        ["step 77", "0 to 1"],
    ),
    "another signature": (
        CreateTable(table="t", spec=spec(frame=ArraySpec.of((1, 2), np.int32))),
        SignatureError,
        ["holds (2,) <i4", "expects (1, 2) <i4", "another table name"],
    ),
    "another capacity": (
        CreateTable(table="t", spec=spec(capacity=99)),
        SignatureError,
        ["capacity_steps: the table has 100, asked for is 99", "use another table name"],
    ),
    "another limiter": (
        CreateTable(table="t", spec=spec(limiter=RATIO)),
        SignatureError,
        ["samples_per_insert=None", "samples_per_insert=4.0"],
    ),
    "a limiter that never opens": (
        CreateTable(table="u", spec=spec(limiter=LimiterSpec(min_size=101))),
        InvalidRequestError,
        ["min_size 101", "100 steps", "lower min_size"],
    ),
    "half a limiter": (
        CreateTable(table="u", spec=spec(limiter=LimiterSpec(samples_per_insert=1.0))),
        InvalidRequestError,
        ["belong together"],
    ),
    "more than the memory": (
        CreateTable(table="u", spec=spec(10_000_000)),
        InvalidRequestError,
        ["would take", "of 1,000,000 are left", "lower capacity_steps to"],
    ),
    "too many lanes": (
        OpenWriter(table="t", writer="v", incarnation=1, lanes=26),
        InvalidRequestError,
        ["26 lanes need at least 104 steps", "has 100"],
    ),
    "other lanes": (
        OpenWriter(table="t", writer="w", incarnation=1, lanes=1),
        InvalidRequestError,
        ["2 lanes, not 1"],
    ),
    "a batch too large to send": (
        sample(65_536, n_step=64, table="wide"),
        InvalidRequestError,
        ["a batch of 65536", "ask for at most"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_a_sentence_and_changes_nothing(name):
    request, kind, said = BAD[name]
    desk = a_desk(memory_bytes=1_000_000)
    desk.ask(CreateTable(table="wide", spec=WIDE))
    other = OpenWriter(table="t", writer="other", incarnation=1, lanes=1)
    desk.ask(other)
    for sequence, at in ((1, F), (2, M)):
        write(desk, sequence, (0, at, sequence))
    before = desk.info()
    reply = desk.ask(request)
    after = desk.info()
    assert isinstance(reply, Refused)
    assert kind is None or reply.code == kind.code
    assert all(part in reply.message for part in said), reply.message
    assert "\n" not in reply.message
    assert lasting(after) == lasting(before)
    assert after.server["refused_requests"] == before.server["refused_requests"] + 1
    # nobody else has noticed, and the one who erred may go on
    assert desk.ask(observe(1, [(0, F, 50)], writer="other")).key.tolist() == [2]
    assert np.array_equal(desk.ask(observe(3, [(0, M, 3)])).stack[0], a_stack(1, 2, 3))
    assert isinstance(desk.ask(sample(4)), Batch)


def test_the_memory_that_is_left_is_enough_for_what_the_refusal_advises():
    desk = Desk(memory_bytes=1_000_000)
    desk.ask(CreateTable(table="t", spec=spec(5000)))
    message = desk.refusal(CreateTable(table="u", spec=spec(100_000)))
    advised = int(message.split("lower capacity_steps to ")[1].split(", or")[0].replace(",", ""))
    assert desk.ask(CreateTable(table="u", spec=spec(advised))) == TableCreated(created=True)
    assert desk.info().server["memory_bytes"] <= 1_000_000
    assert "of 1,000,000 are left" in desk.refusal(CreateTable(table="v", spec=spec(5000)))


def test_a_refused_table_leaves_the_draws_of_later_ones_alone():
    def drawn(spoil):
        desk = Desk()
        if spoil:
            desk.refusal(CreateTable(table="u", spec=spec(limiter=LimiterSpec(min_size=101))))
        desk.ask(CreateTable(table="t", spec=spec()))
        desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=1))
        for sequence, kind in enumerate([F, *[M] * 30], 1):
            write(desk, sequence, (0, kind, sequence))
        return desk.ask(sample(20)).key.tolist()

    assert drawn(spoil=True) == drawn(spoil=False)


@pytest.mark.parametrize("when", ["at once", "when released"])
def test_a_fault_of_the_server_is_a_reply_too(monkeypatch, caplog, when):
    desk = a_desk(LimiterSpec(min_size=1))
    write(desk, 1, (0, F, 0))

    def fail(*_):
        raise MemoryError("no room for a batch")

    if when == "at once":
        write(desk, 2, (0, M, 1))
        monkeypatch.setattr("fornix.replay.table.assemble", fail)
        reply = desk.ask(sample(3))
    else:
        asked = desk.send(sample(3))
        monkeypatch.setattr("fornix.replay.table.assemble", fail)
        write(desk, 2, (0, M, 1))
        reply = desk.answers[asked]
    assert (reply.code, reply.message) == ("SERVER", "MemoryError in the server: no room for a batch")
    assert "MemoryError" in caplog.text
    monkeypatch.undo()
    assert isinstance(desk.ask(sample(3)), Batch)
