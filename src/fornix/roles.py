"""The processes of a run, as the commands that a person would type for them."""

import sys
from collections.abc import Mapping
from pathlib import Path

from fornix.common.config import RunConfig
from fornix.common.settings import PREFIX
from fornix.launch import Role
from fornix.runs import DATA_FOLDER


def roles_of(
    file: Path,
    run_dir: Path,
    config: RunConfig,
    *,
    resume: bool,
    changes: tuple[str, ...],
    keep: bool = True,
) -> list[Role]:
    """Return the replay server, the learners and the actors of a run.

    Args:
        file: that holds the configuration.
        run_dir: where the learners' files go.
        config: what `file` holds.
        resume: whether the learners go on from checkpoints that are there.
        changes: flags for what differs from `file`, for every command.
        keep: whether the replay server keeps its rows: in `replay.data`, or in the run's folder where the
            configuration names none.
    """
    data = (config.replay.data or run_dir / DATA_FOLDER) if keep else None
    keeping = ("--replay.data", "null" if data is None else str(data))
    replay = Role("replay", _command("replay", str(file), *changes, *keeping), stops_last=True)
    learners = [
        _learner(index, str(file), run_dir, resume, changes) for index in range(config.learner.processes)
    ]
    actors = [
        Role(f"actor-{index}", _command("actor", str(file), "--index", str(index), *changes))
        for index in range(config.actor.processes)
    ]
    return [replay, *learners, *actors]


def changed_addresses(config: RunConfig, used: RunConfig) -> tuple[str, ...]:
    """Return the flags that make the addresses of `config` those that are used."""
    flags: list[str] = []
    if used.replay.address != config.replay.address:
        flags += ["--replay.address", used.replay.address]
    if used.weights.addresses != config.weights.addresses:
        flags += ["--weights.addresses", ",".join(used.weights.addresses)]
    return tuple(flags)


def environment_of(ours: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a run's processes.

    The run's file has taken in all configuration already, and a variable would beat it. Output comes
    as it is written.
    """
    kept = {name: value for name, value in ours.items() if not name.startswith(PREFIX)}
    return kept | {"PYTHONUNBUFFERED": "1"}


def _learner(index: int, file: str, run_dir: Path, resume: bool, changes: tuple[str, ...]) -> Role:
    command = _command("learner", file, "--run", str(run_dir), "--index", str(index), *changes)
    resuming = (*command, "--resume")
    return Role(f"learner-{index}", resuming if resume else command, resuming, finishes=True)


def _command(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "fornix", *arguments)
