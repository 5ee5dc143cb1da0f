"""Trains a run while a person looks on: as processes, or step by step in this one."""

import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from fornix.common.config import GymnasiumConfig, RunConfig
from fornix.common.errors import FornixError
from fornix.common.messages import Info
from fornix.display import Display
from fornix.launch import Launcher
from fornix.roles import changed_addresses, environment_of, roles_of
from fornix.runs import CONFIG_FILE
from fornix.scores import random_score
from fornix.sockets import usable_addresses
from fornix.tracker import Tracker
from fornix.watcher import Watcher

_LOG = logging.getLogger(__name__)
_RANDOM_EPISODES = 100


def train_distributed(
    config: RunConfig,
    open_run_dir: Callable[[], Path],
    resume: bool,
    display: Display,
    stop: threading.Event,
    *,
    keep: bool = True,
) -> Path:
    """Start all processes of a run, and end them when the learners are done or `stop` is set.

    Args:
        config: of the run.
        open_run_dir: returns the run's folder with its configuration; called when addresses are free.
        resume: whether to go on from the newest checkpoints, where there are any.
        display: where to show it.
        stop: set by whoever wants it to end; checkpoints are saved then too.
        keep: whether the replay server keeps its rows on disk.

    Returns:
        The run's folder.

    Raises:
        AddressError, ConfigurationError: if an address of the run is taken, or there is no such
            environment; nothing has been started then.
        GaveUpError: if a process died too often.
    """
    _require_environment(config)
    with tempfile.TemporaryDirectory(prefix="fornix-") as folder, display:
        used = usable_addresses(config, Path(folder), lambda line: display.say("run", line))
        run_dir = open_run_dir()
        changes = changed_addresses(config, used)
        roles = roles_of(run_dir / CONFIG_FILE, run_dir, config, resume=resume, changes=changes, keep=keep)
        environment = environment_of(os.environ)
        tracker = Tracker(f"{run_dir} · {used.replay.address}")
        with (
            Launcher(roles, display.say, log_dir=run_dir / "logs", environment=environment) as launcher,
            contextlib.closing(Watcher(used.replay.address)) as watcher,
        ):
            _in_background(config, tracker)
            while not launcher.finished and not stop.is_set():
                launcher.step()
                tracker.take(watcher.poll())
                display.show(tracker.progress(launcher.states(), display.lines))
    return run_dir


def train_sequential(
    config: RunConfig,
    open_run_dir: Callable[[], Path],
    resume: bool,
    display: Display,
    stop: threading.Event,
) -> Path:
    """Train in this process until all gradient steps are made or `stop` is set; as `train_distributed`."""
    from fornix.sequential import run_sequential

    _require_environment(config)
    run_dir = open_run_dir()
    tracker = Tracker(f"{run_dir} · sequential")

    def on_info(info: Info) -> None:
        tracker.take(info)
        display.show(tracker.progress(None, display.lines))

    with display, _Logging(display):
        if config.replay.data is not None:
            _LOG.warning("one process keeps its rows in memory only; %s is not used", config.replay.data)
        _in_background(config, tracker)
        run_sequential(config, run_dir, resume, stop, on_info)
    return run_dir


class _Logging(logging.Handler):
    """Shows this process's log on a display, within a context."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.INFO)
        self._display = display

    def __enter__(self) -> None:
        logging.getLogger().setLevel(logging.INFO)
        logging.getLogger().addHandler(self)

    def __exit__(self, *error: object) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record."""
        self._display.say("run", record.getMessage())


def _require_environment(config: RunConfig) -> None:
    """Raise ConfigurationError if the environment can't be made: every actor would die of it."""
    if isinstance(config.environment, GymnasiumConfig):
        from fornix.actor.environments import make_environment

        make_environment(config.environment, 1, 0).close()


def _in_background(config: RunConfig, tracker: Tracker) -> None:
    """Find the score of random play while the processes start; some environments are slow."""

    def find() -> None:
        with contextlib.suppress(FornixError):
            tracker.score_random = random_score(config, _RANDOM_EPISODES, config.seed).mean

    threading.Thread(target=find, name="random-score", daemon=True).start()
