"""What the drivers of the buffers in this process share: what is added, and how a batch is measured."""

import abc
import functools
import gc
import itertools
from typing import Any

import numpy as np
import protocol
from protocol import BATCH_SIZE, SCALARS, Lines, Measure, Message, Workload


@functools.cache
def transitions(workload: Workload, form: str, count: int = 8) -> list[dict[str, np.ndarray]]:
    """Return batches of one episode's transitions, for buffers in this process.

    A transition has a copy of either stack, as "obs" and "next_obs"; or in "window" the frames of both
    once, as "obs"; or in "record" all of it in one row of int64. They are made before any clock runs: an
    actor has its stacks at hand.
    """
    n_frames, axes = workload.n_frames, (0, -1, *range(1, len(workload.frame_shape) + 1))
    frames = workload.frames(count * BATCH_SIZE + n_frames)
    windows = np.lib.stride_tricks.sliding_window_view(frames, n_frames + 1, 0).transpose(axes)
    scalars = {name: np.full(BATCH_SIZE, value) for name, value in SCALARS.items()}

    def batch(number: int) -> dict[str, np.ndarray]:
        part = windows[number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
        if form == "record":
            rows = np.zeros(BATCH_SIZE, protocol.record(workload))
            for name, value in {"obs": part, **scalars}.items():
                rows[name] = value
            return {"record": rows.view(np.int64).reshape(BATCH_SIZE, -1)}
        parts = {"obs": part} if form == "window" else {"obs": part[:, :-1], "next_obs": part[:, 1:]}
        return {name: np.ascontiguousarray(value) for name, value in parts.items()} | scalars

    return [batch(number) for number in range(count)]


def check_batch(workload: Workload, arrays: dict[str, np.ndarray], like: dict[str, np.ndarray]) -> None:
    """Check what was taken against a batch that was added, and read the last frame's value of each."""
    for name, value in like.items():
        shape = value.shape if value.ndim > 1 else arrays[name].shape  # cpprb's scalars have an axis more
        assert arrays[name].shape == shape, (name, arrays[name].shape)
    protocol.touch((protocol.unpack(workload, arrays["record"]) if "record" in arrays else arrays)["obs"])


class Buffer(abc.ABC):
    """A peer's buffer in this process."""

    @staticmethod
    def batches(workload: Workload, form: str) -> list[dict[str, np.ndarray]]:
        """Return what is added in turn."""
        return transitions(workload, form)

    @abc.abstractmethod
    def __init__(self, workload: Workload, capacity: int, prioritized: bool, **settings: Any) -> None: ...

    @abc.abstractmethod
    def add(self) -> None:
        """Add a batch of transitions."""

    @abc.abstractmethod
    def take(self) -> None:
        """Take a batch, as NumPy arrays, and give it new priorities if there are any."""


def filled(buffer: Buffer, capacity: int) -> Buffer:
    for _ in range(-(-capacity // BATCH_SIZE)):
        buffer.add()
    return buffer


class InProcess:
    """Two filled buffers, one drawn from uniformly and one by priority."""

    def __init__(self, kind: type[Buffer], workload: Workload, capacity: int, settings: Message) -> None:
        gc.collect()
        kind.batches(workload, settings["form"])  # is made now, and doesn't count
        before = protocol.memory_bytes()
        self._uniform = filled(kind(workload, capacity, False, **settings), capacity)
        self.memory_bytes = protocol.memory_bytes() - before
        self._prioritized = filled(kind(workload, capacity, True, **settings), capacity)

    def measures(self) -> dict[str, Measure]:
        return {
            "sample_uniform": functools.partial(protocol.timed, self._uniform.take),
            "sample_prioritized": functools.partial(protocol.timed, self._prioritized.take),
            "write": functools.partial(protocol.timed, self._uniform.add),
        }


def run(
    description: str,
    packages: tuple[str, ...],
    kind: type[Buffer],
    best: dict[str, Message],
    trials: list[Message],
) -> None:
    """Be the driver of a peer that has no process of its own."""
    options = protocol.parser(description).parse_args()
    lines = Lines.standard()
    protocol.die_with_parent()
    workload = protocol.WORKLOADS[options.workload]
    capacity = options.capacity or workload.capacity
    settings = best[options.workload] | options.settings
    if not options.explore:
        peer = InProcess(kind, workload, capacity, settings)
        lines.send(
            ready=True,
            versions=protocol.versions(*packages),
            settings={"chosen": settings, "tried": trials},
            memory_bytes=peer.memory_bytes,
        )
        protocol.answer_requests(lines, peer.measures())
        return
    for number, trial in itertools.product(range(2), trials):
        peer = InProcess(kind, workload, capacity, best[options.workload] | trial)
        found = {name: measure(options.seconds)["value"] for name, measure in peer.measures().items()}
        lines.send(round=number, settings=trial, memory_bytes=peer.memory_bytes, **found)
        del peer
