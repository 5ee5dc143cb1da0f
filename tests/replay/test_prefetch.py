"""Batches asked for ahead: how many, in what order, in whose memory, and what the server hears."""

import itertools

import numpy as np
import pytest

from fornix.common.errors import (
    InvalidRequestError,
    UnknownTableError,
    UnreachableError,
    WaitTimeoutError,
)
from fornix.common.messages import Consume, MapTable, Refused, Sample, Sequence, Transition
from fornix.replay.batches import Sequences, Transitions
from fornix.replay.client import Client

from .fakes import FakeMemory, FakeServer, batch, ramp, sequences

LATE = Refused(code="WAIT_TIMEOUT", message="waited in vain")


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


def test_each_request_acknowledges_what_is_over(server):
    batches = prefetch(server)
    for _ in range(4):
        next(batches)
    asked = server.transport.requests(Sample)
    assert [request.consumed for request in asked] == [0, 0, 1, 2, 3]
    (session,) = {request.session for request in asked}
    assert session.startswith("me-")
    assert next(prefetch(server)) is not None
    assert server.transport.requests(Sample)[-1].session != session


def test_kept_batches_are_acknowledged_later(server):
    batches = prefetch(server, keep=3, in_flight=1)
    for _ in range(6):
        next(batches)
    assert [request.consumed for request in server.transport.requests(Sample)] == [0, 0, 0, 1, 2, 3]


def test_without_leases_nothing_is_acknowledged(server):
    frames = ramp(4)
    server.on[Sample] = lambda request: batch([[0, 1, 2]] * 2, frame=frames)
    with prefetch(server, leased=False) as batches:
        next(batches)
        next(batches)
    assert {(r.session, r.lease, r.consumed) for r in server.transport.requests(Sample)} == {("", 0, 0)}
    assert not server.transport.requests(Consume)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_a_batch_stays_until_so_many_more_are_asked_for(server, keep):
    made = []

    def allocate(shape, dtype):
        made.append(np.zeros(shape, dtype))
        return made[-1]

    batches = prefetch(server, keep=keep, allocate=allocate)
    handed = []
    for lease in range(1, 4 * keep):
        handed.append(next(batches))
        for at, held in enumerate(handed[-keep:], start=max(1, lease - keep + 1)):
            check(held, at)
        assert len(made) == min(lease, keep)
        assert len({drawn.window.ctypes.data for drawn in handed[-keep:]}) == min(lease, keep)
        if lease > keep:
            assert np.shares_memory(handed[-1].window, handed[-1 - keep].window)


def test_a_copy_stays(server):
    batches = prefetch(server)
    kept = next(batches).copy()
    next(batches)
    check(kept, 1)


def test_an_error_passes_and_the_request_is_sent_again_by_whoever_asks_again(server):
    answers = server.on[Sample]
    batches = prefetch(server)
    check(next(batches), 1)
    server.on[Sample] = lambda request: LATE if request.lease == 2 else answers(request)
    for attempt in range(3):
        with pytest.raises(WaitTimeoutError, match="in vain"):
            next(batches)
        assert leases(server) == [1, 2, 3] + [2] * (attempt + 1)
    server.on[Sample] = answers
    for lease in (2, 3, 4):
        check(next(batches), lease)


def test_a_refusal_from_before_anyone_looked_is_not_raised(server):
    """The server may well have data by now."""
    answers = server.on[Sample]
    refused = set()

    def late_once(request):
        if request.lease == 2 and not refused:
            refused.add(2)
            return LATE
        return answers(request)

    server.on[Sample] = late_once
    batches = prefetch(server)
    check(next(batches), 1)
    check(next(batches), 2)
    assert refused
    assert leases(server) == [1, 2, 3, 2]
    assert server.transport.requests(Sample)[-1].consumed == 1


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


@pytest.mark.parametrize(("unused", "consumed"), [(0, 3), (2, 1), (5, 0)])
def test_closing_gives_back_what_was_not_used(server, unused, consumed):
    batches = prefetch(server)
    for _ in range(3):
        next(batches)
    batches.close(unused)
    batches.close(unused)
    (last,) = server.transport.requests(Consume)
    assert (last.consumed, last.release) == (consumed, True)
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


def test_closing_survives_a_refusal_and_happens_at_the_end_of_a_with_block(server):
    server.on[Consume] = lambda request: Refused(code="UNKNOWN_TABLE", message="gone")
    with prefetch(server) as batches:
        next(batches)
    assert len(server.transport.requests(Consume)) == 1


@pytest.mark.parametrize("options", [{"in_flight": 0}, {"keep": 0}])
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
