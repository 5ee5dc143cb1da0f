"""Folders of runs: runs/<name>, runs/<name>-2 and so on."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError
from fornix.common.settings import resolve

CONFIG_FILE = "config.yaml"
#: Where the replay server of a run keeps its rows.
DATA_FOLDER = "replay"
#: Keys that a kept table was created with.


def create_run_dir(runs: Path, name: str) -> Path:
    """Create and return a folder that was not there: runs/name, or with the first free number."""
    for number in itertools.count(1):
        folder = runs / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not runs.is_dir():
                raise _unusable(runs, error) from None
            continue
        except OSError as error:
            raise _unusable(folder, error) from None
        return folder
    raise AssertionError("there is always another number")


def open_run(run_dir: Path) -> RunConfig:
    """Return the configuration of a run, as its folder has it, or raise ConfigurationError."""
    file = run_dir / CONFIG_FILE
    if not file.is_file():
        raise ConfigurationError(
            f"{run_dir} is no folder of a run, since {file} is not there; name one, such as "
            f"runs/treasurehunt"
        )
    return read_run(run_dir, {})


def read_run(run_dir: Path, flags: Mapping[str, Any]) -> RunConfig:
    """Return the configuration in a run's folder, with flags over it; no variable changes a run."""
    file = run_dir / CONFIG_FILE
    if not file.read_text(encoding="utf-8").strip():
        raise ConfigurationError(f"{file} is empty; put the run's configuration there again")
    return resolve(file, dict(flags), environment={})


def require_same_table(run_dir: Path, config: RunConfig) -> None:
    """Raise ConfigurationError if a run's tables, which are kept, can't be used by a configuration.

    Raises:
        StorageError: if it can't be told, since the folder is damaged.
    """
    from fornix.replay.durable.disk import FolderDisk
    from fornix.replay.durable.folder import read_contents

    folder = config.replay.data or run_dir / DATA_FOLDER
    if not folder.is_dir():
        return
    for name, entry in read_contents(FolderDisk(folder, writable=False)).tables.items():
        spec, limiter = entry.spec, entry.spec.limiter
        created = {
            "n_frames": spec.signature.n_frames,
            "capacity_steps": spec.capacity_steps,
            "min_size": limiter.min_size,
            "samples_per_insert": limiter.samples_per_insert,
            "error_buffer_inserts": limiter.error_buffer_inserts,
        }
        for key, old in created.items():
            new = getattr(config.replay, key)
            if old != new:
                raise ConfigurationError(
                    f"replay.{key} = {new} and table {name!r}, which is kept in {folder}, was created with "
                    f"{old}; resume with that, with --no-data, or without that folder (its rows are lost "
                    f"then)"
                )


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"can't create {folder}: {error.strerror}; give another --runs folder")
