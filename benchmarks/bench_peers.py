"""fornix beside the replay memories that people use: dm-reverb, cpprb and TorchRL, in one run.

Every system holds as many steps of the same two workloads, and all are measured in turn, in rounds; the
figures that count are the medians of the rounds' ratios. Reverb's server, writer and sampler are processes
of their own, and so are fornix's; cpprb and TorchRL are buffers inside the process that samples. Each peer
has the best of the settings that its driver has tried (`benchmarks/peers/peer_*.py --explore` tries them
again), and Reverb and cpprb a plain form beside it:

    reverb          each item a copy of all its frames, packed by hand into one column of bytes: its fastest
    reverb-frames   items refer to frames that are stored once, as in fornix
    cpprb           each stack a copy, as its own examples have it
    cpprb-windows   each transition a copy of the frames of both stacks once: its fastest
    torchrl         its fastest form
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from workloads import (
    BATCH_SIZE,
    IN_FLIGHT,
    TABLE,
    WORKLOADS,
    BackgroundWriter,
    Rows,
    Workload,
    a_server,
    draw,
    ratios,
    resident_bytes,
    spread,
)

from fornix.commands.shared import write_json
from fornix.replay import Client, Prefetch

PEERS = Path(__file__).parent / "peers"
#: The script of each peer's driver, and its settings where they aren't the best.
DRIVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "reverb": ("peer_reverb.py", {}),
    "reverb-frames": ("peer_reverb.py", {"form": "frames", "writer": "trajectory"}),
    "cpprb": ("peer_cpprb.py", {"form": "copies"}),
    "cpprb-windows": ("peer_cpprb.py", {}),
    "torchrl": ("peer_torchrl.py", {}),
}
SERVERS = ("reverb", "reverb-frames")
IN_PROCESS = ("cpprb",)
#: How each kind of work of fornix's begins, what it is called of the peers, and which of them do it.
KINDS: dict[str, tuple[str, Iterable[str]]] = {
    "uniform,": ("sample_uniform", DRIVERS),
    "uniform while": ("sample_uniform_while_writing", SERVERS),
    "prioritized": ("sample_prioritized", DRIVERS),
    "steps": ("write", DRIVERS),
}
COLORS = {"fornix": "tab:green", "reverb": "gray", "reverb-frames": "gray"}
TITLES = dict(
    zip(
        KINDS,
        (
            "thousand samples/s, uniform",
            "… while steps are written",
            "thousand samples/s, prioritized",
            "thousand steps/s written",
        ),
        strict=True,
    )
)

#: Takes seconds; returns the rate as "value", and what was "written" meanwhile if anything was.
Measure = Callable[[float], dict[str, float]]
Rates = dict[str, list[float]]
MEANWHILE = ", steps written meanwhile"


@dataclass(frozen=True)
class Figure:
    """What is to be at least so many times what the first of some peers does."""

    workload: str
    ours: str
    peers: tuple[str, ...]
    theirs: str
    reach: float


FIGURES = [
    Figure("vector", "uniform, mapped", SERVERS, "sample_uniform", 20),
    Figure("vector", "uniform while writing, mapped", SERVERS, "sample_uniform_while_writing", 20),
    Figure("vector", "uniform, tcp", SERVERS, "sample_uniform", 8),
    Figure("vector", "uniform while writing, tcp", SERVERS, "sample_uniform_while_writing", 8),
    Figure("pixels", "uniform, mapped", SERVERS, "sample_uniform", 10),
    Figure("pixels", "uniform while writing, mapped", SERVERS, "sample_uniform_while_writing", 10),
    Figure("pixels", "uniform, tcp", SERVERS, "sample_uniform", 3),
    Figure("pixels", "uniform while writing, tcp", SERVERS, "sample_uniform_while_writing", 3),
    Figure("vector", "prioritized, mapped", SERVERS, "sample_prioritized", 15),
    Figure("vector", "steps written, stack for each", SERVERS, "write", 4),
    Figure("pixels", "steps written, stack for each", SERVERS, "write", 2),
    Figure("vector", "steps appended", SERVERS, "write", 10),
    Figure("vector", "uniform, mapped", IN_PROCESS, "sample_uniform", 1),
    Figure("vector", "prioritized, mapped", IN_PROCESS, "sample_prioritized", 0.5),
]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers-python", required=True, help="of the environment that has the peers")
    parser.add_argument("--rounds", type=int, default=5, help="times each figure is taken")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--picture", metavar="FILE", help="draw the rates there")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not options.seconds > 0:
        parser.error("--rounds must be at least 1, and --seconds above 0")
    return options


class Peer:
    """A driver in the peers' environment.

    It and its processes are stopped while others are measured: Reverb's samplers go on fetching, and would
    take the processors from whoever comes next.
    """

    def __init__(self, python: str, name: str, workload: Workload) -> None:
        script, settings = DRIVERS[name]
        command = [python, str(PEERS / script), "--workload", workload.name]
        command += ["--capacity", str(workload.capacity_steps), "--settings", json.dumps(settings)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.name = name
        self.ready = self._answer()

    def measure(self, name: str, seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.write(json.dumps({"measure": name, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended; run {self._process.args} to see why")
        os.killpg(self._process.pid, signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer


@contextlib.contextmanager
def fornix(workload: Workload) -> Iterator[tuple[dict[str, Measure], int]]:
    """Start servers, a writer for each, and clients; yield what can be measured, and a server's memory."""
    with contextlib.ExitStack() as stack:
        measures: dict[str, Measure] = {}
        for scheme, memory in (("ipc", "mapped"), ("tcp", "socket")):
            name = "mapped" if scheme == "ipc" else scheme
            address = stack.enter_context(a_server(scheme, workload))
            client = stack.enter_context(Client.connect(address, memory=memory))  # type: ignore[arg-type]
            writer = BackgroundWriter(address, workload, memory)
            stack.callback(writer.close)
            batches = workload.batches(client, memory)
            stack.callback(batches.close)
            measures[f"uniform, {name}"] = partial(drawn, batches)
            measures[f"uniform while writing, {name}"] = partial(drawn_while_writing, batches, writer)
            if name == "mapped":
                measures |= writing(client, workload)
        address = stack.enter_context(a_server("ipc", workload, "prioritized"))
        client = stack.enter_context(Client.connect(address, memory="mapped"))
        measures["prioritized, mapped"] = prioritized(workload, client, stack)
        yield measures, resident_bytes(client)


def writing(client: Client, workload: Workload) -> dict[str, Measure]:
    each, many = Rows(client, workload, "each"), Rows(client, workload, "many", at_once=10)
    return {
        "steps written, stack for each": lambda seconds: {"value": each.steps_per_s(seconds)},
        "steps appended": lambda seconds: {"value": many.steps_per_s(seconds)},
    }


def drawn(batches: Prefetch[Any], seconds: float) -> dict[str, float]:
    return {"value": draw(batches, seconds)}


def drawn_while_writing(
    batches: Prefetch[Any], writer: BackgroundWriter, seconds: float
) -> dict[str, float]:
    with writer.writing() as written_per_s:
        return {"value": draw(batches, seconds), "written": written_per_s()}


def prioritized(workload: Workload, client: Client, stack: contextlib.ExitStack) -> Measure:
    """Every batch's keys get new priorities; one such request may be under way."""
    batches = client.batches(TABLE, BATCH_SIZE, in_flight=IN_FLIGHT, per_request=4, importance_exponent=0.4)
    stack.callback(batches.close)
    fresh = itertools.cycle(np.random.default_rng(1).uniform(0.1, 1.0, (64, BATCH_SIZE)))
    under_way: deque[Any] = deque()

    def update(batch: Any) -> None:
        under_way.append(client.update_priorities(TABLE, batch.key, next(fresh)))
        if len(under_way) > 1:
            assert under_way.popleft().result().applied == BATCH_SIZE

    return lambda seconds: {"value": draw(batches, seconds, update)}


def measure(workload: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Return every rate of every system, all measured in turn."""
    with contextlib.ExitStack() as stack:
        peers = {}
        for name in DRIVERS:
            peers[name] = Peer(options.peers_python, name, workload)
            stack.callback(peers[name].close)
            print(f"{name}: {json.dumps(peers[name].ready)}", file=sys.stderr, flush=True)
        ours, fornix_memory = stack.enter_context(fornix(workload))
        rates: Rates = {}
        for round_ in range(options.rounds + 1):
            for name, value in one_round(ours, peers, options.seconds if round_ else 0.5):
                if round_:  # the first warms up
                    rates.setdefault(name, []).append(value)
    ready = {name: peer.ready for name, peer in peers.items()}
    memory = {name: answer["memory_bytes"] for name, answer in ready.items()}
    return {"rates": rates, "peers": ready, "memory_bytes": {"fornix": fornix_memory} | memory}


def one_round(
    ours: dict[str, Measure], peers: dict[str, Peer], seconds: float
) -> Iterator[tuple[str, float]]:
    """Yield the name and the rate of each measure, those of one kind one after the other."""
    for kind, (theirs, names) in KINDS.items():
        for name, run in ours.items():
            if name.startswith(kind):
                yield from rated(f"fornix: {name}", run(seconds))
        for name in names:
            yield from rated(f"{name}: {theirs}", peers[name].measure(theirs, seconds))


def rated(name: str, found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    yield name, float(found["value"])
    if "written" in found:
        yield name + MEANWHILE, float(found["written"])


def table(found: dict[str, Any]) -> list[str]:
    """Return what was to be reached and what was, a line each."""
    texts = ["| workload | fornix | median | reach | against (its median): median ratio (least to most) |"]
    texts.append("|---|---|--:|--:|---|")
    for figure in FIGURES:
        rates = found[figure.workload]["rates"]
        ours = rates[f"fornix: {figure.ours}"]
        against = []
        for peer in figure.peers:
            theirs = rates[f"{peer}: {figure.theirs}"]
            ratio = ratios(ours, theirs)
            against.append(
                f"{peer} ({spread(theirs)['median']:,.0f}): **{ratio['median']:.2f}** "
                f"({ratio['min']:.2f} to {ratio['max']:.2f})"
            )
        texts.append(
            f"| {figure.workload} | {figure.ours} | {spread(ours)['median']:,.0f} | "
            f"≥ {figure.reach:g} | {'; '.join(against)} |"
        )
    return texts


def other_lines(found: dict[str, Any]) -> list[str]:
    """Return what has no figure to reach: memory, and what was written while samples were drawn."""
    lines = []
    for name, workload in WORKLOADS.items():
        memory = found[name]["memory_bytes"]
        for system, nbytes in memory.items():
            lines.append(
                f"{name}: {system} takes {nbytes / 1e6:,.0f} MB for {workload.capacity_steps:,} steps, "
                f"{nbytes / memory['fornix']:.1f} times what fornix does"
            )
        for rated, values in found[name]["rates"].items():
            if rated.endswith(MEANWHILE):
                lines.append(f"{name}: {rated}: {spread(values)['median']:,.0f}/s")
    return lines


def draw_picture(found: dict[str, Any], path: str) -> None:
    """Draw the median rate of every system: a row for each workload, a column for each kind of work."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(found), len(KINDS), figsize=(15, 7), layout="constrained")
    figure.suptitle(
        "green: fornix; dark: Reverb's server; light: buffers inside the process that samples", fontsize=11
    )
    for row, (workload, one) in zip(axes, found.items(), strict=True):
        for axis, kind in zip(row, KINDS, strict=True):
            draw_bars(axis, one["rates"], kind)
            axis.set_title(f"{workload}: {TITLES[kind]}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_bars(axis: Any, rates: Rates, kind: str) -> None:
    theirs = KINDS[kind][0]
    names = [name for name in rates if name.startswith(f"fornix: {kind}") or name.endswith(f": {theirs}")]
    names = [name for name in names if MEANWHILE not in name][::-1]
    found = [spread([value / 1000 for value in rates[name]]) for name in names]
    medians = [one["median"] for one in found]
    errors = [
        [one["median"] - one["min"] for one in found],
        [one["max"] - one["median"] for one in found],
    ]
    colors = [COLORS.get(name.split(":")[0], "lightgray") for name in names]
    labels = [label(name, kind) for name in names]
    axis.barh(labels, medians, xerr=errors, color=colors, ecolor="black", capsize=2)
    for at, median in enumerate(medians):
        axis.text(median, at + 0.18, f" {median:,.0f}", va="bottom", fontsize=7)
    axis.set_xscale("log")
    axis.set_xlim(1, 2 * max(one["max"] for one in found))
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)


def label(name: str, kind: str) -> str:
    """Return what a bar is called: the system, and of fornix how it does it."""
    system, work = name.split(": ")
    how = work.removeprefix(kind).removeprefix(" writing").strip(" ,")
    return f"fornix, {how}" if system == "fornix" else system


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    found = {name: measure(workload, options) for name, workload in WORKLOADS.items()}
    out = sys.stderr if options.json == "-" else sys.stdout
    print(f"{os.cpu_count()} CPUs, {options.rounds} rounds; median ratio (least to most)", file=out)
    print(*table(found), *other_lines(found), sep="\n", file=out)
    if options.picture:
        draw_picture(found, options.picture)
    if options.json:
        write_json(options.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
