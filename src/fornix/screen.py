"""The live screen: a pure function from a run's progress to what rich draws, and to one plain line."""

import itertools
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fornix.progress import ProcessRow, Progress

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 48
_NONE = "–"


def screen(progress: Progress) -> RenderableType:
    """Return the whole screen."""
    parts: list[RenderableType] = [_bar(progress), Text(), _figures(progress)]
    if len(progress.scores) > 1:
        parts += [Text(), _score_line(progress)]
    parts += [_processes(progress.processes)]
    if progress.lines:
        parts += [Text("\n".join(progress.lines), style="dim", no_wrap=True, overflow="ellipsis")]
    return Panel(
        Group(*parts), title=f"[bold]fornix[/] {progress.title}", title_align="left", padding=(1, 2)
    )


def plain_line(progress: Progress) -> str:
    """Return the progress as one line without any colour or control character."""
    parts = [
        f"{clock(progress.elapsed_s)}",
        f"{progress.gradient_steps:,.0f}/{progress.gradient_steps_total:,.0f} gradient steps "
        f"({progress.gradient_steps_per_s:,.0f}/s)",
        f"{progress.agent_steps:,.0f} agent steps ({progress.agent_steps_per_s:,.0f}/s)",
        f"score {_number(progress.score)} greedy {_number(progress.score_greedy)} "
        f"random {_number(progress.score_random)}",
        f"memory {_share(_fill(progress))}",
        f"samples/insert {_number(progress.samples_per_insert, 2)}",
        f"lag {_number(progress.policy_lag, 1)}",
        f"waiting: learner {_share(progress.learner_waiting)}, actors {_share(progress.actor_waiting)}",
    ]
    return " | ".join(parts)


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """Return `values` as a row of at most `width` bars, each the mean of its share of them."""
    if not values:
        return ""
    n = min(width, len(values))
    edges = [round(i * len(values) / n) for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    range_ = high - low or 1.0
    # in this order: 1 / range_ may be more than a float can say
    return "".join(_BARS[round((mean - low) / range_ * (len(_BARS) - 1))] for mean in means)


def clock(seconds: float | None) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    if seconds is None:
        return _NONE
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def _bar(progress: Progress) -> RenderableType:
    steps = f"{progress.gradient_steps:,.0f} of {progress.gradient_steps_total:,.0f} gradient steps"
    below = Table.grid(expand=True)
    below.add_column(justify="left")
    below.add_column(justify="right")
    below.add_row(
        Text.assemble((f"{progress.share_done:.0%}", "bold"), f"  {steps}"),
        Text(f"{clock(progress.elapsed_s)} elapsed, {clock(progress.remaining_s)} left", style="cyan"),
    )
    bar = Table.grid(expand=True)
    bar.add_row(ProgressBar(total=1.0, completed=progress.share_done, complete_style="green"))
    return Group(bar, below)


def _figures(progress: Progress) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1, 0, 0))
    for _ in range(3):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(ratio=1, no_wrap=True)
    columns = _scores(progress), _rates(progress), _balance(progress)
    for figures in itertools.zip_longest(*columns, fillvalue=("", Text())):
        grid.add_row(*(cell for figure in figures for cell in figure))
    return grid


def _scores(progress: Progress) -> list[tuple[str, Text]]:
    return [
        ("score now", Text(_number(progress.score), style="bold")),
        ("  greedy", Text(_number(progress.score_greedy), style="bold green")),
        ("  at random", Text(_number(progress.score_random))),
        ("loss", Text(_number(progress.loss, 3))),
    ]


def _rates(progress: Progress) -> list[tuple[str, Text]]:
    return [
        ("agent steps/s", Text(f"{progress.agent_steps_per_s:,.0f}")),
        ("gradient steps/s", Text(f"{progress.gradient_steps_per_s:,.0f}")),
        ("learner waits", Text(_share(progress.learner_waiting))),
        ("actors wait", Text(_share(progress.actor_waiting))),
        ("actors held back", Text(_share(progress.actor_held))),
    ]


def _balance(progress: Progress) -> list[tuple[str, Text]]:
    wanted = progress.samples_per_insert_wanted
    ratio = _number(progress.samples_per_insert, 2) + ("" if wanted is None else f" → {wanted:g}")
    return [
        ("memory", Text(f"{_share(_fill(progress))} full")),
        ("agent steps", Text(f"{progress.agent_steps:,.0f}")),
        ("samples/insert", Text(ratio)),
        ("policy lag", Text(_number(progress.policy_lag, 1))),
    ]


def _score_line(progress: Progress) -> Text:
    low, high = min(progress.scores), max(progress.scores)
    return Text.assemble(
        ("score  ", "dim"), (sparkline(progress.scores), "green"), (f"  {low:,.0f} … {high:,.0f}", "dim")
    )


def _processes(processes: Sequence[ProcessRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1), header_style="dim")
    for name, ratio in (("process", None), ("pid", None), ("state", None), ("what it is doing", 1)):
        table.add_column(name, ratio=ratio, no_wrap=True, overflow="ellipsis")
    table.add_column("restarts", justify="right")
    for row in processes:
        style = "green" if row.state in ("runs", "finished") else "yellow"
        table.add_row(
            row.role,
            str(row.pid or _NONE),
            Text(row.state, style=style),
            Text(row.doing),
            Text(str(row.restarts), style="yellow" if row.restarts else "dim"),
        )
    return table


def _fill(progress: Progress) -> float | None:
    return progress.memory_steps / progress.memory_capacity if progress.memory_capacity else None


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 0) -> str:
    return _NONE if value is None else f"{value:,.{digits}f}"
