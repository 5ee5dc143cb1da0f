"""What a learner tells the server and writes to its run, whatever becomes of the server."""

import json
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fornix.common.config import RunConfig
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec, Transition
from fornix.learner import monitor
from fornix.learner.monitor import Metrics, Monitor, Progress, of_run
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

SIGNATURE = Signature(frame=ArraySpec.of((), np.uint8), action=ArraySpec.of((), np.int32), n_frames=1)
SPEC = TableSpec(signature=SIGNATURE, capacity_steps=1000, limiter=LimiterSpec(min_size=2))


def a_trainer(policy="shared", steps=0, **fields):
    fields = {"waited_s": 0.0, "seconds": 1.0, "version": 1, "doing": "trains"} | fields
    fields = {"done": False, "finished": False} | fields
    return SimpleNamespace(
        policy=policy, learner=SimpleNamespace(gradient_steps=steps), **({"metrics": {}} | fields)
    )


def write(client, table="shared", steps=11):
    client.create_table(table, SPEC)
    writer = client.open_writer(table, "actor-0.0", 1)
    zero = np.zeros(1, np.int64)
    writer.observe(Steps.first(SIGNATURE, zero, zero.astype(np.uint8))).result()
    for _ in range(steps - 1):
        step = Steps.after_actions(
            zero, zero.astype(np.int32), zero.astype(np.float32), zero.astype(np.uint8), [False], [False]
        )
        writer.observe(step).result()


@pytest.fixture
def client():
    return Client(LocalTransport(ReplayService(time.monotonic, seed=0)))


def lines(run_dir, name="metrics"):
    file = run_dir / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_progress_is_measured_from_one_look_to_the_next():
    trainer = a_trainer(steps=100, waited_s=5.0, version=3, metrics={"loss": 0.5})
    progress = Progress([trainer], 1000)
    began = time.monotonic()
    trainer.learner.gradient_steps, trainer.waited_s = 150, 5.01
    while time.monotonic() - began < 0.05:
        pass
    first = progress.measure()
    assert 0 < first["gradient_steps_per_s"] <= 50 / 0.05
    assert 0 < first["waiting_share"] <= 0.01 / 0.05
    assert first["waiting_share"] / first["gradient_steps_per_s"] == pytest.approx(0.01 / 50)
    assert (first["gradient_steps"], first["gradient_steps_total"]) == (150, 1000)
    assert (first["policy_version"], first["seconds"], first["loss"]) == (3, 1.0, 0.5)
    second = progress.measure()
    assert (second["gradient_steps_per_s"], second["waiting_share"]) == (0, 0)
    assert progress.of_policies() == {}


def test_several_policies_are_summed_up_and_told_one_by_one():
    trainers = [
        a_trainer("agent_0", 10, version=2, metrics={"loss": 1.0}, seconds=3.0, done=True, doing="is done"),
        a_trainer("agent_1", 8, version=1, metrics={"loss": 3.0}, doing="waits: for data"),
        a_trainer("agent_2", 9),
    ]
    progress = Progress(trainers, 10)
    metrics = progress.measure()
    assert (metrics["gradient_steps"], metrics["policy_version"], metrics["seconds"]) == (8, 2, 3.0)
    assert metrics["loss"] == 2.0
    assert progress.of_policies() == {"agent_0/loss": 1.0, "agent_1/loss": 3.0}
    assert progress.doing == "waits: for data"
    assert progress.version == 2


def test_what_a_run_does_is_told_by_server_and_actors(client):
    for table in ("agent_0", "agent_1"):
        write(client, table)
        client.sample(table, 16, Transition(n_step=1)).result()
    for index, metrics in enumerate(
        ({"score": 1.0, "waiting_share": 0.2, "policy_version": 4.0}, {"score": 2.0, "policy_version": 6.0})
    ):
        client.report(f"actor-{index}", "acts", metrics).result()
    client.report("learner-0", "trains", {"score": 100.0, "waiting_share": 1.0}).result()
    found = of_run(client.info(), version=7)
    assert found["agent_steps"] == 20
    assert found["samples_per_insert"] == 16 / 8
    assert (found["score"], found["actor_waiting_share"]) == (1.5, 0.2)
    tables = client.info().tables.values()
    assert found["policy_lag"] == 7 - sum(table["policy_version"] for table in tables) / 2
    assert "score_greedy" not in found


def test_what_an_actor_told_long_ago_counts_no_more():
    reports = {
        "actor-0": {"age_s": 1.0, "doing": "acts", "metrics": {"score": 1.0}},
        "actor-1": {"age_s": 11.0, "doing": "acts", "metrics": {"score": 9.0}},
    }
    assert of_run(SimpleNamespace(reports=reports, tables={}), version=1)["score"] == 1.0


def test_an_empty_server_has_nothing_to_tell_but_numbers(client):
    """As it is right after it was started again: nothing of this is NaN, which JSON doesn't know."""
    found = of_run(client.info(), version=7)
    assert found == {
        "agent_steps": 0,
        "agent_steps_per_s": 0,
        "samples_per_s": 0,
        "samples_per_insert": 0,
        "policy_lag": 0,
    }


def test_metrics_are_lines_of_json_and_tensorboard_events(tmp_path):
    metrics = Metrics(tmp_path / "run", "metrics", seconds=100.0)
    metrics.write({"gradient_steps": 5.0, "loss": 0.25})
    assert lines(tmp_path / "run")[0]["loss"] == 0.25  # at once, for whoever looks on
    metrics.write({"gradient_steps": 6.0, "loss": 0.125})
    metrics.close()
    found = lines(tmp_path / "run")
    assert [line["gradient_steps"] for line in found] == [5, 6]
    assert all(100 <= line["time_s"] < 110 for line in found)
    events = EventAccumulator(str(tmp_path / "run" / "events" / "metrics")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(5, 0.25), (6, 0.125)]


def test_a_resumed_run_appends(tmp_path):
    for seconds in (0.0, 50.0):
        metrics = Metrics(tmp_path, "metrics", seconds)
        metrics.write({"loss": 1.0})
        metrics.close()
    first, second = lines(tmp_path)
    assert first["time_s"] < 50 <= second["time_s"]
    killed_before_saving = Metrics(tmp_path, "metrics", 10.0)
    killed_before_saving.write({"loss": 1.0})
    killed_before_saving.close()
    assert lines(tmp_path)[-1]["time_s"] >= second["time_s"]


def test_a_full_disk_costs_the_metrics_and_nothing_else(tmp_path, monkeypatch, caplog):
    def full(*args, **options):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "SummaryWriter", full)
        metrics = Metrics(tmp_path, "metrics", 0.0)
    assert "training goes on without" in caplog.text
    metrics.write({"loss": 1.0})
    metrics.close()
    assert lines(tmp_path)[0]["loss"] == 1.0
    metrics = Metrics(tmp_path, "metrics", 0.0)
    close = metrics._events.close
    monkeypatch.setattr(metrics._events, "close", full)
    metrics.close()
    close()
    assert "can't write the last metrics" in caplog.text
    (tmp_path / "a file").touch()
    metrics = Metrics(tmp_path / "a file", "metrics", 0.0)
    metrics.write({"loss": 1.0})
    metrics.close()


@pytest.fixture
def quick(monkeypatch):
    """Let monitors look ten times a second, and give up on a server as soon."""
    monkeypatch.setattr(monitor, "PERIOD_S", 0.1)
    connect = Client.connect
    monkeypatch.setattr(
        Client, "connect", lambda address, **options: connect(address, **options | {"give_up_after_s": 0.2})
    )


def config(address):
    return RunConfig.model_validate({"replay": {"address": address}, "learner": {"gradient_steps": 100}})


def test_the_monitor_tells_the_server_and_writes_until_it_ends(
    ipc_address, serve, tmp_path, quick, wait_until
):
    trainer = a_trainer(steps=7, metrics={"loss": 0.5})
    with serve(ipc_address), Client.connect(ipc_address) as client:
        write(client)
        with Monitor(config(ipc_address), tmp_path, 0, [trainer]):
            wait_until(lambda: len(lines(tmp_path)) >= 2, "two lines")
            report = client.info().reports["learner-0"]
            assert report["doing"] == "trains"
            assert report["metrics"]["gradient_steps"] == 7
            trainer.learner.gradient_steps, trainer.done, trainer.doing = 100, True, "is done"
        assert client.info().reports["learner-0"]["doing"] == "is done"
    assert lines(tmp_path)[-1]["gradient_steps"] == 100  # the end is not lost
    assert lines(tmp_path)[-1]["agent_steps"] == 10
    assert lines(tmp_path)[-1]["loss"] == 0.5


def test_each_learner_has_a_file_of_its_own(ipc_address, serve, tmp_path, quick):
    with serve(ipc_address):
        for index in range(2):
            with Monitor(config(ipc_address), tmp_path, index, [a_trainer(steps=index)]):
                pass
    assert lines(tmp_path, "metrics")[-1]["gradient_steps"] == 0
    assert lines(tmp_path, "metrics-1")[-1]["gradient_steps"] == 1


def test_a_hundred_policies_are_not_too_many_to_report(ipc_address, serve, tmp_path, quick):
    trainers = [a_trainer(f"agent_{i}", metrics={"loss": float(i), "value": 1.0}) for i in range(100)]
    with serve(ipc_address), Client.connect(ipc_address) as client:
        with Monitor(config(ipc_address), tmp_path, 0, trainers):
            pass
        assert client.info().reports["learner-0"]["metrics"]["loss"] == 49.5
    assert lines(tmp_path)[-1]["agent_99/loss"] == 99


def test_a_server_that_is_gone_is_said_aloud_and_met_again(
    ipc_address, serve, tmp_path, quick, wait_until, caplog
):
    with caplog.at_level(logging.WARNING), Monitor(config(ipc_address), tmp_path, 0, [a_trainer()]):
        for restart in range(2):
            before = len(lines(tmp_path))
            caplog.clear()
            wait_until(lambda: "could not ask the server" in caplog.text, "a warning")
            with serve(ipc_address):
                wait_until(lambda: len(lines(tmp_path)) > before, f"lines after start {restart}")  # noqa: B023


def test_metrics_that_can_not_be_written_do_not_end_it(
    ipc_address, serve, tmp_path, quick, wait_until, caplog, monkeypatch
):
    def full(self, values):
        raise OSError("No space left on device")

    with serve(ipc_address), Client.connect(ipc_address) as client:
        with monkeypatch.context() as patch, Monitor(config(ipc_address), tmp_path, 0, [a_trainer()]):
            patch.setattr(Metrics, "write", full)
            wait_until(lambda: "training goes on" in caplog.text, "an error")
            patch.undo()
            wait_until(lambda: lines(tmp_path), "a line, now that there is room")
        assert client.info().reports["learner-0"]["doing"] == "trains"
