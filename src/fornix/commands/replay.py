"""`fornix replay`: serve the memory."""

import logging
import threading
from collections.abc import Sequence

from fornix import __version__
from fornix.commands.replay_tools import TOOLS_HELP, is_tool, run_tool
from fornix.commands.shared import CONFIG_HELP, StopSignals, add_config_file, command_parser, log_as
from fornix.common.config import RunConfig
from fornix.common.settings import ConfigFlags, resolve
from fornix.replay.role import serve
from fornix.replay.server import ReplayServer

_LOG = logging.getLogger(__name__)

_ABOUT = """\
Serve one replay memory over ZeroMQ until stopped. It needs neither FILE nor torch: the tables, their
signatures and their sizes come from the clients that create them, ours or anyone's. With --data it keeps
its rows in a folder, and has them again when it is started on that folder again, however it ended.
"""
_EXAMPLES = """\
fornix replay
fornix replay --address tcp://0.0.0.0:5555 --memory-gb 8
fornix replay --data /var/lib/fornix           keeps its rows there
fornix replay configs/treasurehunt.yaml        serves at that file's replay.address
fornix inspect tcp://127.0.0.1:5555            shows what it holds
"""


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM, or carry out one of the tools."""
    if is_tool(arguments):
        return run_tool(arguments)
    parser = command_parser(
        "replay", _ABOUT, _EXAMPLES, "[FILE] [--address A] [--data DIR] [--memory-gb N] [--KEY VALUE ...]"
    )
    add_config_file(parser, required=False)
    parser.add_argument("--address", metavar="A", help="where to answer; the same as --replay.address")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="the folder to keep its rows in; the same as --replay.data (without it: in memory only)",
    )
    parser.add_argument(
        "--memory-gb", metavar="N", type=float, help="limit on all tables together (¾ of the machine's)"
    )
    parser.epilog = f"{TOOLS_HELP}\n\n{CONFIG_HELP}"
    flags = ConfigFlags(parser)
    options = parser.parse(arguments)
    values = flags.values(options)
    short = {"address": options.address, "data": options.data}
    if given := {key: value for key, value in short.items() if value is not None}:
        values["replay"] = values.get("replay", {}) | given
    if options.memory_gb is not None and not 0 < options.memory_gb < 1e9:
        parser.error(f"--memory-gb {options.memory_gb:g} must be above 0")
    config = resolve(options.file, values)
    return _serve(config, options.memory_gb)


def _serve(config: RunConfig, memory_gb: float | None) -> int:
    log_as("replay")
    memory_bytes = None if memory_gb is None else int(memory_gb * 1e9)
    with StopSignals() as signals:

        def on_ready(server: ReplayServer) -> None:
            threading.Thread(target=_stop_after, args=(signals.event, server), daemon=True).start()
            print(f"replay server answers at {server.address}", flush=True)

        serve(
            config.replay.address,
            seed=config.seed,
            memory_bytes=memory_bytes,
            version=__version__,
            lease_s=config.replay.lease_s,
            data=config.replay.data,
            on_ready=on_ready,
        )
        _LOG.info("has ended")
    return signals.exit_code


def _stop_after(event: threading.Event, server: ReplayServer) -> None:
    event.wait()
    server.stop()
