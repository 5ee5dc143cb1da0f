"""What a learner refuses before it trains."""

import threading

import numpy as np
import pytest

from fornix.common.config import RunConfig
from fornix.common.errors import CheckpointError, ConfigurationError, FornixError
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.learner.checkpoints import folder
from fornix.learner.role import learn
from fornix.replay.client import Client


def config(address, **replay):
    sections = {
        "replay": {"address": address, "n_frames": 4} | replay,
        "weights": {"addresses": [address + "w"]},
    }
    return RunConfig.model_validate(sections)


def create(client, n_frames):
    signature = Signature(
        frame=ArraySpec.of((2,), np.uint8), action=ArraySpec.of((), np.int32, n_values=4), n_frames=n_frames
    )
    limiter = LimiterSpec(min_size=1)
    client.create_table("shared", TableSpec(signature=signature, capacity_steps=1000, limiter=limiter))


def test_a_memory_that_is_to_be_mapped_and_cannot_be_is_refused(ipc_address, serve, tmp_path):
    with serve(ipc_address), Client.connect(ipc_address) as client:
        create(client, n_frames=4)
        with pytest.raises(FornixError, match="shares none"):
            learn(config(ipc_address, memory="mapped"), tmp_path, 0, False, threading.Event())


def test_what_it_waits_for_before_there_is_a_table_is_in_its_report(
    ipc_address, serve, wait_until, tmp_path
):
    stop = threading.Event()
    learner = threading.Thread(target=learn, args=(config(ipc_address), tmp_path, 0, False, stop))
    with serve(ipc_address), Client.connect(ipc_address) as client:
        learner.start()
        try:
            wait_until(lambda: "learner-0" in client.info().reports, "a report")
            report = client.info().reports["learner-0"]
            assert report["doing"] == "waits for table 'shared', which the first actor creates"
        finally:
            stop.set()
            learner.join()


def test_other_stacks_than_the_tables_are_refused(ipc_address, serve, tmp_path):
    with serve(ipc_address), Client.connect(ipc_address) as client:
        create(client, n_frames=3)
        with pytest.raises(ConfigurationError, match=r"replay.n_frames = 4 .* n_frames = 3"):
            learn(config(ipc_address), tmp_path, 0, False, threading.Event())


def test_a_run_folder_in_use_is_refused_without_a_server(ipc_address, tmp_path):
    folder(tmp_path, "shared").mkdir(parents=True)
    (folder(tmp_path, "shared") / "step-0000000001.safetensors").touch()
    with pytest.raises(CheckpointError, match="--resume"):
        learn(config(ipc_address), tmp_path, 0, False, threading.Event())
