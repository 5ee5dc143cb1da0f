"""The commands beside serving: `fornix replay TOOL …`, each a module with a `main`."""

import importlib
from collections.abc import Sequence
from typing import NamedTuple


class Tool(NamedTuple):
    """One of them."""

    module: str
    """In `fornix.commands`; imported when it is asked for."""
    about: str


TOOLS = {
    "snapshot": Tool("replay_snapshot", "copy a data folder, while its server serves"),
    "restore": Tool(
        "replay_restore", "make a data folder of a copy, with another capacity, sampler or limiter"
    ),
    "verify": Tool("replay_verify", "read a whole data folder, and report whatever is wrong in it"),
    "export": Tool("replay_export", "write a table of a data folder as a file of episodes (Parquet)"),
    "import": Tool("replay_import", "write a file of episodes to a table of a live server"),
}

TOOLS_HELP = "beside serving ('fornix replay TOOL --help'):\n" + "\n".join(
    f"  fornix replay {name:9} {tool.about}" for name, tool in TOOLS.items()
)


def is_tool(arguments: Sequence[str]) -> bool:
    """Whether a command line of `fornix replay` asks for one of them; it is a file's name otherwise."""
    return bool(arguments) and arguments[0] in TOOLS


def run_tool(arguments: Sequence[str]) -> int:
    """Carry out `TOOL ...`, and return the exit code."""
    command = importlib.import_module(f"fornix.commands.{TOOLS[arguments[0]].module}")
    return int(command.main(arguments[1:]))
