"""A service on a machine whose process can be killed and whose power can be cut, asked as a `Desk` is."""

import numpy as np
from durability.simulated import Host

from fornix.common.messages import CreateTable, OpenWriter, Refused
from fornix.replay.client import Client
from fornix.replay.durable.file import RowsFile
from fornix.replay.local import LocalTransport

from ..builders import Clock, observe, signature, spec
from ..desk import Desk


class Machine(Desk):
    """A desk whose service keeps its tables on a simulated disk.

    Args:
        seed: of the draws, and of what the disk keeps at a power cut.
    """

    def __init__(self, seed=0):
        self.clock = Clock()
        self.host = Host(self.clock, seed)
        self.answers = {}
        self._numbers = 0
        self._written = {}

    @property
    def service(self):
        return self.host.service

    @property
    def disk(self):
        return self.host.disk

    @property
    def flusher(self):
        return self.host.flusher

    def inside(self, name="t"):
        """The table itself."""
        return self.service._catalog[name].table

    @property
    def memory(self):
        return self.inside().memory

    def table(self, name="t", capacity=100, n_frames=3, **options):
        assert not isinstance(
            self.ask(CreateTable(table=name, spec=spec(capacity, n_frames, **options))), Refused
        )
        return self

    def writer(self, name="w", lanes=1, incarnation=1, table="t"):
        answer = self.ask(OpenWriter(table=table, writer=name, incarnation=incarnation, lanes=lanes))
        assert not isinstance(answer, Refused), answer
        self._written[name] = answer.sequence - 1
        return self

    def write(self, *rows, writer="w", **changes):
        """Send rows (lane, kind, value) under the number that is due; return the answer."""
        number = self._written[writer] + 1
        like = signature(self.memory.signature.n_frames)
        self.request = observe(number, rows, writer=writer, like=like, **changes)
        answer = self.ask(self.request)
        if not isinstance(answer, Refused):
            self._written[writer] = number
        return answer

    def sync(self):
        """Let the disk take everything, and the server take note."""
        self.flusher.lets = True
        for _ in range(4):  # the sync under way ends, and another one
            self.pass_time(1.0)

    def restart(self):
        """End the server in good order, and start the next."""
        self.service.close()
        self.host.start()

    def client(self):
        return Client(LocalTransportToHost(self.host))

    def damage(self, key, column=None, name="rows-0"):
        """Flip a bit of a row that lies on the disk, in a payload column or in its record."""
        base = self.memory.log.columns.base
        file = RowsFile.open(self.disk, name)
        slot = (key - base) % file.meta.slots
        if column is None:
            file.records["position"][slot] ^= 1
        else:
            file.arrays[column][slot : slot + 1].view(np.uint8).flat[0] ^= 1


class LocalTransportToHost(LocalTransport):
    """A client's way to whatever service runs on a machine."""

    def __init__(self, host):
        super().__init__(host.service)
        self._host = host

    def send(self, request):
        self._service = self._host.service
        return super().send(request)
