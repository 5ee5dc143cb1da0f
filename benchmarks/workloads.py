"""What the benchmarks of the replay engine write and draw, and the processes that they measure.

Two workloads, in episodes of 50 steps: `vector`, 150 float32 in stacks of 5, and `pixels`, 84×84 uint8
in stacks of 4. Batches are of 256 transitions with n-step 1.
"""

import contextlib
import itertools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.specs import SamplerSpec
from fornix.replay import ArraySpec, Client, Prefetch, Signature, Steps, TableSpec
from fornix.replay.role import serve

BATCH_SIZE, IN_FLIGHT, EPISODE_STEPS, LANES = 256, 2, 50, 40
#: Batches that one request asks for, by workload and the way that frames come: where a batch takes long
#: anyway, or a large answer takes fresh memory, nothing is gained by asking for more at once.
PER_REQUEST = {
    ("vector", "mapped"): 16,
    ("vector", "socket"): 8,
    ("pixels", "mapped"): 1,
    ("pixels", "socket"): 1,
}
AHEAD = IN_FLIGHT * max(PER_REQUEST.values())
TABLE = "bench"


@dataclass(frozen=True)
class Workload:
    name: str
    shape: tuple[int, ...]
    dtype: str
    n_frames: int
    capacity_steps: int

    def batches(self, client: Client, memory: str, **options: Any) -> Prefetch[Any]:
        """Return an iterator over batches, with the settings that are best for it."""
        per_request = PER_REQUEST[self.name, memory]
        return client.batches(TABLE, BATCH_SIZE, in_flight=IN_FLIGHT, per_request=per_request, **options)

    @property
    def signature(self) -> Signature:
        return Signature(
            frame=ArraySpec.of(self.shape, self.dtype),
            action=ArraySpec.of((), np.int32),
            n_frames=self.n_frames,
        )

    def spec(self, sampler: str = "uniform") -> TableSpec:
        return TableSpec(
            signature=self.signature,
            capacity_steps=self.capacity_steps,
            sampler=SamplerSpec(kind=sampler, priority_exponent=0.6),
        )

    def frames(self, count: int, seed: int = 0) -> NDArray[Any]:
        values = np.random.default_rng(seed).integers(0, 256, (count, *self.shape))
        return values.astype(self.dtype)


WORKLOADS = {
    "vector": Workload("vector", (150,), "<f4", 5, 100_000),
    "pixels": Workload("pixels", (84, 84), "|u1", 4, 20_000),
}


def episode(workload: Workload, lanes: int) -> list[Steps]:
    """Return the requests of one episode in all lanes, a step of every lane in each."""
    signature, lane = workload.signature, np.arange(lanes, dtype=np.int32)
    action, reward, no = np.zeros(lanes, np.int32), np.zeros(lanes, np.float32), np.zeros(lanes, np.bool_)
    first, middle, last = (workload.frames(lanes, seed) for seed in range(3))
    return [
        Steps.first(signature, lane, first),
        *[Steps.after_actions(lane, action, reward, middle, no, no)] * (EPISODE_STEPS - 2),
        Steps.after_actions(lane, action, reward, last, no, ~no),
    ]


class Rows:
    """A writer whose lanes step together, one episode after another; one request at a time.

    Args:
        client: to write with.
        workload: that says what.
        name: of the writer.
        lanes: that it has.
        at_once: steps of each lane in a request; if there are several, no stacks are asked for.
    """

    def __init__(
        self, client: Client, workload: Workload, name: str, lanes: int = LANES, at_once: int = 1
    ) -> None:
        self._client, self._name = client, name
        parts = episode(workload, lanes)
        self.requests = [
            sum(parts[at + 1 : at + at_once], parts[at]) for at in range(0, EPISODE_STEPS, at_once)
        ]
        self._stacks = at_once == 1
        self._lanes = lanes
        self.begin()

    def begin(self) -> None:
        """Begin new episodes: the open ones may have slept while others turned the ring."""
        self.writer = self._client.open_writer(TABLE, self._name, self._lanes)
        self._cycle = itertools.cycle(self.requests)

    def write(self) -> int:
        """Write, wait for the answer, and return how many steps that were."""
        rows = next(self._cycle)
        answer = self.writer.observe(rows, stacks=self._stacks).result()
        assert len(answer.key) == self._lanes
        assert (answer.stack is not None) == self._stacks
        return len(rows.lane)

    def steps_per_s(self, seconds: float) -> float:
        """Return how many steps a second it writes."""
        self.begin()
        steps, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            steps += self.write()
        return steps / spent


def fill(client: Client, workload: Workload, steps: int | None = None) -> None:
    """Append steps until the ring is full, or has turned by as much as is asked."""
    rows, written = Rows(client, workload, "filler", at_once=10), 0
    while written < (steps or workload.capacity_steps):
        written += rows.write()


def draw(batches: Prefetch[Any], seconds: float, after: Callable[[Any], None] | None = None) -> float:
    """Return the samples/s of an iterator over batches; those that were there already don't count."""
    for _ in range(AHEAD):
        next(batches)
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        batch = next(batches)
        assert batch.stack.shape[0] == batch.next_stack.shape[0] == BATCH_SIZE
        count += 1
        if after is not None:
            after(batch)
    return count * BATCH_SIZE / spent


@contextlib.contextmanager
def process(target: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """Run a function in a process of its own, which is killed at the end."""
    running = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    running.start()
    try:
        yield running
    finally:
        running.kill()
        running.join()


@contextlib.contextmanager
def a_server(scheme: str, workload: Workload, sampler: str = "uniform") -> Iterator[str]:
    """Serve a table that is full, in a process of its own; yield its address."""
    with tempfile.TemporaryDirectory(prefix="fx-") as folder:
        address = f"ipc://{folder}/r" if scheme == "ipc" else f"tcp://127.0.0.1:{_free_port()}"
        with process(serve, address), Client.connect(address, give_up_after_s=60.0) as client:
            client.create_table(TABLE, workload.spec(sampler))
            fill(client, workload)
            yield address


def resident_bytes(client: Client) -> int:
    """Return the resident memory of a client's server, Python's own included."""
    with open(f"/proc/{client.info().server['pid']}/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class BackgroundWriter:
    """A process that writes vector steps, with stacks, as fast as it can while it is told to."""

    def __init__(self, address: str, workload: Workload, memory: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._go, self._ready = context.Event(), context.Event()
        self._steps = context.Value("q", 0)
        self._process = context.Process(
            target=_write_in_background,
            args=(address, workload, memory, self._go, self._ready, self._steps),
            daemon=True,
        )
        self._process.start()
        assert self._ready.wait(60), "the writer process has not begun"

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[[], float]]:
        """Let it write meanwhile; yield what tells its steps/s since then."""
        before, began = self._steps.value, time.perf_counter()
        self._go.set()
        try:
            yield lambda: (self._steps.value - before) / (time.perf_counter() - began)
        finally:
            self._go.clear()

    def close(self) -> None:
        self._process.kill()
        self._process.join()


def _write_in_background(
    address: str, workload: Workload, memory: Any, go: Any, ready: Any, steps: Any
) -> None:
    with Client.connect(address, memory=memory, give_up_after_s=30.0) as client:
        rows = Rows(client, workload, "background")
        ready.set()
        while go.wait():
            rows.begin()
            while go.is_set():
                steps.value += rows.write()


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Return the median of the rounds, and between what they lay."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratios(ours: list[float], others: list[float]) -> dict[str, float]:
    """Return the spread of what ours is to theirs in each round."""
    return spread([one / other for one, other in zip(ours, others, strict=True)])
