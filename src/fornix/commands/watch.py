"""`fornix watch`: an animation of a run's agents playing."""

from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import command_parser
from fornix.common.errors import ConfigurationError
from fornix.runs import open_run

_ABOUT = """\
Let the agents of a run play one episode with their newest weights, greedily and without noise, and
write it as an animated GIF.
"""
_EXAMPLES = """\
fornix watch runs/treasurehunt                      writes runs/treasurehunt/episode.gif
fornix watch runs/treasurehunt --out hunt.gif --seed 7
"""


def main(arguments: Sequence[str]) -> int:
    """Write the animation."""
    parser = command_parser("watch", _ABOUT, _EXAMPLES, "RUN [--out FILE] [--seed S]")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the GIF (default: RUN/episode.gif)")
    parser.add_argument("--seed", metavar="S", type=int, default=1, help="of the world (default: 1)")
    options = parser.parse(arguments)
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed {options.seed} must be from 0 to {2**32 - 1}")
    config = open_run(options.run)
    path = options.out or options.run / "episode.gif"
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path.parent} is no folder; create it, or give another file with --out")
    from fornix.evaluation import load_policies
    from fornix.summary import animate

    animate(config, load_policies(config, options.run), options.seed, path)
    print(f"wrote {path}")
    return 0
