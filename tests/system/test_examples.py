"""The examples, as a person runs them: against a server of their own, with nothing but its client."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fornix.replay.client import Client

EXAMPLE = Path(__file__).parents[2] / "examples" / "cartpole_dqn.py"

pytestmark = pytest.mark.system


@pytest.fixture
def server(ipc_address):
    """Start `fornix replay` as a process, and return its address."""
    command = [sys.executable, "-m", "fornix", "replay", "--address", ipc_address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == f"replay server answers at {ipc_address}\n"
            yield ipc_address
        finally:
            process.terminate()
            process.wait(10)


def run(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)], capture_output=True, text=True, timeout=100
    )


def test_cartpole_learns(server):
    """At random a pole stands for 22 steps. The whole goal, 400, takes a minute or so."""
    done = run("--address", server, "--goal", 60, "--limit-s", 90, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["mean_return"] >= 60
    with Client.connect(server) as client:
        table = client.info().tables["cartpole"]
    assert table["inserts"] == result["steps"]
    assert table["samples"] > 0
    # a second one takes its place, and says so plainly if the goal was out of reach
    again = run("--address", server, "--goal", 500, "--limit-s", 1)
    assert again.returncode == 1
    assert "mean return" in again.stdout
    assert again.stderr == ""


def test_cartpole_needs_nothing_of_fornix_but_the_replay_client():
    tree = ast.parse(EXAMPLE.read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }
    assert {name for name in imported if name.startswith("fornix")} == {"fornix.replay"}
