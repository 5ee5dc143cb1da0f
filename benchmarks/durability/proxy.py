"""A way to the server on which messages are lost, doubled and late, and connections are cut.

Clients connect to its ROUTER; for each there is a DEALER to the server, so that the server knows them
apart. Now and then all sockets are closed and made again, with whatever was on its way.
"""

import contextlib
import heapq
import itertools
import random
import time

import zmq

_LOST, _DOUBLED, _LATE = 0.02, 0.05, 0.08
_LATEST_S = 0.4
_CUT_AFTER_S = 3.0  # on average
_IDLE_S = 5.0


def forward(place, incarnation):
    """Forward until killed."""
    rng = random.Random(f"{place.seed} proxy {incarnation}")
    try:
        while True:
            _Connections(place, rng).forward(time.monotonic() + rng.expovariate(1 / _CUT_AFTER_S))
            place.counters.add("cuts")
    except Exception as error:
        place.fault("proxy", f"{type(error).__name__}: {error}")
        return 1


class _Connections:
    """All sockets, until they are cut."""

    def __init__(self, place, rng):
        self._place = place
        self._rng = rng
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._front.bind(place.proxy)
        self._poller = zmq.Poller()
        self._poller.register(self._front, zmq.POLLIN)
        self._backs = {}  # by client: its socket, and when it was last used
        self._clients = {}  # by socket
        self._late = []  # a heap of messages: when they are due, where they go
        self._order = itertools.count()

    def forward(self, until):
        """Forward messages until the connections are cut."""
        try:
            while (now := time.monotonic()) < until:
                self._send_late(now)
                due = min(until, self._late[0][0]) if self._late else until
                for socket, _ in self._poller.poll(max(0, (due - now) * 1000)):
                    self._take(socket)
                self._close_idle(now)
        finally:
            self._context.destroy(linger=0)

    def _take(self, socket):
        with contextlib.suppress(zmq.Again):
            while True:
                frames = socket.recv_multipart(zmq.NOBLOCK)
                if socket is self._front:
                    client, *frames = frames
                    self._maybe(client, True, frames)
                else:
                    self._maybe(self._clients[socket], False, frames)

    def _maybe(self, client, to_server, frames):
        """Send a message once, or not, or twice, or later."""
        count = self._place.counters.add
        if self._rng.random() < _LOST:
            count("lost")
            return
        copies = 1
        if self._rng.random() < _DOUBLED:
            count("doubled")
            copies = 2
        for _ in range(copies):
            if self._rng.random() < _LATE:
                count("late")
                due = time.monotonic() + self._rng.random() * _LATEST_S
                heapq.heappush(self._late, (due, next(self._order), client, to_server, frames))
            else:
                self._send(client, to_server, frames)

    def _send_late(self, now):
        while self._late and self._late[0][0] <= now:
            self._send(*heapq.heappop(self._late)[2:])

    def _send(self, client, to_server, frames):
        with contextlib.suppress(zmq.Again):
            if to_server:
                self._back(client).send_multipart(frames, zmq.NOBLOCK)
            else:
                self._front.send_multipart([client, *frames], zmq.NOBLOCK)

    def _back(self, client):
        if client in self._backs:
            socket = self._backs[client][0]
        else:
            socket = self._context.socket(zmq.DEALER)
            socket.linger = 0
            socket.reconnect_ivl = 20
            socket.connect(self._place.server)
            self._clients[socket] = client
            self._poller.register(socket, zmq.POLLIN)
        self._backs[client] = socket, time.monotonic()
        return socket

    def _close_idle(self, now):
        for client, (socket, used) in list(self._backs.items()):
            if now - used > _IDLE_S:
                del self._backs[client], self._clients[socket]
                self._poller.unregister(socket)
                socket.close(linger=0)
