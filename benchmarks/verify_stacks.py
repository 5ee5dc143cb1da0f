"""Compare sampled stacks, byte for byte, with the stacks that actors acted on (fault 0.2).

A real run: a replay server, several actors and a learner as processes of their own. Each actor writes
down every stack that it is handed, by its key; the learner writes down every stack that it trains on,
`stack` and `next_stack` alike. Afterwards each of the latter is compared with the former. The ring is
small, so that it wraps many times meanwhile. All this is done twice: with frames out of the server's mapped
memory, and over the socket.

    python benchmarks/verify_stacks.py --stacks 1000000 --json -
    python benchmarks/verify_stacks.py --memory mapped
"""

import argparse
import multiprocessing
import multiprocessing.synchronize
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from fornix.commands.shared import write_json
from fornix.common.config import RunConfig
from fornix.replay import Client

# what takes long to import is imported once, by a process from which the others are forked
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fornix.actor.role", "fornix.learner.role", "fornix.replay.role"])


class Recorder:
    """Appends keys and stacks to a file, as rows of one structured dtype."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.rows = 0

    def write(self, keys: np.ndarray[Any, Any], stacks: np.ndarray[Any, Any]) -> None:
        rows = np.empty(len(keys), row_dtype(stacks.shape[1:], stacks.dtype))
        rows["key"], rows["stack"] = keys, stacks
        self._file.write(rows.tobytes())
        self.rows += len(keys)


def row_dtype(shape: tuple[int, ...], dtype: Any) -> np.dtype[Any]:
    return np.dtype([("key", "<i8"), ("stack", dtype, shape)])


def replay(config: RunConfig) -> None:
    from fornix.replay.role import serve

    serve(
        config.replay.address,
        seed=config.seed,
        on_ready=lambda server: signal.signal(signal.SIGTERM, lambda *_: server.stop()),  # type: ignore[arg-type,return-value]
    )


def actor(config: RunConfig, index: int, folder: Path) -> None:
    from fornix.actor.role import act

    recorder = Recorder(folder / f"acted-{index}")
    act(config, index, stopped_by_sigterm(), lambda stacks: recorder.write(stacks.key, stacks.stack))


def learner(config: RunConfig, folder: Path, wanted: int, enough: Any) -> None:
    from fornix.learner.role import learn
    from fornix.replay.batches import Transitions

    recorder = Recorder(folder / "sampled")
    followed = Recorder(folder / "followed")
    stop = stopped_by_sigterm()

    def seen(transitions: Transitions) -> None:
        recorder.write(transitions.batch.key, transitions.stack)
        followed.write(transitions.batch.next_key, transitions.next_stack)
        if recorder.rows + followed.rows >= wanted:
            enough.set()

    learn(config, folder, 0, False, stop, seen)


def stopped_by_sigterm() -> threading.Event:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return stop


def run(config: RunConfig, folder: Path, wanted: int, deadline_s: float) -> list[str]:
    """Run all processes until the learner has drawn `wanted` stacks; return by which paths they came."""
    enough = CONTEXT.Event()
    processes = [CONTEXT.Process(target=replay, args=(config,))]
    processes += [
        CONTEXT.Process(target=actor, args=(config, index, folder))
        for index in range(config.actor.processes)
    ]
    processes += [CONTEXT.Process(target=learner, args=(config, folder, wanted, enough))]
    for process in processes:
        process.start()
    try:
        if not enough.wait(deadline_s):
            raise SystemExit(f"only part of {wanted} stacks were drawn in {deadline_s:g} s")
        return paths_taken(config)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.join(10)
            if process.is_alive():
                process.kill()


def paths_taken(config: RunConfig) -> list[str]:
    """Return by which paths frames come to the actors and the learner."""
    with Client.connect(config.replay.address, name="verify") as client:
        tables = client.info().tables.values()
    seen = [one for table in tables for one in (*table["writers"].values(), *table["readers"].values())]
    return sorted({one["memory"] for one in seen})


def compare(folder: Path, shape: tuple[int, ...], dtype: Any) -> dict[str, int]:
    """Compare what was sampled with what was acted on; return the counts."""
    row = row_dtype(shape, dtype)
    acted = np.concatenate([np.fromfile(path, row) for path in sorted(folder.glob("acted-*"))])
    acted = acted[np.argsort(acted["key"], kind="stable")]
    counts = {"acted": len(acted), "compared": 0, "different": 0, "never_acted_on": 0}
    for name in ("sampled", "followed"):
        for start in range(0, len(rows := np.memmap(folder / name, row, "r")), 100_000):
            block = rows[start : start + 100_000]
            at = np.searchsorted(acted["key"], block["key"]).clip(max=len(acted) - 1)
            known = acted["key"][at] == block["key"]
            same = (acted["stack"][at] == block["stack"]).all(axis=tuple(range(1, 1 + len(shape))))
            counts["compared"] += int(np.count_nonzero(known))
            counts["different"] += int(np.count_nonzero(known & ~same))
            # an episode's last stack is bootstrapped from, but nobody acts on it; all others must be known
            counts["never_acted_on"] += int(np.count_nonzero(~known)) if name == "sampled" else 0
    return counts


def verify(memory: str, actors: int, stacks: int, deadline_s: float) -> dict[str, Any]:
    """Run, compare, and return what came of it; `memory` is how frames are to come."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fornix-") as name:
        folder = Path(name)
        config = RunConfig.model_validate(
            {
                "replay": {
                    "address": f"ipc://{folder}/replay",
                    "capacity_steps": 4_000,
                    "samples_per_insert": 2,
                    "min_size": 1000,
                    "error_buffer_inserts": 500,
                    "memory": memory,
                },
                "weights": {"addresses": [f"ipc://{folder}/weights"]},
                "actor": {"processes": actors},
                "network": {"width": 32},
                "learner": {"gradient_steps": 10_000_000},
            }
        )
        # a few more are drawn than compared: the last stack of an episode is nobody's to act on
        paths = run(config, folder, int(stacks * 1.05), deadline_s)
        counts: dict[str, Any] = dict(compare(folder, (config.replay.n_frames, 100), np.uint8))
    counts["ring_wraps"] = round(counts["acted"] / config.replay.capacity_steps, 1)
    counts["actors"] = actors
    counts["paths"] = paths
    counts["seconds"] = round(time.monotonic() - began, 1)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stacks", type=int, default=1_000_000, help="stacks to compare on each path")
    parser.add_argument("--actors", type=int, default=3, help="actor processes")
    parser.add_argument(
        "--memory",
        choices=("auto", "mapped", "socket"),
        help="how frames come to actors and learner (default: once mapped, and once by the socket)",
    )
    parser.add_argument("--deadline-s", type=float, default=500, help="to give up after, on each path")
    parser.add_argument("--json", default=None, help="write the counts to a file, or - for stdout")
    given = parser.parse_args()
    counts = {}
    for memory in [given.memory] if given.memory else ["mapped", "socket"]:
        one = counts[memory] = verify(memory, given.actors, given.stacks, given.deadline_s)
        print(
            f"{memory}: {one['compared']:,} sampled stacks compared with the {one['acted']:,} that "
            f"{given.actors} actors acted on; they came {' and '.join(one['paths'])}, and the ring wrapped "
            f"{one['ring_wraps']} times: {one['different']} differ, {one['never_acted_on']} were never "
            f"acted on",
            file=sys.stderr if given.json == "-" else sys.stdout,
            flush=True,
        )
    if given.json:
        write_json(given.json, counts)
    if not all(is_well(memory, given.stacks, one) for memory, one in counts.items()):
        raise SystemExit(1)


def is_well(memory: str, wanted: int, counts: dict[str, Any]) -> bool:
    """Whether enough stacks came by the right path, and all were those acted on."""
    right_path = memory == "auto" or counts["paths"] == [memory]
    nothing_wrong = not counts["different"] and not counts["never_acted_on"]
    return right_path and nothing_wrong and bool(counts["compared"] >= wanted)


if __name__ == "__main__":
    main()
