"""Nothing polls: 64 clients that wait cost nothing, delay nobody, and are woken by what opens their way.

32 wait for samples of one table, and 32 to write to another, each in a thread of its own with a socket of
its own. So whatever the server does meanwhile, or the clients do, shows in what the kernel tells of two
processes.
"""

import contextlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import zmq

from fornix.common.errors import UnknownTableError
from fornix.common.messages import FIRST, MID
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.replay.client import Client
from fornix.replay.steps import Steps

from .programs import a_server

pytestmark = pytest.mark.system

EACH = 32
PATIENCE_S = 10.0
LONG_S = 600.0  # that a request may wait, which none has to
SOON_S = 2.0  # in which a request that needn't wait is answered, however busy the machine is
SIGNATURE = Signature(frame=ArraySpec.of((2,), np.int32), action=ArraySpec.of((), np.int32), n_frames=2)
BATCH = 4
#: Each insert opens the way for one batch, from the eighth on.
SAMPLED = LimiterSpec(min_size=8, samples_per_insert=BATCH, min_surplus=-BATCH, max_surplus=1000.0)
#: Each transition that is drawn opens the way for one insert.
WRITTEN = LimiterSpec(min_size=1, samples_per_insert=1.0, min_surplus=-1000.0, max_surplus=0.0)


def steps(kind, lanes=1):
    count = np.arange(lanes)
    return Steps(
        lane=count.astype(np.int32),
        step_type=np.full(lanes, kind, np.uint8),
        terminated=np.zeros(lanes, np.bool_),
        action=np.zeros(lanes, np.int32),
        reward=np.zeros(lanes, np.float32),
        frame=np.ones((lanes, 2), np.int32),
    )


class Blocked:
    """64 clients of a server, all of which wait."""

    def __init__(self, address, wait_until):
        self._address, self._wait_until = address, wait_until
        self._context = zmq.Context()
        self._clients, self._threads = [], []
        self.free = self._connect()
        #: Numbers of those who have been answered, and how many have been refused.
        self.sampled, self.written, self.refused = [], [], []

    def _connect(self):
        self._clients.append(Client.connect(self._address, context=self._context))
        return self._clients[-1]

    def wait(self):
        """Make tables, and let all of them wait, one after the other."""
        for table, limiter in (("sampled", SAMPLED), ("written", WRITTEN)):
            spec = TableSpec(signature=SIGNATURE, capacity_steps=1000, limiter=limiter)
            self.free.create_table(table, spec)
        clients = [self._connect() for _ in range(2 * EACH)]
        writers = [client.open_writer("written", f"w{at}", 1) for at, client in enumerate(clients[EACH:])]
        for writer in writers:
            writer.observe(steps(FIRST)).result()
        self.opener = self.free.open_writer("written", "opener", 1)
        self.opener.observe(steps(FIRST)).result()
        self.opened = self.opener.observe(steps(MID)).result()  # one insert, and none drawn: closed
        for at in range(EACH):
            self._start(self._sample, at, clients[at])
            self._start(self._write, at, writers[at])
            deadline = time.monotonic() + PATIENCE_S
            while self.waiting() != (at + 1, at + 1):
                assert time.monotonic() < deadline, f"only {self.waiting()} wait"

    def waiting(self):
        """Return how many wait at each table, as the server knows it."""
        tables = self.free.info().tables
        assert tables["sampled"]["limiter"]["waiting_inserts"] == 0
        assert tables["written"]["limiter"]["waiting_samples"] == 0
        return (
            tables["sampled"]["limiter"]["waiting_samples"],
            tables["written"]["limiter"]["waiting_inserts"],
        )

    def are_woken(self, samplers, writers):
        """Wait until so many have been answered in all, those who waited longest; the others wait on."""
        what = f"{samplers} samplers and {writers} writers to be answered"
        self._wait_until(lambda: (len(self.sampled), len(self.written)) == (samplers, writers), what)
        assert self.waiting() == (EACH - samplers, EACH - writers)
        assert sorted(self.sampled) == list(range(samplers))
        assert sorted(self.written) == list(range(writers))

    def close(self):
        """Drop the tables: whoever waits is told so, and ends."""
        for table in ("sampled", "written"):
            self.free.drop_table(table)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        for client in self._clients:
            client.close()
        self._context.term()

    def _start(self, target, at, asks):
        self._threads.append(threading.Thread(target=target, args=(at, asks), daemon=True))
        self._threads[-1].start()

    def _sample(self, at, client):
        with self._unless_refused():
            client.sample("sampled", BATCH, timeout_s=LONG_S).result()
            self.sampled.append(at)

    def _write(self, at, writer):
        with self._unless_refused():
            writer.observe(steps(MID), timeout_s=LONG_S).result()
            self.written.append(at)

    @contextlib.contextmanager
    def _unless_refused(self):
        try:
            yield
        except UnknownTableError as error:
            self.refused.append(error)


@pytest.fixture(scope="module")
def server():
    with a_server("tcp://127.0.0.1:*") as server:
        yield server


@pytest.fixture
def blocked(server, wait_until):
    blocked = Blocked(server.address, wait_until)
    blocked.wait()
    yield blocked
    answered = len(blocked.sampled) + len(blocked.written)
    blocked.close()
    assert len(blocked.refused) == 2 * EACH - answered


class Effort:
    """What a process has done so far: its time on a processor, and how often one of its threads woke up."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self._before = self._now()

    def spent(self):
        """Return the seconds and the awakenings since this was made."""
        return tuple(now - before for now, before in zip(self._now(), self._before, strict=True))

    def _now(self):
        awakenings = 0
        for task in Path(f"/proc/{self._process.pid}/task").iterdir():
            told = dict(line.split(":\t") for line in (task / "status").read_text().splitlines())
            awakenings += int(told["voluntary_ctxt_switches"])
        return sum(self._process.cpu_times()[:2]), awakenings


def test_64_blocked_clients_cost_an_idle_server_and_themselves_nothing(blocked, server):
    efforts = {pid: Effort(pid) for pid in (server.pid, os.getpid())}
    began = time.monotonic()
    threading.Event().wait(1.0)  # time has to pass: what it costs is the question
    assert time.monotonic() - began >= 1.0
    for effort in efforts.values():
        seconds, awakenings = effort.spent()
        assert seconds < 0.02
        assert awakenings < 10
    assert blocked.waiting() == (EACH, EACH)
    assert (blocked.sampled, blocked.written) == ([], [])


def test_none_of_64_blocked_clients_delays_another(blocked, server):
    """Not at another table, nor at their own."""
    with Client.connect(server.address) as client:

        def soon(ask):
            began = time.monotonic()
            answer = ask()
            assert time.monotonic() - began < SOON_S
            return answer

        soon(lambda: client.create_table("open", TableSpec(signature=SIGNATURE, capacity_steps=100)))
        writer = soon(lambda: client.open_writer("open", "w", 1))
        for turn in range(20):
            soon(writer.observe(steps(MID if turn else FIRST)).result)
            soon(client.info)
            soon(client.report("me", "asks", {}).result)
            if turn:
                assert len(soon(client.sample("open", 8).result).key) == 8
        soon(lambda: client.open_writer("written", "late", 1))
        assert len(soon(lambda: client.stacks("written", blocked.opened.key)).key) == 1
    assert blocked.waiting() == (EACH, EACH)
    assert (blocked.sampled, blocked.written) == ([], [])


def test_an_insert_wakes_the_samplers_that_it_opens_the_way_for_and_no_others(blocked):
    writer = blocked.free.open_writer("sampled", "w", 8)
    writer.observe(steps(FIRST, 8)).result()  # these begin episodes, and are no inserts yet
    blocked.are_woken(0, 0)
    writer.observe(steps(MID, 7)).result()
    blocked.are_woken(0, 0)
    for woken in (1, 2, 3):
        writer.observe(steps(MID)).result()
        blocked.are_woken(woken, 0)
    writer.observe(steps(MID, 8)).result()
    blocked.are_woken(11, 0)


def test_a_sample_wakes_the_writers_that_it_opens_the_way_for_and_no_others(blocked):
    for drawn, woken in ((1, 1), (3, 4), (10, 14)):
        blocked.free.sample("written", drawn).result()
        blocked.are_woken(0, woken)


def test_new_limits_wake_those_whom_they_let_through_and_no_others(blocked):
    blocked.free.set_limiter("written", WRITTEN.model_copy(update={"max_surplus": 5.0}))
    blocked.are_woken(0, 5)
    blocked.free.set_limiter("sampled", SAMPLED.model_copy(update={"min_size": 7}))
    blocked.are_woken(0, 5)
    blocked.free.set_limiter("written", LimiterSpec())
    blocked.are_woken(0, EACH)
    blocked.free.set_limiter("sampled", LimiterSpec())
    writer = blocked.free.open_writer("sampled", "w", 1)
    writer.observe(steps(FIRST)).result()
    blocked.are_woken(0, EACH)
    writer.observe(steps(MID)).result()
    blocked.are_woken(EACH, EACH)
