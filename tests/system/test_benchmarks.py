"""The benchmarks run, and print what docs/benchmarks.md says they do; how fast is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.system


def run(script, *arguments):
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_the_engine_is_measured_against_its_floors():
    done = run(
        "bench_engine.py", "--rounds", 1, "--seconds", 0.02, "--only", "query", "memory", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for way in ("mapped", "socket"):
        assert figures["query"][f"query_{way}_to_echo"]["median"] > 0
    assert {"vector, uniform", "vector, prioritized", "pixels, uniform"} <= figures["memory"].keys()
    assert "query mapped to echo" in done.stderr


@pytest.mark.parametrize("script", sorted(path.name for path in BENCHMARKS.glob("bench_*.py")))
def test_every_benchmark_says_what_it_measures(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
