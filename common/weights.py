"""The channel on which learners publish weights, and actors take the newest.

A message is one frame, `policy name, NUL, tensors`, since a conflating socket keeps one message and
loses multipart ones. A late joiner gets the current weights at once: the publisher hears of each
subscription (XPUB) and repeats its last message then. It repeats it on a slow beat as well, since a
publisher drops the *newest* message to a reader whose queue is full.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq
from torch import Tensor

from fornix.common.addresses import check_address, is_ipv6, is_served_ipc
from fornix.common.errors import AddressError
from fornix.common.tensors import DamagedTensorsError, pack, unpack

_LOG = logging.getLogger(__name__)

BEAT_S = 1.0
_SECOND_CALL_S = 0.05
_MAX_MESSAGE_BYTES = 1 << 30
_WAKE = "inproc://fornix-weights-wake"


@dataclass(frozen=True)
class Weights:
    """One publication of a policy's weights."""

    policy: str
    version: int
    """How many times the policy had been published, this one included."""
    incarnation: int
    """Of the learner that published it: that of a newer learner is greater."""
    tensors: Mapping[str, Tensor]

    @property
    def age_order(self) -> tuple[int, int]:
        """Greater for newer weights; those of a newer learner are newer whatever their version."""
        return self.incarnation, self.version


class WeightsSource(Protocol):
    """Where an actor looks for weights."""

    def newest(self) -> Weights | None:
        """Return weights newer than all returned before, or None."""

    def close(self) -> None:
        """Let go of all resources."""


def _topic(policy: str) -> bytes:
    return policy.encode() + b"\0"


def _encode(weights: Weights) -> bytes:
    metadata = {"version": str(weights.version), "incarnation": str(weights.incarnation)}
    return _topic(weights.policy) + pack(weights.tensors, metadata)


def _decode(policy: str, message: bytes) -> Weights:
    tensors, metadata = unpack(message[len(_topic(policy)) :])
    try:
        return Weights(policy, int(metadata["version"]), int(metadata["incarnation"]), tensors)
    except (KeyError, ValueError):
        raise DamagedTensorsError("weights came without a version or an incarnation") from None


class WeightsPublisher:
    """Publishes the weights of any number of policies at one address, from a thread of its own.

    Args:
        address: to bind, `tcp://` or `ipc://`.
        incarnation: of this learner; the time in nanoseconds if not given.
        beat_s: after which the last weights are repeated.

    Raises:
        AddressError: if the address can't be bound.
    """

    def __init__(self, address: str, incarnation: int | None = None, beat_s: float = BEAT_S) -> None:
        check_address(address)
        if is_served_ipc(address):
            raise AddressError(
                f"can't publish at {address}: another process serves there; stop it, or choose another "
                f"address"
            )
        self._incarnation = time.time_ns() if incarnation is None else incarnation
        self._beat_s = beat_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.linger = 0
        self._socket.ipv6 = is_ipv6(address)
        self._socket.xpub_verbose = True
        self._socket.sndhwm = 2  # a slow reader should have few stale messages to swallow
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._socket.close()
            self._context.term()
            raise AddressError(
                f"can't publish at {address}: {error.strerror}; stop whatever uses it, or choose another "
                f"address"
            ) from None
        #: Where subscribers connect to.
        self.address: str = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._wake_in, self._wake_out = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        self._wake_out.bind(_WAKE)
        self._wake_in.connect(_WAKE)
        self._thread = threading.Thread(target=self._serve, name="weights-publisher", daemon=True)
        self._thread.start()

    def publish(self, policy: str, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Publish weights; they must not change any more. Never waits for a subscriber."""
        self._wake_in.send(_encode(Weights(policy, version, self._incarnation, tensors)))

    def close(self) -> None:
        """End the thread and free the address."""
        self._wake_in.send(b"")
        self._thread.join()
        for socket in (self._wake_in, self._wake_out, self._socket):
            socket.close(linger=0)
        self._context.term()

    def _serve(self) -> None:
        last: dict[bytes, bytes] = {}
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        beat = time.monotonic() + self._beat_s
        while True:
            ready = dict(poller.poll(max(0, math.ceil((beat - time.monotonic()) * 1000))))
            if self._wake_out in ready:
                message = self._wake_out.recv()
                if not message:
                    return
                last[message[: message.index(b"\0") + 1]] = message
                self._socket.send(message)
            if self._socket in ready:
                subscription = self._socket.recv()
                if subscription[:1] == b"\x01" and subscription[1:] in last:
                    self._socket.send(last[subscription[1:]])
                    # one conflating reader in some thousands sleeps on over its first message, by a race
                    # in libzmq's ypipe_conflate; the next message wakes it
                    beat = min(beat, time.monotonic() + _SECOND_CALL_S)
            if time.monotonic() >= beat:
                beat = time.monotonic() + self._beat_s
                for message in last.values():
                    self._socket.send(message)


class WeightsSubscriber:
    """Takes the newest weights of one policy from any of several publishers.

    Args:
        addresses: of the publishers.
        policy: whose weights to take.
        context: to make the socket in; one of its own if not given.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        policy: str,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self._policy = policy
        self._own_context = context is None
        self._context = context or zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.linger = 0
        self._socket.ipv6 = any(map(is_ipv6, addresses))
        self._socket.maxmsgsize = _MAX_MESSAGE_BYTES
        self._socket.conflate = True  # has no effect once connected
        self._socket.subscribe(_topic(policy))
        for address in addresses:
            self._socket.connect(check_address(address))
        self._seen = (-1, -1)

    def newest(self) -> Weights | None:
        """Return weights newer than all returned before, or None; never waits."""
        try:
            message = self._socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return self._fresh(message)

    def wait(self, timeout_s: float) -> Weights | None:
        """Wait for weights newer than all returned before; None if none have come in time."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            if self._socket.poll(math.ceil(left_s * 1000)):
                found = self.newest()
                if found is not None:
                    return found
        return None

    def close(self) -> None:
        """Close the socket, and the context if it is this subscriber's own."""
        self._socket.close(linger=0)
        if self._own_context:
            self._context.term()

    def _fresh(self, message: bytes) -> Weights | None:
        try:
            weights = _decode(self._policy, message)
        except DamagedTensorsError as error:
            _LOG.warning("weights of %r were refused: %s", self._policy, error)
            return None
        if weights.age_order <= self._seen:
            return None
        self._seen = weights.age_order
        return weights


class LocalWeights:
    """The weights channel within one process: what was published last is what is newest."""

    def __init__(self) -> None:
        self._last: dict[str, Weights] = {}

    def publish(self, policy: str, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Publish weights; they must not change any more."""
        self._last[policy] = Weights(policy, version, 0, tensors)

    def subscriber(self, policy: str) -> "LocalSubscriber":
        """Return a source of one policy's weights."""
        return LocalSubscriber(lambda: self._last.get(policy))


class LocalSubscriber:
    """Takes one policy's weights from a LocalWeights."""

    def __init__(self, look: Callable[[], Weights | None]) -> None:
        self._look = look
        self._seen = (-1, -1)

    def newest(self) -> Weights | None:
        """Return weights newer than all returned before, or None."""
        weights = self._look()
        if weights is None or weights.age_order <= self._seen:
            return None
        self._seen = weights.age_order
        return weights

    def close(self) -> None:
        """Nothing to let go of."""
