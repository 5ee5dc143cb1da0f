"""`fornix replay snapshot`: a copy of a data folder, while its server serves."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fornix.commands.shared import command_parser, log_as

_LOG = logging.getLogger(__name__)

_ABOUT = """\
Copy all tables of a data folder ('fornix replay --data DIR') into a new folder, which 'fornix replay
--data DEST' serves: with priorities, and with what the limiters have counted. The server of DIR may be
running; it is asked nothing, and hardly slowed. DEST is there whole or not at all.
"""
_EXAMPLES = """\
fornix replay snapshot /var/lib/fornix backup-monday
fornix replay verify backup-monday
fornix replay --data backup-monday
"""
_LOG_EVERY_S = 2.0


def main(arguments: Sequence[str]) -> int:
    """Take one snapshot."""
    parser = command_parser("replay snapshot", _ABOUT, _EXAMPLES, "DIR DEST [--pause P]")
    parser.add_argument("folder", metavar="DIR", type=Path, help="that a replay server keeps")
    parser.add_argument("dest", metavar="DEST", type=Path, help="the folder to make")
    parser.add_argument(
        "--pause", metavar="P", type=float, default=0.8, help="part of the time left to others (0.8)"
    )
    options = parser.parse(arguments)
    if not 0 <= options.pause <= 0.99:
        parser.error(f"--pause {options.pause:g} must be from 0 to 0.99")
    log_as("snapshot")
    return _snapshot(options.folder, options.dest, options.pause)


def _snapshot(folder: Path, dest: Path, pause: float) -> int:
    from fornix.replay.durable.snapshot import snapshot

    with _behind_others():
        copied = snapshot(folder, dest, pause, _Progress())
    for each in copied:
        damaged = f"; {each.damaged:,} are damaged and left out" if each.damaged else ""
        print(f"copied {each.rows:,} rows of table {each.table!r}{damaged}")
    print(f"{folder} is copied to {dest}")
    return 0


@contextlib.contextmanager
def _behind_others() -> Iterator[None]:
    """Let whoever else wants to run go first."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, *before)


class _Progress:
    """Logs how far it is, now and then."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def __call__(self, table: str, done: int, total: int) -> None:
        """Take note of so many rows of all."""
        if time.monotonic() - self._said_at >= _LOG_EVERY_S:
            self._said_at = time.monotonic()
            _LOG.info("table %r: %d of %d rows", table, done, total)
