"""Checkpoints: whole or not there, never executed, and the older ones survive whatever happens."""

import contextlib
import errno
import json
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from fornix.common.config import LearnerConfig, NetworkConfig
from fornix.common.errors import CheckpointError
from fornix.common.signature import ArraySpec, Signature
from fornix.common.tensors import pack, unpack
from fornix.learner.checkpoints import (
    KEPT,
    Checkpoint,
    folder,
    list_checkpoints,
    load,
    load_newest,
    save,
)
from fornix.learner.state import LearnerState
from fornix.learner.update import Batch, Learner

SIGNATURE = Signature(
    frame=ArraySpec.of((6,), np.uint8), action=ArraySpec.of((), np.int32, n_values=4), n_frames=3
)


def learner(steps=2):
    network = NetworkConfig(width=16, layers=1, cosines=8)
    trained = Learner((6,), 3, 4, network, LearnerConfig(gradient_steps=10, tau=0.3), seed=0)
    stack = torch.ones(8, 3, 6, dtype=torch.uint8)
    for _ in range(steps):
        trained.update(Batch(stack, torch.arange(8) % 4, torch.ones(8), torch.full((8,), 0.9), stack))
    return trained


def checkpoint(step=2, policy="shared"):
    state = learner().state_dict()
    state = LearnerState(state.tensors, state.scalars | {"gradient_steps": step})
    return Checkpoint(policy, SIGNATURE, version=3, seconds=1.25, state=state)


@contextlib.contextmanager
def files_of_at_most(size):
    """Let the kernel refuse to make a file longer than `size`, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_saved_comes_back(tmp_path):
    saved = checkpoint()
    path = save(tmp_path, saved)
    found = load(path)
    assert path == folder(tmp_path, "shared") / "step-0000000002.safetensors"
    assert (found.policy, found.signature, found.version) == ("shared", SIGNATURE, 3)
    assert (found.seconds, found.step) == (1.25, 2)
    assert found.state.scalars == saved.state.scalars
    assert found.state.tensors.keys() == saved.state.tensors.keys()
    for name, tensor in saved.state.tensors.items():
        assert torch.equal(found.state.tensors[name], tensor), name
        assert found.state.tensors[name].dtype == tensor.dtype


def test_it_holds_the_weights_that_actors_were_given(tmp_path):
    """What is evaluated after a run is what acted in it."""
    trained = learner()
    path = save(tmp_path, Checkpoint("shared", SIGNATURE, 1, 0.0, trained.state_dict()))
    weights, found = trained.weights(), load(path).acting_weights
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_the_newest_few_are_kept(tmp_path):
    for step in (5, 20, 100, 3000):
        save(tmp_path, checkpoint(step))
        save(tmp_path, checkpoint(step + 1, "agent_1"))
    assert KEPT == 3
    assert [load(path).step for path in list_checkpoints(tmp_path, "shared")] == [20, 100, 3000]
    assert load_newest(tmp_path, "shared").step == 3000
    assert load_newest(tmp_path, "agent_1").step == 3001


def test_saving_the_same_step_again_replaces_it(tmp_path):
    save(tmp_path, checkpoint(5))
    save(tmp_path, Checkpoint("shared", SIGNATURE, 9, 2.0, checkpoint(5).state))
    assert [load(path).version for path in list_checkpoints(tmp_path, "shared")] == [9]


def test_without_a_checkpoint_the_folder_is_named(tmp_path):
    assert list_checkpoints(tmp_path, "shared") == []
    with pytest.raises(CheckpointError, match=f"no checkpoint in {folder(tmp_path, 'shared')}"):
        load_newest(tmp_path, "shared")
    with pytest.raises(CheckpointError, match=r"missing\.safetensors: No such file"):
        load(tmp_path / "missing.safetensors")


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "appended", "noise"])
def test_a_damaged_one_is_passed_over_by_name(damage, tmp_path, caplog):
    save(tmp_path, checkpoint(1))
    path = save(tmp_path, checkpoint(2))
    data, rng = path.read_bytes(), np.random.default_rng(0)
    cases = {
        "flipped": [(at, data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]) for at in _places(rng, data)],
        "truncated": [(at, data[:at]) for at in _places(rng, data)],
        "empty": [(0, b"")],
        "appended": [(len(data), data + b"\0")],
        "noise": [(0, rng.bytes(len(data)))],
    }
    for at, damaged in cases[damage]:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{path} is damaged: .*; put a whole copy") as caught:
            load(path)
        assert "\n" not in str(caught.value), at
        caplog.clear()
        assert load_newest(tmp_path, "shared").step == 1, at
        [said] = caplog.messages
        assert said.startswith(
            f"uses step-0000000001.safetensors instead of a newer one: checkpoint {path}"
        )
    assert path.exists()  # who only reads changes nothing


def test_none_is_whole(tmp_path):
    paths = [save(tmp_path, checkpoint(step)) for step in (1, 2)]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        CheckpointError, match=rf"none .* 'shared' \(2\) is whole; checkpoint {paths[1]} is"
    ):
        load_newest(tmp_path, "shared", set_aside=True)
    assert list_checkpoints(tmp_path, "shared") == paths


def test_damaged_ones_that_are_set_aside_push_out_no_whole_one(tmp_path):
    """Their numbers are higher than those of the checkpoints that come next."""
    for step in (100, 200, 300):
        path = save(tmp_path, checkpoint(step))
        if step > 100:
            path.write_bytes(path.read_bytes()[:-1])
    assert load_newest(tmp_path, "shared", set_aside=True).step == 100
    assert [one.name for one in sorted(path.parent.iterdir())] == [
        "step-0000000100.safetensors",
        "step-0000000200.safetensors.damaged",
        "step-0000000300.safetensors.damaged",
    ]
    save(tmp_path, checkpoint(150))
    assert load_newest(tmp_path, "shared").step == 150


def test_one_that_can_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    """It may be whole: with its permissions mended, the training that it holds goes on."""
    save(tmp_path, checkpoint(1))
    newest, read = save(tmp_path, checkpoint(2)), Path.read_bytes

    def refuse(path, code):
        if path == newest:
            raise OSError(code, os.strerror(code))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, errno.EACCES))
    with pytest.raises(CheckpointError, match=f"can't read checkpoint {newest}: Permission denied"):
        load_newest(tmp_path, "shared")
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse(path, errno.EIO))
    assert load_newest(tmp_path, "shared").step == 1  # a bad sector is damage


def _places(rng, data):
    return [0, 7, 8, 9, len(data) - 1, *rng.integers(0, len(data), 60).tolist()]


SENSELESS = {
    "version: no number": {"version": "new"},
    "seconds: no number": {"seconds": "long"},
    "signature: without its keys": {"signature": "{}"},
    "signature: no JSON": {"signature": "["},
    "scalars: a list": {"scalars": "[]"},
    "scalars: a fraction": {"scalars": '{"gradient_steps": 1.5}'},
    "scalars: a truth": {"scalars": '{"gradient_steps": true}'},
    "scalars: negative": {"scalars": '{"gradient_steps": -1}'},
    "scalars: none": {"scalars": "{}"},
    "scalars: deep": {"scalars": '{"a":' * 50_000},
}


@pytest.mark.parametrize("change", [*SENSELESS.values(), None], ids=[*SENSELESS, "policy: missing"])
def test_metadata_that_makes_no_sense_is_refused(change, tmp_path):
    """Whole by its checksum, but not of our making."""
    path = save(tmp_path, checkpoint())
    tensors, metadata = unpack(path.read_bytes())
    if change is None:
        del metadata["policy"]
    path.write_bytes(pack(tensors, metadata | (change or {})))
    with pytest.raises(CheckpointError, match=f"{path} is damaged") as caught:
        load(path)
    assert "\n" not in str(caught.value)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch.save"])
def test_a_pickle_is_refused_and_not_executed(write, tmp_path):
    path = folder(tmp_path, "shared") / "step-0000000009.safetensors"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        write({"online.weight": Bomb(tmp_path / "bomb")}, file)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_newest(tmp_path, "shared")
    assert not (tmp_path / "bomb").exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False) if write is torch.save else pickle.load(file)
    assert (tmp_path / "bomb").exists()  # it would have worked


def test_a_full_disk_leaves_the_old_one_whole(tmp_path):
    old = save(tmp_path, checkpoint(1))
    before = old.read_bytes()
    with files_of_at_most(len(before) // 2), pytest.raises(CheckpointError) as caught:
        save(tmp_path, checkpoint(2))
    assert os.strerror(errno.EFBIG) in str(caught.value)
    _assert_only(old, before, caught.value)
    save(tmp_path, checkpoint(2))  # there is room again
    assert load_newest(tmp_path, "shared").step == 2


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_disk_that_turns_out_full_late_leaves_the_old_one_whole(where, tmp_path, monkeypatch):
    """Some file systems find out when data is synced, or when the name is made."""
    old = save(tmp_path, checkpoint(1))
    before = old.read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync" if where == "fsync" else "pathlib.Path.replace", full)
        with pytest.raises(CheckpointError) as caught:
            save(tmp_path, checkpoint(2))
    assert "No space left on device" in str(caught.value)
    _assert_only(old, before, caught.value)


def _assert_only(path, content, error):
    """One sentence was said, and there is one file, as it was."""
    assert "the checkpoints before it are whole" in str(error)
    assert "\n" not in str(error)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == content


def test_a_folder_that_can_not_be_made_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file, where a folder should be")
    with pytest.raises(CheckpointError, match=f"can't save {folder(tmp_path, 'shared')}.*; make room") as e:
        save(tmp_path, checkpoint())
    assert "whole" not in str(e.value)  # there are none


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path):
    path = save(tmp_path, checkpoint(1))
    for step in (2, 7):
        path.with_name(f"step-000000000{step}.partial").write_bytes(path.read_bytes()[:100])
    assert load_newest(tmp_path, "shared").step == 1
    save(tmp_path, checkpoint(2))
    assert load_newest(tmp_path, "shared").step == 2
    assert not list(path.parent.glob("*.partial"))


def test_a_checkpoint_is_readable_by_others(tmp_path):
    """Nothing but safetensors and JSON."""
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(save(tmp_path, checkpoint()), "numpy") as file:
        assert json.loads(file.metadata()["scalars"]) == {"gradient_steps": 2}
        assert "target.embedding.weight" in file.keys()  # noqa: SIM118 it is no mapping
