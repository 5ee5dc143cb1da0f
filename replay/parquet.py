"""Files of episodes in Apache Parquet, which every data tool reads: one row a step.

    episode, step            int64, int32: counted from 0, in the file and in the episode
    key, writer, lane        int64, string, int32: where the row came from
    step_type                uint8: FIRST 0, MID 1, LAST 2
    terminated, truncated    bool: only of an episode's last row; neither if it was still open
    policy_version           int64
    action, reward           as in the signature: a scalar, or a list of fixed size of an array's items
    extras.NAME              the same
    frame or frame.PATH      the same

Items are in row-major order. Shapes are in the signature, which stands in the footer as JSON
(`fornix.signature`). Pages have Parquet's checksums. These cover neither the pages' headers nor the footer,
so the footer has a checksum of its own, and one of the values of each row group: whatever was changed,
reading ends with an error.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fornix.common.errors import EpisodeFileError
from fornix.common.signature import Signature
from fornix.replay.episodes import Episode
from fornix.replay.parquet_arrow import arrow, check_schema, from_table, options, schema, to_table
from fornix.replay.parquet_faults import told_of
from fornix.replay.parquet_footer import Contents, Footer
from fornix.replay.parquet_rows import (
    Rows,
    by_episode,
    checksum,
    episode_of,
    in_groups,
    row_nbytes,
    rows_of,
)

#: Bytes of the rows that are written and read at once, in memory; a part of the format, for its readers.
GROUP_BYTES = 16 << 20


def write_episodes(
    path: Path | str, signature: Signature, episodes: Iterable[Episode], *, overwrite: bool = False
) -> int:
    """Write a file of episodes, whole or not at all, and return how many there are.

    Args:
        path: of the file.
        signature: that every episode fits.
        episodes: taken one by one.
        overwrite: whether a file that is there is replaced.

    Raises:
        EpisodeFileError: if the file is there already, or can't be written.
        InvalidRequestError: if an episode doesn't fit the signature.
        ConfigurationError: if pyarrow is not installed.
    """
    path = Path(path)
    arrow()
    _require_absent(path, overwrite)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        count = _write(partial, signature, episodes)
        _require_absent(path, overwrite)
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise EpisodeFileError(
            f"can't write {path}: {error.strerror or error}; make room or name a file elsewhere"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return count


def read_contents(path: Path | str) -> Contents:
    """Return what a file holds, from its footer alone; raises what `read_episodes` does."""
    with _opened(Path(path)) as (_, footer):
        return footer.contents


def read_signature(path: Path | str) -> Signature:
    """Return the signature of a file's episodes; raises what `read_episodes` does."""
    return read_contents(path).signature


def read_episodes(path: Path | str) -> Iterator[Episode]:
    """Yield the episodes of a file, in arrays of their own; one episode is in memory as a whole.

    Raises:
        EpisodeFileError: if the file can't be read, is damaged, or is of something else; every episode
            before that is what was written.
        ConfigurationError: if pyarrow is not installed.
    """
    with _opened(Path(path)) as (file, footer):
        signature, number = footer.contents.signature, -1
        for number, rows in enumerate(by_episode(_groups(file, footer))):
            episode = episode_of(number, rows, signature)
            episode.check(signature)
            yield episode
        if number + 1 != footer.contents.episodes:
            raise ValueError(f"it has {number + 1} episodes of {footer.contents.episodes}")


def _write(path: Path, signature: Signature, episodes: Iterable[Episode]) -> int:
    """Write a file and have it on the disk; return how many episodes it has."""
    count, steps, checksums = 0, 0, []

    def rows() -> Iterator[Rows]:
        nonlocal count, steps
        for episode in episodes:
            episode.check(signature)
            yield rows_of(count, episode, signature)
            count, steps = count + 1, steps + episode.rows

    _, pq = arrow()
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema(signature), **options(signature)) as writer:
            for group in in_groups(rows(), group_rows(signature)):
                checksums.append(checksum(group))
                writer.write_table(to_table(group, signature), row_group_size=len(group["key"]))
            footer = Footer(Contents(signature, count, steps), checksums)
            writer.add_key_value_metadata(footer.metadata())
        file.flush()
        os.fsync(file.fileno())
    return count


def group_rows(signature: Signature) -> int:
    """Return how many rows a row group has at most."""
    return max(1, GROUP_BYTES // row_nbytes(signature))


def _groups(file: Any, footer: Footer) -> Iterator[Rows]:
    """Yield the rows of each row group, or raise ValueError if they are not what was written."""
    signature, most = footer.contents.signature, group_rows(footer.contents.signature)
    if file.num_row_groups != len(footer.checksums):
        raise ValueError(f"it has {file.num_row_groups} row groups of {len(footer.checksums)}")
    if file.metadata.num_rows != footer.contents.steps:
        raise ValueError(f"it has {file.metadata.num_rows} rows of {footer.contents.steps}")
    for at, check in enumerate(footer.checksums):
        count = file.metadata.row_group(at).num_rows
        if count > most:
            raise ValueError(f"row group {at} has {count} rows; the limit is {most}")
        rows = from_table(file.read_row_group(at), signature)
        if checksum(rows) != check:
            raise ValueError(f"the checksum of row group {at} is wrong")
        yield rows


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Footer]]:
    """Open a file whose columns are those of its signature; every fault of it becomes EpisodeFileError."""
    _, pq = arrow()
    with (
        told_of(path),
        path.open("rb") as source,
        pq.ParquetFile(source, page_checksum_verification=True) as file,
    ):
        footer = Footer.of(file.metadata.metadata)
        check_schema(file.schema_arrow, footer.contents.signature)
        yield file, footer


def _require_absent(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise EpisodeFileError(
            f"{path} is there already; name another file, or give --overwrite (overwrite=True)"
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
