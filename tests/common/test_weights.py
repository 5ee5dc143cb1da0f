"""The weights channel: late joiners, slow readers, restarts, damage, and whose weights are newer."""

import contextlib
import logging
import threading

import pytest
import torch
import zmq

from fornix.common.errors import AddressError
from fornix.common.tensors import pack
from fornix.common.weights import LocalWeights, WeightsPublisher, WeightsSubscriber

PATIENCE_S = 10.0
#: Long enough for a message on this machine to have come, if it were to.
NOTHING_COMES_S = 0.3
NEVER_S = 3600.0


def tensors(value):
    return {"w": torch.full((3,), float(value))}


@pytest.fixture
def open_publisher():
    """Return a function that opens publishers, which are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_one(address, incarnation=1, beat_s=NEVER_S):
            publisher = WeightsPublisher(address, incarnation, beat_s)
            stack.callback(publisher.close)
            return publisher

        yield open_one


@pytest.fixture
def subscribe():
    """Return a function that opens subscribers, which are closed at the end."""
    with contextlib.ExitStack() as stack:

        def open_one(*addresses, policy="shared"):
            subscriber = WeightsSubscriber(addresses, policy)
            stack.callback(subscriber.close)
            return subscriber

        yield open_one


@pytest.fixture
def raw_publisher(ipc_address):
    """A bare socket at `ipc_address`, to publish what no learner would; someone has subscribed to it."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.linger = 0
        socket.bind(ipc_address)
        yield socket


def test_a_late_joiner_gets_the_current_weights_at_once(ipc_address, open_publisher, subscribe):
    publisher = open_publisher(ipc_address)
    for version in (1, 2, 3):
        publisher.publish("shared", version, tensors(version))
    while subscribe(publisher.address).wait(PATIENCE_S).version < 3:
        pass  # the publisher's thread has not taken the newest over yet
    for _ in range(3):
        found = subscribe(publisher.address).wait(PATIENCE_S)
        assert (found.policy, found.version, found.incarnation) == ("shared", 3, 1)
        assert torch.equal(found.tensors["w"], tensors(3)["w"])


def test_one_that_was_there_before_the_learner_gets_them_too(ipc_address, open_publisher, subscribe):
    early = subscribe(ipc_address)
    assert early.newest() is None
    open_publisher(ipc_address).publish("shared", 1, tensors(1))
    assert early.wait(PATIENCE_S).version == 1


def test_weights_are_handed_out_once(ipc_address, open_publisher, subscribe):
    publisher = open_publisher(ipc_address, beat_s=0.02)
    publisher.publish("shared", 1, tensors(1))
    subscriber = subscribe(ipc_address)
    assert subscriber.wait(PATIENCE_S).version == 1
    assert subscriber.wait(NOTHING_COMES_S) is None  # though they come again with each beat
    publisher.publish("shared", 2, tensors(2))
    assert subscriber.wait(PATIENCE_S).version == 2


def test_versions_only_go_forward(ipc_address, open_publisher, subscribe):
    publisher, subscriber = open_publisher(ipc_address), subscribe(ipc_address)
    publisher.publish("shared", 5, tensors(5))
    assert subscriber.wait(PATIENCE_S).version == 5
    publisher.publish("shared", 4, tensors(4))
    assert subscriber.wait(NOTHING_COMES_S) is None
    publisher.publish("shared", 6, tensors(6))
    assert subscriber.wait(PATIENCE_S).version == 6


def test_a_newer_learner_wins_whatever_its_version(ipc_address, open_publisher, subscribe):
    subscriber = subscribe(ipc_address, f"{ipc_address}2")
    first = WeightsPublisher(ipc_address, incarnation=10, beat_s=NEVER_S)
    with contextlib.closing(first):
        first.publish("shared", 100, tensors(100))
        assert subscriber.wait(PATIENCE_S).version == 100
        open_publisher(f"{ipc_address}2", incarnation=9).publish("shared", 200, tensors(200))
        assert subscriber.wait(NOTHING_COMES_S) is None
    open_publisher(ipc_address, incarnation=11).publish("shared", 1, tensors(1))
    found = subscriber.wait(PATIENCE_S)
    assert (found.incarnation, found.version) == (11, 1)


def test_a_later_learner_is_newer_without_being_told(ipc_address, open_publisher, subscribe):
    subscriber = subscribe(ipc_address)
    with contextlib.closing(WeightsPublisher(ipc_address)) as first:
        first.publish("shared", 9, tensors(9))
        assert subscriber.wait(PATIENCE_S).version == 9
    open_publisher(ipc_address, incarnation=None).publish("shared", 1, tensors(1))
    assert subscriber.wait(PATIENCE_S).version == 1


def good(version):
    return b"shared\0" + pack(tensors(version), {"version": str(version), "incarnation": "1"})


DAMAGED = {
    "nothing": b"",
    "noise": b"\xff" * 100,
    "truncated": good(7)[7:-1],
    "flipped": good(7)[7:-1] + b"\x55",
    "without a version": pack(tensors(7), {"incarnation": "1"}),
    "with a version that is no number": pack(tensors(7), {"version": "new", "incarnation": "1"}),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_message_is_ignored_aloud_and_the_next_one_taken(
    damaged, raw_publisher, ipc_address, subscribe, caplog, wait_until
):
    subscriber = subscribe(ipc_address)
    assert raw_publisher.recv() == b"\x01shared\0"
    found = []

    def refused():
        found.append(subscriber.newest())
        return any("'shared' were refused" in record.getMessage() for record in caplog.records)

    with caplog.at_level(logging.WARNING):
        raw_publisher.send(b"shared\0" + damaged)
        wait_until(refused, "the warning")
    assert set(found) == {None}
    raw_publisher.send(good(8))
    assert subscriber.wait(PATIENCE_S).version == 8


def test_waiting_goes_on_behind_a_damaged_message(raw_publisher, ipc_address, subscribe):
    subscriber = subscribe(ipc_address)
    assert raw_publisher.recv() == b"\x01shared\0"
    raw_publisher.send(b"shared\0noise")
    timer = threading.Timer(0.1, raw_publisher.send, [good(8)])
    timer.start()
    assert subscriber.wait(PATIENCE_S).version == 8
    timer.join()


def test_a_subscriber_that_did_not_read_gets_the_newest(ipc_address, open_publisher, subscribe):
    publisher = open_publisher(ipc_address, beat_s=0.05)
    publisher.publish("shared", 1, tensors(1))
    slow, quick = subscribe(ipc_address), subscribe(ipc_address)
    assert slow.wait(PATIENCE_S).version == 1
    for version in range(2, 202):
        publisher.publish("shared", version, tensors(version))
    while quick.wait(PATIENCE_S).version < 201:
        pass
    seen = []
    while not seen or seen[-1] < 201:
        seen.append(slow.wait(PATIENCE_S).version)
    assert len(seen) <= 3, seen  # one, unless a message was still on its way


def test_publishing_never_waits_for_a_reader(ipc_address, open_publisher, subscribe):
    publisher, sleeper = open_publisher(ipc_address, beat_s=0.05), subscribe(ipc_address)
    heavy = {"w": torch.zeros(100_000)}
    for version in range(1, 201):
        publisher.publish("shared", version, heavy)
    while sleeper.wait(PATIENCE_S).version < 200:
        pass


def test_the_last_weights_are_repeated_on_a_beat(ipc_address, open_publisher):
    """A publisher drops the newest message to a reader whose queue is full: the beat makes up for it."""
    publisher = open_publisher(ipc_address, beat_s=0.02)
    publisher.publish("agent_0", 3, tensors(3))
    publisher.publish("agent_1", 4, tensors(4))
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(PATIENCE_S * 1000)
        socket.subscribe(b"agent_")
        socket.connect(ipc_address)
        messages = [socket.recv() for _ in range(12)]
    assert {message.split(b"\0")[0] for message in messages} == {b"agent_0", b"agent_1"}
    assert len(set(messages)) == 2


def test_a_late_joiner_is_sent_the_weights_twice(ipc_address, open_publisher):
    """A conflating socket may sleep on over one message, by a race in libzmq; the second wakes it."""
    publisher = open_publisher(ipc_address)  # whose beat never comes by itself
    publisher.publish("shared", 1, tensors(1))
    for _ in range(2):
        with zmq.Context() as context, context.socket(zmq.SUB) as socket:
            socket.linger = 0
            socket.rcvtimeo = 2000
            socket.subscribe(b"shared\0")
            socket.connect(ipc_address)
            assert socket.recv() == socket.recv()


def test_each_policy_is_a_topic_of_its_own(ipc_address, open_publisher, subscribe):
    addresses = (ipc_address, f"{ipc_address}2")
    first, second = (open_publisher(address) for address in addresses)
    first.publish("agent_0", 1, tensors(0))
    first.publish("agent_2", 2, tensors(2))
    second.publish("agent_1", 3, tensors(1))
    for agent, version in enumerate((1, 3, 2)):
        subscriber = subscribe(*addresses, policy=f"agent_{agent}")
        found = subscriber.wait(PATIENCE_S)
        assert (found.policy, found.version) == (f"agent_{agent}", version)
        assert torch.equal(found.tensors["w"], tensors(agent)["w"])
        assert subscriber.wait(NOTHING_COMES_S) is None


def test_a_name_that_begins_like_another_is_not_taken_for_it(ipc_address, open_publisher, subscribe):
    publisher = open_publisher(ipc_address, beat_s=0.05)
    publisher.publish("agent_10", 1, tensors(10))
    ten, one = (subscribe(ipc_address, policy=f"agent_{agent}") for agent in (10, 1))
    assert ten.wait(PATIENCE_S).policy == "agent_10"
    assert one.wait(NOTHING_COMES_S) is None
    publisher.publish("agent_1", 1, tensors(1))
    assert torch.equal(one.wait(PATIENCE_S).tensors["w"], tensors(1)["w"])


@pytest.mark.parametrize("kind", ["ipc", "tcp"])
def test_an_address_in_use_is_refused_and_left_to_its_owner(kind, ipc_address, open_publisher, subscribe):
    owner = open_publisher(ipc_address if kind == "ipc" else "tcp://127.0.0.1:*")
    with pytest.raises(AddressError, match=r"can't publish at .*; .*choose another"):
        WeightsPublisher(owner.address)
    owner.publish("shared", 1, tensors(1))
    assert subscribe(owner.address).wait(PATIENCE_S).version == 1


@pytest.mark.parametrize(
    "address", ["udp://127.0.0.1:1", "tcp://127.0.0.1:99999", "ipc:///no/such/folder/s"]
)
def test_an_address_that_can_not_be_bound_is_refused(address):
    with pytest.raises(AddressError):
        WeightsPublisher(address)


def test_closing_frees_the_address_and_ends_the_thread(ipc_address):
    for _ in range(3):
        publisher = WeightsPublisher(ipc_address)
        publisher.publish("shared", 1, tensors(1))
        publisher.close()
        assert not [one for one in threading.enumerate() if one.name == "weights-publisher"]


def test_waiting_ends_at_its_deadline(ipc_address, subscribe):
    assert subscribe(ipc_address).wait(0.05) is None
    assert subscribe(ipc_address).wait(0) is None


def test_within_one_process_the_newest_is_what_was_published_last():
    weights = LocalWeights()
    first = weights.subscriber("shared")
    assert first.newest() is None
    weights.publish("shared", 1, tensors(1))
    weights.publish("shared", 2, tensors(2))
    weights.publish("agent_0", 9, tensors(9))
    late = weights.subscriber("shared")
    for subscriber in (first, late):
        assert subscriber.newest().version == 2
        assert subscriber.newest() is None
    weights.publish("shared", 1, tensors(1))
    assert first.newest() is None
    first.close()
