"""`fornix inspect`: what a live replay server holds and does."""

from collections.abc import Sequence
from contextlib import closing

from fornix.commands.shared import StopSignals, add_json, command_parser, write_json
from fornix.common.addresses import check_address
from fornix.common.messages import Info
from fornix.replay.client import Client

_ABOUT = """\
Show a live replay server: its tables with signature, fill, rates, writers and limiter, and what the
processes around it report.
"""
_EXAMPLES = """\
fornix inspect tcp://127.0.0.1:5555
fornix inspect tcp://127.0.0.1:5555 --watch         the live screen of 'fornix run', until Ctrl-C
fornix inspect tcp://127.0.0.1:5555 --json -        for other programs
"""
_PATIENCE_S = 3.0


def main(arguments: Sequence[str]) -> int:
    """Show a server once, or until it is enough."""
    parser = command_parser("inspect", _ABOUT, _EXAMPLES, "ADDRESS [--json FILE|-] [--watch]")
    parser.add_argument("address", metavar="ADDRESS", help="of the server: tcp://HOST:PORT or ipc://PATH")
    parser.add_argument("--watch", action="store_true", help="show the live screen, until Ctrl-C")
    add_json(parser)
    options = parser.parse(arguments)
    check_address(options.address)
    if options.watch and options.json:
        parser.error("--json shows one moment and --watch shows all; give one of them")
    info = _ask(options.address)
    if options.watch:
        return _watch(options.address)
    if options.json != "-":
        _print(options.address, info)
    if options.json is not None:
        values = {"server": info.server, "tables": info.tables, "reports": info.reports}
        write_json(options.json, {"address": options.address, **values})
    return 0


def _ask(address: str) -> Info:
    """Return the server's info, or raise UnreachableError."""
    with Client.connect(address, name="inspect", give_up_after_s=_PATIENCE_S) as client:
        return client.info()


def _print(address: str, info: Info) -> None:
    from rich.console import Console

    from fornix.inspection import inspection

    Console().print(inspection(address, info))


def _watch(address: str) -> int:
    from fornix.display import make_display
    from fornix.tracker import Tracker
    from fornix.watcher import Watcher

    tracker = Tracker(address)
    with StopSignals() as signals, make_display() as display, closing(Watcher(address)) as watcher:
        while not signals.event.wait(0.1):
            tracker.take(watcher.poll())
            display.show(tracker.progress(None))
    return signals.exit_code
