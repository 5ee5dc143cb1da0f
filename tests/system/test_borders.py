"""Server and client work where nothing of the extra `train` is installed; and the wheel has everything."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What `pip install fornix` doesn't bring; importing any of it fails as if it weren't there.
BLOCK = """
import sys

class Blocked:
    names = {"torch", "safetensors", "gymnasium", "pettingzoo", "matplotlib", "tensorboard", "PIL"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}, as this test wants it", name=name)

assert not Blocked.names & sys.modules.keys()
sys.meta_path.insert(0, Blocked())
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("torch is not blocked")
"""

TALK = """
import threading
import numpy as np
import fornix.replay
import fornix.replay.role
from fornix.cli import main
from fornix.replay import ArraySpec, Client, Signature, Steps, TableSpec

address, servers, ready = sys.argv[1], [], threading.Event()
thread = threading.Thread(
    target=fornix.replay.role.serve,
    args=(address,),
    kwargs={"on_ready": lambda server: (servers.append(server), ready.set())},
)
thread.start()
assert ready.wait(10)
signature = Signature(frame=ArraySpec.of((2,), "u1"), action=ArraySpec.of((), "i4"), n_frames=2)
with Client.connect(address) as client:
    client.create_table("table", TableSpec(signature=signature, capacity_steps=100))
    writer = client.open_writer("table", "someone", lanes=1)
    lane, no = np.zeros(1, np.int32), np.zeros(1, bool)
    frame = np.array([[1, 2]], np.uint8)
    writer.observe(Steps.first(signature, lane, frame)).result()
    steps = Steps.after_actions(lane, lane, np.ones(1, np.float32), frame + 2, no, no)
    assert writer.observe(steps).result().stack.tolist() == [[[1, 2], [3, 4]]]
    drawn = client.sample("table", 3).result()
    assert drawn.next_stack.tolist() == [[[1, 2], [3, 4]]] * 3
assert main(["inspect", address]) == 0
servers[0].stop()
thread.join()
print("all is well, and fornix is at", fornix.__file__)
"""


def run_blocked(code, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | variables,
    )


def test_server_and_client_need_nothing_of_the_extra_train(ipc_address):
    done = run_blocked(TALK, ipc_address)
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout
    assert "table" in done.stdout  # as `fornix inspect` showed it


@pytest.mark.parametrize(
    "module", ["fornix.actor.process", "fornix.learner.update", "fornix.common.networks"]
)
def test_the_block_is_one(module):
    """What does need torch fails here: so the test above can fail."""
    done = run_blocked(f"import {module}")
    assert done.returncode != 0
    assert "as this test wants it" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a source distribution of this tree as a release is."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    (source,) = folder.glob("fornix-*.tar.gz")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--quiet", "--disable-pip-version-check", "--wheel-dir", folder, source],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("fornix-*.whl")
    return found


def test_the_wheel_has_all_folders_as_parts_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("actor", "common", "replay", "learner"):
        ours = {f"fornix/{folder}/{file.name}" for file in (ROOT / folder).glob("*.py")}
        assert ours
        assert ours <= names
    assert {"fornix/cli.py", "fornix/py.typed", "fornix/commands/run.py"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"fornix"}
    assert not any("test" in name for name in names)


def test_what_is_installed_from_the_wheel_works_without_the_extra_too(wheel, ipc_address, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    done = run_blocked(TALK, ipc_address, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"fornix is at {tmp_path}" in done.stdout
