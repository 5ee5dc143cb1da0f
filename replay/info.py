"""What a server tells about itself: fill, rates, writers, limiter, and what others report."""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fornix.common.messages import Info, Report
from fornix.replay.storage import nbytes
from fornix.replay.table import Table

_WINDOW_S = 10.0
_TICK_S = 0.5
_REPORTS_KEPT = 256
_REPORT_LIFE_S = 60.0
_WRITERS_TOLD = 4096


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


def describe(
    server: dict[str, Any],
    tables: Mapping[str, tuple[Table, Watch]],
    waiting: Mapping[str, tuple[int, int]],
    reports: dict[str, dict[str, Any]],
    now: float,
) -> Info:
    """Return everything that `fornix inspect` shows."""
    return Info(
        server=server,
        tables={
            name: _describe_table(table, watch, waiting[name], _WRITERS_TOLD // len(tables), now)
            for name, (table, watch) in tables.items()
        },
        reports=reports,
    )


def _describe_table(
    table: Table, watch: Watch, waiting: tuple[int, int], writers_told: int, now: float
) -> dict[str, Any]:
    spec = table.spec
    insert_rate, sample_rate = watch.rates()
    inserts, samples = table.limiter.inserts, table.limiter.samples
    return {
        "signature": dict(spec.signature.lines()),
        "capacity_steps": spec.capacity_steps,
        "memory_bytes": nbytes(spec.signature, spec.capacity_steps),
        "steps": len(table.ring),
        "steps_ever": table.ring.head,
        "policy_version": table.newest_policy_version,
        "inserts": inserts,
        "samples": samples,
        "samples_per_insert": samples / max(inserts - spec.limiter.min_size, 1),
        "inserts_per_s": insert_rate,
        "samples_per_s": sample_rate,
        "episodes": table.episodes,
        "mean_return": float(np.mean(table.returns)) if table.returns else None,
        "mean_length": float(np.mean(table.lengths)) if table.lengths else None,
        "limiter": {
            **spec.limiter.__dict__,
            "surplus": table.limiter.surplus,
            "may_insert": table.limiter.may_insert(),
            "may_sample": table.limiter.may_sample(),
            "waiting_inserts": waiting[0],
            "waiting_samples": waiting[1],
        },
        "writers_open": len(table.writers),
        "writers": {
            writer.name: {
                "incarnation": writer.incarnation,
                "sequence": writer.sequence,
                "lanes": writer.lanes,
                "idle_s": now - writer.last_seen,
            }
            for writer in heapq.nlargest(writers_told, table.writers.values(), key=lambda w: w.last_seen)
        },
    }
