"""The actors of a chaos run: one writes as any agent does, one sends what it wrote again and again.

Each puts down what it is about to send before it does, and what it was answered: so that whatever
happens to it, it is known what must be in the memory and what may be.
"""

import random
import time

import numpy as np
import zmq

from durability.contents import LANES, FaultError, Script, stack_of
from durability.shared import PATIENCE_S, RETRY_AFTER_S, TABLE, Log
from fornix.common.errors import FencedError, UnknownWriterError, UnreachableError, WaitTimeoutError
from fornix.common.messages import REPLIES, Observe, OpenWriter, Refused, Stacks, WriterOpened
from fornix.common.wire import decode, encode

FENCED = 3  # how a process ends whose successor has taken its place
#: What such a one is told; the latter where the server was killed while the successor took the place.
_REPLACED = (FencedError, UnknownWriterError)
_PACE_S = 0.004
_KEPT = 8  # requests that a server can answer again
_COPIES = 24  # sent again, for each new request
_AHEAD = 8


def act(place, writer, incarnation, address, memory):
    """Write until killed, as a `Client` does; look at every stack that is handed out."""
    script, log = Script(writer, incarnation), Log(place, writer, incarnation)
    name = f"writer-{writer}"
    with place.client(address, name, memory) as client:
        try:
            opened = client.open_writer(TABLE, name, LANES, incarnation)
            while True:
                request = script.next()
                log.intend(request.sequence)
                place.counters.add(f"intended {writer}")
                answer = _written(opened, request)
                log.answered(request.sequence, answer.key)
                _check_answer(request, answer)
                place.counters.add(f"acted {writer}", len(request.newest()) * request.stacks)
                place.counters.add(f"written {writer}", len(request.who))
                time.sleep(_PACE_S)
        except _REPLACED:
            return FENCED
        except Exception as error:
            place.fault(f"actor {writer}, incarnation {incarnation}", f"{type(error).__name__}: {error}")
            return 1


def _written(writer, request):
    """Write a request, however often the server is gone or slow meanwhile; return the answer."""
    pending = writer.observe(
        request.steps(),
        leave=request.leave if len(request.leave) else None,
        policy_version=request.sequence,
        stacks=request.stacks,
        timeout_s=PATIENCE_S,
    )
    while True:
        try:
            return pending.result()
        except (WaitTimeoutError, UnreachableError):
            pending = writer.unanswered
            pending.send_again()


def _check_answer(request, answer):
    newest = request.newest()
    if len(answer.key) != len(newest):
        raise FaultError(
            f"request {request.sequence} was answered with {len(answer.key)} keys, not {len(newest)}"
        )
    if not request.stacks:
        return
    due = stack_of(request.who[newest])
    if len(newest) and not np.array_equal(answer.stack, due):
        at = int(np.argmax((answer.stack != due).any(axis=(1, 2))))
        raise FaultError(
            f"request {request.sequence} was answered with another stack of {request.who[newest][at]}"
        )


def repeat(place, writer, incarnation, address):
    """Write until killed; send each request again and again, and compare the answers byte for byte."""
    script, log = Script(writer, incarnation), Log(place, writer, incarnation)
    wire = _Wire(address)
    rng = random.Random(f"{place.seed} {writer} {incarnation}")
    name = f"writer-{writer}"
    known = []  # requests that were answered, the answers, and how many servers there had been
    try:
        opened = wire.ask([OpenWriter(table=TABLE, writer=name, incarnation=incarnation, lanes=LANES)])[0]
        _require_kind(opened, WriterOpened)
        while True:
            request = script.next()
            sent = _observe(request, name, incarnation)
            log.intend(request.sequence)
            place.counters.add(f"intended {writer}")
            answer = wire.ask([sent])[0]
            _require_kind(answer, Stacks)
            log.answered(request.sequence, answer.key)
            _check_answer(request, answer)
            place.counters.add(f"written {writer}", len(request.who))
            known = [*known[-_KEPT + 1 :], (sent, answer, place.counters.total("server starts"))]
            for _ in range(_COPIES // _AHEAD):
                chosen = [rng.choice(known) for _ in range(_AHEAD)]
                server = place.counters.total("server starts")
                answers = wire.ask([again for again, _, _ in chosen])
                for (again, before, first_server), now in zip(chosen, answers, strict=True):
                    _require_same(again, before, now)
                    place.counters.add(f"retried later {writer}", server != first_server)
                place.counters.add(f"retries {writer}", len(chosen))
    except _ReplacedError:
        return FENCED
    except Exception as error:
        place.fault(f"repeater {writer}, incarnation {incarnation}", f"{type(error).__name__}: {error}")
        return 1


def _observe(request, name, incarnation):
    steps = request.steps()
    return Observe(
        table=TABLE,
        writer=name,
        incarnation=incarnation,
        sequence=request.sequence,
        leave=request.leave if len(request.leave) else None,
        policy_version=request.sequence,
        stacks=request.stacks,
        timeout_s=PATIENCE_S,
        **steps.__dict__,
    )


class _ReplacedError(Exception):
    """A successor has this writer's place."""


def _require_kind(answer, kind):
    if isinstance(answer, Refused) and answer.code in {error.code for error in _REPLACED}:
        raise _ReplacedError
    if not isinstance(answer, kind):
        raise FaultError(f"{answer!r:.300} came, and {kind.__name__} was due")


def _require_same(request, before, now):
    _require_kind(now, Stacks)
    for name in ("key", "stack"):
        old, new = getattr(before, name), getattr(now, name)
        if old is None and new is None:
            continue
        if old is None or new is None or old.dtype != new.dtype or old.shape != new.shape:
            raise FaultError(
                f"request {request.sequence} was answered again with another {name}: {new!r:.300}"
            )
        if old.tobytes() != new.tobytes():
            raise FaultError(f"request {request.sequence} was answered again with other bytes of {name}")


class _Wire:
    """Messages to a server, as they are on the wire; what isn't answered is sent again."""

    def __init__(self, address):
        self._address = address
        self._context = zmq.Context()
        self._number = 0
        self._socket = self._connect()

    def ask(self, requests):
        """Return the answers to requests, which are on their way together."""
        waits = {}
        for at, request in enumerate(requests):
            self._number += 1
            waits[self._number] = at, request
        answers = [None] * len(requests)
        self._send(waits)
        deadline = time.monotonic() + RETRY_AFTER_S + PATIENCE_S
        while waits:
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms <= 0 or not self._socket.poll(left_ms):
                self._socket.close(linger=0)
                self._socket = self._connect()
                self._send(waits)
                deadline = time.monotonic() + RETRY_AFTER_S + PATIENCE_S
                continue
            number, reply = decode(
                [frame.buffer for frame in self._socket.recv_multipart(copy=False)], REPLIES
            )
            if number in waits and not (isinstance(reply, Refused) and reply.code == WaitTimeoutError.code):
                answers[waits.pop(number)[0]] = reply
        return answers

    def _send(self, waits):
        for number, (_, request) in waits.items():
            self._socket.send_multipart(encode(request, number), copy=False)

    def _connect(self):
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.reconnect_ivl = 20
        socket.connect(self._address)
        return socket
