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
    Consume,
    CreateTable,
    DropTable,
    Hello,
    OpenWriter,
    Refused,
    ResetTable,
    SetLimiter,
    StackQuery,
    TableCreated,
    UpdatePriorities,
)
from fornix.common.signature import ArraySpec
from fornix.common.specs import Episode, LimiterSpec, SamplerSpec, Sequence, Transition

from .builders import F, M, a_stack, observe, sample, signature, spec
from .desk import RATIO, Desk, a_desk, lasting, write

OTHERS = {
    "wide": spec(100, frame=ArraySpec.of((1000,), np.uint8)),
    "p": spec(sampler=SamplerSpec(kind="prioritized")),
    "small": spec(20, sampler=SamplerSpec(kind="fifo")),
    "shared": spec(limiter=LimiterSpec(), rows_of="t"),
}
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
        ["'tt'", "did you mean 't'?", "tables: p, shared, small, t, wide;", "create it first"],
    ),
    "sample from an unknown table": (sample(table="T"), UnknownTableError, ["'T'", "tables: p, shared"]),
    "stack of an unknown table": (
        StackQuery(table="u", key=np.zeros(1, np.int64)),
        UnknownTableError,
        ["'u'", "tables: p, shared"],
    ),
    "writer of an unknown table": (
        OpenWriter(table="u", writer="w", incarnation=1, lanes=1),
        UnknownTableError,
        ["'u'"],
    ),
    "hello with an unknown table": (
        Hello(client="c", expects={"u": signature()}),
        UnknownTableError,
        ["'u'", "tables: p, shared"],
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
    "sequences too large to send": (
        sample(200, unit=Sequence(length=4096), table="wide"),
        InvalidRequestError,
        ["a batch of 200", "for each sequence", "ask for at most 63"],
    ),
    "whole episodes too large to send": (
        sample(9, unit=Episode(max_steps=65_536), table="wide"),
        InvalidRequestError,
        ["a batch of 9", "for each episode", "ask for at most 3"],
    ),
    "a transition of more steps than the table": (
        sample(unit=Transition(n_step=60), table="small"),
        InvalidRequestError,
        ["a transition of 60 steps needs 63", "holds 20", "draw shorter ones or raise capacity_steps"],
    ),
    "more than a queue can hold": (
        sample(21, table="small"),
        InvalidRequestError,
        ["batch_size 21", "20 steps", "once at most", "lower batch_size"],
    ),
    "a lease of nobody": (
        sample(1, lease=3),
        InvalidRequestError,
        ["lease 3 has no session; name one, or send lease 0"],
    ),
    "an acknowledgement with a batch too large to send": (
        sample(60_000, unit=Sequence(length=4096), table="shared", session="s", lease=2, consumed=1),
        InvalidRequestError,
        ["a batch of 60000", "ask for at most"],
    ),
    "an acknowledgement at an unknown table": (
        Consume(table="v", session="s", consumed=1),
        UnknownTableError,
        ["'v'", "tables: p, shared, small, t, wide"],
    ),
    "priorities where there are none": (
        UpdatePriorities(table="t", key=np.zeros(1, np.int64), priority=np.ones(1)),
        InvalidRequestError,
        [
            "table 't' draws by 'uniform', which has no priorities",
            "create it with the sampler 'prioritized'",
        ],
    ),
    "a negative priority": (
        UpdatePriorities(table="p", key=np.arange(2), priority=np.array([1.0, -0.5])),
        InvalidRequestError,
        ["priority 1 of 2 is -0.5", "finite number from 0 to", "send the size of the error, or 0"],
    ),
    "no priority for a key": (
        UpdatePriorities(table="p", key=np.arange(2), priority=np.ones(1)),
        InvalidRequestError,
        ["priority has shape (1,)", "(2,), one for each key"],
    ),
    "priorities of another dtype": (
        UpdatePriorities(table="p", key=np.arange(2), priority=np.ones(2, np.float16)),
        InvalidRequestError,
        ["dtype <f2", "must be <f8 or <f4"],
    ),
    "priorities by keys of another dtype": (
        UpdatePriorities(table="p", key=np.arange(2, dtype=np.int32), priority=np.ones(2)),
        InvalidRequestError,
        ["key has shape (2,) and dtype <i4", "<i8 [K]"],
    ),
    "too many keys": (
        UpdatePriorities(table="p", key=np.zeros(65_537, np.int64), priority=np.ones(65_537)),
        InvalidRequestError,
        ["65537 keys are named; the limit is 65536", "ask for fewer"],
    ),
    "limits that contradict themselves": (
        SetLimiter(table="t", limiter=LimiterSpec(samples_per_insert=1.0)),
        InvalidRequestError,
        ["samples_per_insert and error_buffer_inserts belong together"],
    ),
    "limits for an unknown table": (SetLimiter(table="v", limiter=RATIO), UnknownTableError, ["'v'"]),
    "dropping rows that others draw from": (
        DropTable(table="t"),
        InvalidRequestError,
        ["shared draw from the rows of table 't'; drop them first"],
    ),
    "dropping an unknown table": (DropTable(table="v"), UnknownTableError, ["'v'", "create it first"]),
    "resetting a table without rows": (
        ResetTable(table="shared"),
        InvalidRequestError,
        ["draws from the rows of 't', and has none of its own"],
    ),
    "a writer of a table without rows": (
        OpenWriter(table="shared", writer="w", incarnation=1, lanes=1),
        InvalidRequestError,
        ["draws from the rows of 't'", "name 't' instead"],
    ),
    "steps for a table without rows": (
        observe(3, [(0, M, 2)], table="shared"),
        InvalidRequestError,
        ["draws from the rows of 't'", "name 't' instead"],
    ),
    "a lane that is not there leaves": (
        observe(3, [(0, M, 2)], leave=np.array([2], np.int32)),
        InvalidRequestError,
        ["leave holds 2", "0 to 1", "open it with more lanes"],
    ),
    "many steps of a lane, and their stacks": (
        observe(3, [(0, M, 2), (0, M, 3)]),
        InvalidRequestError,
        ["lane 0 stands in two rows", "or ask for no stacks"],
    ),
    "many steps of a lane that don't follow each other": (
        observe(3, [(0, M, 2), (0, F, 3)], stacks=False),
        InvalidRequestError,
        ["lane 0 got FIRST while its episode is open", "let the lane leave"],
    ),
    "a frame of several arrays": (
        observe(3, [(0, M, 2)], frame={"a": np.zeros((1, 2), np.int32)}),
        InvalidRequestError,
        ["has the arrays ['a']; the table takes ['the frame itself']; send just these"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_in_a_sentence_and_changes_nothing(name):
    request, kind, said = BAD[name]
    desk = a_desk(memory_bytes=1_000_000)
    for table, made in OTHERS.items():
        assert desk.ask(CreateTable(table=table, spec=made)) == TableCreated(created=True)
    other = OpenWriter(table="t", writer="other", incarnation=1, lanes=1)
    desk.ask(other)
    for sequence, at in ((1, F), (2, M)):
        write(desk, sequence, (0, at, sequence))
    desk.ask(sample(3, session="s", lease=1, table="shared"))
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
