"""`fornix evaluate`: the greedy score of a run beside random play."""

import sys
from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import add_json, command_parser, write_json
from fornix.runs import open_run

_ABOUT = """\
Play episodes with the newest weights of a run, greedily and without noise, and print the mean score
with its 95 % confidence interval beside that of uniformly random play. A score sums up all agents.
"""
_EXAMPLES = """\
fornix evaluate runs/treasurehunt
fornix evaluate runs/treasurehunt --episodes 400 --seed 7
fornix evaluate runs/treasurehunt --json -          for other programs
fornix evaluate runs/by-hand --files                summary, curve and animation of a run started by hand
"""


def main(arguments: Sequence[str]) -> int:
    """Print both scores."""
    parser = command_parser(
        "evaluate", _ABOUT, _EXAMPLES, "RUN [--episodes N] [--seed S] [--files] [--json FILE|-]"
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run")
    parser.add_argument("--episodes", metavar="N", type=int, default=100, help="to play (default: 100)")
    parser.add_argument("--seed", metavar="S", type=int, default=1, help="of the worlds (default: 1)")
    parser.add_argument(
        "--files",
        action="store_true",
        help="write summary.json, curve.png and episode.gif to RUN, as 'fornix run' does at its end",
    )
    add_json(parser)
    options = parser.parse(arguments)
    if not 1 <= options.episodes <= 1_000_000:
        parser.error(f"--episodes {options.episodes} must be from 1 to 1000000")
    if not 0 <= options.seed < 2**32:
        parser.error(f"--seed {options.seed} must be from 0 to {2**32 - 1}")
    _evaluate(options.run, options.episodes, options.seed, options.json)
    if options.files:
        _write_files(options.run)
    return 0


def _write_files(run_dir: Path) -> None:
    from fornix.summary import sum_up

    summary = sum_up(open_run(run_dir), run_dir, lambda line: print(line, file=sys.stderr))
    print(f"wrote {', '.join(str(path) for path in summary.files.values())}", file=sys.stderr)


def _evaluate(run_dir: Path, episodes: int, seed: int, json: str | None) -> None:
    from fornix.scores import greedy_score, newest, random_score

    config = open_run(run_dir)
    checkpoints = newest(config, run_dir)
    weights = {policy: one.acting_weights for policy, one in checkpoints.items()}
    greedy = greedy_score(config, weights, episodes, seed)
    random = random_score(config, episodes, seed)
    if json != "-":
        print(f"{run_dir}: score per episode, mean of {episodes} with its 95 % confidence interval")
        print(f"  greedy  {greedy}")
        print(f"  random  {random}")
    if json is not None:
        values = {
            "run": str(run_dir),
            "episodes": episodes,
            "seed": seed,
            "gradient_steps": {policy: one.step for policy, one in checkpoints.items()},
            "score_greedy": greedy.to_json(),
            "score_random": random.to_json(),
        }
        write_json(json, values)
