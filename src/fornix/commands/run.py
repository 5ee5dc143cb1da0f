"""`fornix run`: start everything, show it, sum it up."""

import argparse
import functools
import threading
from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import CONFIG_HELP, StopSignals, add_config_file, command_parser
from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError
from fornix.common.settings import ConfigFlags, dump_run_config, resolve
from fornix.display import make_display
from fornix.runs import CONFIG_FILE, create_run_dir, open_run, read_run, require_same_table

_ABOUT = """\
Train: start the replay server, the learners and the actors as processes of their own, show one live
screen (plain lines without a terminal), start again what dies, and sum up at the end. Ctrl-C saves a
checkpoint and ends everything. All files of the run go to a new folder runs/NAME, the replay server's
rows too (runs/NAME/replay, unless replay.data names another folder): --resume goes on with them.
"""
_EXAMPLES = """\
fornix run configs/treasurehunt.yaml
fornix run configs/treasurehunt.yaml --name hunt --learner.gradient_steps 20000 --actor.processes 3
fornix run configs/treasurehunt.yaml --mode sequential     one process, the same to the bit each time
fornix run --resume runs/hunt                              goes on where it was stopped
fornix run configs/treasurehunt.yaml --no-data             keeps the memory's rows nowhere
"""
_USAGE = "[FILE] [--mode distributed|sequential] [--resume RUN] [--runs DIR] [--no-data] [--KEY VALUE ...]"


def main(arguments: Sequence[str]) -> int:
    """Train, and return 0 when all gradient steps are made."""
    parser = command_parser("run", _ABOUT, _EXAMPLES, _USAGE)
    add_config_file(parser, required=False)
    parser.add_argument(
        "--mode",
        choices=("distributed", "sequential"),
        default="distributed",
        help="processes over ZeroMQ, or everything step by step in this one (default: distributed)",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        type=Path,
        help="go on with the run in this folder, by its own configuration",
    )
    parser.add_argument(
        "--runs", metavar="DIR", type=Path, default=Path("runs"), help="where new runs go (default: runs)"
    )
    parser.add_argument(
        "--no-data",
        action="store_true",
        help="keep the rows of the replay server in memory only, as --mode sequential always does",
    )
    parser.epilog = CONFIG_HELP
    flags = ConfigFlags(parser)
    options = parser.parse(arguments)
    config = _configuration(options, flags)
    with StopSignals() as signals:
        run_dir = _train(options, config, signals.event)
        if signals.number:
            print(
                f"stopped; 'fornix run --resume {run_dir}{_same_flags(options)}' goes on from the newest "
                f"checkpoint",
                flush=True,
            )
            return signals.exit_code
    _sum_up(config, run_dir)
    return 0


def _configuration(options: argparse.Namespace, flags: ConfigFlags) -> RunConfig:
    values = flags.values(options)
    if options.resume is None:
        return resolve(options.file, values)
    if options.file is not None:
        raise ConfigurationError(
            f"--resume goes on by the configuration in {options.resume}; leave {options.file} out, and "
            f"change single keys by flags"
        )
    open_run(options.resume)  # it must be one
    config = read_run(options.resume, values)
    if options.mode == "distributed" and not options.no_data:
        require_same_table(options.resume, config)
    return config


def _same_flags(options: argparse.Namespace) -> str:
    """Return the flags that a resumed run needs again, since its configuration doesn't hold them."""
    mode = " --mode sequential" if options.mode == "sequential" else ""
    return mode + (" --no-data" if options.no_data else "")


def _open_run_dir(options: argparse.Namespace, config: RunConfig) -> Path:
    run_dir: Path = options.resume or create_run_dir(options.runs, config.name)
    dump_run_config(config, run_dir / CONFIG_FILE)
    return run_dir


def _train(options: argparse.Namespace, config: RunConfig, stop: threading.Event) -> Path:
    from fornix.running import train_distributed, train_sequential

    resume, display = options.resume is not None, make_display()
    open_run_dir = functools.partial(_open_run_dir, options, config)
    if options.mode == "sequential":
        return train_sequential(config, open_run_dir, resume, display, stop)
    return train_distributed(config, open_run_dir, resume, display, stop, keep=not options.no_data)


def _sum_up(config: RunConfig, run_dir: Path) -> None:
    from rich.console import Console

    from fornix.summary import panel, sum_up

    print("measuring the score of 100 episodes ...", flush=True)
    console = Console()
    console.print(panel(sum_up(config, run_dir, lambda line: print(line, flush=True))))
