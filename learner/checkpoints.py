"""Checkpoints: one safetensors file each, written whole or not at all; nothing in it is unpickled."""

import contextlib
import errno
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fornix.common.errors import CheckpointError
from fornix.common.signature import Signature
from fornix.common.tensors import DamagedTensorsError, pack, unpack
from fornix.learner.state import LearnerState

_LOG = logging.getLogger(__name__)
_SUFFIX = ".safetensors"
_DAMAGED_SUFFIX = ".damaged"
KEPT = 3


class _DamagedError(CheckpointError):
    """A checkpoint whose contents are not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A policy's training at one moment."""

    policy: str
    signature: Signature
    """Of the table that it is trained from."""
    version: int
    """Publications of its weights so far."""
    seconds: float
    """Time spent training so far."""
    state: LearnerState

    @property
    def step(self) -> int:
        """Gradient steps done."""
        return self.state.scalars["gradient_steps"]

    @property
    def acting_weights(self) -> dict[str, Tensor]:
        """The weights that actors act with: the target network's, a running mean of the online ones."""
        return self.state.section("target.")


def folder(run_dir: Path, policy: str) -> Path:
    """Return where a policy's checkpoints are."""
    return run_dir / "checkpoints" / policy


def list_checkpoints(run_dir: Path, policy: str) -> list[Path]:
    """Return a policy's checkpoints, oldest first."""
    return sorted(folder(run_dir, policy).glob(f"step-*{_SUFFIX}"))


def save(run_dir: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, and drop all but the newest three.

    Raises:
        CheckpointError: if it can't be written; the older ones are as they were.
    """
    place = folder(run_dir, checkpoint.policy)
    path = place / f"step-{checkpoint.step:010d}{_SUFFIX}"
    metadata = {
        "policy": checkpoint.policy,
        "signature": checkpoint.signature.model_dump_json(),
        "version": str(checkpoint.version),
        "seconds": repr(checkpoint.seconds),
        "scalars": json.dumps(checkpoint.state.scalars),
    }
    try:
        place.mkdir(parents=True, exist_ok=True)
        _write_whole(path, pack(checkpoint.state.tensors, metadata))
    except OSError as error:
        older = list_checkpoints(run_dir, checkpoint.policy)
        kept = "the checkpoints before it are whole; " if older else ""
        raise CheckpointError(
            f"can't save {path}: {error.strerror or error}; {kept}make room or give another --runs folder"
        ) from None
    for old in [*list_checkpoints(run_dir, checkpoint.policy)[:-KEPT], *place.glob("*.partial")]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint:
    """Return the checkpoint in a file.

    Raises:
        CheckpointError: if it can't be read, or is damaged.
    """
    try:
        tensors, metadata = unpack(path.read_bytes())
        return Checkpoint(
            policy=metadata["policy"],
            signature=Signature.model_validate_json(metadata["signature"]),
            version=int(metadata["version"]),
            seconds=float(metadata["seconds"]),
            state=LearnerState(tensors, _scalars(json.loads(metadata["scalars"]))),
        )
    except OSError as error:
        kind = _DamagedError if error.errno == errno.EIO else CheckpointError
        raise kind(f"can't read checkpoint {path}: {error.strerror or error}") from None
    except (DamagedTensorsError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise _DamagedError(
            f"checkpoint {path} is damaged: {reason:.200}; put a whole copy there, or remove it"
        ) from None


def load_newest(run_dir: Path, policy: str, *, set_aside: bool = False) -> Checkpoint:
    """Return a policy's newest checkpoint that is whole; log which it passes over, and why.

    Args:
        run_dir: of the run.
        policy: its name.
        set_aside: whether to rename those it passes over, so that they don't count as the newest any
            more; for the one process that writes there.

    Raises:
        CheckpointError: if there is none, none is whole, or one can't be read.
    """
    paths = list_checkpoints(run_dir, policy)
    if not paths:
        raise CheckpointError(
            f"there is no checkpoint in {folder(run_dir, policy)}; name the folder of a run that has "
            f"trained"
        )
    damaged: list[tuple[Path, _DamagedError]] = []
    for path in reversed(paths):
        try:
            found = load(path)
        except _DamagedError as error:
            damaged.append((path, error))
        else:
            for other, fault in damaged:
                _LOG.error("uses %s instead of a newer one: %s", path.name, fault)
                if set_aside:
                    _set_aside(other)
            return found
    raise CheckpointError(f"none of the checkpoints of {policy!r} ({len(paths)}) is whole; {damaged[0][1]}")


def _set_aside(path: Path) -> None:
    """Give a damaged checkpoint a name that no checkpoint has."""
    try:
        path.rename(path.with_name(path.name + _DAMAGED_SUFFIX))
    except OSError as error:
        _LOG.error("can't rename the damaged %s: %s; remove it", path, error.strerror)


def _scalars(scalars: object) -> dict[str, int]:
    if not isinstance(scalars, dict) or not all(type(value) is int for value in scalars.values()):
        raise ValueError("its scalars are no integers")
    if scalars.get("gradient_steps", -1) < 0:
        raise ValueError("it doesn't say how many gradient steps were made")
    return scalars


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole, or not at all, whatever happens meanwhile."""
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
