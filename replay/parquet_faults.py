"""Faults of a file of episodes, whoever finds them, as one kind of error with one sentence."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fornix.common.errors import EpisodeFileError, FornixError
from fornix.replay.parquet_arrow import arrow
from fornix.replay.parquet_footer import ForeignError

#: What pyarrow, pydantic and numpy raise of bytes that make no sense to them, beside pyarrow's own.
_OF_DAMAGE = (
    FornixError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)


@contextlib.contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Raise EpisodeFileError, which names the file, for every fault that is found in it inside."""
    try:
        yield
    except EpisodeFileError:
        raise
    except ForeignError as error:
        raise EpisodeFileError(
            f"{path} is no file of episodes that this release reads: {error}; name one that "
            f"'fornix replay export' of this release has written"
        ) from None
    except (*_OF_DAMAGE, arrow()[0].ArrowException) as error:
        raise _of(path, error) from None


def _of(path: Path, error: Exception) -> EpisodeFileError:
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return EpisodeFileError(f"can't read {path}: {error.strerror}; name a file of episodes")
    reason = " ".join(str(error).split()) or type(error).__name__
    return EpisodeFileError(
        f"{path} is damaged, or no Parquet file: {reason:.200}; export it again, or take another copy"
    )
