"""What a person sees of a run: one frozen state, made of what the server tells and the launcher knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from fornix.common.messages import Info
from fornix.launch import ProcessState

_STALE_S = 5.0


@dataclass(frozen=True)
class ProcessRow:
    """One process on the screen."""

    role: str
    pid: int | None
    state: str
    doing: str
    restarts: int


@dataclass(frozen=True)
class Progress:
    """Everything that the screen shows. None where nothing is known yet."""

    title: str
    elapsed_s: float = 0.0
    gradient_steps: float = 0.0
    gradient_steps_total: float = 0.0
    gradient_steps_per_s: float = 0.0
    agent_steps: float = 0.0
    agent_steps_per_s: float = 0.0
    score_random: float | None = None
    score: float | None = None
    score_greedy: float | None = None
    memory_steps: int = 0
    memory_capacity: int = 0
    samples_per_insert: float | None = None
    samples_per_insert_wanted: float | None = None
    policy_lag: float | None = None
    learner_waiting: float | None = None
    actor_waiting: float | None = None
    actor_held: float | None = None
    loss: float | None = None
    scores: tuple[float, ...] = ()
    """The score over time, oldest first."""
    processes: tuple[ProcessRow, ...] = ()
    lines: tuple[str, ...] = field(default=())
    """The last lines of the log, oldest first."""

    @property
    def share_done(self) -> float:
        """Share of the gradient steps that are made, from 0 to 1."""
        return (
            min(1.0, self.gradient_steps / self.gradient_steps_total) if self.gradient_steps_total else 0.0
        )

    @property
    def remaining_s(self) -> float | None:
        """Seconds left at the present rate."""
        if self.gradient_steps_per_s <= 0 or not self.gradient_steps_total:
            return None
        return max(0.0, self.gradient_steps_total - self.gradient_steps) / self.gradient_steps_per_s


def measures(info: Info) -> dict[str, Any]:
    """Return the fields of Progress that a server's info tells."""
    tables = list(info.tables.values())
    actors = _reports(info, "actor-")
    learners = _reports(info, "learner-")
    return _of_tables(tables) | _of_learners(learners) | _of_actors(actors)


def rows(states: Sequence[ProcessState], info: Info | None) -> tuple[ProcessRow, ...]:
    """Return the table of processes: the launcher's, with what each reports of itself."""
    reports = info.reports if info else {}
    return tuple(
        ProcessRow(state.name, state.pid, state.state, _doing(state, reports), state.restarts)
        for state in states
    )


def rows_of_reports(info: Info) -> tuple[ProcessRow, ...]:
    """Return the table of processes that report to a server."""
    return tuple(
        ProcessRow(source, None, f"reported {report['age_s']:.0f} s ago", report["doing"], 0)
        for source, report in info.reports.items()
    )


def _doing(state: ProcessState, reports: Mapping[str, Mapping[str, Any]]) -> str:
    if state.name == "replay" and state.pid is not None:
        return "serves" if reports else ""
    report = reports.get(state.name)
    if report is None or state.pid is None:
        return ""
    silent_s = report["age_s"]
    return str(report["doing"]) if silent_s < _STALE_S else f"silent for {silent_s:.0f} s"


def _reports(info: Info, prefix: str) -> list[Mapping[str, float]]:
    """Return the metrics of every process of a kind that has reported any lately."""
    return [
        report["metrics"]
        for source, report in info.reports.items()
        if source.startswith(prefix) and report["age_s"] < _STALE_S and report["metrics"]
    ]


def _of_tables(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not tables:
        return {}
    return {
        "agent_steps": sum(table["inserts"] for table in tables),
        "agent_steps_per_s": sum(table["inserts_per_s"] for table in tables),
        "memory_steps": sum(table["steps"] for table in tables),
        "memory_capacity": sum(table["capacity_steps"] for table in tables),
        "samples_per_insert": fmean(table["samples_per_insert"] for table in tables),
        "samples_per_insert_wanted": tables[0]["limiter"]["samples_per_insert"],
    }


def _of_learners(learners: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    if not learners:
        return {}
    return {
        "gradient_steps": min(one.get("gradient_steps", 0.0) for one in learners),
        "gradient_steps_total": max(one.get("gradient_steps_total", 0.0) for one in learners),
        "gradient_steps_per_s": fmean(one.get("gradient_steps_per_s", 0.0) for one in learners),
        "learner_waiting": _mean(learners, "waiting_share"),
        "policy_lag": _mean(learners, "policy_lag"),
        "loss": _mean(learners, "loss"),
    }


def _of_actors(actors: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "score": _mean(actors, "score"),
        "score_greedy": _mean(actors, "score_greedy"),
        "actor_waiting": _mean(actors, "waiting_share"),
        "actor_held": _mean(actors, "limiter_share"),
    }


def _mean(reports: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [report[name] for report in reports if name in report]
    return fmean(values) if values else None
