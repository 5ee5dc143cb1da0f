"""A run of real processes over sockets, typed by hand as it were: what becomes of it when they die.

One run is started for all tests of this kind; each waits until it trains, disturbs it, and waits until it
trains again. Its episodes never end by themselves, so an end in the table is one that was made.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from fornix import guard
from fornix.common.errors import UnreachableError
from fornix.common.specs import Transition
from fornix.learner.checkpoints import list_checkpoints, load, load_newest
from fornix.replay.client import Client

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

PATIENCE_S = 60.0
LONG = 64  # steps of a transition: where an episode ends, many are cut short
CONFIG = """\
environment: {{height: 6, width: 6, agents: 2, max_turns: 1000000, spawn_prob: 0.1}}
network: {{width: 16, layers: 1, cosines: 8}}
policy: {{sharing: {sharing}}}
replay:
  address: ipc://{folder}/replay
  n_frames: 3
  min_size: 200
  capacity_steps: 20000
  samples_per_insert: {samples_per_insert}
  error_buffer_inserts: {error_buffer_inserts}
weights: {{addresses: ["ipc://{folder}/weights-0", "ipc://{folder}/weights-1"]}}
actor: {{processes: 2, copies: 4}}
learner:
  processes: {learners}
  gradient_steps: {gradient_steps}
  batch_size: 32
  publish_period_steps: 5
  checkpoint_period_steps: {checkpoint_period_steps}
"""


class Run:
    """The processes of a run, by the names under which they report."""

    def __init__(self, folder, **options):
        options = {
            "sharing": "shared",
            "learners": 1,
            "gradient_steps": 10_000_000,
            "checkpoint_period_steps": 50,
            "samples_per_insert": 4,
            "error_buffer_inserts": 400,
        } | options
        self.folder = folder
        self.run_dir = folder / "run"
        self._file = folder / "run.yaml"
        self._file.write_text(CONFIG.format(folder=folder, **options))
        self.processes = {}
        self.client = Client.connect(f"ipc://{folder}/replay", give_up_after_s=1.0)
        self.names = ["replay", "actor-0", "actor-1", *(f"learner-{i}" for i in range(options["learners"]))]

    def start(self, name, *flags):
        """Start a process by the command that a person would type; it dies with this one."""
        role, _, index = name.partition("-")
        command = [sys.executable, "-m", "fornix", role, str(self._file), *flags]
        command += ["--index", index] if index else []
        command += ["--run", str(self.run_dir)] if role == "learner" else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, guard.__file__, str(os.getpid()), *command], stdout=log, stderr=log
            )

    def kill(self, name):
        self.processes[name].kill()
        self.processes[name].wait(PATIENCE_S)

    def close(self):
        for process in self.processes.values():
            process.kill()
            process.wait(PATIENCE_S)
        self.client.close()

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def metrics(self, name):
        """Return what a process reported within the last two seconds, or nothing."""
        report = self.client.info().reports.get(name, {"age_s": 1000.0})
        return report["metrics"] if report["age_s"] < 2 else {}

    def table(self, name="shared"):
        return self.client.info().tables[name]

    def wait_until(self, condition, what):
        """Return once `condition()` holds; what isn't there yet doesn't hold."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(KeyError, UnreachableError):
                if condition():
                    return
            if time.monotonic() > deadline:
                last = {name: self.log(name)[-500:] for name in self.processes}
                raise AssertionError(f"waited {PATIENCE_S:g} s in vain for {what}: {last}")
            time.sleep(0.05)

    def wait_until_it_trains(self, steps=20):
        """Wait until the learner makes gradient steps, and both actors act by its weights."""
        seen = {}

        def goes_on():
            for name, key in (
                ("learner-0", "gradient_steps"),
                ("actor-0", "agent_steps"),
                ("actor-1", "agent_steps"),
            ):
                now = self.metrics(name)[key]
                if now < seen.setdefault(name, now) + steps:
                    return False
            return all(self.metrics(name)["policy_version"] > 0 for name in ("actor-0", "actor-1"))

        self.wait_until(goes_on, "everyone to go on")

    def draw(self, table="shared", n_step=1):
        """Return a thousand transitions."""
        return self.client.sample(table, 1000, Transition(n_step=n_step), discount=0.99).result().batch


@contextlib.contextmanager
def a_run(**options):
    """Start all processes of a run; kill them at the end."""
    with tempfile.TemporaryDirectory(prefix="fx-", dir="/tmp") as folder:
        run = Run(Path(folder), **options)
        try:
            for name in run.names:
                run.start(name)
            yield run
        finally:
            run.close()


@pytest.fixture(scope="module")
def shared_run():
    with a_run() as run:
        yield run


@pytest.fixture
def run(shared_run):
    """The run of this module, when it trains."""
    shared_run.wait_until_it_trains()
    return shared_run


def test_it_trains(run):
    run.wait_until(lambda: run.metrics("learner-0")["gradient_steps"] >= 300, "300 gradient steps")
    run.wait_until(lambda: list_checkpoints(run.run_dir, "shared"), "a checkpoint")
    table = run.table()
    assert table["writers"].keys() == {"actor-0.0", "actor-0.1", "actor-1.0", "actor-1.1"}
    # the limiter ties both sides together: within its buffer, a batch in flight and a vector step
    assert abs(4 * (table["inserts"] - 200) - table["samples"]) <= 4 * 400 + 32 + 4 * 8 * 2
    batch = run.draw()
    assert len(set(batch.policy_version.tolist())) > 3  # acted on by weights that kept coming
    lag = run.metrics("learner-0")["policy_version"] - batch.policy_version.max()
    assert lag < run.metrics("learner-0")["policy_version"] / 2


def test_a_killed_server_is_missed_by_nobody(run):
    before = run.metrics("learner-0")
    pids = {name: process.pid for name, process in run.processes.items() if name != "replay"}
    run.kill("replay")
    with pytest.raises(UnreachableError):
        run.client.info()
    run.start("replay")
    run.wait_until_it_trains()
    assert run.metrics("learner-0")["gradient_steps"] > before["gradient_steps"]
    assert run.metrics("actor-0")["policy_version"] >= before["policy_version"] - 1
    assert {name: run.processes[name].pid for name in pids} == pids
    assert all(run.processes[name].poll() is None for name in pids)
    assert "begins anew" in run.log("actor-0")


def test_a_killed_actors_successor_closes_its_episodes_and_goes_on(run):
    before = run.table()["writers"]
    assert set(run.draw(n_step=LONG).steps.tolist()) == {LONG}  # no episode has ended
    run.kill("actor-1")
    run.start("actor-1")

    def replaced():
        now = run.table()["writers"]
        return all(
            now[name]["incarnation"] > before[name]["incarnation"] and now[name]["sequence"] > 10
            for name in ("actor-1.0", "actor-1.1")
        )

    run.wait_until(replaced, "a newer actor-1 that writes")
    run.wait_until_it_trains()
    now = run.table()["writers"]
    assert now["actor-0.0"]["incarnation"] == before["actor-0.0"]["incarnation"]  # the other went on
    batch = run.draw(n_step=LONG)
    assert len(set(batch.steps.tolist())) > 5  # some end where the actor was killed
    np.testing.assert_allclose(batch.discount, 0.99**batch.steps)  # cut off, not terminated


def test_a_killed_learner_goes_on_from_its_checkpoint(run):
    run.wait_until(lambda: list_checkpoints(run.run_dir, "shared"), "a checkpoint")
    run.kill("learner-0")
    saved = load_newest(run.run_dir, "shared")
    run.start("learner-0", "--resume")
    run.wait_until(
        lambda: f"goes on from gradient step {saved.step}" in run.log("learner-0"), "it to say so"
    )
    run.wait_until_it_trains()
    run.wait_until(lambda: run.metrics("learner-0")["gradient_steps"] > saved.step + 50, "it to go beyond")
    # though its versions may be lower than those before its death, the actors take them
    learner = run.metrics("learner-0")["policy_version"]
    assert learner > saved.version
    for actor in ("actor-0", "actor-1"):
        run.wait_until(
            lambda: (
                abs(run.metrics(actor)["policy_version"] - run.metrics("learner-0")["policy_version"])  # noqa: B023
                < run.metrics("learner-0")["gradient_steps_per_s"]
            ),
            "the actors to follow",
        )


def test_a_stopped_actor_is_on_the_newest_weights_soon_after(run):
    pid, began = run.processes["actor-0"].pid, time.monotonic()
    before = run.metrics("actor-0")["policy_version"]
    os.kill(pid, signal.SIGSTOP)
    try:
        run.wait_until(
            lambda: (
                time.monotonic() - began > 3 and run.metrics("learner-0")["policy_version"] > before + 10
            ),
            "newer weights, while it is stopped",
        )
        newest = run.metrics("learner-0")["policy_version"]
    finally:
        os.kill(pid, signal.SIGCONT)
    continued = time.monotonic()
    run.wait_until(lambda: run.metrics("actor-0").get("policy_version", 0) >= newest, "the newest weights")
    assert time.monotonic() - continued < 3
    run.wait_until_it_trains()


def test_a_learner_that_is_asked_to_stop_saves_and_all_end_at_once(run):
    """The last test of this run: it ends it, the server last."""
    began, codes = time.monotonic(), {}
    for names in (run.names[1:], run.names[:1]):
        for name in names:
            run.processes[name].send_signal(signal.SIGTERM)
        codes |= {name: run.processes[name].wait(PATIENCE_S) for name in names}
    assert time.monotonic() - began < PATIENCE_S
    assert codes == dict.fromkeys(run.names, 128 + signal.SIGTERM)
    steps = load_newest(run.run_dir, "shared").step
    previous = [load(path).step for path in list_checkpoints(run.run_dir, "shared")][-2]
    assert previous < steps <= previous + 50
    assert all("Traceback" not in run.log(name) for name in run.names)


def test_two_learners_train_the_policies_of_all_agents_to_the_end():
    """One is killed, and lags behind after: the other keeps its table open until both are done."""
    limiter = {"samples_per_insert": 16, "error_buffer_inserts": 60}
    steps = {"gradient_steps": 500, "checkpoint_period_steps": 220}
    with a_run(sharing="per_agent", learners=2, **limiter, **steps) as run:
        for policy in ("agent_0", "agent_1"):
            run.wait_until(lambda: run.table(policy)["samples"] > 100 * 32, "a hundred batches")  # noqa: B023
            assert run.draw(policy).policy_version.max() > 10  # its learner's weights are acted by
        run.wait_until(lambda: run.table("agent_1")["samples"] > (300 + 32) * 32, "three hundred")
        run.kill("learner-1")
        assert load_newest(run.run_dir, "agent_1").step == 220
        run.start("learner-1", "--resume")
        codes = [run.processes[f"learner-{i}"].wait(PATIENCE_S) for i in range(2)]
        assert codes == [0, 0], run.log("learner-1")
        newest = [load_newest(run.run_dir, f"agent_{i}") for i in range(2)]
        assert [one.step for one in newest] == [500, 500]
        weights = [one.acting_weights["trunk.1.weight"].numpy() for one in newest]
        assert not np.array_equal(*weights)
