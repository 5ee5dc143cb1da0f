"""A run in one process: the same to the bit for the same seed, resumable, and for every configuration."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch

from fornix.common.config import RunConfig
from fornix.common.errors import CheckpointError
from fornix.display import PlainDisplay
from fornix.learner.checkpoints import list_checkpoints, load, load_newest
from fornix.running import train_sequential
from fornix.sequential import run_sequential

#: Trains in a process of its own, and prints what the server counted: config, folder, whether to resume.
ALONE = """
import json, sys, threading
from pathlib import Path
from fornix.common.config import RunConfig
from fornix.sequential import run_sequential
infos = []
config = RunConfig.model_validate_json(sys.argv[1])
run_sequential(config, Path(sys.argv[2]), False, threading.Event(), infos.append)
tables = infos[-1].tables
counted = ("inserts", "samples", "episodes", "mean_return", "mean_length")
print(json.dumps({name: {key: table[key] for key in counted} for name, table in tables.items()}))
"""


@pytest.fixture(autouse=True)
def _threads():
    """A run sets torch's threads for its process: put them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def a_config(**changes):
    values = {
        "environment": {"height": 6, "width": 6, "agents": 2, "max_turns": 10, "spawn_prob": 0.2},
        "network": {"width": 16, "layers": 1, "cosines": 8},
        "replay": {
            "n_frames": 3,
            "min_size": 60,
            "capacity_steps": 500,
            "samples_per_insert": 2,
            "error_buffer_inserts": 100,
        },
        "actor": {"copies": 4, "processes": 2},
        "learner": {
            "gradient_steps": 60,
            "batch_size": 16,
            "publish_period_steps": 5,
            "checkpoint_period_steps": 25,
        },
    }
    for section, some in changes.items():
        values[section] = values.get(section, {}) | some if isinstance(some, dict) else some
    return RunConfig.model_validate(values)


def run(config, run_dir, resume=False, stop=None):
    """Train in this process; return all that the server told."""
    infos = []
    run_sequential(config, run_dir, resume, stop or threading.Event(), infos.append)
    return infos


class StopAfter(threading.Event):
    """Set after it has been looked at so many times."""

    def __init__(self, looks):
        super().__init__()
        self._left = looks

    def is_set(self):
        self._left -= 1
        return self._left < 0


def assert_same(one, other):
    assert (one.step, one.version) == (other.step, other.version)
    assert one.state.scalars == other.state.scalars
    assert one.state.tensors.keys() == other.state.tensors.keys()
    for name, tensor in one.state.tensors.items():
        assert torch.equal(tensor, other.state.tensors[name]), name


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_same_seed_makes_the_same_bits_in_fresh_processes(tmp_path):
    """Whatever the order of hashes, and however fast the machine is at the moment."""
    config = a_config()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE, config.model_dump_json(), str(tmp_path / str(at))],
            env=os.environ | {"PYTHONHASHSEED": str(at)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for at in range(2)
    ]
    said = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    counted = json.loads(said[0])["shared"]
    assert said[0] == said[1]
    assert counted["episodes"] > 10
    assert counted["mean_return"] is not None
    first, second = (load_newest(tmp_path / str(at), "shared") for at in range(2))
    assert first.step == 60
    assert_same(first, second)
    behaviour = ("gradient_steps", "policy_version", "loss", "value", "agent_steps", "samples_per_insert")
    ends = [lines(tmp_path / str(at))[-1] for at in range(2)]
    assert [ends[0][name] for name in behaviour] == [ends[1][name] for name in behaviour]


def test_the_rows_are_in_memory_only_whatever_the_configuration_says(tmp_path, capsys):
    config = a_config(learner={"gradient_steps": 2}, replay={"data": str(tmp_path / "rows")})
    train_sequential(config, lambda: tmp_path / "run", False, PlainDisplay(), threading.Event())
    assert f"memory only; {tmp_path / 'rows'} is not used" in capsys.readouterr().out
    assert not (tmp_path / "rows").exists()
    assert load_newest(tmp_path / "run", "shared").step == 2


def test_another_seed_makes_another_run(tmp_path):
    tables = [
        run(a_config(seed=seed), tmp_path / str(at))[-1].tables["shared"]
        for at, seed in enumerate((3, 3, 4))
    ]
    assert tables[0]["mean_return"] == tables[1]["mean_return"] != tables[2]["mean_return"]
    found = [load_newest(tmp_path / str(at), "shared") for at in range(3)]
    assert_same(found[0], found[1])
    assert not torch.equal(
        found[0].acting_weights["embedding.weight"], found[2].acting_weights["embedding.weight"]
    )


def test_a_run_leaves_checkpoints_and_metrics(tmp_path):
    infos = run(a_config(), tmp_path)
    assert [load(path).step for path in list_checkpoints(tmp_path, "shared")] == [25, 50, 60]
    newest = load_newest(tmp_path, "shared")
    assert newest.version == 12
    assert newest.seconds > 0
    last = lines(tmp_path)[-1]
    assert (last["gradient_steps"], last["policy_version"]) == (60, 12)
    table = infos[-1].tables["shared"]
    assert table["samples"] == 60 * 16 == last["gradient_steps"] * 16
    assert infos[-1].reports["learner-0"]["doing"] == "is done"
    # the learner goes first: ahead of the ratio by the error buffer, and at most a batch more
    assert 60 + (60 - 1) * 16 / 2 - 100 <= table["inserts"] <= 60 + 60 * 16 / 2
    assert any((tmp_path / "events" / "metrics").iterdir())


def test_a_run_that_was_stopped_goes_on_from_the_same_gradient_step(tmp_path, caplog):
    run(a_config(), tmp_path, stop=StopAfter(70))
    stopped = load_newest(tmp_path, "shared")
    assert 0 < stopped.step < 60
    assert stopped.step % 25 != 0  # saved because it was stopped
    before = len(lines(tmp_path))
    with caplog.at_level("INFO"):
        run(a_config(), tmp_path, resume=True)
    assert f"goes on from gradient step {stopped.step}" in caplog.text
    finished = load_newest(tmp_path, "shared")
    assert finished.step == 60
    assert finished.version > stopped.version
    assert finished.seconds > stopped.seconds
    assert finished.state.scalars["gradient_steps"] == 60
    assert len(lines(tmp_path)) > before
    steps = [value.item() for name, value in finished.state.tensors.items() if name.endswith(".step")]
    assert set(steps) == {60.0}  # the optimizer went on too


def test_resuming_a_finished_run_trains_no_more(tmp_path):
    run(a_config(), tmp_path)
    first = load_newest(tmp_path, "shared")
    run(a_config(), tmp_path, resume=True)
    again = load_newest(tmp_path, "shared")
    assert again.step == 60
    assert all(torch.equal(first.state.tensors[n], tensor) for n, tensor in again.state.tensors.items())


def test_resuming_where_there_is_nothing_begins(tmp_path):
    run(a_config(learner={"gradient_steps": 5}), tmp_path, resume=True)
    assert load_newest(tmp_path, "shared").step == 5


def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path):
    run(a_config(learner={"gradient_steps": 5}), tmp_path)
    path = list_checkpoints(tmp_path, "shared")[-1]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=f"{path} is damaged"):
        run(a_config(), tmp_path, resume=True)
    assert list_checkpoints(tmp_path, "shared") == [path]


def test_each_agent_learns_a_policy_of_its_own(tmp_path):
    config = a_config(policy={"sharing": "per_agent"}, environment={"agents": 3})
    infos = run(config, tmp_path)
    policies = ["agent_0", "agent_1", "agent_2"]
    assert list(infos[-1].tables) == policies
    found = [load_newest(tmp_path, policy) for policy in policies]
    assert [one.step for one in found] == [60] * 3
    weights = [one.acting_weights["trunk.1.weight"] for one in found]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    last = lines(tmp_path)[-1]
    for policy in policies:
        table = infos[-1].tables[policy]
        assert table["samples"] >= 60 * 16
        assert len(table["writers"]) == 4  # two actors of two halves each
        assert f"{policy}/loss" in last


@pytest.mark.timeout(60)
def test_policies_that_are_done_do_not_hold_up_the_others(tmp_path):
    """After a crash between two checkpoints policies go on from different steps; all must get there."""
    config = a_config(policy={"sharing": "per_agent"}, replay={"error_buffer_inserts": 10})
    run(config, tmp_path)
    for path in list_checkpoints(tmp_path, "agent_1"):
        path.unlink()
    run(config, tmp_path, resume=True)
    assert [load_newest(tmp_path, policy).step for policy in ("agent_0", "agent_1")] == [60, 60]


def test_a_gymnasium_environment_is_trained_alike(tmp_path):
    values = a_config().model_dump() | {"environment": {"kind": "gymnasium", "id": "CartPole-v1"}}
    config = RunConfig.model_validate(values)
    infos = run(config, tmp_path)
    newest = load_newest(tmp_path, "shared")
    assert newest.step == 60
    assert (newest.signature.frame.shape, newest.signature.frame.dtype) == ((4,), "<f4")
    assert infos[-1].tables["shared"]["mean_length"] > 5
