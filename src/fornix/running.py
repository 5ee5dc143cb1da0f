"""Trains a run while a person looks on: as processes, or step by step in this one."""

import logging
import os
import tempfile
import threading
from contextlib import closing
from pathlib import Path

from fornix.common.config import RunConfig
from fornix.common.messages import Info
from fornix.display import Display
from fornix.launch import Launcher
from fornix.roles import changed_addresses, environment_of, roles_of
from fornix.runs import CONFIG_FILE
from fornix.scores import random_score
from fornix.sockets import usable_addresses
from fornix.tracker import Tracker
from fornix.watcher import Watcher

_RANDOM_EPISODES = 100


def train_distributed(
    config: RunConfig, run_dir: Path, resume: bool, display: Display, stop: threading.Event
) -> None:
    """Start all processes of a run, and end them when the learners are done or `stop` is set.

    Raises:
        AddressError: if an address of the run is taken; nothing has been started then.
        GaveUpError: if a process died too often.
    """
    with tempfile.TemporaryDirectory(prefix="fornix-") as folder:
        used = usable_addresses(config, Path(folder), lambda line: display.say("run", line))
        roles = roles_of(
            run_dir / CONFIG_FILE, run_dir, config, resume=resume, changes=changed_addresses(config, used)
        )
        tracker = Tracker(f"{run_dir} · {used.replay.address}")
        launcher = Launcher(
            roles, display.say, log_dir=run_dir / "logs", environment=environment_of(os.environ)
        )
        with display, launcher, closing(Watcher(used.replay.address)) as watcher:
            _in_background(config, tracker)
            while not launcher.finished and not stop.is_set():
                launcher.step()
                info = watcher.poll()
                if info is not None:
                    tracker.take(info)
                display.show(tracker.progress(launcher.states(), display.lines))


def train_sequential(
    config: RunConfig, run_dir: Path, resume: bool, display: Display, stop: threading.Event
) -> None:
    """Train in this process until all gradient steps are made or `stop` is set."""
    from fornix.sequential import run_sequential

    tracker = Tracker(f"{run_dir} · sequential")

    def on_info(info: Info) -> None:
        tracker.take(info)
        display.show(tracker.progress(None, display.lines))

    with display, _Logging(display):
        _in_background(config, tracker)
        run_sequential(config, run_dir, resume, stop, on_info)


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


def _in_background(config: RunConfig, tracker: Tracker) -> None:
    """Find the score of random play while the processes start; some environments are slow."""

    def find() -> None:
        tracker.score_random = random_score(config, _RANDOM_EPISODES, config.seed).mean

    threading.Thread(target=find, name="random-score", daemon=True).start()
