"""A service, asked by name and without sockets, under a clock that the test turns."""

import numpy as np

from fornix.common.errors import (
    InvalidRequestError,
)
from fornix.common.messages import CreateTable, InfoQuery, OpenWriter, Refused, TableCreated, WriterOpened
from fornix.common.specs import LimiterSpec
from fornix.common.transport import Transport
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

from .builders import Clock, observe, signature, spec

RATIO = LimiterSpec(min_size=2, samples_per_insert=4.0, error_buffer_inserts=2.0)


class Desk:
    """A service with a clock that the test turns, asked by name; keeps the answers that came late."""

    def __init__(self, **options):
        self.clock = Clock()
        self.service = ReplayService(self.clock, seed=0, **options)
        self.answers = {}
        self._numbers = 0

    def send(self, request, who="me"):
        """Hand in a request; return its ticket. All answers that are due are put down."""
        self._numbers += 1
        ticket = (who, self._numbers)
        self._put_down(self.service.submit(ticket, request))
        return ticket

    def ask(self, request, who="me"):
        """Return the answer to a request, which must be there at once."""
        return self.answers.pop(self.send(request, who))

    def refusal(self, request, kind=InvalidRequestError):
        """Return the message of the refusal that a request must meet."""
        reply = self.ask(request)
        assert isinstance(reply, Refused), reply
        assert reply.code == kind.code, reply
        return reply.message

    def pass_time(self, seconds):
        self.clock.now += seconds
        self._put_down(self.service.expire())

    def info(self):
        return self.ask(InfoQuery())

    def table(self, name="t"):
        return self.info().tables[name]

    def _put_down(self, answers):
        for ticket, reply in answers:
            assert ticket not in self.answers
            self.answers[ticket] = reply


def a_desk(limiter=None, lanes=2, capacity=100, **options):
    """Return a desk with a table `t` and a writer `w`."""
    desk = Desk(**options)
    assert desk.ask(CreateTable(table="t", spec=spec(capacity, limiter=limiter))) == TableCreated(
        created=True
    )
    assert desk.ask(OpenWriter(table="t", writer="w", incarnation=1, lanes=lanes)) == WriterOpened(
        sequence=1
    )
    return desk


def write(desk, sequence, *rows, **changes):
    return desk.send(observe(sequence, rows, **changes))


def lasting(info):
    """Return what an info says, less what passing by changes."""
    server = {
        key: value for key, value in info.server.items() if key not in ("refused_requests", "uptime_s")
    }
    return server, info.tables, info.reports


class Recorder(LocalTransport):
    """Counts what a client sends."""

    def __init__(self, service):
        super().__init__(service)
        self.sent = []

    def send(self, request):
        self.sent.append(request)
        return super().send(request)


def a_client(desk):
    transport: Transport = Recorder(desk.service)
    return Client(transport), transport


def steps(frames, dtype=np.int32):
    return Steps.first(signature(), np.zeros(1, np.int32), np.asarray(frames, dtype))
