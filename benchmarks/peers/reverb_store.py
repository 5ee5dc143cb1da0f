"""Reverb's server and its writer: the two processes that peer_reverb.py starts, and what an item is."""

import contextlib
import dataclasses
import itertools
import os
import tempfile
import time
from typing import Any

import numpy as np
import protocol
import reverb
import tensorflow as tf
from protocol import SCALARS, Lines, Workload

TABLES = ("uniform", "prioritized")
EPISODE_STEPS = 1000
WAIT_MS = 10_000  # for what a server confirms, or for what a table gives
LOOK_EVERY = 32  # steps from one look for a message to the next


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be chosen; peer_reverb.py says what was tried and what won."""

    form: str = "record"
    """What an item is: see `FORMS`."""
    writer: str = "structured"
    """A "structured" writer or a "trajectory" writer."""
    chunk: int = 1
    """Steps in a chunk of a TrajectoryWriter, 0: tuned by Reverb. A StructuredWriter lets none choose."""
    unconfirmed: int = 48
    """Items that a writer may be ahead of the server's answers; Reverb warns from 50 on."""
    lanes: int = 1
    """Writers that take turns in the writer's process."""
    sampler: str = "one"
    """"one": a TrajectoryDataset; "parallel": batched by two threads; "interleave": two datasets, as Acme
    has them; "timestep": a TimestepDataset; "client": Client.sample."""
    workers: int = 4
    """num_workers_per_iterator; -1: chosen by Reverb."""
    in_flight: int = 128
    """max_in_flight_samples_per_worker."""
    prefetch: int = 0
    """Batches that tf.data prefetches."""
    update: str = "client"
    """Who sends new priorities: a "client" or a "tf" client."""


# Items that refer to steps which hold a frame or a stack (this is Acme's transition adder), each once;
# items of one step which holds both stacks, or the frames of both each once; and that with all of its
# values in one column, as the bytes of a NumPy record.
FORMS = ("frames", "stacks", "transitions", "windows", "record")


def signature(workload: Workload, form: str) -> dict[str, tf.TensorSpec]:
    """Return what an item of that form has in each column."""
    frame, n_frames, dtype = workload.frame_shape, workload.n_frames, tf.as_dtype(workload.dtype)
    if form == "record":
        return {"frames": tf.TensorSpec((protocol.record(workload).itemsize,), tf.uint8)}
    rest = {name: tf.TensorSpec((), value.dtype) for name, value in SCALARS.items()}
    if form == "transitions":
        rest["next"] = tf.TensorSpec((n_frames, *frame), dtype)
    lead = {"transitions": (n_frames,), "stacks": (2, n_frames)}.get(form, (n_frames + 1,))
    return {"frames": tf.TensorSpec((*lead, *frame), dtype), **rest}


class Episode:
    """What a writer appends at each step; stacks and windows are slices of the frames, not copies."""

    def __init__(self, workload: Workload, form: str) -> None:
        self._form, self._n_frames = form, workload.n_frames
        self._frames = workload.frames(EPISODE_STEPS + workload.n_frames)
        self._record = np.zeros((), protocol.record(workload))
        self._bytes = np.frombuffer(self._record.data.cast("B"), np.uint8)

    def __getitem__(self, at: int) -> dict[str, np.ndarray | np.generic]:
        window = self._frames[at : at + self._n_frames + 1]
        if self._form == "record":
            self._record["obs"] = window
            for name, value in SCALARS.items():
                self._record[name] = value
            return {"frames": self._bytes}
        if self._form == "transitions":
            return {"frames": window[:-1], "next": window[1:], **SCALARS}
        return {"frames": {"frames": window[0], "stacks": window[:-1]}.get(self._form, window), **SCALARS}


class Lane:
    """Appends episode after episode, and makes an item at every step that has all of its frames."""

    def __init__(
        self,
        client: reverb.Client,
        workload: Workload,
        settings: Settings,
        tables: tuple[str, ...] = TABLES[:1],
    ) -> None:
        self._settings, self._tables, self._appended = settings, tables, 0
        self._steps = Episode(workload, settings.form)
        self._span = {"frames": workload.n_frames + 1, "stacks": 2}.get(settings.form, 1)
        self._structured = settings.writer == "structured"
        self._writer = (
            self._structured_writer(client) if self._structured else self._trajectory_writer(client)
        )

    def _structured_writer(self, client: reverb.Client) -> Any:
        module = reverb.structured_writer
        pattern = module.pattern_from_transform(self._steps[0], self._item)
        whole = [module.Condition.step_index() >= self._span - 1]
        return client.structured_writer(
            [module.create_config(pattern, name, whole) for name in self._tables]
        )

    def _trajectory_writer(self, client: reverb.Client) -> Any:
        chunk = self._settings.chunk
        keep = max(self._span, chunk)
        writer = client.trajectory_writer(keep, validate_items=False)
        for name in self._steps[0] if chunk else ():
            length = chunk if name == "frames" else 1
            writer.configure((name,), num_keep_alive_refs=keep, max_chunk_length=length)
        return writer

    def _item(self, history: Any) -> dict[str, Any]:
        item = {name: history[name][-1] for name in self._steps[0]}
        return item if self._span == 1 else item | {"frames": history["frames"][-self._span :]}

    def append(self) -> None:
        at = self._appended % EPISODE_STEPS
        self._writer.append(self._steps[at])
        if not self._structured and at >= self._span - 1:
            for table in self._tables:
                self._writer.create_item(table, 1.0, self._item(self._writer.history))
        if at == EPISODE_STEPS - 1:
            self._writer.end_episode(timeout_ms=WAIT_MS)
        elif not self._structured or at % self._settings.unconfirmed == 0:
            self._writer.flush(self._settings.unconfirmed, timeout_ms=WAIT_MS)
        self._appended += 1

    def flush(self) -> None:
        self._writer.flush(timeout_ms=WAIT_MS)


def serve(lines: Lines, workload: Workload, settings: Settings, capacity: int) -> None:
    """Be the server, one table drawn uniformly and one by priority, until there are no more lines."""
    draws = (reverb.selectors.Uniform(), reverb.selectors.Prioritized(protocol.PRIORITY_EXPONENT))
    tables = [
        reverb.Table(
            name=name,
            sampler=draw,
            remover=reverb.selectors.Fifo(),
            max_size=capacity,
            rate_limiter=reverb.rate_limiters.MinSize(1),
            signature=signature(workload, settings.form),
        )
        for name, draw in zip(TABLES, draws, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:  # Reverb's own one would stay
        server = reverb.Server(tables, checkpointer=reverb.checkpointers.DefaultCheckpointer(folder))
        lines.send(ready=True, port=server.port)
        with contextlib.suppress(EOFError):
            lines.receive()
    os._exit(0)  # a server that stops waits for the samplers' streams


def write(lines: Lines, workload: Workload, settings: Settings, capacity: int, address: str) -> None:
    """Be the writer: fill both tables, then write to the first one from a {"write"} to the next {"stop"}.

    Any other message gets the count of steps so far, and when that was.
    """
    client = reverb.Client(address)
    filling = Lane(client, workload, settings, TABLES)
    for _ in range(capacity + capacity // 50):  # an episode's first steps make no items
        filling.append()
    filling.flush()
    lanes = [Lane(client, workload, settings) for _ in range(settings.lanes)]
    lines.send(ready=True)
    with contextlib.suppress(EOFError):
        while lines.receive():
            write_until_stopped(lines, lanes)


def write_until_stopped(lines: Lines, lanes: list[Lane]) -> None:
    lines.send(steps=0, at=time.perf_counter())
    for count, lane in enumerate(itertools.cycle(lanes), 1):
        lane.append()
        if count % LOOK_EVERY == 0 and (message := lines.receive(0)):
            if "stop" in message:
                break
            lines.send(steps=count, at=time.perf_counter())
    for lane in lanes:
        lane.flush()
    lines.send(steps=count, at=time.perf_counter())
