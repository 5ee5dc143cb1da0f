import math

import numpy as np
import pytest

from fornix.common.errors import (
    EvictedError,
    FornixError,
    InvalidRequestError,
    SignatureError,
    UnknownTableError,
    UnknownWriterError,
    WaitTimeoutError,
)
from fornix.common.messages import (
    Batch,
    CreateTable,
    Done,
    Hello,
    Info,
    InfoQuery,
    LimiterSpec,
    OpenWriter,
    Refused,
    Report,
    StackQuery,
    Stacks,
    TableCreated,
    Welcome,
    WriterOpened,
)
from fornix.common.signature import ArraySpec
from fornix.common.transport import Transport
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

from .builders import CUT, Clock, F, M, a_stack, observe, sample, signature, spec

RATIO = LimiterSpec(min_size=2, samples_per_insert=4.0, error_buffer_inserts=2.0)


class Desk:
    """A service with a clock that the test turns, asked by name; keeps the answers that came late."""

    def __init__(self, **options):
        self.clock = Clock()
        self.service = ReplayService(self.clock, seed=0, **options)
        self.answers = {}
        self._numbers = 0

    def send(self, request, who="me"):
        """Hand in a request; return its ticket. All answers that are due are put down."""
        self._numbers += 1
        ticket = (who, self._numbers)
        self._put_down(self.service.submit(ticket, request))
        return ticket

    def ask(self, request, who="me"):
        """Return the answer to a request, which must be there at once."""
        return self.answers.pop(self.send(request, who))

    def refusal(self, request, kind=InvalidRequestError):
        """Return the message of the refusal that a request must meet."""
        reply = self.ask(request)
        assert isinstance(reply, Refused), reply
        assert reply.code == kind.code, reply
        return reply.message

    def pass_time(self, seconds):
        self.clock.now += seconds
        self._put_down(self.service.expire())

    def info(self):
        return self.ask(InfoQuery())

    def table(self, name="t"):
        return self.info().tables[name]

    def _put_down(self, answers):
        for ticket, reply in answers:
            assert ticket not in self.answers
            self.answers[ticket] = reply


def a_desk(limiter=None, lanes=2, capacity=100, **options):
    """Return a desk with a table `t` and a writer `w`."""
    desk = Desk(**options)
    assert desk.ask(CreateTable(table="t", spec=spec(capacity, limiter=limiter))) == TableCreated(
        created=True
    )
    assert desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=lanes)) == WriterOpened(
        sequence=1
    )
    return desk


def write(desk, sequence, *rows, **changes):
    return desk.send(observe(sequence, rows, **changes))


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
        said = ["'observe'", "4 inserts have been made and 0 transitions drawn", "next samples open it"]
    else:
        desk.ask(sample(16))
        asked = desk.send(sample(1, timeout_s=1.0))
        said = ["'sample'", "16 transitions have been drawn for 4 inserts", "next insert opens it"]
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


def test_a_time_out_at_the_head_lets_the_next_in_line_through():
    desk = a_desk()
    write(desk, 1, (0, F, 0))
    write(desk, 2, (0, M, 1))
    blocked, next_in_line = (
        desk.send(sample(1, n_step=9, timeout_s=1.0)),
        desk.send(sample(1, timeout_s=5.0)),
    )
    assert next_in_line not in desk.answers
    desk.pass_time(1.0)
    assert desk.answers[blocked].code == WaitTimeoutError.code
    assert isinstance(desk.answers[next_in_line], Batch)


# what is refused -----------------------------------------------------------------------------------

WIDE = spec(10, frame=ArraySpec.of((1000,), np.uint8))
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
        ["capacity_steps 100", "asks for 99"],
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


def lasting(info):
    """Return what an info says, less what passing by changes."""
    server = {
        key: value for key, value in info.server.items() if key not in ("refused_requests", "uptime_s")
    }
    return server, info.tables, info.reports


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
    assert writer == {"incarnation": 1, "sequence": 18, "lanes": 2, "idle_s": 2.5}
    report = info.reports["actor-0"]
    assert (report["age_s"], report["doing"], report["metrics"]["score"]) == (2.0, "plays", 3.0)


def test_a_source_has_one_report_and_the_newest_thousand_sources_are_kept():
    desk = Desk()
    assert desk.ask(Report(source="a", doing="old")) == Done()
    desk.ask(Report(source="a", doing="new"))
    assert [report["doing"] for report in desk.info().reports.values()] == ["new"]
    for at in range(1024):
        desk.ask(Report(source=f"s{at}"))
    assert len(desk.info().reports) == 1024
    assert "a" not in desk.info().reports


# the faults that this system must not have again -----------------------------------------------------


class Recorder(LocalTransport):
    """Counts what a client sends."""

    def __init__(self, service):
        super().__init__(service)
        self.sent = []

    def send(self, request):
        self.sent.append(request)
        return super().send(request)


def a_client(desk):
    transport: Transport = Recorder(desk.service)
    return Client(transport), transport


def steps(frames, dtype=np.int32):
    return Steps.first(signature(), np.zeros(1, np.int32), np.asarray(frames, dtype))


def test_fault_0_4_a_frame_of_1_n_is_refused_at_the_client_and_nothing_is_sent():
    desk = a_desk()
    client, transport = a_client(desk)
    writer = client.open_writer("t", "me", 1)
    sent = len(transport.sent)
    before = desk.info()
    for wrong in (np.zeros((1, 1, 2)), np.zeros((1, 3)), np.zeros(2)):
        with pytest.raises(InvalidRequestError) as caught:
            writer.observe(steps(wrong))
        assert f"frame has shape {wrong.shape}" in str(caught.value)
        assert "the table takes (1, 2)" in str(caught.value)
    with pytest.raises(InvalidRequestError, match=r"<f4; the table takes .* <i4"):
        writer.observe(steps(np.zeros((1, 2)), np.float32))
    assert len(transport.sent) == sent
    assert lasting(desk.info()) == lasting(before)
    assert writer.observe(steps(np.zeros((1, 2)))).result().key.tolist() == [0]


def test_fault_0_4_a_frame_of_1_n_is_refused_at_the_server_with_both_shapes():
    desk = a_desk()
    message = desk.refusal(observe(1, [(0, F, 0)], frame=np.zeros((1, 1, 2), np.int32)))
    assert "frame has shape (1, 1, 2)" in message
    assert "the table takes (1, 2)" in message
    assert "one value of shape (2,) for each step" in message
    assert desk.table()["steps_ever"] == 0


@pytest.mark.parametrize(
    ("expected", "here", "there"),
    [
        (signature(frame=ArraySpec.of((1, 2), np.int32)), "(2,) <i4", "(1, 2) <i4"),
        (signature(frame=ArraySpec.of((2,), np.float32)), "(2,) <i4", "(2,) <f4"),
        (signature(n_frames=5), "n_frames: the table holds 3", "the client expects 5"),
    ],
)
def test_fault_0_4_another_shape_dtype_or_n_frames_is_refused_at_the_hello(expected, here, there):
    desk = a_desk()
    client, _ = a_client(desk)
    with pytest.raises(SignatureError) as caught:
        client.hello({"t": expected})
    assert here in str(caught.value)
    assert there in str(caught.value)
    assert client.hello({"t": signature()}).tables == {"t": signature()}


def test_fault_0_1_a_new_episode_epoch_or_writer_clears_nothing():
    desk = a_desk(capacity=1000)
    handed_out = {}

    def play(client, incarnation):
        writer = client.open_writer("t", "actor", 2, incarnation)
        for episode in range(3):
            for at in range(6):
                kind = F if at == 0 else CUT if at == 5 else M
                value = 100 * incarnation + 10 * episode + at
                request = observe(1, [(0, kind, value), (1, kind, value + 50)])
                names = ("lane", "step_type", "terminated", "action", "reward", "frame")
                made = Steps(**{name: getattr(request, name) for name in names})
                answer = writer.observe(made).result()
                handed_out.update(zip(answer.key.tolist(), answer.stack.copy(), strict=True))

    for epoch in range(1, 5):
        client, _ = a_client(desk)
        play(client, epoch)
        client.close()
    assert len(handed_out) == 4 * 3 * 6 * 2
    client, _ = a_client(desk)
    keys = np.array(sorted(handed_out))
    stacks = client.stacks("t", keys).stack
    assert stacks.tobytes() == np.stack([handed_out[key] for key in keys.tolist()]).tobytes()
    drawn = client.sample("t", 4000, n_step=2, n_frames=3).result()
    keys, next_keys = drawn.batch.key.tolist(), drawn.batch.next_key.tolist()
    assert len(set(keys)) == 4 * 3 * 5 * 2  # every step of every epoch but the last ones of episodes
    assert drawn.stack.tobytes() == np.stack([handed_out[key] for key in keys]).tobytes()
    assert drawn.next_stack.tobytes() == np.stack([handed_out[key] for key in next_keys]).tobytes()


# a client's own bookkeeping ------------------------------------------------------------------------


def test_steps_that_the_server_refuses_leave_the_writer_usable():
    desk = a_desk()
    client, _ = a_client(desk)
    writer = client.open_writer("t", "me", 1)
    bad = Steps.after_actions(
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        np.array([np.nan], np.float32),
        np.zeros((1, 2), np.int32),
        np.zeros(1, np.bool_),
        np.zeros(1, np.bool_),
    )
    good = steps(np.ones((1, 2)))
    pending = writer.observe(bad)
    with pytest.raises(InvalidRequestError, match="the reward of lane 0 is nan"):
        pending.result()
    first = writer.observe(good)
    with pytest.raises(InvalidRequestError):
        pending.result()  # looking again changes nothing
    assert first.result().key.tolist() == [0]
    with pytest.raises(InvalidRequestError, match="FIRST while its episode is open"):
        writer.observe(good).result()
    assert desk.table()["steps_ever"] == 1


def test_a_request_that_would_wait_in_one_thread_is_told_to_poll():
    desk = a_desk()
    client, _ = a_client(desk)
    pending = client.sample("t", 4, n_frames=3)
    assert not pending.done()
    with pytest.raises(WaitTimeoutError, match="use poll"):
        pending.result()
    write(desk, 1, (0, F, 0))
    assert not pending.done()


def test_an_error_reply_is_raised_under_its_own_class():
    client, _ = a_client(a_desk())
    with pytest.raises(UnknownTableError, match="did you mean 't'"):
        client.signature("tt")
    with pytest.raises(FornixError):
        client.create_table("t", spec(capacity=5))
