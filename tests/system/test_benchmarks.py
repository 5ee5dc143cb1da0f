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


def test_durability_is_verified_in_small():
    flags = ("--power-cuts", 20, "--kills", 10, "--flips", 20, "--seed", 4)
    done = run("verify_durability.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "durable rows lost, doubled, reordered or torn; wrong stacks: 0" in done.stdout
    counts = {line[:22].strip(): line[22:].replace(",", "") for line in done.stdout.splitlines()[:-1]}
    assert int(counts["power cuts"]) >= 20
    assert int(counts["kills"]) >= 10
    assert int(counts["flips"]) == 20
