"""`fornix learner`: train from a replay server and publish weights."""

from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import CONFIG_HELP, StopSignals, add_config_file, command_parser, log_as
from fornix.common.errors import ConfigurationError
from fornix.common.settings import ConfigFlags, dump_run_config, resolve
from fornix.runs import CONFIG_FILE

_ABOUT = """\
Train from the replay server at replay.address until learner.gradient_steps are made, publish weights
at weights.addresses[I], and save checkpoints, metrics and TensorBoard events in the folder RUN.
"""
_EXAMPLES = """\
fornix learner configs/treasurehunt.yaml --run runs/hunt
fornix learner configs/treasurehunt.yaml --run runs/hunt --resume     goes on from its checkpoint
"""


def main(arguments: Sequence[str]) -> int:
    """Train; exit code 0 says that all gradient steps are made."""
    parser = command_parser(
        "learner", _ABOUT, _EXAMPLES, "FILE --run RUN [--index I] [--resume] [--KEY VALUE ...]"
    )
    add_config_file(parser, required=True)
    parser.add_argument("--run", metavar="RUN", type=Path, required=True, help="folder of the run's files")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in RUN")
    parser.add_argument(
        "--index", metavar="I", type=int, default=0, help="number of this learner, from 0 (default: 0)"
    )
    parser.epilog = CONFIG_HELP
    flags = ConfigFlags(parser)
    options = parser.parse(arguments)
    config = resolve(options.file, flags.values(options))
    if not 0 <= options.index < config.learner.processes:
        raise ConfigurationError(
            f"--index {options.index} must be from 0 to {config.learner.processes - 1}, since "
            f"learner.processes is {config.learner.processes}"
        )
    log_as(f"learner-{options.index}")
    with StopSignals() as signals:
        from fornix.learner.role import learn

        if options.index == 0 and not (options.run / CONFIG_FILE).exists():
            options.run.mkdir(parents=True, exist_ok=True)
            dump_run_config(config, options.run / CONFIG_FILE)
        learn(config, options.run, options.index, options.resume, signals.event)
    return signals.exit_code
