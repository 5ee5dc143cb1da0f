"""Episodes as rows of columns and back, whatever file they stand in.

Rows are a dict of arrays, one for each column, in the order of `columns`.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from fornix.common.signature import ArraySpec, Signature, frame_name
from fornix.replay.episodes import Array, Episode

Rows = dict[str, Array]

EXTRA_PREFIX = "extras."
_NUMBERS = {
    "episode": ArraySpec(dtype="<i8"),
    "step": ArraySpec(dtype="<i4"),
    "key": ArraySpec(dtype="<i8"),
    "writer": None,
    "lane": ArraySpec(dtype="<i4"),
    "step_type": ArraySpec(dtype="|u1"),
    "terminated": ArraySpec(dtype="|b1"),
    "truncated": ArraySpec(dtype="|b1"),
    "policy_version": ArraySpec(dtype="<i8"),
}
#: Columns that say where a row stands; all but the key follow from the episode.
NUMBERS = tuple(_NUMBERS)
_DERIVED = ("episode", "step", "writer", "lane", "step_type", "terminated", "truncated")
_WRITER_BYTES = 16  # as most names have at most


def columns(signature: Signature) -> dict[str, ArraySpec | None]:
    """Return the columns, and what a row holds in each; None for text."""
    extras = {EXTRA_PREFIX + name: spec for name, spec in signature.extras.items()}
    frames = {frame_name(path): spec for path, spec in signature.frames.items()}
    return {**_NUMBERS, "action": signature.action, "reward": signature.reward, **extras, **frames}


def row_nbytes(signature: Signature) -> int:
    """Return about how many bytes a row takes in memory."""
    return sum(_WRITER_BYTES if spec is None else spec.nbytes for spec in columns(signature).values())


def rows_of(number: int, episode: Episode, signature: Signature) -> Rows:
    """Return the rows of an episode, the `number`-th of its file, from 0."""
    values = {
        **_derived(number, episode),
        "key": episode.keys,
        "policy_version": episode.policy_version,
        "action": episode.action,
        "reward": episode.reward,
        **{EXTRA_PREFIX + name: array for name, array in episode.extras.items()},
        **{frame_name(path): array for path, array in episode.frame.items()},
    }
    return {name: _plain(values[name]) for name in columns(signature)}


def episode_of(number: int, rows: Rows, signature: Signature) -> Episode:
    """Return the episode that rows are of, or raise ValueError if they can't be the rows of one."""
    terminated, truncated = bool(rows["terminated"][-1]), bool(rows["truncated"][-1])
    episode = Episode(
        writer=str(rows["writer"][0]),
        lane=int(rows["lane"][0]),
        keys=rows["key"],
        frame={path: rows[frame_name(path)] for path in signature.frames},
        action=rows["action"],
        reward=rows["reward"],
        terminated=terminated,
        open=not (terminated or truncated),
        policy_version=rows["policy_version"],
        extras={name: rows[EXTRA_PREFIX + name] for name in signature.extras},
    )
    for name, values in _derived(number, episode).items():
        if not np.array_equal(rows[name], values):
            raise ValueError(f"column {name} of episode {number} is not that of one whole episode")
    return episode


def in_groups(pieces: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Yield the rows of all pieces in groups of `size`; the last may be smaller."""
    held: list[Rows] = []
    count = 0
    for rows in pieces:
        low, total = 0, _count(rows)
        while total - low >= size - count:
            high = low + size - count
            yield joined([*held, _part(rows, low, high)])
            held, count, low = [], 0, high
        if low < total:
            held.append(_part(rows, low, total))
            count += total - low
    if held:
        yield joined(held)


def by_episode(groups: Iterable[Rows]) -> Iterator[Rows]:
    """Yield the rows of each episode, in arrays of their own."""
    held: list[Rows] = []
    for rows in groups:
        number = rows["episode"]
        begins = np.flatnonzero(number[1:] != number[:-1]) + 1
        for low, high in pairwise([0, *begins.tolist(), len(number)]):
            if held and held[0]["episode"][0] != number[low]:
                yield joined(held)
                held = []
            held.append(_part(rows, low, high))
    if held:
        yield joined(held)


def checksum(rows: Rows) -> int:
    """Return the CRC-32 of all values, column by column in their order."""
    check = 0
    for array in rows.values():
        text = "\n".join(array.tolist()).encode() if array.dtype == object else array.tobytes()
        check = zlib.crc32(text, check)
    return check


def joined(pieces: Sequence[Rows]) -> Rows:
    """Return the rows of all pieces, in arrays of their own."""
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _derived(number: int, episode: Episode) -> Rows:
    """Return the columns that follow from an episode's place and end."""
    rows = episode.rows
    last = np.arange(rows) == rows - 1
    return {
        "episode": np.full(rows, number, np.int64),
        "step": np.arange(rows, dtype=np.int32),
        "writer": np.full(rows, episode.writer, object),
        "lane": np.full(rows, episode.lane, np.int32),
        "step_type": episode.step_type,
        "terminated": last & episode.terminated,
        "truncated": last & episode.truncated,
    }


def _plain(array: Array) -> Array:
    """Return an array whose bools are 0 and 1, as they come back."""
    if array.dtype != np.bool_:
        return array
    made: Array = np.ascontiguousarray(array).view(np.uint8) != 0
    return made


def _count(rows: Rows) -> int:
    return len(rows["episode"])


def _part(rows: Rows, low: int, high: int) -> Rows:
    return {name: array[low:high] for name, array in rows.items()}
