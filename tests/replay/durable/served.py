"""A service that keeps a folder, and a writer whose episodes the test remembers."""

import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import TableSpec
from fornix.replay.client import Client
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.flusher import ThreadFlusher
from fornix.replay.durable.folder import Folder
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

SMALL = Signature(
    frame={"eye": ArraySpec.of((3,), np.uint8), "arm": ArraySpec.of((), np.float32)},
    action=ArraySpec.of((2,), np.float32),
    extras={"logp": ArraySpec.of((), np.float32)},
    n_frames=3,
)


def a_spec(steps=64, **options):
    return TableSpec(signature=SMALL, capacity_steps=steps, **options)


@contextmanager
def served(path, period_s=0.1):
    """A client of a service that keeps a folder; closed at the end."""
    service = ReplayService(
        time.monotonic,
        seed=1,
        first_key=time.time_ns,
        folder=Folder(FolderDisk(path), ThreadFlusher(), time.monotonic, period_s),
    )
    client = Client(LocalTransport(service))
    client.service = service
    try:
        yield client
    finally:
        client.close()
        service.close()


class Scribe:
    """Writes random steps of some lanes, and remembers every episode as rows of (key, payload)."""

    def __init__(self, client, table="t", name="w", lanes=4, seed=0, incarnation=None):
        options = {} if incarnation is None else {"incarnation": incarnation}
        self._folder = client.service._folder
        self._memory = client.service._catalog[table].table.memory
        self.writer = client.open_writer(table, name, lanes, **options)
        self.lanes = lanes
        self.open = {}
        self.ended = []
        self._rng = np.random.default_rng(seed)

    def write(self, requests, end=0.1, leave=0.0):
        for _ in range(requests):
            self._write(end, leave)
        return self

    def _write(self, end, leave):
        draw = self._rng
        leaving = [lane for lane in self.open if draw.random() < leave]
        for lane in leaving:
            self.ended.append((self.open.pop(lane), "left"))
        begin = np.array([lane for lane in range(self.lanes) if lane not in self.open], np.int64)
        go_on = np.array([lane for lane in range(self.lanes) if lane in self.open], np.int64)
        terminated = draw.random(len(go_on)) < end / 2
        truncated = ~terminated & (draw.random(len(go_on)) < end / 2)
        frames, extras = self._frames(len(begin) + len(go_on))
        action = draw.random((len(go_on), 2), np.float32)
        reward = draw.random(len(go_on), np.float32)
        part = lambda tree, at: {name: values[at] for name, values in tree.items()}  # noqa: E731
        b, g = slice(0, len(begin)), slice(len(begin), None)
        steps = Steps.first(SMALL, begin, part(frames, b), extras=part(extras, b))
        steps += Steps.after_actions(
            go_on, action, reward, part(frames, g), terminated, truncated, extras=part(extras, g)
        )
        if not self._memory.log.has_room(self._memory.ring.head, 4 * self.lanes):
            self._folder.sync_now()  # in one thread nobody else waits for the disk
        leave = {"leave": np.array(leaving, np.int64)} if leaving else {}
        keys = self.writer.observe(steps, **leave).result().key
        action = np.concatenate([np.zeros((len(begin), 2), np.float32), action])
        reward = np.concatenate([np.zeros(len(begin), np.float32), reward])
        for at, lane in enumerate([*begin.tolist(), *go_on.tolist()]):
            self.open.setdefault(lane, []).append(
                (
                    int(keys[at]),
                    frames["eye"][at],
                    frames["arm"][at],
                    action[at],
                    reward[at],
                    extras["logp"][at],
                )
            )
        for lane, end_ in zip(
            go_on[terminated | truncated].tolist(), terminated[terminated | truncated], strict=True
        ):
            self.ended.append((self.open.pop(lane), "terminated" if end_ else "truncated"))

    def steps_on(self):
        """A MID row of each lane whose episode is open; nobody remembers it."""
        lanes, count = sorted(self.open), len(self.open)
        frames, extras = self._frames(count)
        no = np.zeros(count, np.bool_)
        action, reward = np.ones((count, 2), np.float32), np.ones(count, np.float32)
        return Steps.after_actions(lanes, action, reward, frames, no, no, extras=extras)

    def _frames(self, count):
        draw = self._rng
        frames = {"eye": draw.integers(1, 255, (count, 3), np.uint8), "arm": draw.random(count, np.float32)}
        return frames, {"logp": draw.random(count, np.float32)}

    def everything(self):
        """All episodes there ever were: rows, and how each ended."""
        return [*self.ended, *((rows, "open") for rows in self.open.values())]


def facts(episode):
    """An episode as `Scribe` remembers it."""
    rows = list(
        zip(
            episode.keys.tolist(),
            episode.frame["eye"],
            episode.frame["arm"],
            episode.action,
            episode.reward,
            episode.extras["logp"],
            strict=True,
        )
    )
    return rows, "open" if episode.open else "terminated" if episode.terminated else "truncated"


def alike(rows, others):
    """Whether remembered rows are the same, byte for byte."""
    return len(rows) == len(others) and all(
        mine[0] == theirs[0]
        and all(np.array_equal(a, b) for a, b in zip(mine[1:], theirs[1:], strict=True))
        for mine, theirs in zip(rows, others, strict=True)
    )


@contextmanager
def written_by_a_process(path, steps):
    """While it lasts, a process keeps a folder and writes to it; it is killed at the end."""
    program = Path(__file__).with_name("writing.py")
    process = subprocess.Popen(
        [sys.executable, program, path, str(steps)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "writes\n"
        yield process
    finally:
        process.kill()
        process.communicate()
