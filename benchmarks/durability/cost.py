"""What it costs to keep the rows: a server with a folder beside one without, in turn."""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from workloads import TABLE, WORKLOADS, Rows, Workload, fill, process, ratios, spread

from fornix.replay import Client
from fornix.replay.role import serve

MILLION = 1_000_000


@contextlib.contextmanager
def a_full_server(folder, workload, data):
    """Serve a table whose every slot has been written once; yield a client."""
    address = f"ipc://{folder}/{'kept' if data else 'memory'}"
    arguments = (address,) if not data else (address, data)
    with (
        process(_serve, *arguments),
        Client.connect(address, memory="mapped", give_up_after_s=60.0) as client,
    ):
        client.create_table(TABLE, workload.spec())
        fill(client, workload, 2 * workload.capacity_steps)
        yield client


def _serve(address, data=None):
    serve(address, data=None if data is None else Path(data))


def measure_append(options):
    """Steps/s with a folder over steps/s without, with a stack for each step and without."""
    return {name: append_rate(workload, options) for name, workload in WORKLOADS.items()}


def append_rate(workload, options):
    with (
        tempfile.TemporaryDirectory(prefix="fx-", dir=options.disk) as folder,
        contextlib.ExitStack() as stack,
    ):
        clients = [
            stack.enter_context(a_full_server(folder, workload, data))
            for data in (None, os.path.join(folder, "data"))
        ]
        figures = {}
        for name, at_once in (("with_stacks", 1), ("appended", 10)):
            rows = [Rows(client, workload, name, at_once=at_once) for client in clients]
            rates = [[each.steps_per_s(options.seconds) for each in rows] for _ in range(options.rounds)]
            memory, kept = (list(values) for values in zip(*rates, strict=True))
            figures[name] = {
                "memory_steps_per_s": spread(memory, 0),
                "kept_steps_per_s": spread(kept, 0),
                "kept_over_memory": ratios(kept, memory),
            }
    return figures


def measure_latency(options):
    """The slowest hundredth of appends at a steady pace, while the disk is synced and while it isn't."""
    with (
        tempfile.TemporaryDirectory(prefix="fx-", dir=options.disk) as folder,
        contextlib.ExitStack() as stack,
    ):
        workload = WORKLOADS["vector"]
        clients = [
            stack.enter_context(a_full_server(folder, workload, data))
            for data in (None, os.path.join(folder, "data"))
        ]
        rows = [Rows(client, workload, "paced") for client in clients]
        found = [[paced_ms(each, options.seconds) for each in rows] for _ in range(options.rounds)]
        memory, kept = (list(values) for values in zip(*found, strict=True))
        return {
            "memory_p99_ms": spread([p99 for _, p99 in memory]),
            "syncing_p99_ms": spread([p99 for _, p99 in kept]),
            "p99_ratio": ratios([p99 for _, p99 in kept], [p99 for _, p99 in memory]),
            "p50_ratio": ratios([p50 for p50, _ in kept], [p50 for p50, _ in memory]),
        }


def paced_ms(rows, seconds):
    """Return median and 99th percentile of the milliseconds that a request takes, 500 of them a second."""
    rows.begin()
    taken, began = [], time.perf_counter()
    for at in range(int(500 * seconds)):
        while time.perf_counter() < began + at / 500:
            pass
        asked = time.perf_counter()
        rows.write()
        taken.append((time.perf_counter() - asked) * 1e3)
    return statistics.median(taken), float(np.percentile(taken, 99))


def measure_restart(options):
    """Seconds from the start of a server whose last one was killed to its first answer, a million rows."""
    workload = Workload("vector", (150,), "<f4", 5, MILLION)
    with tempfile.TemporaryDirectory(prefix="fx-", dir=options.disk) as folder:
        address = f"ipc://{folder}/r"
        command = [
            sys.executable,
            "-m",
            "fornix",
            "replay",
            "--address",
            address,
            "--data",
            f"{folder}/data",
        ]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken = []
        with Client.connect(address, give_up_after_s=120.0) as client:
            client.create_table(TABLE, workload.spec())
            fill(client, workload)
        for _ in range(options.rounds):
            server.send_signal(signal.SIGKILL)
            server.wait()
            began = time.perf_counter()
            server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with Client.connect(address, give_up_after_s=60.0) as client:
                client.sample(TABLE, 256).result()
                taken.append(time.perf_counter() - began)
        server.kill()
        server.wait()
    return {"seconds_to_first_batch": spread(taken)}
