"""The processes of a chaos run, and what happens to each: SIGKILL, SIGSTOP, a successor beside it."""

import contextlib
import logging
import os
import signal
import struct
import time

from durability.actors import FENCED
from durability.contents import SIGNATURE
from durability.shared import QUEUE, TABLE, fork
from fornix.common.specs import LimiterSpec, SamplerSpec, TableSpec
from fornix.replay.role import serve

_PID = struct.Struct("<i")


class Process:
    """One role; it is started again whenever it has been killed.

    Args:
        name: of it.
        run: what the process does; it is told the incarnation.
        rng: of what happens to it.
        mean_life_s: how long it lives, on average.
        overlaps: whether its successor may come while it is only stopped.
    """

    def __init__(self, name, run, rng, mean_life_s, overlaps=False):
        self.name = name
        self.kills = 0
        self.stops = 0
        self.twins = 0
        self.incarnation = 0
        self.due = 0.0
        self._run = run
        self._rng = rng
        self._mean_life_s = mean_life_s
        self._may_overlap = overlaps
        self._stopped = False
        self.pid = 0
        #: Those that have a successor, and are to go on at a time.
        self.replaced = []

    def start(self, now):
        """Start the process."""
        self.incarnation += 1
        self.pid = fork(self._run, self.incarnation)
        self._stopped = False
        self.due = now + self._rng.expovariate(1 / self._mean_life_s)

    def happen(self, now):
        """What is due happens."""
        for pid, due in list(self.replaced):
            if due <= now:
                os.kill(pid, signal.SIGCONT)
                self.replaced.remove((pid, due))
                self.replaced.append((pid, float("inf")))
        if self.due > now:
            return
        chance = self._rng.random()
        if self._stopped and chance < 0.5:
            os.kill(self.pid, signal.SIGCONT)
            self._stopped = False
            self.due = now + self._rng.expovariate(1 / self._mean_life_s)
        elif self._stopped or chance < 0.75:
            kill(self.pid)
            self.kills += 1
            self.start(now)
        else:
            os.kill(self.pid, signal.SIGSTOP)
            self.stops += 1
            stopped_for = 0.05 + 0.4 * self._rng.random()
            if self._may_overlap and chance > 0.92:
                self.twins += 1
                self.replaced.append((self.pid, now + stopped_for))
                self.start(now)
            else:
                self._stopped = True
                self.due = now + stopped_for

    @property
    def next_due(self):
        return min([self.due, *(due for _, due in self.replaced)])

    def ended(self):
        """Return what is wrong with those of its processes that have ended by themselves."""
        wrong = []
        for pid, due in list(self.replaced):
            status = _ended(pid)
            if status is not None:
                self.replaced.remove((pid, due))
                if status != FENCED:
                    wrong.append(f"ended with {status}, and not because its successor took its place")
        status = _ended(self.pid)
        if status is not None:
            wrong.append(f"ended with {status} by itself")
        return wrong

    def end(self):
        """Kill all of its processes."""
        for pid in (self.pid, *(pid for pid, _ in self.replaced)):
            kill(pid)
        self.replaced.clear()


class Server:
    """The server's process; who uses it kills it, so as to look at what it leaves.

    Args:
        place: of the run.
    """

    def __init__(self, place):
        self._place = place
        self._ready_in, self._ready_out = os.pipe()
        self.pid = 0
        self.started = 0.0
        self.started_ns = 0
        self.is_ready = False
        self.ready_s = []

    def start(self):
        """Start the process."""
        self.started, self.started_ns = time.monotonic(), time.monotonic_ns()
        self.is_ready = False
        self.pid = fork(_serve, self._place, self._ready_out)

    def fileno(self):
        """Return what can be read when a server is ready."""
        return self._ready_in

    def take_ready(self):
        """Take a word that a server is ready; return whether it is this one."""
        if _PID.unpack(os.read(self._ready_in, _PID.size))[0] != self.pid:
            return False
        self.is_ready = True
        self.ready_s.append(time.monotonic() - self.started)
        return True

    def ended(self):
        status = _ended(self.pid)
        return [] if status is None else [f"ended with {status} by itself"]

    def stop(self):
        """Stop it as an operator does; return how it ended."""
        os.kill(self.pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def kill(pid):
    """Kill a process, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _ended(pid):
    """Return how a process has ended, None while it has not."""
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if found else None
    return None


def _serve(place, ready):
    logging.basicConfig(filename=place.folder / "server.log", level=logging.WARNING, force=True)

    def on_ready(server):
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        os.write(ready, _PID.pack(os.getpid()))

    serve(place.server, seed=place.seed, data=place.data, lease_s=2.0, on_ready=on_ready)
    return 0


def create_tables(place, steps):
    """Make the tables."""
    with place.client(place.server, "chaos", "socket") as client:
        client.create_table(TABLE, TableSpec(signature=SIGNATURE, capacity_steps=steps))
        client.create_table(
            QUEUE,
            TableSpec(
                signature=SIGNATURE,
                capacity_steps=steps,
                rows_of=TABLE,
                sampler=SamplerSpec(kind="prioritized"),
                limiter=LimiterSpec(),
            ),
        )
    return 0
