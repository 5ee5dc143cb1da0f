"""The replay engine against its floors: what no replay memory on this machine could be faster than.

Each figure is taken in rounds, in turn with its floor, and told as the median of the rounds' ratios with
their spread; on a noisy machine nothing else counts. Servers, writers and echoes are processes of their
own; this one samples. `--only` takes a part of them:

    gather    samples/s out of the mapped memory and over TCP, against one np.take of the same rows
    write     steps/s of 40 lanes, with a stack for each and without
    query     a frame-stack query for 8 lanes, against a bare ROUTER/DEALER echo of the same bytes
    size      what a draw costs at 10 million rows, against 100 thousand
    memory    bytes beside the frames themselves
    writers   64 writers, against the best number of writers; the share of the poorest
    start     from the start of a server to the first answer of a table of a million rows
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray
from workloads import (
    BATCH_SIZE,
    LANES,
    TABLE,
    WORKLOADS,
    BackgroundWriter,
    Rows,
    Workload,
    a_server,
    draw,
    episode,
    process,
    ratios,
    spread,
)

from fornix.commands.shared import write_json
from fornix.common.messages import Observe, Sample, StackQuery, Stacks
from fornix.common.specs import SamplerSpec, TableSpec
from fornix.common.wire import encode
from fornix.replay import Client
from fornix.replay.memory import Memory
from fornix.replay.storage import make_columns
from fornix.replay.table import Table

Figures = dict[str, Any]
HERE = os.path.dirname(os.path.abspath(__file__))
QUERY_LANES = 8
MANY_WRITERS = (1, 2, 4, 8, 16, 32, 64)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="times each figure is taken")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), metavar="PART")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not options.seconds > 0:
        parser.error("--rounds must be at least 1, and --seconds above 0")
    return options


# gather -------------------------------------------------------------------------------------------


def measure_gather(options: argparse.Namespace) -> Figures:
    return {
        f"{name}, {scheme}": gather_rate(workload, scheme, options)
        for name, workload in WORKLOADS.items()
        for scheme in ("ipc", "tcp")
    }


def gather_rate(workload: Workload, scheme: str, options: argparse.Namespace) -> Figures:
    memory = "mapped" if scheme == "ipc" else "socket"
    copy = workload.frames(workload.capacity_steps + 1)
    alone, one_by_one, floor, meanwhile, written = [], [], [], [], []
    with a_server(scheme, workload) as address, Client.connect(address, memory=memory) as client:
        writer = BackgroundWriter(address, workload, memory)
        batches = workload.batches(client, memory)
        single = client.batches(TABLE, BATCH_SIZE)
        places = some_places(address, workload)
        draw(batches, 0.3)
        for _ in range(options.rounds):
            alone.append(draw(batches, options.seconds))
            one_by_one.append(draw(single, options.seconds))
            floor.append(takes(copy, places, options.seconds))
            with writer.writing() as steps_per_s:
                meanwhile.append(draw(batches, options.seconds))
                written.append(steps_per_s())
        batches.close()
        single.close()
        writer.close()
    return {
        "memory": memory,
        "samples_per_s": spread(alone, 0),
        "samples_per_s_with_one_batch_a_request": spread(one_by_one, 0),
        "np_take_samples_per_s": spread(floor, 0),
        "share_of_np_take": ratios(alone, floor),
        "samples_per_s_while_writing": spread(meanwhile, 0),
        "steps_written_per_s_meanwhile": spread(written, 0),
    }


def some_places(address: str, workload: Workload) -> list[NDArray[np.int32]]:
    """Return where the frames of many batches lie, as the server tells them; few rows are in none."""
    with Client.connect(address, memory="mapped") as client:
        asked = [client.sample(TABLE, BATCH_SIZE) for _ in range(workload.capacity_steps // BATCH_SIZE)]
        return [each.result().batch.index for each in asked]


def takes(frames: NDArray[Any], places: list[NDArray[np.int32]], seconds: float) -> float:
    """Return the samples/s of one np.take for a batch, into memory that is used again."""
    out = np.empty((*places[0].shape, *frames.shape[1:]), frames.dtype)
    count, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        np.take(frames, places[count % len(places)], axis=0, out=out, mode="clip")
        count += 1
    return count * BATCH_SIZE / spent


# write --------------------------------------------------------------------------------------------


def measure_write(options: argparse.Namespace) -> Figures:
    return {
        f"{name}, {memory}": write_rate(workload, memory, options)
        for name, workload in WORKLOADS.items()
        for memory in ("mapped", "socket")
    }


def write_rate(workload: Workload, memory: Any, options: argparse.Namespace) -> Figures:
    with a_server("ipc", workload) as address, Client.connect(address, memory=memory) as client:
        each = Rows(client, workload, "each")
        many = Rows(client, workload, "many", at_once=10)
        rounds = [
            (each.steps_per_s(options.seconds), many.steps_per_s(options.seconds))
            for _ in range(options.rounds)
        ]
    with_stacks, appended = (list(values) for values in zip(*rounds, strict=True))
    return {
        "steps_per_s_with_stacks": spread(with_stacks, 0),
        "steps_per_s_appended": spread(appended, 0),
    }


# query --------------------------------------------------------------------------------------------


def measure_query(options: argparse.Namespace) -> Figures:
    workload = WORKLOADS["vector"]
    with (
        a_server("ipc", workload) as address,
        tempfile.TemporaryDirectory(prefix="fx-") as folder,
        process(echo, f"ipc://{folder}/e"),
        Client.connect(address, memory="mapped") as mapped,
        Client.connect(address, memory="socket") as socket,
    ):
        lanes = {
            name: Rows(client, workload, name, QUERY_LANES)
            for name, client in (("mapped", mapped), ("socket", socket))
        }
        rows = Rows(socket, workload, "keys", QUERY_LANES)
        keys = [rows.writer.observe(steps).result().key for steps in rows.requests[:10]][-1]
        query = Echo(f"ipc://{folder}/e", StackQuery(table=TABLE, key=keys), socket.stacks(TABLE, keys))
        observe = observe_echo(f"ipc://{folder}/e", workload, socket.stacks(TABLE, keys))
        actions: dict[str, Callable[[], object]] = {
            "query_socket": lambda: socket.stacks(TABLE, keys),
            "query_mapped": lambda: mapped.stacks(TABLE, keys),
            "query_echo": query.send,
            "observe_socket": lanes["socket"].write,
            "observe_mapped": lanes["mapped"].write,
            "observe_echo": observe.send,
        }
        times = in_turn(actions, options)
        query.close()
        observe.close()
    figures: Figures = {f"{name}_us": spread(values, 1) for name, values in times.items()}
    for name in ("query_socket", "query_mapped", "observe_socket", "observe_mapped"):
        figures[f"{name}_to_echo"] = ratios(times[name], times[f"{name.split('_')[0]}_echo"])
    return figures


def in_turn(
    actions: dict[str, Callable[[], object]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the median microseconds of each action in each round, the actions taking turns."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for round_ in range(options.rounds + 1):
        for name, action in actions.items():
            median = statistics.median(microseconds(action, options.seconds))
            if round_:  # the first warms up
                times[name].append(median)
    return times


def microseconds(action: Callable[[], object], seconds: float) -> list[float]:
    taken, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        action()
        taken.append((time.perf_counter() - began) * 1e6)
    return taken


def echo(address: str) -> None:
    """Answer [sizes, *anything] with frames of those sizes, made once."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)
        made: dict[bytes, list[bytes]] = {}
        while True:
            client, sizes, *_ = router.recv_multipart(copy=False)
            if (frames := made.get(sizes.bytes)) is None:
                frames = made[sizes.bytes] = [bytes(int(size)) for size in sizes.bytes.split()]
            router.send_multipart([client, *frames], copy=False)


class Echo:
    """Sends what a request sends, and takes as many bytes as its answer has."""

    def __init__(self, address: str, request: Any, reply: Stacks) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)
        sizes = b" ".join(b"%d" % len(frame) for frame in encode(reply, 1))
        self._frames = [sizes, *encode(request, 1)]

    def send(self) -> None:
        """Make one round trip."""
        self._socket.send_multipart(self._frames, copy=False)
        self._socket.recv_multipart(copy=False)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def observe_echo(address: str, workload: Workload, reply: Stacks) -> Echo:
    fields = dict(episode(workload, QUERY_LANES)[1].__dict__)
    request = Observe(table=TABLE, writer="echo", incarnation=1, sequence=1, **fields)
    return Echo(address, request, reply)


# size and memory ----------------------------------------------------------------------------------

TINY = Workload("tiny", (), "<f4", 4, 0)


class InProcess:
    """A table in this process, filled by appending whole episodes of 40 lanes."""

    def __init__(self, workload: Workload, rows: int, sampler: str, share: bool = False) -> None:
        spec = TableSpec(
            signature=workload.signature, capacity_steps=rows, sampler=SamplerSpec(kind=sampler)
        )
        memory = Memory(spec.signature, make_columns(spec.signature, rows, share))
        self.table = Table(spec, memory, np.random.default_rng(0))
        self.sample = Sample(table=TABLE, batch_size=BATCH_SIZE, importance_exponent=0.4)
        parts = episode(workload, LANES)
        whole = sum(parts[1:], parts[0]).__dict__
        memory.open_writer("filler", 1, LANES)
        for sequence in range(1, rows // len(whole["lane"]) + 2):
            request = Observe(
                table=TABLE, writer="filler", incarnation=1, sequence=sequence, stacks=False, **whole
            )
            memory.observe(request, 0.0)
        self.draw()

    def draw(self) -> None:
        assert self.table.sample(self.sample) is not None


def measure_size(options: argparse.Namespace) -> Figures:
    figures = {}
    for sampler in ("uniform", "prioritized"):
        small, large = (InProcess(TINY, rows, sampler) for rows in (100_000, 10_000_000))
        times = in_turn({"small": small.draw, "large": large.draw}, options)
        figures[sampler] = {
            "us_at_100_thousand": spread(times["small"], 1),
            "us_at_10_million": spread(times["large"], 1),
            "ratio": ratios(times["large"], times["small"]),
        }
        del small, large
    return figures


def measure_memory(options: argparse.Namespace) -> Figures:
    return {
        f"{name}, {sampler}": beside_frames(name, rows, sampler)
        for name, rows in (("vector", 1_000_000), ("pixels", 100_000))
        for sampler in ("uniform", "prioritized")
    }


def beside_frames(name: str, rows: int, sampler: str) -> Figures:
    """Measure in a process of its own, where the frames lie in shared memory and all else does not."""
    script = f"import bench_engine; bench_engine.print_memory({name!r}, {rows}, {sampler!r})"
    ran = subprocess.run([sys.executable, "-c", script], cwd=HERE, stdout=subprocess.PIPE, check=True)
    beside = int(ran.stdout)
    frames = rows * WORKLOADS[name].signature.frame_nbytes
    return {
        "rows": rows,
        "bytes_a_row_beside_frames": round(beside / rows, 1),
        "share_of_frames": round(beside / frames, 4),
    }


def print_memory(name: str, rows: int, sampler: str) -> None:
    workload = WORKLOADS[name]
    warm = InProcess(workload, 4_000, sampler, share=True)
    before = private_bytes()
    filled = InProcess(workload, rows, sampler, share=True)
    print(private_bytes() - before)
    del warm, filled


def private_bytes() -> int:
    """Return the memory of this process that it shares with nobody, without what was freed."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status") as status:
        found = next(line for line in status if line.startswith("RssAnon"))
    return int(found.split()[1]) * 1024


# writers ------------------------------------------------------------------------------------------


def measure_writers(options: argparse.Namespace) -> Figures:
    workload = WORKLOADS["vector"]
    rates: dict[int, list[float]] = {count: [] for count in MANY_WRITERS}
    poorest: list[float] = []
    for _ in range(options.rounds):
        for count in MANY_WRITERS:
            written = written_by(workload, count, options.seconds)
            rates[count].append(sum(written) / options.seconds)
            if count == max(MANY_WRITERS):
                poorest.append(min(written) * count / sum(written))
    best = max(MANY_WRITERS, key=lambda count: statistics.median(rates[count]))
    return {
        "steps_per_s": {str(count): spread(values, 0) for count, values in rates.items()},
        "best_count": best,
        "share_of_the_best_count": ratios(rates[max(MANY_WRITERS)], rates[best]),
        "poorest_of_an_even_share": spread(poorest),
    }


def written_by(workload: Workload, count: int, seconds: float) -> list[int]:
    """Return the steps that each of so many writers, of 8 lanes each, writes."""
    script = "import bench_engine, sys; bench_engine.write_in_threads(*sys.argv[1:])"
    with a_server("ipc", workload) as address:
        processes = min(count, 8)
        running = [
            subprocess.Popen(
                [sys.executable, "-c", script, address, str(at), str(count // processes), str(seconds)],
                cwd=HERE,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for at in range(processes)
        ]
        for one in running:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        return [int(word) for one in running for word in one.communicate()[0].split()]


def write_in_threads(address: str, number: str, threads: str, seconds: str) -> None:
    """Be one process of writers, each of them a thread with a socket of its own."""
    written = [0] * int(threads)
    go, ready = threading.Event(), threading.Barrier(int(threads) + 1)

    def write(at: int) -> None:
        with Client.connect(address, memory="mapped") as client:
            workload = WORKLOADS["vector"]
            rows = Rows(client, workload, f"{number}.{at}", QUERY_LANES)
            rows.write()
            ready.wait()
            go.wait()
            end = time.perf_counter() + float(seconds)
            while time.perf_counter() < end:
                written[at] += rows.write()

    running = [threading.Thread(target=write, args=(at,)) for at in range(int(threads))]
    for one in running:
        one.start()
    ready.wait()
    print("ready", flush=True)
    sys.stdin.readline()
    go.set()
    for one in running:
        one.join()
    print(*written)


# start --------------------------------------------------------------------------------------------


def measure_start(options: argparse.Namespace) -> Figures:
    return {"seconds_to_first_answer": spread([start_s() for _ in range(options.rounds)])}


def start_s() -> float:
    """Return the seconds from the start of `fornix replay` to the first answer of a large table."""
    workload = Workload("vector", (150,), "<f4", 5, 1_000_000)
    with tempfile.TemporaryDirectory(prefix="fx-") as folder:
        address = f"ipc://{folder}/r"
        began = time.perf_counter()
        command = [sys.executable, "-m", "fornix", "replay", "--address", address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            with Client.connect(address, give_up_after_s=60.0) as client:
                client.create_table(TABLE, workload.spec())
                Rows(client, workload, "w", QUERY_LANES).write()
            taken = time.perf_counter() - began
            server.kill()
    return taken


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "gather": measure_gather,
    "write": measure_write,
    "query": measure_query,
    "size": measure_size,
    "memory": measure_memory,
    "writers": measure_writers,
    "start": measure_start,
}


def lines(figures: Figures, indent: str = "") -> list[str]:
    """Return figures as text, a line each."""
    found = []
    for name, value in figures.items():
        label = name.replace("_", " ")
        if isinstance(value, dict) and "median" in value:
            found.append(f"{indent}{label}: {value['median']:,} ({value['min']:,} to {value['max']:,})")
        elif isinstance(value, dict):
            found += [f"{indent}{label}", *lines(value, indent + "  ")]
        else:
            found.append(f"{indent}{label}: {value}")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    figures: Figures = {"cpus": os.cpu_count(), "rounds": options.rounds}
    out = sys.stderr if options.json == "-" else sys.stdout
    print(*lines(figures), sep="\n", file=out)
    for part in options.only:
        figures[part] = PARTS[part](options)
        print(*lines({part: figures[part]}), sep="\n", file=out, flush=True)
    if options.json:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
