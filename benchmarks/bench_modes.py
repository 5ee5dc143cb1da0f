"""The distributed run held against the sequential one, at equal agent steps and samples per insert.

Both modes run the same configuration with the same seeds; the score is that of the copies that hardly
explore, the mean of their last two episodes each, as metrics.jsonl has it.

    python benchmarks/bench_modes.py --picture docs/distributed_vs_sequential.png --json modes.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from observed_run import observe_run

MODES = ("distributed", "sequential")
COLOURS = {"distributed": "#0b7a75", "sequential": "#e08e45"}


def curve(file: Path, mode: str, seed: int, gradient_steps: int) -> dict[str, Any]:
    """Run once, and return the score over agent steps."""
    flags = ["--mode", mode, "--seed", str(seed), "--learner.gradient_steps", str(gradient_steps)]
    run = observe_run(file, flags)
    points = [(r["agent_steps"], r["score_greedy"]) for r in run.metrics if "score_greedy" in r]
    return {
        "mode": mode,
        "seed": seed,
        "agent_steps": [steps for steps, _ in points],
        "score": [score for _, score in points],
        "greedy_score_mean": run.summary["score_after_training"]["mean"],
        "samples_per_insert": run.metrics[-1]["samples_per_insert"],
    }


def on_grid(curves: list[dict[str, Any]], mode: str, grid: NDArray[Any]) -> NDArray[Any]:
    """Return [seeds, len(grid)]: the scores of one mode at the same agent steps."""
    own = [one for one in curves if one["mode"] == mode]
    return np.array([np.interp(grid, one["agent_steps"], one["score"]) for one in own])


def draw(curves: list[dict[str, Any]], grid: NDArray[Any], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.4), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for mode in MODES:
        scores = on_grid(curves, mode, grid)
        label = f"{mode}: mean and range of {len(scores)} seeds"
        axes.fill_between(grid, scores.min(0), scores.max(0), color=COLOURS[mode], alpha=0.18, linewidth=0)
        axes.plot(grid, scores.mean(0), color=COLOURS[mode], linewidth=2, label=label)
    axes.set(xlabel="agent steps", ylabel="score per episode, all agents")
    axes.set_title("The same agents, step by step and as processes", loc="left", fontweight="bold")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e7ebef")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=Path("configs/treasurehunt.yaml"))
    parser.add_argument("--gradient-steps", type=int, default=2000)
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--json", help="write the curves to a file, or - for standard output")
    given = parser.parse_args()
    curves = [
        curve(given.config, mode, seed, given.gradient_steps) for seed in given.seeds for mode in MODES
    ]
    first = max(one["agent_steps"][0] for one in curves)
    last = min(one["agent_steps"][-1] for one in curves)
    grid = np.linspace(first, last, 60)
    means = {mode: on_grid(curves, mode, grid).mean(0) for mode in MODES}
    spread = max(float(np.ptp(on_grid(curves, mode, grid), axis=0).mean()) for mode in MODES)
    figures = {
        "mean_difference_distributed_minus_sequential": float(
            (means["distributed"] - means["sequential"]).mean()
        ),
        "mean_range_over_seeds_within_a_mode": spread,
        "curves": curves,
    }
    if given.picture:
        draw(curves, grid, given.picture)
    out = sys.stderr if given.json == "-" else sys.stdout
    print(
        f"over {first:,.0f} to {last:,.0f} agent steps the distributed runs score "
        f"{figures['mean_difference_distributed_minus_sequential']:+.1f} beside the sequential ones; "
        f"seeds of one mode differ by {spread:.1f}",
        file=out,
    )
    for one in curves:
        print(
            f"{one['mode']}, seed {one['seed']}: greedy score {one['greedy_score_mean']:.1f} at the end, "
            f"{one['samples_per_insert']:.2f} samples per insert",
            file=out,
        )
    if given.json:
        text = json.dumps(figures, indent=2) + "\n"
        sys.stdout.write(text) if given.json == "-" else Path(given.json).write_text(text)


if __name__ == "__main__":
    main()
