"""The command `fornix`: finds the subcommand, and turns every error into one sentence.

Only the chosen subcommand's module is imported, and none imports torch at its top: `fornix replay`
and `fornix inspect` work where torch isn't installed, and every `--help` answers at once.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from fornix import __version__
from fornix.common.errors import ConfigurationError, FornixError
from fornix.common.validation import nearest

COMMANDS = {
    "run": "train: start server, actors and learner, show one live screen, sum up",
    "replay": "serve the memory, for our agents or for anyone's",
    "actor": "act in environments and write what happens to a replay server",
    "learner": "train from a replay server and publish weights",
    "evaluate": "measure the greedy score of a run beside random play",
    "watch": "write an animation of a run's agents playing",
    "inspect": "show what a live replay server holds and does",
}

_HELP = f"""\
usage: fornix COMMAND [--help] ...

An actor/learner reinforcement-learning system around one replay server.

{chr(10).join(f"  {name:9} {about}" for name, about in COMMANDS.items())}

Begin with:  fornix run configs/treasurehunt.yaml
Learn more:  fornix run --help
"""
USAGE_ERROR = 2
#: What only the extra `train` installs.
TRAIN_EXTRA = {"torch", "safetensors", "gymnasium", "pettingzoo", "tensorboard", "matplotlib", "PIL"}
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return the exit code: 0, 2 for an error, 130 after Ctrl-C."""
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except FornixError as error:
        print(f"fornix: {error}", file=sys.stderr)
        return getattr(error, "exit_code", USAGE_ERROR)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in TRAIN_EXTRA:
            raise
        print(f"fornix: this command needs {error.name}; pip install 'fornix[train]'", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone: silence what Python would still flush at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE_ERROR
    except OSError as error:
        print(f"fornix: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return USAGE_ERROR


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"fornix {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise ConfigurationError(
            f"unknown command {name!r}{nearest(name, COMMANDS)}; commands: {', '.join(COMMANDS)}"
        )
    command = importlib.import_module(f"fornix.commands.{name}")
    return int(command.main(arguments[1:]))
