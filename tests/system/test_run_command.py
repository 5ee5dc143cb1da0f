"""`fornix run` as a person uses it: Ctrl-C, go on, and to the end, with real processes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.system

SMALL = """\
name: hunt
environment: {agents: 2, max_turns: 10}
network: {width: 16}
replay: {min_size: 50, address: "tcp://127.0.0.1:*"}
weights: {addresses: ["tcp://127.0.0.1:*"]}
actor: {processes: 1, copies: 4}
learner: {batch_size: 16, gradient_steps: 1000000}
"""


def fornix(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "fornix", "run", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(process: "subprocess.Popen[str]", pattern: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            return said
    raise AssertionError(f"never said {pattern!r}:\n{said}")


def test_ctrl_c_saves_and_resume_goes_on_to_the_end(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(SMALL)
    with fornix(file, "--runs", tmp_path) as first:
        wait_for(first, r"\| [1-9][\d,]*/1,000,000 gradient steps")
        family = psutil.Process(first.pid).children(recursive=True)
        assert len(family) == 3
        began = time.monotonic()
        first.send_signal(signal.SIGINT)
        said, _ = first.communicate(timeout=10)
    assert first.returncode == 130, said
    assert time.monotonic() - began < 5
    assert "Traceback" not in said
    assert not any(one.is_running() for one in family)
    run_dir = tmp_path / "hunt"
    saved = max((run_dir / "checkpoints" / "shared").glob("step-*"))
    step = int(saved.stem.removeprefix("step-"))
    assert step > 0

    with fornix("--resume", run_dir, "--learner.gradient_steps", step + 30) as second:
        said, _ = second.communicate(timeout=60)
    assert second.returncode == 0, said
    assert f"goes on from gradient step {step}" in said
    assert "after training" in said
    values = json.loads((run_dir / "summary.json").read_text())
    assert values["gradient_steps"] == step + 30
    assert {"curve", "episode", "logs", "tensorboard", "checkpoints"} <= values["files"].keys()


def test_what_cannot_run_starts_nothing(tmp_path: Path) -> None:
    flags = ("--environment.kind", "gymnasium", "--environment.id", "Nope-v9", "--runs", tmp_path)
    with fornix(*flags) as process:
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert "Nope-v9" in said
    assert not list(tmp_path.iterdir())
