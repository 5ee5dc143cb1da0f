"""The curve of a run and the animation of its agents, as files."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import ConfigurationError
from fornix.scores import Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _QUIET = "#22303c", "#8a96a3"
_TRAINED, _EXPLORING = "#0b7a75", "#e08e45"
_SMALLEST_PIXELS = 400

Record = Mapping[str, float]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the records of a metrics.jsonl, agent steps counted on over restarts of the server.

    A learner that was restarted goes back to its checkpoint: what it had written beyond is dropped.
    A line cut short by a crash is skipped.
    """
    records: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        while records and records[-1]["time_s"] >= record["time_s"]:
            records.pop()
        records.append(record)
    return _counted_on(records)


def draw_curve(
    records: Sequence[Record], final: Score, references: Mapping[str, float], title: str, path: Path
) -> None:
    """Draw the score over seconds and over agent steps, beside scores to compare with.

    Args:
        records: of `read_metrics`.
        final: the greedy score at the end.
        references: scores by what they are the scores of.
        title: of the picture.
        path: of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, key, label in (
        (left, "time_s", "seconds of training"),
        (right, "agent_steps", "agent steps"),
    ):
        _draw_scores(axes, records, key)
        _draw_final(axes, records, key, final)
        _draw_references(axes, references, names=axes is right)
        _tidy(axes, label)
    left.set_ylabel("score per episode, all agents", color=_INK)
    left.legend(loc="lower right", bbox_to_anchor=(1, 0.2), frameon=False, labelcolor=_INK, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold")
    figure.savefig(path)


def write_animation(pictures: Sequence[NDArray[np.uint8]], path: Path, frame_s: float = 0.16) -> None:
    """Write RGB pictures [H, W, 3] as an endless GIF, small ones enlarged.

    Raises:
        ConfigurationError: if the file can't be written.
    """
    from PIL import Image

    scale = max(1, -(-_SMALLEST_PIXELS // max(pictures[0].shape[:2])))
    images = [
        Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1)).quantize(64)
        for picture in pictures
    ]
    durations = [round(frame_s * 1000)] * (len(images) - 1) + [1200]
    try:
        images[0].save(
            path,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
            optimize=True,
        )
    except OSError as error:
        raise ConfigurationError(
            f"can't write {path}: {error.strerror}; give another file with --out"
        ) from None


def _counted_on(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return records whose agent steps never fall: a new server counts from 0."""
    before = 0.0
    offsets = [0.0]
    for one, next_ in pairwise(records):
        if next_.get("agent_steps", 0.0) < one.get("agent_steps", 0.0):
            before += one.get("agent_steps", 0.0)
        offsets.append(before)
    return [
        record | {"agent_steps": record.get("agent_steps", 0.0) + offset}
        for record, offset in zip(records, offsets, strict=False)
    ]


def _draw_scores(axes: "Axes", records: Sequence[Record], key: str) -> None:
    for name, colour, label in (
        ("score", _EXPLORING, "all copies, exploring"),
        ("score_greedy", _TRAINED, "copies that hardly explore"),
    ):
        points = [(record[key], record[name]) for record in records if name in record and key in record]
        if points:
            x, y = np.array(points).T
            axes.plot(x, y, color=colour, linewidth=2, label=label, solid_capstyle="round")


def _draw_final(axes: "Axes", records: Sequence[Record], key: str, final: Score) -> None:
    at = max((record[key] for record in records if key in record), default=0.0)
    axes.errorbar(
        [at],
        [final.mean],
        yerr=[final.half_width or 0.0],
        fmt="o",
        color=_INK,
        markersize=6,
        capsize=3,
        label=f"greedy at the end: {final}",
        zorder=5,
    )


def _draw_references(axes: "Axes", references: Mapping[str, float], *, names: bool) -> None:
    for name, score in references.items():
        axes.axhline(score, color=_QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        if names:
            axes.annotate(
                f"{name}\n{score:,.0f}",
                xy=(1, score),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                ha="left",
                va="center",
                fontsize=8.5,
                color=_QUIET,
            )


def _tidy(axes: "Axes", label: str) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_xlabel(label, color=_INK)
    axes.set_xlim(left=0)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.grid(axis="y", color="#e7ebef", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9d1d8")


def _short(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
