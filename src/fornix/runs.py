"""Folders of runs: runs/<name>, runs/<name>-2 and so on."""

import itertools
from pathlib import Path

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
    return resolve(file, {})


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"can't create {folder}: {error.strerror}; give another --runs folder")
