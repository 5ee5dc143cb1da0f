"""How well and how fast the treasure hunters learn, by real distributed runs.

For each seed: the greedy score at the end (100 episodes), and the seconds from "processes ready" (every
actor has written steps and the learner has drawn its first batch) to the first published weights whose
greedy score reaches a goal. The weights are kept with their times of arrival and scored after the run,
so that scoring disturbs nothing.

    python benchmarks/bench_learning.py --seeds 0 1 2 --json learning.json
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from observed_run import ObservedRun, observe_run

from fornix.commands.shared import write_json
from fornix.scores import greedy_score

EPISODES = 100
EVALUATION_SEED = 1

#: What is told of the middle of a run, by the name of the metric.
MEDIANS = {
    "agent_steps_per_s": "agent_steps_per_s",
    "gradient_steps_per_s": "gradient_steps_per_s",
    "waiting_share": "learner_waiting_for_data_share",
    "actor_waiting_share": "actor_waiting_for_stacks_share",
    "actor_limiter_share": "actor_held_by_limiter_share",
}


def seconds_to(run: ObservedRun, goal: float) -> float | None:
    """Return when the first weights arrived that score `goal`; None if none did."""
    for seconds, weights in run.weights:
        score = greedy_score(run.config, {weights.policy: weights.tensors}, EPISODES, EVALUATION_SEED)
        if score.mean >= goal:
            return seconds
    return None


def measure(file: Path, seed: int, goal: float, flags: list[str]) -> dict[str, Any]:
    run = observe_run(file, ["--seed", str(seed), *flags])
    after = run.summary["score_after_training"]
    figures = {
        "seed": seed,
        "greedy_score_mean": round(after["mean"], 1),
        "greedy_score_confidence_interval_95": [round(x, 1) for x in after["confidence_interval_95"]],
        "seconds_to_goal": seconds_to(run, goal),
        "training_seconds": round(run.summary["training_seconds"], 1),
        "gradient_steps": run.summary["gradient_steps"],
        "agent_steps": run.summary["agent_steps"],
        "agent_steps_per_training_second": round(run.summary["agent_steps_per_s"]),
    }
    # the first seconds are the memory's filling, the last record is the stopping
    middle = run.metrics[2:-1] or run.metrics
    for metric, name in MEDIANS.items():
        values = [record[metric] for record in middle if metric in record]
        figures[f"{name}_median"] = round(statistics.median(values), 4) if values else None
    return figures


def describe(figures: dict[str, Any], goal: float) -> str:
    seconds = figures["seconds_to_goal"]
    reached = f"{goal:g} after {seconds:.1f} s" if seconds is not None else f"never {goal:g}"
    return (
        f"seed {figures['seed']}: greedy score {figures['greedy_score_mean']} "
        f"({figures['greedy_score_confidence_interval_95']}), {reached}; "
        f"{figures['agent_steps_per_s_median']:,.0f} agent steps/s, "
        f"{figures['gradient_steps_per_s_median']:.0f} gradient steps/s; waiting: learner "
        f"{figures['learner_waiting_for_data_share_median']:.1%}, actors "
        f"{figures['actor_waiting_for_stacks_share_median']:.1%} for stacks and "
        f"{figures['actor_held_by_limiter_share_median']:.0%} for the limiter"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=Path("configs/treasurehunt.yaml"))
    parser.add_argument("--goal", type=float, default=450, help="greedy score whose time is taken")
    parser.add_argument("--json", help="write the figures to a file, or - for standard output")
    parser.add_argument("flags", nargs="*", help="after --: flags for fornix run")
    given = parser.parse_args()
    out = sys.stderr if given.json == "-" else sys.stdout
    runs = []
    for seed in given.seeds:
        runs.append(measure(given.config, seed, given.goal, given.flags))
        print(describe(runs[-1], given.goal), file=out, flush=True)
    if given.json:
        write_json(given.json, {"goal": given.goal, "runs": runs})


if __name__ == "__main__":
    main()
