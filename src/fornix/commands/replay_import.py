"""`fornix replay import`: a file of episodes into a table of a live server."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import command_parser, log_as
from fornix.common.addresses import check_address
from fornix.common.settings import resolve
from fornix.replay.client import Client

_LOG = logging.getLogger(__name__)

_ABOUT = """\
Write the episodes of a Parquet file to a table of a live replay server, as 'fornix replay export' has
made it. The table is created if it isn't there, large enough for all of them. Episodes that were still
open are truncated at their last step. A damaged file is refused before anything is written.
"""
_EXAMPLES = """\
fornix replay import demonstrations.parquet --table hunt
fornix replay import demonstrations.parquet --table hunt --address tcp://memory:5555
"""
_LOG_EVERY_S = 2.0


def main(arguments: Sequence[str]) -> int:
    """Import one file."""
    parser = command_parser("replay import", _ABOUT, _EXAMPLES, "FILE --table T [--address A]")
    parser.add_argument("file", metavar="FILE", type=Path, help="of episodes, in Parquet")
    parser.add_argument("--table", metavar="T", required=True, help="to write to")
    parser.add_argument(
        "--address", metavar="A", help="of the server: tcp://HOST:PORT or ipc://PATH (replay.address)"
    )
    options = parser.parse(arguments)
    address = resolve(None, {}).replay.address if options.address is None else options.address
    check_address(address)
    log_as("import")
    return _import(address, options.table, options.file)


def _import(address: str, table: str, file: Path) -> int:
    from fornix.replay.importing import import_episodes

    with Client.connect(address, name="import", memory="socket") as client:
        progress = _Progress()
        episodes = import_episodes(client, table, file, on_progress=progress)
    print(f"imported {episodes} episodes of {progress.done} steps into table {table!r} at {address}")
    return 0


class _Progress:
    """Logs how far it is, now and then."""

    def __init__(self) -> None:
        self.done = 0
        self._said_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Take note of so many steps of all."""
        self.done = done
        if time.monotonic() - self._said_at >= _LOG_EVERY_S:
            self._said_at = time.monotonic()
            _LOG.info("%d of %d steps", done, total)
