"""Everything is killed at random, and nothing is lost; and if something were, it would be noticed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[2] / "benchmarks" / "chaos.py"

#: What `make chaos` reaches in its long form, in small.
SHORT = {"server-kills": 60, "actor-kills": 40, "learner-kills": 40, "retries": 3_000, "stacks": 300_000}
RIGHT = ("lost", "doubled", "reordered", "torn", "wrong")

pytestmark = pytest.mark.system


def run(tmp_path, seconds, *options, **wanted):
    arguments = [f"--{name}={count}" for name, count in wanted.items()]
    arguments += ["--seconds", seconds, "--folder", tmp_path, "--json", "-", *options]
    command = [sys.executable, CHAOS, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)


@pytest.mark.timeout(300)
def test_nothing_is_lost_when_everything_is_killed(tmp_path):
    done = run(tmp_path, 200, **SHORT)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["reached"]
    assert not counts["faults"]
    assert [counts[kind] for kind in RIGHT] == [0] * len(RIGHT)
    assert counts["server kills under load"] >= SHORT["server-kills"]
    assert counts["forced retries"] >= SHORT["retries"]
    assert counts["stacks checked in sampled batches"] >= SHORT["stacks"]
    for name in (
        "rows checked",
        "drawn rows looked up",
        "answers checked",
        "stacks checked at the end",
        "cut rows looked up",
    ):
        assert counts[name] > 0, name
    assert all(count > 0 for count in counts["messages lost, doubled, late"])
    assert not list(tmp_path.iterdir()), "it leaves nothing when all is well"


@pytest.mark.parametrize("damage", ["lost", "doubled", "torn"])
def test_damage_is_noticed(tmp_path, damage):
    done = run(tmp_path, 40, "--sabotage", damage, "--seed", 7, **SHORT)
    counts = json.loads(done.stdout)
    assert done.returncode == 1
    assert counts[damage] > 0
    assert f"seed 7: checker: {counts['faults'][0]['what']}" in done.stderr
