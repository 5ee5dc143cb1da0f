"""A replay server's info as tables for a person; a pure function of the info."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fornix.common.messages import Info
from fornix.screen import clock

_NONE = "–"


def inspection(address: str, info: Info) -> RenderableType:
    """Return everything that a server tells."""
    parts: list[RenderableType] = [_server(address, info.server)]
    for name, table in info.tables.items():
        parts += [Text(), _table(name, table)]
        if table["writers"]:
            parts.append(_writers(table["writers"]))
        if table["readers"]:
            parts.append(_readers(table["readers"]))
    if not info.tables:
        parts += [Text(), Text("no tables yet: the first client that needs one creates it")]
    if info.reports:
        parts += [Text(), _reports(info.reports)]
    return Group(*parts)


def _server(address: str, server: Mapping[str, Any]) -> Text:
    return Text.assemble(
        ("replay server ", "bold"),
        (address, "bold green"),
        f"  version {server['version'] or _NONE}, pid {server['pid']}, up {clock(server['uptime_s'])}, "
        f"tables {_size(server['memory_bytes'])} of {_size(server['memory_limit_bytes'])}, "
        f"{server['refused_requests']:,} requests refused",
    )


def _table(name: str, table: Mapping[str, Any]) -> RenderableType:
    grid = Table(title=f"table {name}", title_justify="left", box=box.SIMPLE, show_header=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in table["signature"].items():
        grid.add_row(str(key), str(value))
    for key, value in _state(table).items():
        grid.add_row(key, value)
    return grid


def _state(table: Mapping[str, Any]) -> dict[str, str]:
    fill = table["steps"] / table["capacity_steps"]
    limiter = table["limiter"]
    wanted = limiter["samples_per_insert"]
    leased = f", {table['leased']:,} leased" if table["leased"] else ""
    return {
        "drawn": _sampler(table["sampler"])
        + (f" from the rows of {table['rows_of']}" if table["rows_of"] else ""),
        "fill": f"{table['steps']:,} of {table['capacity_steps']:,} steps ({fill:.0%}), "
        f"{_size(table['memory_bytes'])}, {table['steps_ever']:,} ever",
        "rates": f"{table['inserts_per_s']:,.0f} inserts/s, {table['samples_per_s']:,.0f} samples/s",
        "episodes": f"{table['episodes']:,}, mean return {_number(table['mean_return'])}, "
        f"mean length {_number(table['mean_length'])}",
        "limiter": f"{table['samples_per_insert']:.2f} samples per insert of "
        f"{'any number' if wanted is None else f'{wanted:g}'}{leased}, first at "
        f"{limiter['min_size']:,} inserts",
        "way is free": f"inserts {_door(limiter['may_insert'], limiter['waiting_inserts'])}, "
        f"samples {_door(limiter['may_sample'], limiter['waiting_samples'])}",
    }


def _writers(writers: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    grid = Table(
        "writer", "lanes", "requests", "frames by", "last heard of", box=box.SIMPLE, header_style="dim"
    )
    for name, writer in writers.items():
        heard = f"{writer['idle_s']:.1f} s ago"
        grid.add_row(name, f"{writer['lanes']:,}", f"{writer['sequence']:,}", writer["memory"], heard)
    return grid


def _readers(readers: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    grid = Table("reader", "frames by", "last heard of", box=box.SIMPLE, header_style="dim")
    for name, reader in readers.items():
        grid.add_row(name, reader["memory"], f"{reader['idle_s']:.1f} s ago")
    return grid


def _reports(reports: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    grid = Table("process", "reported", "does", "metrics", box=box.SIMPLE, header_style="dim")
    for source, report in reports.items():
        metrics = ", ".join(f"{name} {value:,.4g}" for name, value in report["metrics"].items())
        grid.add_row(source, f"{report['age_s']:.1f} s ago", Text(report["doing"]), Text(metrics))
    return grid


def _sampler(sampler: Mapping[str, Any]) -> str:
    exponent = (
        f", priority exponent {sampler['priority_exponent']:g}" if sampler["kind"] == "prioritized" else ""
    )
    times = sampler["max_times_sampled"]
    return f"{sampler['kind']}{exponent}" + ("" if times is None else f", each at most {times} times")


def _door(is_open: bool, waiting: int) -> str:
    return ("yes" if is_open else "no") + (f" ({waiting} waiting)" if waiting else "")


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.1f}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
