"""`fornix run` while its processes are killed and stopped: each comes back by itself, and goes on.

One run is started for all tests; each waits until it trains, disturbs it, and waits until it trains again.
The last one kills the run itself.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from fornix import guard
from fornix.common.errors import FornixError
from fornix.learner.checkpoints import list_checkpoints, load_newest
from fornix.replay.client import Client

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

PATIENCE_S = 60.0
RESTART_S = 3.0  # from a death to the new process
CONFIG = """\
name: hunt
environment: {{height: 6, width: 6, agents: 2, max_turns: 20, spawn_prob: 0.1}}
network: {{width: 16, layers: 1, cosines: 8}}
replay:
  address: ipc://{folder}/replay
  n_frames: 3
  min_size: 200
  capacity_steps: 20000
  samples_per_insert: 4
  error_buffer_inserts: 400
weights: {{addresses: ["ipc://{folder}/weights"]}}
actor: {{processes: 2, copies: 4}}
learner: {{gradient_steps: 10000000, batch_size: 32, publish_period_steps: 5, checkpoint_period_steps: 50}}
"""


class Run:
    """A `fornix run`, seen from outside: its processes, its logs and its server."""

    def __init__(self, folder):
        self.run_dir = folder / "hunt"
        self._folder = folder
        self._file = folder / "run.yaml"
        self._file.write_text(CONFIG.format(folder=folder))
        self.client = Client.connect(f"ipc://{folder}/replay", give_up_after_s=1.0)

    def start(self, *arguments):
        command = [sys.executable, guard.__file__, str(os.getpid()), sys.executable, "-m", "fornix", "run"]
        with (self._folder / "out").open("ab") as out:
            self.process = subprocess.Popen([*command, *map(str, arguments)], stdout=out, stderr=out)

    def begin(self):
        self.start(self._file, "--runs", self._folder)

    def close(self):
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.client.close()

    def pids(self):
        """Return the process id of each role that runs."""
        found = {}
        for one in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = one.cmdline()
                if one.status() != psutil.STATUS_ZOMBIE and "fornix" in words:
                    role = words[words.index("fornix") + 1]
                    index = words[words.index("--index") + 1] if "--index" in words else ""
                    found[f"{role}-{index}" if index else role] = one.pid
        return found

    def kill(self, name):
        """Kill a process; return when another has taken its place, within the time that this may take."""
        before = self.pids()
        os.kill(before[name], signal.SIGKILL)
        died = time.monotonic()
        self.wait_until(lambda: self.pids()[name] != before[name], f"a new {name}")
        assert time.monotonic() - died < RESTART_S
        others = {other: pid for other, pid in before.items() if other != name}
        assert {other: self.pids()[other] for other in others} == others  # and nobody else died of it

    @contextlib.contextmanager
    def stopped(self, *names):
        """Keep processes stopped within a context."""
        pids = [self.pids()[name] for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):  # it was killed meanwhile
                    os.kill(pid, signal.SIGCONT)

    def said(self, name):
        """Return the log of a role."""
        return (self.run_dir / "logs" / f"{name}.log").read_text()

    def doing(self, name):
        return self.client.info().reports[name]["doing"]

    def metrics(self, name):
        """Return what a process reported within the last two seconds, or nothing."""
        report = self.client.info().reports.get(name, {"age_s": 1000.0})
        return report["metrics"] if report["age_s"] < 2 else {}

    def table(self):
        return self.client.info().tables["shared"]

    def wait_until(self, condition, what):
        """Return what `condition` finds, once it does; what isn't there yet doesn't hold."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(KeyError, OSError, FornixError):
                if found := condition():
                    return found
            time.sleep(0.02)
        said = (self._folder / "out").read_text()
        raise AssertionError(f"waited {PATIENCE_S:g} s in vain for {what}: {said[-3000:]}")

    def wait_until_it_trains(self, steps=20):
        """Wait until the learner makes gradient steps, and both actors act by its weights."""
        seen = {}
        counts = {"learner-0": "gradient_steps", "actor-0": "agent_steps", "actor-1": "agent_steps"}

        def goes_on():
            now = {name: self.metrics(name)[key] for name, key in counts.items()}
            first = {name: min(seen.get(name, count), count) for name, count in now.items()}
            seen.update(first)
            moved = all(now[name] >= seen[name] + steps for name in counts)
            return moved and all(self.metrics(f"actor-{i}")["policy_version"] > 0 for i in range(2))

        self.wait_until(goes_on, "everyone to go on")

    def wait_until_it_answers(self):
        """Return the table as the server has it at its first answer."""
        return self.wait_until(self.table, "the server to answer")


@pytest.fixture(scope="module")
def whole_run():
    with tempfile.TemporaryDirectory(prefix="fx-", dir="/tmp") as folder:
        run = Run(Path(folder))
        run.begin()
        try:
            yield run
        finally:
            run.close()


@pytest.fixture
def run(whole_run):
    """The run of this module, when it trains."""
    whole_run.wait_until_it_trains()
    return whole_run


def test_a_killed_learner_goes_on_at_its_checkpoints_step(run):
    run.wait_until(lambda: list_checkpoints(run.run_dir, "shared"), "a checkpoint")
    run.kill("learner-0")
    saved = load_newest(run.run_dir, "shared")
    run.wait_until(
        lambda: f"goes on from gradient step {saved.step}\n" in run.said("learner-0"), "that step"
    )
    run.wait_until(lambda: run.metrics("learner-0")["gradient_steps"] > saved.step + 50, "it to go beyond")
    version = run.metrics("learner-0")["policy_version"]
    assert version > saved.version
    for actor in ("actor-0", "actor-1"):  # they take its weights, though their versions were higher
        run.wait_until(lambda: run.metrics(actor)["policy_version"] >= version, "the actors to follow")  # noqa: B023


def test_a_killed_learner_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(run):
    """It is damaged while the learner is stopped, so that no newer one comes."""
    run.wait_until(lambda: len(list_checkpoints(run.run_dir, "shared")) > 1, "two checkpoints")
    with run.stopped("learner-0"):
        earlier, newest = list_checkpoints(run.run_dir, "shared")[-2:]
        newest.write_bytes(newest.read_bytes()[:-100])
        run.kill("learner-0")
    step = int(earlier.stem.removeprefix("step-"))
    run.wait_until(lambda: f"goes on from gradient step {step}\n" in run.said("learner-0"), "that step")
    assert f"uses {earlier.name} instead of a newer one: checkpoint {newest} is damaged" in run.said(
        "learner-0"
    )
    run.wait_until_it_trains()


def test_a_killed_actor_comes_back_with_a_new_incarnation(run):
    before = run.table()["writers"]
    run.kill("actor-1")

    def writes_again():
        now = run.table()["writers"]
        names = ("actor-1.0", "actor-1.1")
        newer = all(now[name]["incarnation"] > before[name]["incarnation"] for name in names)
        return newer and all(now[name]["sequence"] > 10 for name in names)

    run.wait_until(writes_again, "a newer actor-1 that writes")
    run.wait_until_it_trains()
    assert run.table()["writers"]["actor-0.0"]["incarnation"] == before["actor-0.0"]["incarnation"]


def test_a_killed_server_comes_back_with_its_rows(run):
    run.wait_until(lambda: run.table()["inserts"] > 1000, "a thousand inserts")
    before = run.table()
    steps = run.metrics("learner-0")["gradient_steps"]
    run.kill("replay")
    after = run.wait_until_it_answers()
    assert after["inserts"] >= before["inserts"]
    assert after["steps"] >= 0.98 * before["steps"]  # a full ring lets go of a block now and then
    assert after["samples"] >= before["samples"] - 32 * 8  # but for what was leased and never used
    run.wait_until_it_trains()
    assert run.metrics("learner-0")["gradient_steps"] > steps
    assert any((run.run_dir / "replay").iterdir())


def test_a_stopped_server_is_waited_for(run):
    names = ("actor-0", "actor-1", "learner-0")
    before = run.pids()
    lengths = {name: len(run.said(name)) for name in names}
    with run.stopped("replay"):
        for name in names:
            run.wait_until(
                lambda: "no replay server answered" in run.said(name)[lengths[name] :],  # noqa: B023
                f"{name} to say what it waits for",
            )
    run.wait_until_it_trains()
    assert run.pids() == before


def test_a_stopped_learner_is_waited_for(run):
    before = run.pids()
    with run.stopped("learner-0"):
        for actor in ("actor-0", "actor-1"):
            run.wait_until(lambda: run.doing(actor).startswith("waits: "), f"{actor} to be held")  # noqa: B023
    run.wait_until_it_trains()
    assert run.pids() == before


def test_stopped_actors_are_waited_for(run):
    before = run.pids()
    with run.stopped("actor-0", "actor-1"):
        run.wait_until(lambda: run.doing("learner-0").startswith("waits: "), "the learner to be held")
    run.wait_until_it_trains()
    assert run.pids() == before


def test_a_killed_run_is_resumed_with_its_rows_and_its_checkpoint(run):
    """The last test of this run: it kills it."""
    before, left = run.table(), run.pids()
    run.process.kill()
    run.process.wait(PATIENCE_S)
    run.wait_until(lambda: not any(psutil.pid_exists(pid) for pid in left.values()), "all to be gone")
    saved = load_newest(run.run_dir, "shared")
    run.start("--resume", run.run_dir)
    after = run.wait_until_it_answers()
    assert after["inserts"] >= before["inserts"]
    run.wait_until(
        lambda: f"goes on from gradient step {saved.step}\n" in run.said("learner-0"), "that step"
    )
    run.wait_until_it_trains()
