"""The process around a service: moves messages between a ROUTER socket and `ReplayService`."""

import contextlib
import logging
import math
from collections.abc import Iterable

import zmq

from fornix.common.addresses import check_address, is_ipv6, is_served_ipc
from fornix.common.errors import AddressError, ProtocolError
from fornix.common.messages import REQUESTS, Reply
from fornix.common.wire import MAX_FRAMES, MAX_MESSAGE_BYTES, Buffer, UndecodableError, decode, encode
from fornix.replay.place import Answer
from fornix.replay.service import ReplayService

_LOG = logging.getLogger(__name__)
_QUEUED_MESSAGES = 32


class ReplayServer:
    """Serves one `ReplayService` at one address.

    Args:
        service: that decides.
        address: to bind, `tcp://` or `ipc://`; port `*` takes a free one.
        context: to make the socket in; one of its own if not given.

    Raises:
        AddressError: if the address can't be bound.
    """

    def __init__(
        self,
        service: ReplayService,
        address: str,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        check_address(address)
        if is_served_ipc(address):
            raise AddressError(
                f"can't serve at {address}: another server does; stop it, or choose another address"
            )
        self._service = service
        self._own_context = context is None
        self._context = context or zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.ipv6 = is_ipv6(address)
        self._socket.router_mandatory = True
        # a peer that floods, or does not read, holds so many messages of ours at most in each direction
        self._socket.sndhwm = self._socket.rcvhwm = _QUEUED_MESSAGES
        # far above what the wire admits: a message between the two limits is answered with a sentence
        self._socket.maxmsgsize = 2 * MAX_MESSAGE_BYTES
        self._stopped = False
        self._waking = f"inproc://wake-{id(self)}"
        self.undeliverable = 0
        try:
            self._socket.bind(self._waking)
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise AddressError(
                f"can't serve at {address}: {error.strerror}; stop whatever uses it, or choose another "
                f"address"
            ) from None
        #: Where clients connect to.
        self.address: str = self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    def serve(self) -> None:
        """Answer requests until `stop` is called."""
        while not self._stopped:
            patience_s = self._service.patience_s()
            if patience_s == 0:
                self._send(self._service.expire())
                continue
            # a socket's own time-out: to poll it, and another for the stop sign, costs a system call each
            self._socket.rcvtimeo = -1 if patience_s is None else math.ceil(patience_s * 1000)
            with contextlib.suppress(zmq.Again):
                client, frames = self._receive()
                if not self._stopped:
                    self._handle(client, frames)

    def stop(self) -> None:
        """Let `serve` return; may be called by a signal handler or another thread."""
        self._stopped = True
        with self._context.socket(zmq.DEALER) as waker:
            waker.linger = 0
            waker.connect(self._waking)
            waker.send(b"")

    def close(self) -> None:
        """Free the address."""
        self._socket.close(linger=0)
        if self._own_context:
            self._context.term()

    def _receive(self) -> tuple[bytes, list[Buffer]]:
        """Return a client and the frames of its message; of one with too many only as many as tell that."""
        client = self._socket.recv()
        frames: list[Buffer] = []
        more = bool(self._socket.rcvmore)
        while more:
            frame = self._socket.recv(copy=False)
            more = frame.more
            if len(frames) < MAX_FRAMES + 2:  # the header, and one too many
                frames.append(frame.buffer)
        return client, frames

    def _handle(self, client: bytes, frames: list[Buffer]) -> None:
        try:
            number, request = decode(frames, REQUESTS)
        except UndecodableError as error:
            # without a number the client can't tell what is meant, but a person at its log can
            number = error.message_id or 0
            _LOG.warning("refused a message: %s", error)
            self._send([((client, number), self._service.refuse(error.error))])
            return
        self._send(self._service.submit((client, number), request))

    def _send(self, answers: Iterable[Answer]) -> None:
        for (client, number), reply in answers:
            try:
                frames = self._encode(reply, number)
                self._socket.send_multipart([client, *frames], zmq.NOBLOCK, copy=False)
            except zmq.ZMQError as error:
                # gone, or too slow to read: it will ask again through a new socket
                self.undeliverable += 1
                _LOG.debug("no way to client %s: %s", client.hex(), error)

    def _encode(self, reply: Reply, number: int) -> list[Buffer]:
        try:
            return encode(reply, number)
        except ProtocolError as error:  # more than a message may hold
            return encode(self._service.refuse(error), number)
