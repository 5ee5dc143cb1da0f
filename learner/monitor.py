"""Watches a run from its learner: tells the server, and writes metrics.jsonl and TensorBoard events."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from fornix.common.config import RunConfig
from fornix.common.errors import FornixError
from fornix.common.messages import Info
from fornix.learner.trainer import PolicyTrainer
from fornix.replay.client import Client

_LOG = logging.getLogger(__name__)
PERIOD_S = 1.0
_REPORT_AGE_S = 10.0  # of an actor that has ended or hangs, if it is older


class Metrics:
    """A run's metrics over time: one JSON object a line, and the same for TensorBoard.

    Args:
        run_dir: of the run.
        name: of the file and the folder of events, the same for each learner.
        seconds: of training before this, so that a resumed run goes on where it was; one that was
            killed after its last checkpoint goes on after the last line.

    Files that can't be opened are done without.
    """

    def __init__(self, run_dir: Path, name: str, seconds: float) -> None:
        path = run_dir / f"{name}.jsonl"
        self._began = time.monotonic() - max(seconds, _last_time_s(path))
        self._file: TextIO | None = None
        self._events: SummaryWriter | None = None
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", buffering=1)
            self._events = SummaryWriter(str(run_dir / "events" / name))
        except OSError as error:
            _LOG.error("can't open the metrics in %s: %s; training goes on without", run_dir, error)

    def write(self, values: Mapping[str, float]) -> None:
        """Write what is known now."""
        record = {"time_s": round(time.monotonic() - self._began, 3), **values}
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")
        step = int(values.get("gradient_steps", 0))
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Close both files."""
        for file in (self._file, self._events):
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                _LOG.error("can't write the last metrics: %s", error)


class Monitor:
    """A thread that watches while a learner trains; a context manager.

    Args:
        config: of the run.
        run_dir: of the run.
        index: of the learner.
        trainers: whose progress to tell.
    """

    def __init__(
        self, config: RunConfig, run_dir: Path, index: int, trainers: Sequence[PolicyTrainer]
    ) -> None:
        self._address = config.replay.address
        self._source = f"learner-{index}"
        self._progress = Progress(trainers, config.learner.gradient_steps)
        name = "metrics" if index == 0 else f"metrics-{index}"
        self._metrics = Metrics(run_dir, name, max(trainer.seconds for trainer in trainers))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._metrics.close()

    def _serve(self) -> None:
        with Client.connect(self._address, name=self._source, give_up_after_s=2.0) as client:
            ending = False
            while not ending:
                ending = self._stop.wait(PERIOD_S)
                mine, finished = self._progress.measure(), float(self._progress.finished)
                try:
                    everyone = of_run(client.info(), self._progress.version)
                    told = mine | {"policy_lag": everyone["policy_lag"], "finished": finished}
                    client.report(self._source, self._progress.doing, told).result()
                    self._metrics.write(mine | self._progress.of_policies() | everyone)
                except FornixError as error:
                    _LOG.warning("could not ask the server: %s", error)
                except OSError as error:
                    _LOG.error("can't write metrics: %s; training goes on", error)


class Progress:
    """How far trainers are, and how fast."""

    def __init__(self, trainers: Sequence[PolicyTrainer], gradient_steps: int) -> None:
        self._trainers = trainers
        self._total = gradient_steps
        self._then = time.monotonic()
        self._before = self._counts()

    @property
    def doing(self) -> str:
        """What the first unfinished trainer does."""
        unfinished = [trainer for trainer in self._trainers if not trainer.done]
        return (unfinished or self._trainers)[0].doing[:200]

    @property
    def finished(self) -> bool:
        """Whether all policies have made all their gradient steps, and saved them."""
        return all(trainer.finished for trainer in self._trainers)

    @property
    def version(self) -> int:
        """The newest version of any policy."""
        return max(trainer.version for trainer in self._trainers)

    def measure(self) -> dict[str, float]:
        """Return the metrics of the time since the last call; those of training are the policies' mean."""
        now, counts = time.monotonic(), self._counts()
        steps, waited_s = (counts - self._before) / max(now - self._then, 1e-9)
        self._then, self._before = now, counts
        metrics = {
            "gradient_steps": float(min(t.learner.gradient_steps for t in self._trainers)),
            "gradient_steps_total": float(self._total),
            "gradient_steps_per_s": float(steps),
            "waiting_share": float(waited_s),
            "policy_version": float(self.version),
            "seconds": max(trainer.seconds for trainer in self._trainers),
        }
        for name in sorted({name for trainer in self._trainers for name in trainer.metrics}):
            values = [t.metrics[name] for t in self._trainers if name in t.metrics]
            metrics[name] = float(np.mean(values))
        return metrics

    def of_policies(self) -> dict[str, float]:
        """Return each policy's own metrics, of which there may be many; none where there is one policy."""
        several = self._trainers if len(self._trainers) > 1 else ()
        return {f"{t.policy}/{name}": value for t in several for name, value in t.metrics.items()}

    def _counts(self) -> Any:
        return np.sum([(t.learner.gradient_steps, t.waited_s) for t in self._trainers], axis=0)


def of_run(info: Info, version: int) -> dict[str, float]:
    """Return the metrics of a whole run, from what the server and the actors tell."""
    actors = [
        report["metrics"]
        for source, report in info.reports.items()
        if source.startswith("actor") and report["age_s"] <= _REPORT_AGE_S
    ]
    tables = list(info.tables.values())
    metrics = {
        "agent_steps": float(sum(table["inserts"] for table in tables)),
        "agent_steps_per_s": float(sum(table["inserts_per_s"] for table in tables)),
        "samples_per_s": float(sum(table["samples_per_s"] for table in tables)),
        "samples_per_insert": float(np.mean([table["samples_per_insert"] for table in tables] or [0.0])),
    }
    for name in ("score", "score_greedy", "waiting_share", "limiter_share"):
        values = [actor[name] for actor in actors if name in actor]
        if values:
            metrics[name if "score" in name else f"actor_{name}"] = float(np.mean(values))
    # of the newest steps: whoever asks the server right after looking at `version` has both of one moment
    versions = [table["policy_version"] for table in tables] or [version]
    metrics["policy_lag"] = max(0.0, version - float(np.mean(versions)))
    return metrics


def _last_time_s(path: Path) -> float:
    """Return the time of the last line of metrics; 0 if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return float(json.loads(path.read_bytes().splitlines()[-1])["time_s"])
    return 0.0
