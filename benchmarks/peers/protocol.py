"""What the peers' drivers share: the two workloads, the lines they speak, and processes of their own.

A driver prints one line of JSON when it is set up and filled, {"ready": true, ...}. Then it answers each
line {"measure": NAME, "seconds": S} with one line {"measure": NAME, "value": ..., "unit": ..., ...}, and
ends at {"quit": true} or at the end of its input. Between two lines it does nothing.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import importlib.metadata
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BATCH_SIZE, DISCOUNT = 256, 0.99  # and n-step 1
PRIORITY_EXPONENT, WEIGHT_EXPONENT = 0.6, 0.4
START_S, ANSWER_S, END_S = 300.0, 120.0, 10.0  # how long a child may take
PR_SET_PDEATHSIG = 1
SCALARS = {"action": np.int32(1), "reward": np.float32(0), "discount": np.float32(DISCOUNT)}

Message = dict[str, Any]
Measure = Callable[[float], Message]


@dataclasses.dataclass(frozen=True)
class Workload:
    """Frames of one shape; a transition holds a stack of them, and the stack one step later."""

    frame_shape: tuple[int, ...]
    dtype: str
    n_frames: int
    capacity: int
    """Steps held, unless --capacity says otherwise: copied stacks of either workload fit in 2 GB."""

    def frames(self, count: int) -> np.ndarray:
        """Return random frames: normal floats, or pixels of a still background with a block that moves."""
        random = np.random.default_rng(0)
        if self.dtype == "float32":
            return random.standard_normal((count, *self.frame_shape), np.float32)
        background = np.kron(random.integers(0, 256, (12, 12), np.uint8), np.ones((7, 7), np.uint8))
        frames = np.repeat(background[None], count, 0)
        for frame, (row, column) in zip(frames, random.integers(0, 68, (count, 2)), strict=True):
            frame[row : row + 16, column : column + 16] = random.integers(0, 256, (16, 16), np.uint8)
        return frames


WORKLOADS = {
    "vector": Workload((150,), "float32", 5, 100_000),
    "pixels": Workload((84, 84), "uint8", 4, 20_000),
}


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every driver has."""
    options = argparse.ArgumentParser(description=description.splitlines()[0])
    options.add_argument("--workload", choices=WORKLOADS, default="vector")
    options.add_argument("--capacity", type=int, help="steps held; the workload's own number otherwise")
    options.add_argument(
        "--explore", action="store_true", help="try settings, print one line for each, end"
    )
    options.add_argument("--seconds", type=float, default=1.0, help="how long --explore measures each")
    options.add_argument("--settings", type=json.loads, default={}, help="JSON, over the best settings")
    return options


def versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


def die_with_parent() -> None:
    """Be killed when the process that started this one ends; if it has ended already, our input has too."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Lines:
    """JSON messages, one a line, in from one file descriptor and out to another."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink, self._rest = source, sink, b""
        self._selector = selectors.PollSelector()
        self._selector.register(source, selectors.EVENT_READ)

    @classmethod
    def standard(cls) -> "Lines":
        """Take over stdin and stdout; what a library prints goes to stderr from now on."""
        sink = os.dup(1)
        os.dup2(2, 1)
        return cls(0, sink)

    def send(self, **message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._sink, data) :]

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """Return the next message, or None if none came in time; EOFError if none can come any more."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._selector.select(left):
                return None
            if not (data := os.read(self._source, 1 << 16)):
                raise EOFError
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


class Child:
    """A process of our own that speaks these lines; it is gone when this one is."""

    def __init__(self, script: str, *arguments: str) -> None:
        command = [sys.executable, script, *arguments]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._log, bufsize=0)
        self._lines = Lines(self._process.stdout.fileno(), self._process.stdin.fileno())
        self.ready = self.await_answer(START_S)

    def ask(self, timeout_s: float = ANSWER_S, **message: Any) -> Message:
        self._lines.send(**message)
        return self.await_answer(timeout_s)

    def await_answer(self, timeout_s: float) -> Message:
        """Return the next message; RuntimeError with the end of what the process printed if none comes."""
        with contextlib.suppress(EOFError):
            if (answer := self._lines.receive(timeout_s)) is not None:
                return answer
        self._process.kill()
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4000))
        printed = self._log.read().decode(errors="replace")
        raise RuntimeError(f"no answer in {timeout_s} s of {self._process.args}:\n{printed}")

    def memory_bytes(self) -> int:
        return memory_bytes(self._process.pid)

    def close(self) -> None:
        """End its input, which ends it; kill it if that does not."""
        self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)
        self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def children() -> Iterator[list[Child]]:
    """Close what was added to the list, the last first."""
    started: list[Child] = []
    try:
        yield started
    finally:
        for child in reversed(started):
            child.close()


def timed(batch: Callable[[], None], seconds: float, per_batch: int = BATCH_SIZE) -> Message:
    """Call `batch` until `seconds` have passed, and say how many of what it handles it did a second."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        batch()
        count += 1
    return {"value": round(count * per_batch / elapsed, 1), "batches": count, "seconds": round(elapsed, 4)}


def touch(array: np.ndarray) -> None:
    """Read the last value of each sample."""
    assert np.isfinite(array.reshape(len(array), -1)[:, -1].sum(dtype=np.float64))


def priorities(count: int = 64) -> np.ndarray:
    """Return new priorities for that many batches."""
    return np.random.default_rng(1).uniform(0.1, 1.0, (count, BATCH_SIZE)).astype(np.float32)


def record(workload: Workload) -> np.dtype:
    """Return the type of a transition as one NumPy record: the frames of both stacks once, and the rest."""
    window = ("obs", workload.dtype, (workload.n_frames + 1, *workload.frame_shape))
    fields = [window, *((name, value.dtype) for name, value in SCALARS.items())]
    pad = -np.dtype(fields).itemsize % 8  # so that a record is a row of int64 too
    return np.dtype([*fields, ("pad", np.uint8, (pad,))])


def unpack(workload: Workload, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the fields of rows which are a record each, without a copy."""
    records = rows.view(record(workload))[:, 0]
    return {name: records[name] for name in records.dtype.names}


def memory_bytes(pid: int | str = "self") -> int:
    """Return the resident memory of a process."""
    with open(f"/proc/{pid}/statm") as numbers:
        return int(numbers.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def answer_requests(lines: Lines, measures: dict[str, Measure]) -> None:
    """Measure what each line asks for, until there are no more."""
    with contextlib.suppress(EOFError):
        while not (request := lines.receive() or {}).get("quit"):
            name = request.get("measure")
            if name not in measures:
                lines.send(measure=name, error=f"there are {', '.join(measures)}")
                continue
            unit = "steps/s" if name == "write" else "samples/s"
            lines.send(measure=name, unit=unit, **measures[name](float(request.get("seconds", 2.0))))
