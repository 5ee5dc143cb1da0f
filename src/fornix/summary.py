"""What a run has come to: measured at its end, for people to read and for programs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from fornix.common.config import RunConfig
from fornix.common.errors import FornixError
from fornix.pictures import draw_curve, read_metrics, write_animation
from fornix.scores import Score, greedy_score, nearest_treasure_score, newest, random_score, untrained
from fornix.screen import clock

EPISODES = 100
#: Of the evaluation's worlds: none that training has seen, and the same for every run.
SEED = 1_000_003

_FILES = {
    "configuration": "config.yaml",
    "checkpoints": "checkpoints",
    "metrics": "metrics.jsonl",
    "tensorboard": "events",
    "logs": "logs",
    "curve": "curve.png",
    "episode": "episode.gif",
    "summary": "summary.json",
}


@dataclass(frozen=True)
class Summary:
    """The figures of a finished run."""

    run_dir: Path
    score_random: Score
    score_before: Score
    """Greedy, of freshly initialised networks."""
    score_after: Score
    """Greedy, of the newest checkpoints."""
    score_nearest_treasure: Score | None
    """Of walking to the nearest treasure in sight; None outside treasure hunts."""
    seconds: float
    """Of training."""
    gradient_steps: int
    agent_steps: int
    files: dict[str, Path]
    """Those that are there, by what they are."""

    def to_json(self) -> dict[str, Any]:
        """Return all figures under stable, self-explaining keys."""
        nearest = self.score_nearest_treasure
        return {
            "run": str(self.run_dir),
            "score_random": self.score_random.to_json(),
            "score_before_training": self.score_before.to_json(),
            "score_after_training": self.score_after.to_json(),
            "score_nearest_treasure": nearest and nearest.to_json(),
            "training_seconds": self.seconds,
            "gradient_steps": self.gradient_steps,
            "agent_steps": self.agent_steps,
            "agent_steps_per_s": self.agent_steps / self.seconds if self.seconds else None,
            "files": {name: str(path) for name, path in self.files.items()},
        }


def sum_up(config: RunConfig, run_dir: Path, say: Callable[[str], None]) -> Summary:
    """Measure a run, and write its summary.json, curve.png and episode.gif.

    Args:
        config: of the run.
        run_dir: its folder, with checkpoints.
        say: told what could not be made, such as an animation of what can't be drawn.

    Raises:
        CheckpointError: if there is no checkpoint to measure.
    """
    checkpoints = newest(config, run_dir)
    weights = {policy: one.acting_weights for policy, one in checkpoints.items()}
    records = read_metrics(run_dir / _FILES["metrics"])
    random = random_score(config, EPISODES, SEED)
    nearest = nearest_treasure_score(config, EPISODES, SEED)
    after = greedy_score(config, weights, EPISODES, SEED)
    references = {"random play": random.mean} | ({"nearest treasure": nearest.mean} if nearest else {})
    draw_curve(records, after, references, f"{run_dir.name}: score", run_dir / _FILES["curve"])
    try:
        animate(config, weights, SEED, run_dir / _FILES["episode"])
    except FornixError as error:
        say(f"there is no animation: {error}")
    summary = Summary(
        run_dir=run_dir,
        score_random=random,
        score_before=greedy_score(config, untrained(config), EPISODES, SEED),
        score_after=after,
        score_nearest_treasure=nearest,
        seconds=max(one.seconds for one in checkpoints.values()),
        gradient_steps=min(one.step for one in checkpoints.values()),
        agent_steps=int(records[-1]["agent_steps"]) if records else 0,
        files=_files(run_dir),
    )
    text = json.dumps(summary.to_json(), indent=2) + "\n"
    (run_dir / _FILES["summary"]).write_text(text, encoding="utf-8")
    return summary


def animate(config: RunConfig, weights: Any, seed: int, path: Path) -> None:
    """Write an animation of one greedy episode, or raise a FornixError where nothing can be drawn."""
    from fornix.actor.evaluation import play

    pictures = play(config, weights, 1, seed, record=True).pictures
    if not pictures:
        raise FornixError(f"environment {config.environment.kind!r} can't be drawn")
    write_animation(pictures, path)


def panel(summary: Summary) -> RenderableType:
    """Return the summary as a person wants to read it."""
    scores = Table.grid(padding=(0, 2, 0, 0))
    scores.add_column(style="dim")
    scores.add_column(justify="right")
    for name, score, style in (
        ("random play", summary.score_random, ""),
        ("before training", summary.score_before, ""),
        ("nearest treasure, by rule", summary.score_nearest_treasure, ""),
        ("after training", summary.score_after, "bold green"),
    ):
        if score is not None:
            scores.add_row(name, Text(str(score), style=style))
    speed = summary.agent_steps / summary.seconds if summary.seconds else 0.0
    pace = (
        f"{clock(summary.seconds)} of training: {summary.gradient_steps:,} gradient steps, "
        f"{summary.agent_steps:,} agent steps ({speed:,.0f}/s)"
    )
    parts: list[RenderableType] = [
        Text(f"score per episode, mean of {summary.score_after.episodes} with its 95 % interval"),
        scores,
        Text(f"\n{pace}\n"),
        _where(summary),
    ]
    return Panel(
        Group(*parts), title=f"[bold]{summary.run_dir}[/]", title_align="left", padding=(1, 2), expand=False
    )


def _where(summary: Summary) -> RenderableType:
    files = Table.grid(padding=(0, 2, 0, 0))
    files.add_column(style="dim")
    files.add_column(overflow="fold")
    for name, path in summary.files.items():
        files.add_row(name, str(path))
    files.add_row("again", f"fornix evaluate {summary.run_dir}, fornix watch {summary.run_dir}")
    return files


def _files(run_dir: Path) -> dict[str, Path]:
    found = {name: run_dir / file for name, file in _FILES.items()}
    return {name: path for name, path in found.items() if path.exists() or name == "summary"}
