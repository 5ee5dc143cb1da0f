"""How much a server's answers slow down while a snapshot of a full table is taken."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import rmtree

import numpy as np
from workloads import Rows, Workload, ratios, spread

from durability.cost import MILLION, a_full_server

_SPIN_S = 0.0005


def measure_snapshot(options):
    """Milliseconds that an observe takes, 250 of them a second, with a snapshot under way and without.

    The table has 10^6 steps of 600 bytes, and its ring has turned twice. Both take turns, and each lasts
    as long as a snapshot does.
    """
    workload = Workload("vector", (150,), "<f4", 5, MILLION)
    with tempfile.TemporaryDirectory(prefix="fx-", dir=options.disk) as folder:
        data = os.path.join(folder, "data")
        with a_full_server(folder, workload, data) as client:
            rows = Rows(client, workload, "paced")
            paced(rows, lambda: False, 2.0)
            rounds = [one_round(rows, data, os.path.join(folder, "copy")) for _ in range(options.rounds)]
    without, during, seconds = (list(values) for values in zip(*rounds, strict=True))
    return {
        f"p{at}": {
            "without_ms": spread([float(np.percentile(each, at)) for each in without]),
            "during_ms": spread([float(np.percentile(each, at)) for each in during]),
            "ratio": ratios(
                [float(np.percentile(each, at)) for each in during],
                [float(np.percentile(each, at)) for each in without],
            ),
        }
        for at in (50, 99)
    } | {"snapshot_s": spread(seconds, 1)}


def one_round(rows, data, copy):
    """Return the milliseconds of each request during a snapshot, those without one, and its seconds."""
    rmtree(copy, ignore_errors=True)
    call = "import sys; from fornix.commands.replay_snapshot import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", call, data, copy]
    snapshot = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time.perf_counter()
    try:
        during = paced(rows, lambda: snapshot.poll() is not None, 600.0)
    finally:
        snapshot.kill()
        snapshot.wait()
    seconds = time.perf_counter() - began
    assert Path(copy).is_dir(), "the snapshot was not made"
    time.sleep(1.0)
    return paced(rows, lambda: False, seconds), during, seconds


def paced(rows, is_over, seconds):
    """Return the milliseconds that each request takes, 250 of them a second, until it is over."""
    taken, began, due = [], time.perf_counter(), time.perf_counter()
    rows.begin()
    while not is_over() and time.perf_counter() < began + seconds:
        due = max(due + 1 / 250, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter() - _SPIN_S))
        while time.perf_counter() < due:
            pass
        asked = time.perf_counter()
        rows.write()
        taken.append((time.perf_counter() - asked) * 1e3)
    return taken
