"""The process around a service: moves messages between a ROUTER socket and `ReplayService`."""

import logging
import math
import os
import select
from collections.abc import Iterable

import zmq

from fornix.common.addresses import check_address, is_ipv6, is_served_ipc
from fornix.common.errors import AddressError, ProtocolError
from fornix.common.messages import REQUESTS, Reply
from fornix.common.wire import MAX_FRAMES, MAX_MESSAGE_BYTES, Buffer, UndecodableError, decode, encode
from fornix.replay.place import Answer
from fornix.replay.service import ReplayService

_LOG = logging.getLogger(__name__)
_BURST = 64
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
        self._wake_reader, self._wake_writer = os.pipe()
        self.undeliverable = 0
        try:
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
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_reader, zmq.POLLIN)
        while not self._told_to_stop():
            ready = dict(poller.poll(self._patience_ms()))
            if self._socket in ready:
                self._receive_burst()
            self._send(self._service.expire())

    def stop(self) -> None:
        """Let `serve` return; may be called by a signal handler or another thread."""
        os.write(self._wake_writer, b"\0")

    def close(self) -> None:
        """Free the address."""
        self._socket.close(linger=0)
        if self._own_context:
            self._context.term()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def _patience_ms(self) -> int | None:
        patience_s = self._service.patience_s()
        return None if patience_s is None else math.ceil(patience_s * 1000)

    def _receive_burst(self) -> None:
        """Handle what has come, but look at deadlines and the stop sign every so often."""
        for _ in range(_BURST):
            if self._told_to_stop():
                return
            try:
                client, *frames = self._receive()
            except zmq.Again:
                return
            self._handle(client.bytes, [frame.buffer for frame in frames])

    def _receive(self) -> list[zmq.Frame]:
        """Return the frames of one message, and of one with too many only as many as tell that."""
        frame = self._socket.recv(zmq.NOBLOCK, copy=False)
        frames = [frame]
        while frame.more:
            frame = self._socket.recv(copy=False)
            if len(frames) < MAX_FRAMES + 3:  # the client, the header, and one too many
                frames.append(frame)
        return frames

    def _told_to_stop(self) -> bool:
        """Whether `stop` was called; the pipe alone says so."""
        return bool(select.select([self._wake_reader], [], [], 0)[0])

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
