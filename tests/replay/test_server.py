import contextlib
import multiprocessing
import os
import socket
import struct
import threading
import time

import numpy as np
import pytest
import zmq

from fornix.common.errors import (
    AddressError,
    UnknownTableError,
    UnknownWriterError,
    UnreachableError,
)
from fornix.common.messages import REPLIES, InfoQuery, Refused
from fornix.common.specs import LimiterSpec, Transition
from fornix.common.transport import ZmqTransport
from fornix.common.wire import MAX_FRAMES, MAX_HEADER_BYTES, decode, encode
from fornix.replay.client import Client
from fornix.replay.role import serve as serve_for_ever
from fornix.replay.server import ReplayServer
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

from .builders import F, M, a_stack, observe, spec

ADDRESSES = ["ipc", "tcp"]


@pytest.fixture(params=ADDRESSES)
def address(request, ipc_address):
    return ipc_address if request.param == "ipc" else "tcp://127.0.0.1:*"


def rows(*wanted):
    """Return steps of rows (lane, kind, value)."""
    request = observe(1, wanted)
    names = ("lane", "step_type", "terminated", "action", "reward", "frame")
    return Steps(**{name: getattr(request, name) for name in names})


@contextlib.contextmanager
def a_raw_client(address):
    """A DEALER socket that sends whatever a test wants."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(address)
        yield dealer


def reply_to(dealer, frames):
    """Send frames and return the reply."""
    dealer.send_multipart(frames)
    assert dealer.poll(10_000), "no reply"
    return decode(dealer.recv_multipart(), REPLIES)


def play(client, steps=6):
    """Write an episode and sample from it: all that a client usually does."""
    client.create_table("t", spec())
    writer = client.open_writer("t", "w", 1)
    keys = []
    for at in range(steps):
        answer = writer.observe(rows((0, F if at == 0 else M, at))).result()
        keys += answer.key.tolist()
    assert keys == list(range(keys[0], keys[0] + steps))
    assert np.array_equal(answer.stack[0], a_stack(steps - 3, steps - 2, steps - 1))
    assert len(client.sample("t", 64, Transition(n_step=2)).result().batch.key) == 64


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_client_plays_over_a_socket(serve, address):
    with serve(address) as server, Client.connect(server.address) as client:
        play(client)
        assert client.report("me", "plays", {"x": 1.0}).result()
        assert client.info().reports["me"]["metrics"] == {"x": 1.0}


GARBAGE = {
    "nothing": [b""],
    "noise": [os.urandom(300)],
    "noise in many parts": [os.urandom(50) for _ in range(20)],
    "empty parts": [b""] * 10,
    "too many parts": [b"x"] * (MAX_FRAMES + 2),
    "an oversized header": [bytes(MAX_HEADER_BYTES + 1)],
    "half a message": [encode(InfoQuery(), 1)[0][:-1]],
    "a reply": encode(Refused(code="INVALID", message="no"), 1),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_answered_with_a_refusal_and_others_notice_nothing(serve, ipc_address, name, caplog):
    with serve(ipc_address) as server, Client.connect(server.address) as client:
        play(client)
        with a_raw_client(server.address) as dealer:
            _, reply = reply_to(dealer, GARBAGE[name])
            assert isinstance(reply, Refused)
            assert len(reply.message) < 500
            number, reply = reply_to(dealer, encode(InfoQuery(), 9))
            assert (number, reply.server["refused_requests"]) == (9, 1)
        play(client)
    assert "refused a message" in caplog.text


def test_a_refusal_names_the_request_where_its_number_can_be_read(serve, ipc_address):
    with serve(ipc_address) as server, a_raw_client(server.address) as dealer:
        header = encode(InfoQuery(), 77)[0].replace(b"\xa4info", b"\xa4imfo")
        number, reply = reply_to(dealer, [header])
        assert number == 77
        assert "'imfo'" in reply.message


def test_what_speaks_no_zeromq_at_all_is_left_alone(serve):
    with serve("tcp://127.0.0.1:*") as server, Client.connect(server.address) as client:
        port = int(server.address.rsplit(":", 1)[1])
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
        for noise in (
            os.urandom(1000),
            b"GET / HTTP/1.1\r\n\r\n",
            greeting + b"\x02" + struct.pack(">Q", 2**62),
        ):
            with socket.create_connection(("127.0.0.1", port), 10) as stranger:
                stranger.sendall(noise)
                play(client)
        play(client)


def test_a_silent_stranger_keeps_nobody_waiting(serve, ipc_address):
    with serve(ipc_address) as server, socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(ipc_address.removeprefix("ipc://"))
        with Client.connect(server.address) as client:
            play(client)


def test_however_many_report_the_server_can_tell_of_all(serve, ipc_address):
    with serve(ipc_address) as server, Client.connect(server.address) as client:
        metrics = {f"{at:0>64}": 0.0 for at in range(32)}
        for at in range(300):
            client.report(f"{at:0>128}", "x" * 200, metrics).result()
        reports = client.info().reports
        assert len(reports) == 256
        assert reports[f"{299:0>128}"]["metrics"] == metrics


@pytest.mark.parametrize("scheme", ADDRESSES)
def test_an_address_in_use_is_refused_and_its_server_lives_on(serve, ipc_address, scheme):
    with serve(ipc_address if scheme == "ipc" else "tcp://127.0.0.1:*") as server:
        with pytest.raises(AddressError) as caught:
            ReplayServer(ReplayService(time.monotonic), server.address)
        for part in (f"can't serve at {server.address}", "stop", "or choose another address"):
            assert part in str(caught.value)
        with Client.connect(server.address) as client:
            play(client)


@pytest.mark.parametrize("wrong", ["ipc:///no/such/folder/s", "tcp://no-such-host.invalid:5", "http://x:5"])
def test_an_address_that_cannot_be_served_is_refused(wrong):
    with pytest.raises(AddressError, match=wrong):
        ReplayServer(ReplayService(time.monotonic), wrong)


def test_a_path_that_a_dead_server_left_behind_is_taken(serve, ipc_address):
    for _ in range(2):
        with serve(ipc_address) as server, Client.connect(server.address) as client:
            play(client)
    assert os.path.exists(ipc_address.removeprefix("ipc://"))


def test_stopping_ends_a_server_at_which_someone_waits(serve, ipc_address):
    with serve(ipc_address) as server, Client.connect(server.address) as client:
        client.create_table("t", spec())
        client.sample("t", 1, timeout_s=3600.0)
        client.info()


def test_without_a_server_a_client_says_how_to_start_one(ipc_address):
    with (
        Client.connect(ipc_address, give_up_after_s=0.2) as client,
        pytest.raises(UnreachableError, match=f"fornix replay --address {ipc_address}"),
    ):
        client.hello()


def test_a_request_that_must_wait_delays_nobody_else(serve, ipc_address, wait_until):
    with (
        serve(ipc_address) as server,
        Client.connect(server.address) as blocked,
        Client.connect(server.address) as free,
    ):
        blocked.create_table("t", spec(limiter=LimiterSpec(min_size=5)))
        pending = [blocked.sample("t", 4, timeout_s=60.0) for _ in range(3)]
        wait_until(lambda: free.info().tables["t"]["limiter"]["waiting_samples"] == 3, "three to wait")
        writer = free.open_writer("t", "w", 1)
        for at in range(5):
            writer.observe(rows((0, F if at == 0 else M, at))).result()
            assert not any(one.done() for one in pending)
        writer.observe(rows((0, M, 5))).result()
        for one in pending:
            assert len(one.result().batch.key) == 4
            assert one.result().batch.held_s > 0


def test_a_blocked_writer_is_released_by_another_clients_samples(serve, ipc_address, wait_until):
    limiter = LimiterSpec(min_size=1, samples_per_insert=1.0, error_buffer_inserts=1.0)
    with (
        serve(ipc_address) as server,
        Client.connect(server.address) as actor,
        Client.connect(server.address) as learner,
    ):
        actor.create_table("t", spec(limiter=limiter))
        writer = actor.open_writer("t", "w", 1)
        for at in range(3):
            writer.observe(rows((0, F if at == 0 else M, at))).result()
        held = writer.observe(rows((0, M, 3)), timeout_s=60.0)
        wait_until(
            lambda: learner.info().tables["t"]["limiter"]["waiting_inserts"] == 1, "a writer to wait"
        )
        assert not held.done()
        learner.sample("t", 4).result()
        assert held.result().key.tolist() == [3]


def test_a_reply_to_a_client_that_is_gone_hurts_nobody(serve, ipc_address, wait_until):
    with serve(ipc_address) as server, Client.connect(server.address) as client:
        client.create_table("t", spec())
        with Client.connect(server.address) as gone:
            gone.sample("t", 4, timeout_s=0.3)
            wait_until(lambda: client.info().tables["t"]["limiter"]["waiting_samples"] == 1, "it to wait")
        wait_until(lambda: server.undeliverable == 1, "the refusal to be dropped")
        play(client)


# a server that dies --------------------------------------------------------------------------------


@contextlib.contextmanager
def a_server_process(address):
    """A server that can be killed; yields its process."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve_for_ever, args=(address,), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(10)
        assert not process.is_alive()
        process.close()


@pytest.mark.system
def test_a_client_outlives_its_server(ipc_address, wait_until):
    """Killed with requests in flight; a new one answers them: it knows neither table nor writer."""
    transport = ZmqTransport(ipc_address, retry_after_s=0.5, give_up_after_s=60.0)
    with Client(transport) as client:
        with a_server_process(ipc_address) as process:
            client.create_table("t", spec())
            writer = client.open_writer("t", "w", 1)
            writer.observe(rows((0, F, 0))).result()
            waiting = client.sample("t", 4, timeout_s=0.5)
            assert not waiting.done()
            process.kill()
            process.join()
            lost = writer.observe(rows((0, M, 1)))
        with a_server_process(ipc_address):
            with pytest.raises(UnknownTableError, match="there is no table 't'; tables: none yet"):
                lost.result()
            with pytest.raises(UnknownTableError):
                waiting.result()
            assert transport.reconnects >= 1
            client.create_table("t", spec())
            with pytest.raises(UnknownWriterError, match="writer 'w' is not open in table 't'"):
                writer.observe(rows((0, M, 1))).result()
            play(client)


@pytest.mark.system
def test_a_write_whose_reply_was_lost_is_applied_once(serve, ipc_address):
    """A proxy between client and server drops the first reply to each write."""
    dropped = []

    def forward(front_address, back_address, stop):
        with zmq.Context() as context, contextlib.ExitStack() as stack:
            front = stack.enter_context(context.socket(zmq.ROUTER))
            front.linger = 0
            front.bind(front_address)
            backs = {}
            while not stop.is_set():
                if front.poll(5):
                    client, *frames = front.recv_multipart()
                    if client not in backs:
                        backs[client] = stack.enter_context(context.socket(zmq.DEALER))
                        backs[client].linger = 0
                        backs[client].connect(back_address)
                    backs[client].send_multipart(frames)
                for client, back in backs.items():
                    while back.poll(0):
                        reply = back.recv_multipart()
                        _, message = decode(reply, REPLIES)
                        if message.type == "stacks" and message.key.tolist() not in dropped:
                            dropped.append(message.key.tolist())
                        else:
                            front.send_multipart([client, *reply])

    front_address = ipc_address + "-front"
    stop = threading.Event()
    with serve(ipc_address) as server:
        proxy = threading.Thread(target=forward, args=(front_address, server.address, stop))
        proxy.start()
        try:
            transport = ZmqTransport(front_address, retry_after_s=0.5, give_up_after_s=60.0)
            with Client(transport) as client:
                client.create_table("t", spec())
                writer = client.open_writer("t", "w", 1)
                for at in range(3):
                    steps = rows((0, F if at == 0 else M, at))
                    answer = writer.observe(steps, timeout_s=0.0).result()
                    assert answer.key.tolist() == [at]
                assert np.array_equal(answer.stack[0], a_stack(0, 1, 2))
                assert dropped == [[0], [1], [2]]
                assert client.info().tables["t"]["steps_ever"] == 3
                assert transport.reconnects >= 3
        finally:
            stop.set()
            proxy.join(10)
            assert not proxy.is_alive()


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")
def test_it_serves_at_an_ipv6_address(serve):
    with serve("tcp://[::1]:*") as server, Client.connect(server.address, give_up_after_s=5) as client:
        assert client.hello().tables == {}
