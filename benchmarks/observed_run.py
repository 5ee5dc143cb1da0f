"""One `fornix run`, watched from outside: when its processes were ready, and which weights came when."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError, UnreachableError
from fornix.common.weights import Weights, WeightsSubscriber
from fornix.replay import Client
from fornix.runs import open_run

_LONGEST_S = 1200.0


@dataclass(frozen=True)
class ObservedRun:
    """What a run left, and what was seen of it meanwhile."""

    config: RunConfig
    summary: dict[str, Any]
    """Its summary.json."""
    metrics: list[dict[str, float]]
    """The records of its metrics.jsonl."""
    weights: list[tuple[float, Weights]]
    """Published weights, with the seconds since the processes were ready."""


def observe_run(file: Path, flags: Sequence[str] = (), policy: str = "shared") -> ObservedRun:
    """Run `fornix run` to its end and return what was seen.

    The processes are ready when every actor has written steps and the learner has drawn its first
    batch.
    """
    with tempfile.TemporaryDirectory(prefix="fornix-") as name:
        folder = Path(name)
        replay, published = f"ipc://{folder}/replay", f"ipc://{folder}/weights"
        command = [sys.executable, "-m", "fornix", "run", str(file), "--runs", str(folder), "--name", "run"]
        command += ["--replay.address", replay, "--weights.addresses", json.dumps([published]), *flags]
        with (folder / "output").open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
            try:
                weights = _watch(process, folder / "run", replay, published, policy)
            finally:
                process.terminate()
                process.wait(30)
        if process.returncode:
            raise SystemExit(f"fornix run failed:\n{(folder / 'output').read_text()[-3000:]}")
        return read_run(folder / "run", weights)


def read_run(run_dir: Path, weights: list[tuple[float, Weights]] | None = None) -> ObservedRun:
    """Return what a run left in its folder."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    summary = json.loads((run_dir / "summary.json").read_text())
    return ObservedRun(open_run(run_dir), summary, [json.loads(line) for line in lines], weights or [])


def _watch(
    process: "subprocess.Popen[bytes]", run_dir: Path, replay: str, published: str, policy: str
) -> list[tuple[float, Weights]]:
    weights: list[tuple[float, Weights]] = []
    ready: float | None = None
    deadline = time.monotonic() + _LONGEST_S
    subscriber = WeightsSubscriber([published], policy)
    try:
        with Client.connect(replay, name="benchmark", give_up_after_s=1.0) as client:
            while process.poll() is None and time.monotonic() < deadline:
                if ready is None and _is_ready(client, run_dir):
                    ready = time.monotonic()
                found = subscriber.wait(0.05)
                if found is not None:
                    weights.append((time.monotonic() - (ready or time.monotonic()), found))
    finally:
        subscriber.close()
    return weights


def _is_ready(client: Client, run_dir: Path) -> bool:
    try:
        actors = open_run(run_dir).actor.processes
        tables = client.info().tables.values()
    except (UnreachableError, ConfigurationError):  # not there yet
        return False
    writers = [writer for table in tables for writer in table["writers"].values()]
    # each actor has a writer for each of its two halves
    acting = len(writers) >= 2 * actors and all(writer["sequence"] for writer in writers)
    return acting and all(table["samples"] for table in tables)
