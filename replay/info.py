"""What a server tells about itself: fill, rates, writers, limiter, and what others report."""

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fornix.common.messages import Info, Report

if TYPE_CHECKING:
    from fornix.replay.place import Place

_WINDOW_S = 10.0
_TICK_S = 0.5
_REPORTS_KEPT = 256
_REPORT_LIFE_S = 60.0
_WRITERS_TOLD = 1024


class Watch:
    """Counts inserts and samples, and tells their rates over the last ten seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._inserts = 0
        self._samples = 0
        self._marks = deque([(clock(), 0, 0)])

    def count(self, inserts: int = 0, samples: int = 0) -> None:
        """Count what was just done."""
        self._inserts += inserts
        self._samples += samples
        now = self._clock()
        if now - self._marks[-1][0] >= _TICK_S:
            self._marks.append((now, self._inserts, self._samples))
            while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW_S:
                self._marks.popleft()

    def rates(self) -> tuple[float, float]:
        """Return inserts/s and samples/s."""
        now = self._clock()
        recent = [mark for mark in self._marks if now - mark[0] <= _WINDOW_S]
        then, inserts, samples = recent[0] if recent else (now, self._inserts, self._samples)
        seconds = max(now - then, 1e-9)
        return (self._inserts - inserts) / seconds, (self._samples - samples) / seconds


class Reports:
    """The last report of each process: of the last minute, and of 256 processes at most."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[float, Report]] = {}

    def put(self, report: Report, now: float) -> None:
        """Remember a report in place of its source's last one."""
        self._reports.pop(report.source, None)
        self._reports[report.source] = (now, report)
        if len(self._reports) > _REPORTS_KEPT:
            del self._reports[next(iter(self._reports))]

    def ages(self, now: float) -> dict[str, dict[str, Any]]:
        """Return every report with its age in seconds."""
        return {
            source: {"age_s": now - then, "doing": report.doing, "metrics": report.metrics}
            for source, (then, report) in sorted(self._reports.items())
            if now - then <= _REPORT_LIFE_S
        }


@dataclass(frozen=True)
class _Seen:
    table: str
    mapped: bool
    at: float


class Sessions:
    """Who samples, and by which path: of the last minute, and of 256 sessions at most."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def put(self, session: str, table: str, mapped: bool, now: float) -> None:
        """Note that a session has sampled."""
        self._seen.pop(session, None)
        self._seen[session] = _Seen(table, mapped, now)
        if len(self._seen) > _REPORTS_KEPT:
            del self._seen[next(iter(self._seen))]

    def forget(self, session: str) -> None:
        """A session has ended."""
        self._seen.pop(session, None)

    def of(self, table: str, now: float) -> dict[str, dict[str, Any]]:
        """Return the sessions that sample from a table."""
        return {
            session: {"memory": path(seen.mapped), "idle_s": now - seen.at}
            for session, seen in sorted(self._seen.items())
            if seen.table == table and now - seen.at <= _REPORT_LIFE_S
        }


def path(mapped: bool) -> str:
    """Return what the way is called by which frames reach a client."""
    return "mapped" if mapped else "socket"


def describe(
    server: dict[str, Any],
    places: Sequence["Place"],
    reports: dict[str, dict[str, Any]],
    sessions: Sessions,
    now: float,
) -> Info:
    """Return everything that `fornix inspect` shows."""
    writers_told = _WRITERS_TOLD // max(1, len(places))
    return Info(
        server=server,
        tables={
            place.name: _describe_table(place, writers_told, now)
            | {"readers": sessions.of(place.name, now)}
            for place in places
        },
        reports=reports,
    )


def _describe_table(place: "Place", writers_told: int, now: float) -> dict[str, Any]:
    table, memory = place.table, place.table.memory
    spec, limiter = table.spec, table.limiter
    insert_rate, sample_rate = place.watch.rates()
    return {
        "signature": dict(spec.signature.lines()),
        "capacity_steps": spec.steps,
        "memory_bytes": table.nbytes,
        "rows_of": spec.rows_of,
        "sampler": dict(spec.sampler.__dict__),
        "steps": len(table),
        "steps_ever": memory.steps_ever,
        "policy_version": memory.newest_policy_version,
        "inserts": limiter.inserts,
        "samples": limiter.samples,
        "leased": limiter.leased,
        "samples_per_insert": limiter.samples / max(limiter.inserts - spec.limiter.min_size, 1),
        "inserts_per_s": insert_rate,
        "samples_per_s": sample_rate,
        "ahead_of_disk": None if memory.log is None else memory.ring.head - memory.log.durable,
        "episodes": memory.episodes,
        "mean_return": float(np.mean(memory.returns)) if memory.returns else None,
        "mean_length": float(np.mean(memory.lengths)) if memory.lengths else None,
        "limiter": {
            **spec.limiter.__dict__,
            "surplus": limiter.surplus,
            "may_insert": limiter.may_insert(),
            "may_sample": limiter.may_sample(),
            "waiting_inserts": len(place.inserts),
            "waiting_samples": len(place.samples),
        },
        **_describe_writers(place, writers_told, now),
    }


def _describe_writers(place: "Place", told: int, now: float) -> dict[str, Any]:
    if place.table.spec.rows_of is not None:
        return {"writers_open": 0, "writers": {}}
    writers = place.table.memory.writers
    return {
        "writers_open": len(writers),
        "writers": {
            writer.name: {
                "incarnation": writer.incarnation,
                "sequence": writer.sequence,
                "lanes": writer.lanes,
                "memory": path(writer.mapped),
                "idle_s": now - writer.last_seen,
            }
            for writer in heapq.nlargest(told, writers.values(), key=lambda w: w.last_seen)
        },
    }
