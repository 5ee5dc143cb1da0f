"""The distributed run held against the sequential one, at equal agent steps and samples per insert.

Both modes run the same configuration with the same seeds. Checkpoints are kept as they are made and scored
after the run, greedily and without noise, so that scoring disturbs nothing; the agent steps of each are
those that metrics.jsonl has for its gradient step. The limiter's buffer is small here: with a large one the
sequential learner, which goes first, would be ahead of the actors, and a distributed one behind them.

    python benchmarks/bench_modes.py --picture docs/distributed_vs_sequential.png --json modes.json
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from observed_run import ObservedRun, read_run

from fornix.commands.shared import write_json
from fornix.learner.checkpoints import list_checkpoints, load
from fornix.scores import greedy_score

MODES = ("distributed", "sequential")
COLOURS = {"distributed": "#0b7a75", "sequential": "#e08e45"}
POLICY = "shared"
BUFFER_INSERTS = 300
EVALUATION_SEED = 1


def curve(given: argparse.Namespace, mode: str, seed: int) -> dict[str, Any]:
    """Run once, and return the greedy score over agent steps."""
    with tempfile.TemporaryDirectory(prefix="fornix-") as name:
        folder = Path(name)
        kept = run(given, mode, seed, folder)
        observed = read_run(folder / "run")
        steps, scores = scored(kept, observed, given.episodes)
    return {
        "mode": mode,
        "seed": seed,
        "gradient_steps": steps.tolist(),
        "agent_steps": agent_steps(observed, steps).tolist(),
        "score": scores,
        "greedy_score_mean": observed.summary["score_after_training"]["mean"],
        "samples_per_insert": observed.metrics[-1]["samples_per_insert"],
    }


def run(given: argparse.Namespace, mode: str, seed: int, folder: Path) -> Path:
    """Let `fornix run` train to the end; return a folder with all of its checkpoints."""
    kept = folder / "kept"
    kept.mkdir()
    command = [sys.executable, "-m", "fornix", "run", str(given.config), "--mode", mode]
    flags = {
        "runs": folder,
        "name": "run",
        "seed": seed,
        "replay.address": f"ipc://{folder}/replay",
        "replay.error_buffer_inserts": BUFFER_INSERTS,
        "weights.addresses": f"ipc://{folder}/weights",
        "learner.gradient_steps": given.gradient_steps,
        "learner.checkpoint_period_steps": max(1, given.gradient_steps // given.points),
    }
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while process.poll() is None:
                keep(folder / "run", kept)
                time.sleep(0.05)
        finally:
            process.terminate()
            process.wait(30)
    keep(folder / "run", kept)
    if process.returncode:
        raise SystemExit(f"fornix run failed:\n{(folder / 'output').read_text()[-3000:]}")
    return kept


def keep(run_dir: Path, kept: Path) -> None:
    """Link the checkpoints that are there: a run keeps its newest few alone."""
    for path in list_checkpoints(run_dir, POLICY):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(path, kept / path.name)


def scored(kept: Path, observed: ObservedRun, episodes: int) -> tuple[NDArray[np.int64], list[float]]:
    """Return the gradient steps of all checkpoints, and their greedy scores."""
    checkpoints = [load(path) for path in sorted(kept.iterdir())]
    scores = [
        greedy_score(observed.config, {POLICY: one.acting_weights}, episodes, EVALUATION_SEED).mean
        for one in checkpoints
    ]
    return np.array([one.step for one in checkpoints]), scores


def agent_steps(observed: ObservedRun, gradient_steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how many agent steps had been made at these gradient steps."""
    known = [(0.0, float(observed.config.replay.min_size))]  # before them the limiter lets nobody train
    known += [(one["gradient_steps"], one["agent_steps"]) for one in observed.metrics]
    steps: NDArray[np.float64] = np.interp(gradient_steps, *np.array(known).T)
    return steps


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
    axes.set(xlabel="agent steps", ylabel="greedy score per episode, all agents")
    axes.set_title("The same agents, step by step and as processes", loc="left", fontweight="bold")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e7ebef")
    figure.savefig(path)


def compared(curves: list[dict[str, Any]], grid: NDArray[Any]) -> dict[str, Any]:
    """Return how far the modes are apart, and how far the seeds of one."""
    scores = {mode: on_grid(curves, mode, grid) for mode in MODES}
    difference = scores["distributed"].mean(0) - scores["sequential"].mean(0)
    spread = max(float(np.ptp(one, axis=0).mean()) for one in scores.values())
    return {
        "agent_steps_compared": [float(grid[0]), float(grid[-1])],
        "mean_difference_distributed_minus_sequential": float(difference.mean()),
        "mean_range_over_seeds_within_a_mode": spread,
        "curves": curves,
    }


def describe(figures: dict[str, Any]) -> str:
    first, last = figures["agent_steps_compared"]
    lines = [
        f"over {first:,.0f} to {last:,.0f} agent steps the distributed runs score "
        f"{figures['mean_difference_distributed_minus_sequential']:+.1f} beside the sequential ones; "
        f"seeds of one mode differ by {figures['mean_range_over_seeds_within_a_mode']:.1f}"
    ]
    lines += [
        f"{one['mode']}, seed {one['seed']}: greedy score {one['greedy_score_mean']:.1f} at the end, "
        f"{one['samples_per_insert']:.2f} samples per insert"
        for one in figures["curves"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", type=Path, default=Path("configs/treasurehunt.yaml"))
    parser.add_argument("--gradient-steps", type=int, default=2000)
    parser.add_argument("--points", type=int, default=20, help="of each curve: checkpoints to score")
    parser.add_argument("--episodes", type=int, default=100, help="to score a checkpoint by")
    parser.add_argument("--picture", type=Path, help="PNG to draw")
    parser.add_argument("--json", help="write the curves to a file, or - for standard output")
    given = parser.parse_args()
    curves = [curve(given, mode, seed) for seed in given.seeds for mode in MODES]
    first = max(one["agent_steps"][0] for one in curves)
    last = min(one["agent_steps"][-1] for one in curves)
    grid = np.linspace(first, last, 60)
    figures = compared(curves, grid)
    if given.picture:
        draw(curves, grid, given.picture)
    print(describe(figures), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json:
        write_json(given.json, figures)


if __name__ == "__main__":
    main()
