"""`fornix actor`: act in environments and write what happens to a replay server."""

from collections.abc import Sequence

from fornix.commands.shared import CONFIG_HELP, StopSignals, add_config_file, command_parser, log_as
from fornix.common.errors import ConfigurationError
from fornix.common.settings import ConfigFlags, resolve

_ABOUT = """\
Step copies of the environment until stopped: ask the replay server at replay.address for the stacks
to act on, and act from the newest weights that learners publish at weights.addresses.
"""
_EXAMPLES = """\
fornix actor configs/treasurehunt.yaml --index 0
fornix actor configs/treasurehunt.yaml --index 1 --replay.address tcp://server:5555 \\
    --weights.addresses tcp://learner:5556
"""

_GRACE_S = 1.0


def main(arguments: Sequence[str]) -> int:
    """Act until SIGINT or SIGTERM."""
    parser = command_parser("actor", _ABOUT, _EXAMPLES, "FILE --index I [--KEY VALUE ...]")
    add_config_file(parser, required=True)
    parser.add_argument(
        "--index", metavar="I", type=int, required=True, help="number of this actor, from 0; each its own"
    )
    parser.epilog = CONFIG_HELP
    flags = ConfigFlags(parser)
    options = parser.parse(arguments)
    config = resolve(options.file, flags.values(options))
    if not 0 <= options.index < config.actor.processes:
        raise ConfigurationError(
            f"--index {options.index} must be from 0 to {config.actor.processes - 1}, since "
            f"actor.processes is {config.actor.processes}; raise actor.processes for more actors"
        )
    log_as(f"actor-{options.index}")
    # it has nothing to save, and may be waiting for an answer
    with StopSignals(_GRACE_S) as signals:
        from fornix.actor.role import act

        act(config, options.index, signals.event)
    return signals.exit_code
