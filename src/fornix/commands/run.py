"""`fornix run`: start everything, show it, sum it up."""

import argparse
import threading
from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import CONFIG_HELP, StopSignals, add_config_file, command_parser
from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError
from fornix.common.settings import ConfigFlags, dump_run_config, resolve
from fornix.display import make_display
from fornix.runs import CONFIG_FILE, create_run_dir, open_run, read_run

_ABOUT = """\
Train: start the replay server, the learners and the actors as processes of their own, show one live
screen (plain lines without a terminal), start again what dies, and sum up at the end. Ctrl-C saves a
checkpoint and ends everything. All files of the run go to a new folder runs/NAME.
"""
_EXAMPLES = """\
fornix run configs/treasurehunt.yaml
fornix run configs/treasurehunt.yaml --name hunt --learner.gradient_steps 20000 --actor.processes 3
fornix run configs/treasurehunt.yaml --mode sequential     one process, the same to the bit each time
fornix run --resume runs/hunt                              goes on where it was stopped
"""
_USAGE = "[FILE] [--mode distributed|sequential] [--resume RUN] [--runs DIR] [--KEY VALUE ...]"


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
    parser.epilog = CONFIG_HELP
    flags = ConfigFlags(parser)
    options = parser.parse(arguments)
    config = _configuration(options, flags)
    with StopSignals() as signals:
        run_dir = _train(options, config, signals.event)
        if signals.number:
            print(
                f"stopped; 'fornix run --resume {run_dir}{_mode_flag(options)}' goes on from the newest "
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
    open_run(options.resume)
    return read_run(options.resume, values)


def _mode_flag(options: argparse.Namespace) -> str:
    return " --mode sequential" if options.mode == "sequential" else ""


def _open_run_dir(options: argparse.Namespace, config: RunConfig) -> Path:
    run_dir: Path = options.resume or create_run_dir(options.runs, config.name)
    dump_run_config(config, run_dir / CONFIG_FILE)
    return run_dir


def _train(options: argparse.Namespace, config: RunConfig, stop: threading.Event) -> Path:
    from fornix.running import train_distributed, train_sequential

    train = train_sequential if options.mode == "sequential" else train_distributed
    resume = options.resume is not None
    return train(config, lambda: _open_run_dir(options, config), resume, make_display(), stop)


def _sum_up(config: RunConfig, run_dir: Path) -> None:
    from rich.console import Console

    from fornix.summary import panel, sum_up

    print("measuring the score of 100 episodes ...", flush=True)
    console = Console()
    console.print(panel(sum_up(config, run_dir, lambda line: print(line, flush=True))))
