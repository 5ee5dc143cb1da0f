"""How fast the vectorised treasure-hunt world runs, and what the scripted policies score in it.

The rate counts one agent's step as one, with the resets between episodes and without the choice of
actions, which are drawn before the clock starts. One process, one thread. Rounds on a noisy machine
spread, so the median is printed beside the slowest and the fastest.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np

from fornix.actor.policies_scripted import greedy_policy, play_episodes, random_policy
from fornix.actor.treasurehunt import TreasureHunt
from fornix.commands.shared import write_json
from fornix.common.config import TreasureHuntConfig


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--copies", type=int, default=64, help="worlds stepped together")
    parser.add_argument("--rounds", type=int, default=9, help="times the rate is measured")
    parser.add_argument("--episodes", type=int, default=10, help="episodes of each copy in a round")
    parser.add_argument("--scores", action="store_true", help="play the scripted policies as well")
    parser.add_argument("--score-episodes", type=int, default=5_000, help="episodes of each policy")
    parser.add_argument("--seed", type=int, default=0, help="seed of worlds and policies")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args(arguments)
    for name in ("copies", "rounds", "episodes", "score_episodes"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def round_rate(world: TreasureHunt, actions: np.ndarray[Any, Any], episodes: int) -> float:
    """Return agent steps per second over `episodes` of every copy.

    Args:
        world: The world to step.
        actions: `[max_turns, copies, agents]`, replayed in each episode.
        episodes: Episodes to play.
    """
    everyone = np.ones(world.copies, np.bool_)
    start = time.perf_counter()
    for _ in range(episodes):
        world.reset(everyone)
        for action in actions:
            world.step(action)
    return episodes * actions.size / (time.perf_counter() - start)


def measure_rate(options: argparse.Namespace) -> dict[str, Any]:
    config = TreasureHuntConfig()
    world = TreasureHunt(config, options.copies, options.seed)
    shape = (config.max_turns, options.copies, config.agents)
    actions = np.random.default_rng(options.seed).integers(0, world.spec.n_actions, shape)
    round_rate(world, actions, 1)  # warms up caches and the clock frequency
    rates = [round_rate(world, actions, options.episodes) for _ in range(options.rounds)]
    return {
        "copies": options.copies,
        "agents_per_copy": config.agents,
        "rounds": options.rounds,
        "agent_steps_per_s_median": round(statistics.median(rates)),
        "agent_steps_per_s_min": round(min(rates)),
        "agent_steps_per_s_max": round(max(rates)),
    }


def measure_scores(options: argparse.Namespace) -> dict[str, Any]:
    """Return mean score per episode, summed over the agents, and its standard error, by policy."""
    world = TreasureHunt(TreasureHuntConfig(), options.copies, options.seed)
    rng = np.random.default_rng(options.seed)
    policies = {
        "random": random_policy(world.spec, rng),
        "greedy_nearest": greedy_policy(world.config, rng),
    }
    rounds = max(2, -(-options.score_episodes // options.copies))
    figures: dict[str, Any] = {"episodes_per_policy": rounds * options.copies}
    for name, policy in policies.items():
        scores = play_episodes(world, policy, rounds)
        figures[f"{name}_score_mean"] = round(float(scores.mean()), 2)
        figures[f"{name}_score_standard_error"] = round(float(scores.std(ddof=1)) / len(scores) ** 0.5, 2)
    return figures


def describe(figures: dict[str, Any]) -> str:
    lines = [
        "treasure hunt, {copies} copies of {agents_per_copy} agents, {rounds} rounds: "
        "{agent_steps_per_s_median:,} agent steps/s "
        "({agent_steps_per_s_min:,} to {agent_steps_per_s_max:,})".format(**figures)
    ]
    if scores := figures.get("scores"):
        lines += [
            f"{name}: {scores[f'{name}_score_mean']} ± {scores[f'{name}_score_standard_error']} "
            f"per episode, mean and standard error of {scores['episodes_per_policy']:,} episodes"
            for name in ("random", "greedy_nearest")
        ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    figures = measure_rate(options)
    if options.scores:
        figures["scores"] = measure_scores(options)
    print(describe(figures), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
