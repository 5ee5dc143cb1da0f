"""Folders of runs: runs/<name>, runs/<name>-2 and so on."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError
from fornix.common.settings import resolve

CONFIG_FILE = "config.yaml"


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


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"can't create {folder}: {error.strerror}; give another --runs folder")
