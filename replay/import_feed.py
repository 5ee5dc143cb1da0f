"""Rows of episodes into requests of a writer.

A request has one policy version, and that of an episode changes from step to step. So some episodes are
written side by side, each in a lane of its own, and a request has the next rows of all lanes whose version
is due.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fornix.common import trees
from fornix.common.messages import MAX_BATCH
from fornix.common.signature import ArraySpec, Signature, frame_name
from fornix.replay.episodes import Array, Episode
from fornix.replay.parquet_rows import EXTRA_PREFIX, Rows, rows_of
from fornix.replay.steps import Steps
from fornix.replay.writer import Writer

_REQUEST_BYTES = 8 << 20
_SIDE_BY_SIDE_BYTES = 256 << 20


@dataclass(frozen=True)
class _Piece:
    """Rows of an episode that go into one request."""

    lane: int
    columns: Rows
    """Of the whole episode."""
    low: int
    high: int
    version: int

    @property
    def rows(self) -> int:
        return self.high - self.low


class Feed:
    """Writes batches of episodes that stand side by side.

    Args:
        writer: to write with.
        capacity: of the table, in steps.
        timeout_s: of each request.
    """

    def __init__(self, writer: Writer, capacity: int, timeout_s: float) -> None:
        self.lanes = writer.lanes
        #: Rows that may stand side by side: a lane that waits must not lose its stack to the others.
        self.most_rows = capacity // 4
        self.written = 0
        self._writer = writer
        self._timeout_s = timeout_s
        self._open: list[int] = []
        per_request = _REQUEST_BYTES // max(1, writer.signature.step_nbytes)
        self._request_rows = max(1, min(capacity // 2, MAX_BATCH, per_request))

    def write(self, episodes: list[Episode]) -> Iterator[None]:
        """Write whole episodes, each in a lane of its own; yields after each request."""
        for pieces in _due(episodes, self._writer.signature):
            for request in _cut(pieces, self._request_rows):
                self._send(_steps(request, self._writer.signature), request[0].version)
                yield
        # a lane whose episode has no LAST leaves with the next request
        self._open = [at for at, one in enumerate(episodes) if one.open or one.rows == 1]

    def close(self) -> None:
        """End the last episodes that have no LAST."""
        if self._open:
            self._send(_steps([], self._writer.signature), 0)

    def _send(self, steps: Steps, version: int) -> None:
        leave = self._open or None
        self._writer.observe(
            steps, leave=leave, policy_version=version, stacks=False, timeout_s=self._timeout_s
        ).result()
        self._open = []
        self.written += len(steps.lane)


def side_by_side(episodes: Iterable[Episode], feed: Feed) -> Iterator[list[Episode]]:
    """Yield episodes in batches: one of any size, or some that fit together."""
    batch: list[Episode] = []
    rows = nbytes = 0
    for episode in episodes:
        size = sum(array.nbytes for array in (*episode.frame.values(), *episode.extras.values()))
        fits = rows + episode.rows <= feed.most_rows and nbytes + size <= _SIDE_BY_SIDE_BYTES
        if batch and (len(batch) == feed.lanes or not fits):
            yield batch
            batch, rows, nbytes = [], 0, 0
        batch.append(episode)
        rows, nbytes = rows + episode.rows, nbytes + size
    if batch:
        yield batch


def _due(episodes: list[Episode], signature: Signature) -> Iterator[list[_Piece]]:
    """Yield the rows that are due at once: of all lanes that are at the lowest version."""
    lanes = [deque(_runs(lane, rows_of(lane, one, signature))) for lane, one in enumerate(episodes)]
    while any(lanes):
        version = min(lane[0].version for lane in lanes if lane)
        yield [lane.popleft() for lane in lanes if lane and lane[0].version == version]


def _runs(lane: int, columns: Rows) -> Iterator[_Piece]:
    """Yield the runs of rows of one policy version."""
    versions = columns["policy_version"]
    begins = np.flatnonzero(versions[1:] != versions[:-1]) + 1
    for low, high in pairwise([0, *begins.tolist(), len(versions)]):
        yield _Piece(lane, columns, low, high, int(versions[low]))


def _cut(pieces: list[_Piece], most: int) -> Iterator[list[_Piece]]:
    """Yield pieces in lists of at most so many rows."""
    held: list[_Piece] = []
    count = 0
    for piece in pieces:
        for low in range(piece.low, piece.high, most):
            part = replace(piece, low=low, high=min(low + most, piece.high))
            if held and count + part.rows > most:
                yield held
                held, count = [], 0
            held.append(part)
            count += part.rows
    if held:
        yield held


def _steps(pieces: list[_Piece], signature: Signature) -> Steps:
    """Return the steps of one request, perhaps none."""

    def column(name: str, spec: ArraySpec) -> Array:
        parts = [piece.columns[name][piece.low : piece.high] for piece in pieces]
        return np.concatenate([np.empty((0, *spec.shape), spec.dtype), *parts])

    frames = {path: column(frame_name(path), spec) for path, spec in signature.frames.items()}
    return Steps(
        lane=np.repeat([piece.lane for piece in pieces], [piece.rows for piece in pieces]).astype(np.int32),
        step_type=column("step_type", ArraySpec(dtype="|u1")),
        terminated=column("terminated", ArraySpec(dtype="|b1")),
        action=column("action", signature.action),
        reward=column("reward", signature.reward),
        frame=trees.like(signature.frame, frames),
        extras={name: column(EXTRA_PREFIX + name, spec) for name, spec in signature.extras.items()},
    )
