import contextlib
import threading
import time

import numpy as np
import pytest
import zmq

from fornix.common.addresses import check_address, is_served_ipc
from fornix.common.errors import AddressError, InvalidRequestError, ProtocolError, UnreachableError
from fornix.common.messages import (
    REQUESTS,
    Done,
    InfoQuery,
    Refused,
    Report,
    Sample,
    StackQuery,
    Stacks,
    WriterOpened,
)
from fornix.common.transport import ZmqTransport
from fornix.common.wire import decode, encode


class Peer:
    """The server's side of one address, played by the test in a thread: `answer` says what to do.

    Args:
        answer: called with (number of the message, client, request id, request); returns the raw
            frames to reply with, or None to stay silent.
    """

    def __init__(self, address, answer):
        self.seen = []
        self._answer = answer
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.bind(address)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._socket.close()
        self._context.term()

    def send(self, client, frames):
        """Send to a client; only to be called by `answer`."""
        self._socket.send_multipart([client, *frames])

    def _serve(self):
        while not self._stop.is_set():
            if self._socket.poll(20):
                client, *frames = self._socket.recv_multipart()
                number, request = decode(frames, REQUESTS)
                self.seen.append((client, number, request))
                reply = self._answer(len(self.seen), client, number, request)
                if reply is not None:
                    self.send(client, reply)


def done(number):
    return encode(Done(), number)


@contextlib.contextmanager
def a_transport(address, **options):
    transport = ZmqTransport(address, **options)
    try:
        yield transport
    finally:
        transport.close()


QUICK = {"retry_after_s": 0.5, "give_up_after_s": 20.0}


def test_a_request_is_answered(ipc_address):
    with (
        Peer(ipc_address, lambda _, __, number, ___: done(number)) as peer,
        a_transport(ipc_address) as way,
    ):
        assert way.wait(way.send(InfoQuery())) == Done()
        assert [type(request) for _, _, request in peer.seen] == [InfoQuery]
        assert way.reconnects == 0


def test_a_poll_may_wait_for_a_while(ipc_address):
    answered = threading.Event()

    def answer(_, __, number, ___):
        return done(number) if answered.wait(10) else None

    with Peer(ipc_address, answer), a_transport(ipc_address) as way:
        number = way.send(InfoQuery())
        assert way.poll(number) is None
        assert way.poll(number, 0.05) is None
        answered.set()
        assert way.poll(number, 10.0) == Done()
        assert way.reconnects == 0


@pytest.mark.parametrize("dropped", [1, 2])
def test_a_request_whose_reply_was_lost_is_sent_again_through_a_new_socket(ipc_address, dropped):
    def answer(count, _, number, __):
        return done(number) if count > dropped else None

    with Peer(ipc_address, answer) as peer, a_transport(ipc_address, **QUICK) as way:
        number = way.send(Report(source="me"))
        assert way.wait(number) == Done()
        clients, numbers, requests = zip(*peer.seen, strict=True)
        assert len(set(clients)) == dropped + 1
        assert set(numbers) == {number}
        assert len(requests) == dropped + 1
        assert way.reconnects == dropped
        with pytest.raises(InvalidRequestError, match="was forgotten"):
            way.wait(number)  # handed out once


def test_a_reply_that_comes_twice_is_handed_out_once(ipc_address):
    def answer(_, client, number, __):
        peer.send(client, done(number))
        return done(number)

    with Peer(ipc_address, answer) as peer, a_transport(ipc_address) as way:
        for _ in range(3):
            assert way.wait(way.send(InfoQuery())) == Done()
        assert len(peer.seen) == 3


def test_several_requests_may_be_in_flight_and_be_answered_in_any_order(ipc_address):
    waiting = []

    def answer_backwards(_, client, number, request):
        waiting.append(encode(Stacks(key=request.key, stack=request.key), number))
        while len(waiting) > 3 or (waiting and number == 4):
            peer.send(client, waiting.pop())

    with Peer(ipc_address, answer_backwards) as peer, a_transport(ipc_address) as way:
        numbers = [way.send(StackQuery(table="t", key=np.arange(at))) for at in range(4)]
        for at, number in enumerate(numbers):
            assert len(way.wait(number).key) == at
        assert way.reconnects == 0


def test_all_that_is_in_flight_is_sent_again_in_its_order(ipc_address):
    def answer(count, _, number, __):
        return done(number) if count > 3 else None

    with Peer(ipc_address, answer) as peer, a_transport(ipc_address, **QUICK) as way:
        numbers = [way.send(Report(source=name)) for name in "abc"]
        for number in numbers:
            assert way.wait(number) == Done()
        assert [request.source for _, _, request in peer.seen] == [*"abcabc"]
        assert way.reconnects == 1


def test_what_was_answered_is_not_sent_again(ipc_address):
    def answer(count, _, number, __):
        return done(number) if count != 1 else None

    with Peer(ipc_address, answer) as peer, a_transport(ipc_address, **QUICK) as way:
        lost, answered = way.send(Report(source="lost")), way.send(Report(source="answered"))
        assert way.wait(lost) == Done()
        assert way.poll(answered) == Done()
        assert [request.source for _, _, request in peer.seen] == ["lost", "answered", "lost"]


def test_a_request_that_nobody_wants_any_more_is_not_sent_again(ipc_address):
    def answer(count, _, number, __):
        return done(number) if count > 2 else None

    with Peer(ipc_address, answer) as peer, a_transport(ipc_address, **QUICK) as way:
        unwanted, wanted = way.send(Report(source="unwanted")), way.send(Report(source="wanted"))
        way.forget(unwanted)
        assert way.wait(wanted) == Done()
        assert [request.source for _, _, request in peer.seen] == ["unwanted", "wanted", "wanted"]


def test_one_who_only_polls_sends_again_too(ipc_address, wait_until):
    def answer(count, _, number, __):
        return done(number) if count > 1 else None

    with Peer(ipc_address, answer), a_transport(ipc_address, **QUICK) as way:
        number = way.send(InfoQuery())
        replies = []
        wait_until(lambda: replies.append(way.poll(number)) or replies[-1], "a reply")
        assert replies[-1] == Done()
        assert way.reconnects == 1


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
@pytest.mark.parametrize(("retry_after_s", "give_up_after_s"), [(0.1, 0.35), (3.0, 0.2)])
def test_without_a_server_the_deadline_is_kept_and_the_fix_is_told(
    ipc_address, scheme, retry_after_s, give_up_after_s
):
    address = ipc_address if scheme == "ipc" else "tcp://127.0.0.1:1"
    options = {"retry_after_s": retry_after_s, "give_up_after_s": give_up_after_s}
    with a_transport(address, **options) as way:
        began = time.monotonic()
        with pytest.raises(UnreachableError) as caught:
            way.wait(way.send(InfoQuery()))
        assert give_up_after_s <= time.monotonic() - began < give_up_after_s + 2.0
    for part in (f"no replay server answered at {address}", f"fornix replay --address {address}"):
        assert part in str(caught.value)
    assert f"for {give_up_after_s:g} s" in str(caught.value)


def test_polling_without_a_server_ends_too(ipc_address, wait_until):
    with a_transport(ipc_address, retry_after_s=0.1, give_up_after_s=0.3) as way:
        number = way.send(InfoQuery())
        with pytest.raises(UnreachableError):
            wait_until(lambda: way.poll(number), "never")


def test_the_server_is_given_the_time_that_the_request_lets_it_wait(ipc_address):
    request = Sample(table="t", batch_size=1, discount=1.0, timeout_s=0.6)
    with a_transport(ipc_address, retry_after_s=0.1, give_up_after_s=0.1) as way:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=r"for 0\.7 s"):
            way.wait(way.send(request))
        assert time.monotonic() - began >= 0.7
        assert way.reconnects == 1  # not before the server's time was over


def test_one_requests_failures_take_no_time_from_another(ipc_address):
    patient = Sample(table="t", batch_size=1, discount=1.0, timeout_s=0.8)
    with a_transport(ipc_address, retry_after_s=0.1, give_up_after_s=0.4) as way:
        began = time.monotonic()
        long, short = way.send(patient), way.send(InfoQuery())
        with pytest.raises(UnreachableError, match=r"for 0\.4 s"):
            way.wait(short)
        with pytest.raises(UnreachableError, match=r"for 1\.2 s"):
            way.wait(long)
        assert time.monotonic() - began >= 1.2


def test_after_a_failure_a_later_request_finds_a_server_that_has_come(ipc_address, wait_until):
    with a_transport(ipc_address, retry_after_s=3.0, give_up_after_s=0.3) as way:
        early = way.send(Report(source="early"))
        with pytest.raises(UnreachableError):
            way.wait(early)

        def answered():
            with contextlib.suppress(UnreachableError):
                return way.wait(way.send(Report(source="late"))) == Done()

        with Peer(ipc_address, lambda _, __, number, ___: done(number)) as peer:
            wait_until(answered, "an answer")
            assert {request.source for _, _, request in peer.seen} == {"late"}


class Leap:
    """The real time, from which a test can leap ahead: as for a process that was stopped."""

    def __init__(self):
        self.ahead = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead


def test_one_who_looks_late_finds_the_reply_that_came_in_time(ipc_address, wait_until):
    clock = Leap()
    with (
        Peer(ipc_address, lambda _, __, number, ___: done(number)) as peer,
        a_transport(ipc_address, clock=clock) as way,
    ):
        number = way.send(InfoQuery())
        other = way.send(InfoQuery())
        assert way.wait(other) == Done()  # so the first one's reply has come as well
        clock.ahead = 3600.0
        assert way.wait(number) == Done()
        assert way.reconnects == 0
        assert len(peer.seen) == 2


def test_one_who_was_stopped_for_long_tries_again_before_it_gives_up(ipc_address, wait_until):
    clock = Leap()

    def answer(count, _, number, __):
        return done(number) if count > 1 else None

    with Peer(ipc_address, answer) as peer, a_transport(ipc_address, clock=clock) as way:
        number = way.send(InfoQuery())
        wait_until(lambda: peer.seen, "the first attempt to arrive")
        assert way.poll(number) is None
        clock.ahead = 3600.0
        assert way.wait(number) == Done()
        assert way.reconnects == 1


def test_an_answer_that_cannot_be_read_is_an_error_that_says_so(ipc_address):
    newer = {
        1: lambda number: [done(number)[0].replace(b"\xa1v\x03", b"\xa1v\x04")],
        2: lambda number: [done(number)[0].replace(b"\xa4done", b"\xa4dome")],
    }
    with (
        Peer(ipc_address, lambda count, _, number, __: newer[count](number)),
        a_transport(ipc_address) as way,
    ):
        for said in ("protocol version 4 is not 3", "message type 'dome' is not one of batch"):
            reply = way.wait(way.send(InfoQuery()))
            assert isinstance(reply, Refused)
            assert reply.code == ProtocolError.code
            assert said in reply.message
            assert ipc_address in reply.message


def test_noise_from_the_server_is_as_good_as_nothing(ipc_address):
    noise = {1: [b"\xc1noise"], 2: [b""], 3: done(2**40)}

    def answer(count, _, number, __):
        return noise.get(count) or done(number)

    with Peer(ipc_address, answer) as peer, a_transport(ipc_address, **QUICK) as way:
        assert way.wait(way.send(InfoQuery())) == Done()
        assert len(peer.seen) == 4


def test_large_arrays_arrive_whole_and_may_be_written_to(ipc_address):
    def answer(_, __, number, request):
        return encode(Stacks(key=np.arange(3), stack=request.key[::-1]), number)

    key = np.arange(300_000)
    with Peer(ipc_address, answer), a_transport(ipc_address) as way:
        reply = way.wait(way.send(StackQuery(table="t", key=key)))
        assert np.array_equal(reply.stack, key[::-1])
        reply.stack[0] = reply.key[0] = -1


def test_a_request_too_large_to_send_leaves_the_transport_usable(ipc_address):
    with (
        Peer(ipc_address, lambda _, __, number, ___: encode(WriterOpened(sequence=number), number)),
        a_transport(ipc_address) as way,
    ):
        with pytest.raises(ProtocolError, match="the limit"):
            way.send(StackQuery(table="t", key=np.zeros(2**26, np.int64)))
        assert way.wait(way.send(InfoQuery())) == WriterOpened(sequence=2)


def test_a_context_that_was_given_is_left_open(ipc_address):
    with zmq.Context() as context:
        ZmqTransport(ipc_address, context=context).close()
        assert not context.closed


def test_a_closed_transport_says_so_to_whoever_asks_or_still_waits(ipc_address):
    way = ZmqTransport(ipc_address)
    before = way.send(InfoQuery())
    way.close()
    way.close()
    for look in (way.poll, way.wait):
        with pytest.raises(InvalidRequestError, match="closed"):
            look(before)
    with pytest.raises(InvalidRequestError, match="closed; connect another"):
        way.send(InfoQuery())
    way.forget(before)


# addresses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:5555",
        "tcp://*:*",
        "tcp://[::1]:80",
        "tcp://a-host.org:65535",
        "ipc:///tmp/x",
        "ipc://x",
    ],
)
def test_an_address_that_zeromq_takes_is_taken(address):
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:5555",
        "http://127.0.0.1:5555",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:port",
        "tcp://:5555",
        "tcp://a b:5555",
        "ipc://",
        "inproc://x",
        "tcp://h:1\n",
        "ipc:///tmp/x\nfix",
    ],
)
def test_what_is_no_address_is_refused_with_what_one_is(address):
    with pytest.raises(AddressError) as caught:
        check_address(address)
    assert repr(address) in str(caught.value)
    assert "tcp://HOST:PORT" in str(caught.value)
    assert "ipc://PATH" in str(caught.value)


def test_a_path_too_long_for_a_socket_is_refused_with_the_limit():
    check_address("ipc:///" + "x" * 106)
    for path in ("/" + "x" * 107, "/" + "é" * 54):
        with pytest.raises(AddressError, match="longer than the 107 bytes"):
            check_address("ipc://" + path)


def test_an_address_that_can_only_be_bound_is_refused_to_a_client():
    with pytest.raises(AddressError, match=r"can't connect to tcp://\*:5555: Invalid argument"):
        ZmqTransport("tcp://*:5555")


def test_a_served_path_is_told_from_a_left_over_one(ipc_address):
    assert not is_served_ipc(ipc_address)
    assert not is_served_ipc("tcp://127.0.0.1:5555")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.linger = 0
        socket.bind(ipc_address)
        assert is_served_ipc(ipc_address)
    assert not is_served_ipc(ipc_address)
