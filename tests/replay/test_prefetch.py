"""Batches asked for ahead: how many, in what order, in whose memory, and what the server hears."""

import contextlib
import itertools
import threading
import time

import numpy as np
import pytest

from fornix.common.errors import (
    FornixError,
    InvalidRequestError,
    SignatureError,
    UnknownTableError,
    UnreachableError,
    WaitTimeoutError,
)
from fornix.common.messages import Consume, MapTable, Refused, Sample
from fornix.common.signature import ArraySpec
from fornix.common.specs import LimiterSpec, Sequence, Transition
from fornix.replay.batches import Sequences, Transitions
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

from .builders import Clock, F, M, frame, observe, signature, spec
from .fakes import FakeMemory, FakeServer, batch, ramp, sequences

LATE = Refused(code="WAIT_TIMEOUT", message="waited in vain")
TIGHTEST = LimiterSpec(min_size=1, samples_per_insert=1.0, error_buffer_inserts=1.0)
PATIENCE_S = 20.0


@pytest.fixture
def server():
    """A server whose batches tell the number of their lease in every array."""
    server = FakeServer()

    def sample(request):
        rows = request.batch_size
        frames = ramp(4, begin=1000 * request.lease)
        return batch([[0, 1, 2]] * rows, key=[request.lease] * rows, frame=frames)

    server.on[Sample] = sample
    return server


def prefetch(server, rows=2, unit=Transition(), **options):  # noqa: B008
    return Client(server.transport, "me").batches("t", rows, unit, **options)


def leases(server):
    return [request.lease for request in server.transport.requests(Sample)]


def said(server):
    """Return what the requests say of each of them, in order."""
    return [request.consumed for request in server.transport.requests(Sample)]


def check(drawn, lease):
    """Raise unless all of a batch is what came for a lease."""
    assert (drawn.key == lease).all()
    assert drawn.window[:, :, 0].tolist() == [[1000 * lease + at for at in range(3)]] * len(drawn.key)


def test_batches_come_in_order_and_as_many_are_in_flight_as_asked_for(server):
    batches = prefetch(server, in_flight=3)
    assert leases(server) == []
    for lease in range(1, 6):
        check(next(batches), lease)
        assert leases(server) == list(range(1, lease + 3))
    assert iter(batches) is batches


def test_one_request_may_bring_several_batches(server):
    def sample(request):
        rows = np.arange(request.batch_size)
        return batch(
            [[at, at + 1, at + 2] for at in rows],
            key=10 * request.lease + rows,
            frame=ramp(9, begin=1000 * request.lease),
            probability=1 / (rows + 1),
            weight=(rows + 1).astype(np.float32) / len(rows),
        )

    server.on[Sample] = sample
    batches = prefetch(server, per_request=3, keep=2, importance_exponent=1.0)
    for at in range(9):
        drawn = next(batches)
        lease, low = at // 3 + 1, at % 3 * 2
        assert drawn.key.tolist() == [10 * lease + low, 10 * lease + low + 1]
        assert drawn.window[:, 0, 0].tolist() == [1000 * lease + low, 1000 * lease + low + 1]
        assert drawn.weight.tolist() == pytest.approx([(low + 1) / (low + 2), 1.0])  # the batch's own
    assert [request.batch_size for request in server.transport.requests(Sample)] == [6] * 4
    assert leases(server) == [1, 2, 3, 4]
    assert said(server) == [0, 0, 1, 2]  # a lease is consumed when all of it is
    batches.close()
    (last,) = server.transport.requests(Consume)
    assert last.consumed == 3


def test_the_weights_of_each_of_several_batches_are_its_own(server):
    """However unlikely its samples are beside the others: beside 1e-12, a weight of 0.5 would be 0 / 0."""
    probability = np.array([0.5, 0.25, 1e-12, 1e-12, 2e-12, 1e-12])

    def sample(request):
        weight = np.zeros(6, np.float32)  # of all of them, as far as float32 can tell it
        return batch([[0, 1, 2]] * 6, frame=ramp(4), probability=probability, weight=weight)

    server.on[Sample] = sample
    batches = prefetch(server, per_request=3, importance_exponent=8.0)
    weights = [next(batches).weight.tolist() for _ in range(3)]
    assert weights == [[2**-8, 1], [1, 1], [2**-8, 1]]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_a_batch_is_consumed_once_the_next_is_asked_for_however_long_it_stays(server, keep):
    batches = prefetch(server, keep=keep)
    for _ in range(4):
        next(batches)
    assert said(server) == [0, 0, 1, 2, 3]
    assert not batches.ready() or said(server)[-1] == 4
    assert not server.transport.requests(Consume)


def test_each_iterator_is_a_session_of_its_own(server):
    client = Client(server.transport, "me")
    for _ in range(3):
        next(client.batches("t", 2))
    sessions = {request.session for request in server.transport.requests(Sample)}
    assert len(sessions) == 3
    assert all(session.startswith("me-") for session in sessions)


def test_what_is_consumed_is_what_its_user_says(server):
    used = 0
    batches = prefetch(server, keep=4, consumed=lambda: used)
    for used in (0, 0, 0, 2, 2, 99):  # noqa: B007
        next(batches)
    assert said(server) == [0, 0, 0, 0, 2, 2, 5]  # no more than there were


def test_what_is_consumed_while_a_batch_is_waited_for_is_told_at_once(server):
    """It may be what the limiter waits for."""
    answers, used = server.on[Sample], itertools.chain([0] * 9, itertools.repeat(1, 9), itertools.repeat(2))

    def once_two_are_consumed(request):
        told = [each.consumed for each in server.transport.requests(Consume)]
        return answers(request) if request.lease < 3 or 2 in told else None

    server.on[Sample] = once_two_are_consumed
    batches = prefetch(server, in_flight=1, keep=4, consumed=lambda: next(used))
    for lease in (1, 2, 3):
        check(next(batches), lease)
    assert leases(server) == [1, 2, 3]
    told = server.transport.requests(Consume)
    assert [(each.consumed, each.release) for each in told] == [(1, False), (2, False)]
    assert {each.session for each in told} == {server.transport.requests(Sample)[0].session}


def test_a_request_that_is_sent_again_says_what_is_consumed_by_then(server):
    answers, used = server.on[Sample], [0]
    server.on[Sample] = lambda request: LATE if request.lease > 2 else answers(request)
    batches = prefetch(server, keep=4, consumed=lambda: used[-1])
    next(batches)
    next(batches)
    for consumed in (0, 1, 2):
        used.append(consumed)
        with pytest.raises(WaitTimeoutError):
            next(batches)
        assert said(server)[-1] == consumed


def test_without_leases_nothing_is_acknowledged(server):
    frames = ramp(4)
    server.on[Sample] = lambda request: batch([[0, 1, 2]] * 2, frame=frames)
    with prefetch(server, leased=False) as batches:
        next(batches)
        next(batches)
    assert {(r.lease, r.consumed) for r in server.transport.requests(Sample)} == {(0, 0)}
    assert not server.transport.requests(Consume)


@pytest.mark.parametrize("refused", [(), (2, 3, 7, 9, 10)], ids=["all granted", "some refused"])
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_a_batch_stays_until_so_many_more_are_asked_for(server, keep, refused):
    made, answers = [], server.on[Sample]
    server.on[Sample] = lambda request: LATE if request.lease in refused else answers(request)

    def allocate(shape, dtype):
        made.append(np.zeros(shape, dtype))
        return made[-1]

    batches = prefetch(server, keep=keep, allocate=allocate)
    handed, granted = [], []
    while len(handed) < 4 * keep:
        for held, lease in zip(handed[1 - keep :] if keep > 1 else [], granted[1 - keep :], strict=False):
            check(held, lease)
        try:
            handed.append(next(batches))
        except WaitTimeoutError:
            continue
        granted.append(int(handed[-1].key[0]))
        count = len(handed)
        for held, lease in zip(handed[-keep:], granted[-keep:], strict=True):
            check(held, lease)
        assert len(made) == min(count, keep)
        assert len({drawn.window.ctypes.data for drawn in handed[-keep:]}) == min(count, keep)
        if count > keep:
            assert np.shares_memory(handed[-1].window, handed[-1 - keep].window)
    assert len(set(granted)) == len(granted)
    assert not set(granted) & set(refused)


def test_what_a_batch_makes_late_is_in_its_own_memory(server):
    server.on[Sample] = lambda request: batch(
        [[0, 1, 2, 3]] * 2, n_step=2, steps=[1, 2], frame=ramp(5, begin=1000 * request.lease)
    )
    batches = prefetch(server, keep=2, unit=Transition(n_step=2))
    for at in range(1, 4):
        first, second = next(batches), next(batches)
        for drawn, lease in ((first, 2 * at - 1), (second, 2 * at)):
            assert drawn.next_stack[:, 0, 0].tolist() == [1000 * lease + 1, 1000 * lease + 2]
        assert first.next_stack[0, 0, 0] == 1000 * (2 * at - 1) + 1


def test_a_copy_stays(server):
    batches = prefetch(server)
    kept = next(batches).copy()
    next(batches)
    check(kept, 1)


def test_an_error_passes_and_the_request_is_sent_again_by_whoever_asks_again(server):
    answers = server.on[Sample]
    batches = prefetch(server)
    check(next(batches), 1)
    server.on[Sample] = lambda request: LATE
    for last in (5, 7, 9):
        with pytest.raises(WaitTimeoutError, match="in vain"):
            next(batches)
        assert leases(server) == list(range(1, last + 1))
    server.on[Sample] = answers
    for lease in (9, 10, 11):
        check(next(batches), lease)


@pytest.mark.parametrize("looked", [False, True])
def test_one_that_waited_in_vain_goes_behind_those_that_are_on_their_way(server, looked):
    """The batch of the next one is leased: it can be consumed only once it has been handed out."""
    answers = server.on[Sample]
    server.on[Sample] = lambda request: LATE if request.lease == 2 else answers(request)
    batches = prefetch(server)
    check(next(batches), 1)
    if looked:  # if nobody has, it isn't raised: the server may well have data by now
        assert batches.ready()
    for lease in (3, 4, 5):
        check(next(batches), lease)
    assert leases(server) == [1, 2, 3, 4, 5, 6]
    assert said(server) == [0, 0, 1, 1, 3, 4]  # by their leases, of which 2 was never granted


@pytest.mark.parametrize("code", ["ERROR", "PROTOCOL"])
def test_what_may_have_been_granted_is_asked_for_under_the_same_lease(server, code):
    """So that the server doesn't hold two batches for it, one of which nobody will ever consume."""
    answers = server.on[Sample]
    server.on[Sample] = lambda request: (
        Refused(code=code, message="can't be read") if request.lease == 2 else answers(request)
    )
    batches = prefetch(server)
    check(next(batches), 1)
    for again in range(3):
        with pytest.raises(FornixError, match="can't be read"):
            next(batches)
        assert leases(server) == [1, 2, 3] + [2] * (again + 1)
    server.on[Sample] = answers
    for lease in (2, 3, 4):
        check(next(batches), lease)


@pytest.mark.parametrize(
    ("code", "kind"), [("UNKNOWN_TABLE", UnknownTableError), ("INVALID", InvalidRequestError)]
)
def test_what_the_server_refuses_is_raised(server, code, kind):
    server.on[Sample] = lambda request: Refused(code=code, message="no")
    batches = prefetch(server)
    for _ in range(2):
        with pytest.raises(kind, match="no"):
            next(batches)


def test_it_goes_on_when_the_server_is_there_again(server):
    batches = prefetch(server)
    server.transport.unreachable = True
    for _ in range(2):
        with pytest.raises(UnreachableError):
            next(batches)
    server.transport.unreachable = False
    check(next(batches), 1)
    check(next(batches), 2)


def test_ready_says_whether_a_batch_is_there(server):
    answers, there = server.on[Sample], []
    server.on[Sample] = lambda request: answers(request) if there else None
    batches = prefetch(server, in_flight=1)
    assert not batches.ready()
    assert leases(server) == [1]
    there.append(True)
    assert batches.ready()
    check(next(batches), 1)


@pytest.mark.parametrize("code", ["INVALID", "ERROR", "UNKNOWN_TABLE"])
def test_a_refusal_is_as_ready_as_a_batch_and_is_raised_at_once(server, code):
    """Who asks again after that has the request sent again, and isn't told of the old refusal."""
    answers, mended = server.on[Sample], []
    refused = Refused(code=code, message="no")
    server.on[Sample] = lambda request: answers(request) if mended else refused
    batches = prefetch(server, in_flight=1)
    for sent in (1, 2):
        assert batches.ready()
        assert batches.ready()
        assert leases(server) == [1] * sent
        with pytest.raises(FornixError, match="no"):
            next(batches)
        assert leases(server) == [1] * sent
    mended.append(True)
    assert batches.ready()
    check(next(batches), 1)


def test_one_who_looks_whether_a_batch_is_ready_has_what_waited_in_vain_sent_again(server):
    answers, there = server.on[Sample], []

    def late_once(request):
        if request.lease == 1:
            return LATE
        return answers(request) if there else None

    server.on[Sample] = late_once
    batches = prefetch(server, in_flight=1)
    for _ in range(2):
        assert not batches.ready()
        assert leases(server) == [1, 2]
    there.append(True)
    assert batches.ready()
    check(next(batches), 2)


@pytest.mark.parametrize(("says", "consumed"), [(None, 3), (lambda: 0, 0), (lambda: 2, 2)])
def test_closing_gives_back_what_was_not_consumed(server, says, consumed):
    batches = prefetch(server, consumed=says)
    for _ in range(3):
        next(batches)
    batches.close()
    batches.close()
    (last,) = (each for each in server.transport.requests(Consume) if each.release)
    assert last.consumed == consumed
    assert last.session == server.transport.requests(Sample)[0].session
    assert server.transport.forgotten == [4]
    assert list(batches) == []
    assert not batches.ready()


def test_closing_says_nothing_to_a_server_that_is_not_there(server):
    batches = prefetch(server)
    server.transport.unreachable = True
    with pytest.raises(UnreachableError):
        next(batches)
    batches.close()
    prefetch(server).close()  # which never asked
    assert not server.transport.requests(Consume)


@pytest.mark.parametrize("code", ["WAIT_TIMEOUT", "UNKNOWN_TABLE", "PROTOCOL"])
def test_closing_after_an_error_gives_back_too(server, code):
    """What is on its way may be granted at any time, and be held until the session counts as silent."""
    answers = server.on[Sample]
    batches = prefetch(server)
    next(batches)
    server.on[Sample] = lambda request: (
        answers(request) if request.lease == 2 else Refused(code=code, message="no")
    )
    check(next(batches), 2)
    with pytest.raises(FornixError, match="no"):
        next(batches)
    server.on[Sample] = answers
    batches.close()
    (last,) = server.transport.requests(Consume)
    assert (last.consumed, last.release) == (2, True)


def test_closing_gives_back_what_was_asked_for_and_never_taken(server):
    batches = prefetch(server)
    assert batches.ready()
    batches.close()
    (last,) = server.transport.requests(Consume)
    assert (last.consumed, last.release) == (0, True)


def test_closing_survives_a_refusal_and_happens_at_the_end_of_a_with_block(server):
    server.on[Consume] = lambda request: Refused(code="UNKNOWN_TABLE", message="gone")
    with prefetch(server) as batches:
        next(batches)
    assert len(server.transport.requests(Consume)) == 1


@pytest.mark.parametrize("options", [{"in_flight": 0}, {"keep": 0}, {"per_request": 0}])
def test_numbers_below_one_are_refused(server, options):
    with pytest.raises(InvalidRequestError, match="at least 1"):
        prefetch(server, **options)
    with pytest.raises(InvalidRequestError, match="batch_size = 0"):
        prefetch(server, rows=0)


def test_sequences_of_growing_length_grow_their_buffers(server):
    lengths = itertools.cycle([1, 3, 2])

    def sample(request):
        length = next(lengths)
        return sequences([np.arange(length + 2)] * 2, length, frame=ramp(8))

    server.on[Sample] = sample
    batches = prefetch(server, unit=Sequence(length=3))
    for _ in range(4):
        drawn = next(batches)
        assert type(drawn) is Sequences
        assert drawn.frame[..., 0].tolist() == [list(range(1, drawn.mask.shape[1] + 2))] * 2


def test_a_refill_has_the_lease_of_what_it_fills(server, monkeypatch):
    monkeypatch.setattr("fornix.replay.maps.MappedFrames.open", server.open)
    server.put(FakeMemory(3, {"": ramp(9)}, floor=3))

    def sample(request):
        oldest = np.arange(request.batch_size) + 10 * request.refill
        return batch([[0, 1, 2]] * request.batch_size, oldest=oldest, memory=3)

    server.on[Sample] = sample
    batches = Client(server.transport, memory="auto").batches("t", 4)
    assert type(next(batches)) is Transitions
    first, second, refill = server.transport.requests(Sample)
    assert (second.lease, second.batch_size, second.mapped) == (2, 4, True)
    assert refill == first.model_copy(update={"batch_size": 3, "refill": True})
    assert refill.lease == 1
    assert len(server.transport.requests(MapTable)) == 1


def fill(client, begin, **changes):
    """Create table `t`, and write an episode whose values count from `begin`."""
    client.create_table("t", spec(**changes))
    like = signature(**changes)
    writer = client.open_writer("t", "w", 1)
    for value in range(begin, begin + 10):
        writer.observe(a_step(F if value == begin else M, value, like)).result()


def until(batches, wanted):
    """Return the first batch, or the SignatureError, that is wanted; others may come before, not for ever.

    What is on its way when a table is dropped is refused, or answered out of either table.
    """
    for _ in range(20):
        try:
            found = next(batches)
        except UnknownTableError:
            continue
        except SignatureError as error:
            found = error
        if wanted(found):
            return found
    pytest.fail("what was wanted never came")


@contextlib.contextmanager
def filled(address, serve, way):
    """Yield a client that comes by frames in some way, of a filled table `t`."""
    service = ReplayService(time.monotonic, seed=0, share=True)
    with (
        contextlib.closing(service),
        serve(address, service),
        Client.connect(address, memory=way) as client,
    ):
        fill(client, 0)
        assert client.memory_path("t") == way
        yield client


@pytest.mark.parametrize("missed", [False, True], ids=["there again", "missed"])
@pytest.mark.parametrize("per_request", [1, 3])
@pytest.mark.parametrize("way", ["mapped", "socket"])
def test_it_says_that_a_table_was_created_anew_with_another_form(
    way, per_request, missed, ipc_address, serve
):
    with filled(ipc_address, serve, way) as client:
        batches = client.batches("t", 4, per_request=per_request)
        assert next(batches).window.shape == (4, 4, 2)
        client.drop_table("t")
        if missed:
            with pytest.raises(UnknownTableError):
                list(batches)
        fill(client, 100, frame=ArraySpec.of((5,), np.int32))
        error = until(batches, lambda found: isinstance(found, SignatureError))
        assert "created anew with other frame" in str(error)
        assert "make a new iterator" in str(error)
        with pytest.raises(SignatureError, match="make a new iterator"):
            next(batches)
        assert next(client.batches("t", 4)).window.shape == (4, 4, 5)


@pytest.mark.parametrize("per_request", [1, 3])
@pytest.mark.parametrize("way", ["mapped", "socket"])
def test_it_goes_on_with_a_table_that_was_created_anew_as_it_was(way, per_request, ipc_address, serve):
    with filled(ipc_address, serve, way) as client:
        batches = client.batches("t", 4, per_request=per_request)
        assert next(batches).action.max() < 100
        client.drop_table("t")
        fill(client, 100)
        drawn = until(batches, lambda found: found.action.min() > 100)
        for _ in range(6):
            ends = [frame(value).tolist() for value in drawn.action.tolist()]
            assert drawn.next_stack[:, -1].tolist() == ends
            assert drawn.action.min() > 100
            drawn = next(batches)
        assert client.memory_path("t") == way


# no deadlock ---------------------------------------------------------------------------------------


def a_step(kind, value=0, like=None):
    """Return a step of lane 0."""
    made = observe(1, [(0, kind, value)], like=like)
    names = ("lane", "step_type", "terminated", "action", "reward", "frame")
    return Steps(**{name: getattr(made, name) for name in names})


def one_more(writer, pending):
    """Wait until a step is written, and write the next; or write the same again."""
    try:
        pending.result()
    except WaitTimeoutError:
        pending.send_again()
        return pending
    return writer.observe(a_step(M), timeout_s=0.1)


@contextlib.contextmanager
def a_writer(address, stop):
    """Let a thread write one step after another to table `t`, each until the limiter lets it."""

    def write():
        with Client.connect(address, name="writer") as client:
            writer = client.open_writer("t", "w", 1)
            pending = writer.observe(a_step(F))
            while not stop.is_set():
                pending = one_more(writer, pending)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def pass_time(service, clock, seconds):
    clock.now += seconds
    for (transport, number), reply in service.expire():
        if number in transport._awaited:
            transport._replies[number] = reply


@pytest.mark.parametrize("per_request", [1, 3])
@pytest.mark.parametrize("in_flight", [1, 2, 4])
@pytest.mark.parametrize("keep", [1, 2, 4])
def test_requests_that_wait_in_vain_bring_nothing_to_a_halt(keep, in_flight, per_request):
    """One that is sent again is behind the others in the server's line: they may be let through before it.

    Their batches are leased, and more than lies between the bounds.
    """
    clock = Clock()
    service = ReplayService(clock, seed=0)
    writing, reading = Client(LocalTransport(service)), Client(LocalTransport(service))
    writing.create_table("t", spec(limiter=LimiterSpec.ratio(1.0, 2.0)))
    writer = writing.open_writer("t", "w", 1)
    options = {"keep": keep, "in_flight": in_flight, "per_request": per_request}
    batches = reading.batches("t", 8, timeout_s=0.5, **options)
    pending, drawn = writer.observe(a_step(F)), 0
    for _ in range(400):
        pass_time(service, clock, 0.1)
        if batches.ready():
            with contextlib.suppress(WaitTimeoutError):
                next(batches)
                drawn += 1
        if pending.done():
            pending = one_more(writer, pending)
    assert drawn > 30


def draw(batches, count):
    """Draw so many batches, however often that takes too long; fail if it takes for ever."""
    deadline = time.monotonic() + PATIENCE_S
    while count:
        assert time.monotonic() < deadline, f"{count} batches never came"
        with contextlib.suppress(WaitTimeoutError):
            next(batches)
            count -= 1


@pytest.mark.parametrize("timeout_s", [0.002, 1.0])
@pytest.mark.parametrize(
    ("keep", "in_flight", "per_request"),
    [*itertools.product([1, 2, 4], [1, 2, 4], [1]), (1, 2, 3), (4, 4, 3)],
)
def test_nobody_waits_for_ever_at_the_tightest_limiter(
    keep, in_flight, per_request, timeout_s, ipc_address, serve
):
    """A batch is several times what lies between the bounds, so only one can be leased at a time."""
    options = {"keep": keep, "in_flight": in_flight, "per_request": per_request}
    with serve(ipc_address), Client.connect(ipc_address, name="reader") as client:
        client.create_table("t", spec(limiter=TIGHTEST))
        with (
            a_writer(ipc_address, threading.Event()),
            client.batches("t", 8, timeout_s=timeout_s, **options) as batches,
        ):
            draw(batches, 30)
        table = client.info().tables["t"]
        assert (table["samples"], table["leased"]) == (30 * 8, 0)
