"""How fast the replay server answers: stacks for actors, batches for a learner.

The server is a process of its own, the client is this one, and ipc is between them. Each figure is
taken in rounds, in turn with the floor that it can't go below: a bare ROUTER/DEALER echo of the same
bytes, and an `np.take` of the same frames in one process. On a noisy machine only the ratios count.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from fornix.commands.shared import write_json
from fornix.common.messages import Observe, TableSpec
from fornix.common.signature import ArraySpec, Signature
from fornix.common.wire import encode
from fornix.replay.client import Client, Pending, Transitions, Writer
from fornix.replay.role import serve
from fornix.replay.steps import Steps

LANES = (8, 80)
FRAME_ITEMS, N_FRAMES, N_STEP, BATCH_SIZE, IN_FLIGHT = 100, 5, 3, 256, 2
EPISODE_STEPS = 50
HEADER_BYTES = 100  # about what an answer with stacks has
TABLE = "bench"
SIGNATURE = Signature(
    frame=ArraySpec.of((FRAME_ITEMS,), np.uint8),
    action=ArraySpec.of((), np.int32),
    n_frames=N_FRAMES,
)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="times each figure is taken")
    parser.add_argument("--requests", type=int, default=300, help="round trips of each kind in a round")
    parser.add_argument("--batches", type=int, default=300, help="batches drawn in a round")
    parser.add_argument("--capacity-steps", type=int, default=100_000, help="steps in the ring")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args(arguments)
    for name in ("rounds", "requests", "batches", "capacity_steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return options


def echo(address: str) -> None:
    """Answer [size, *anything] with a header and a frame of that size."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(address)
        while True:
            client, size, *_ = router.recv_multipart(copy=False)
            router.send_multipart([client, bytes(HEADER_BYTES), bytes(int(size.bytes))], copy=False)


@contextlib.contextmanager
def process(target: Callable[[str], None], address: str) -> Iterator[None]:
    running = multiprocessing.get_context("spawn").Process(target=target, args=(address,), daemon=True)
    running.start()
    try:
        yield
    finally:
        running.kill()
        running.join()


class Lanes:
    """A writer whose lanes step together, one episode after another; one request at a time."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self._count = 0
        numbers = np.arange(writer.lanes)
        frame = np.random.default_rng(0).integers(0, 2, (writer.lanes, FRAME_ITEMS), np.uint8)
        zeros, no = np.zeros(writer.lanes), np.zeros(writer.lanes, np.bool_)
        action, reward = zeros.astype(np.int32), zeros.astype(np.float32)
        self._first = Steps.first(SIGNATURE, numbers, frame)
        self.middle = Steps.after_actions(numbers, action, reward, frame, no, no)
        self._last = Steps.after_actions(numbers, action, reward, frame, no, ~no)

    def write(self) -> None:
        """Write one step of every lane, and wait for the stacks."""
        at = self._count % EPISODE_STEPS
        steps = self._first if at == 0 else self._last if at == EPISODE_STEPS - 1 else self.middle
        self.writer.observe(steps).result()
        self._count += 1


class Echo:
    """Sends what an `observe` sends, and takes as many bytes as its answer has."""

    def __init__(self, address: str, steps: Steps) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(address)
        request = Observe(table=TABLE, writer="echo", incarnation=1, sequence=1, **steps.__dict__)
        self._frames = [b"%d" % (steps.frame.nbytes * N_FRAMES), *encode(request, 1)]

    def send(self) -> None:
        """Make one round trip."""
        self._socket.send_multipart(self._frames, copy=False)
        self._socket.recv_multipart(copy=False)

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def times_us(action: Callable[[], None], count: int) -> NDArray[np.float64]:
    """Return the microseconds that each of `count` calls took."""
    marks = [time.perf_counter()]
    for _ in range(count):
        action()
        marks.append(time.perf_counter())
    return np.diff(marks) * 1e6


def spread(values: list[float], digits: int = 2) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def measure_observe(
    client: Client, echo_address: str, lanes: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Return microseconds of a round trip, beside those of an echo of the same bytes."""
    vector = Lanes(client.open_writer(TABLE, f"lanes-{lanes}", lanes))
    bare = Echo(echo_address, vector.middle)
    observe: list[NDArray[np.float64]] = []
    echoed: list[NDArray[np.float64]] = []
    for warming_up in (vector.write, bare.send):
        times_us(warming_up, 50)
    for _ in range(options.rounds):
        observe.append(times_us(vector.write, options.requests))
        echoed.append(times_us(bare.send, options.requests))
    bare.close()
    ratios = [float(np.median(one) / np.median(other)) for one, other in zip(observe, echoed, strict=True)]
    rates = [lanes * options.requests / (one.sum() / 1e6) for one in observe]
    return {
        "observe_us_median": round(float(np.median(observe)), 1),
        "observe_us_p90": round(float(np.percentile(observe, 90)), 1),
        "echo_us_median": round(float(np.median(echoed)), 1),
        "echo_us_p90": round(float(np.percentile(echoed, 90)), 1),
        "observe_to_echo_ratio": spread(ratios),
        "steps_written_per_s": spread(rates, 0),
    }


def fill(client: Client, options: argparse.Namespace) -> None:
    """Fill the ring, and draw once: from then on the server keeps the starts of N_STEP up to date."""
    vector = Lanes(client.open_writer(TABLE, "filler", max(LANES)))
    while client.info().tables[TABLE]["steps"] < options.capacity_steps:
        for _ in range(100):
            vector.write()
    samples_per_s(client, 50)


def measure_sample(client: Client, options: argparse.Namespace) -> dict[str, Any]:
    """Return samples/s over the socket, beside an `np.take` of as many frames in this process."""
    frames = np.random.default_rng(0).integers(0, 2, (options.capacity_steps, FRAME_ITEMS), np.uint8)
    drawn: list[float] = []
    taken: list[float] = []
    for _ in range(options.rounds):
        drawn.append(samples_per_s(client, options.batches))
        taken.append(takes_per_s(frames, options.batches))
    return {
        "batch_size": BATCH_SIZE,
        "n_step": N_STEP,
        "requests_in_flight": IN_FLIGHT,
        "batch_kilobytes": round(BATCH_SIZE * (N_FRAMES + N_STEP) * FRAME_ITEMS / 1e3),
        "samples_per_s": spread(drawn, 0),
        "take_floor_samples_per_s": spread(taken, 0),
        "share_of_take_floor": spread([one / other for one, other in zip(drawn, taken, strict=True)], 3),
    }


def samples_per_s(client: Client, batches: int) -> float:
    def ask() -> Pending[Transitions]:
        return client.sample(TABLE, BATCH_SIZE, n_step=N_STEP)

    flying = deque(ask() for _ in range(IN_FLIGHT))
    began = time.perf_counter()
    for _ in range(batches):
        transitions = flying.popleft().result()
        flying.append(ask())
        assert transitions.next_stack.shape == (BATCH_SIZE, N_FRAMES, FRAME_ITEMS)
    rate = batches * BATCH_SIZE / (time.perf_counter() - began)
    for pending in flying:
        pending.result()
    return rate


def takes_per_s(frames: NDArray[np.uint8], batches: int) -> float:
    rng = np.random.default_rng(0)
    window = np.arange(N_FRAMES + N_STEP)
    began = time.perf_counter()
    for _ in range(batches):
        starts = rng.integers(0, len(frames) - len(window), BATCH_SIZE)
        np.take(frames, starts[:, None] + window, axis=0)
    return batches * BATCH_SIZE / (time.perf_counter() - began)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fx-") as folder:
        replay_address, echo_address = f"ipc://{folder}/r", f"ipc://{folder}/e"
        with (
            process(serve, replay_address),
            process(echo, echo_address),
            Client.connect(replay_address, give_up_after_s=30.0) as client,
        ):
            client.create_table(
                TABLE, TableSpec(signature=SIGNATURE, capacity_steps=options.capacity_steps)
            )
            fill(client, options)
            return {
                "cpus": os.cpu_count(),
                "rounds": options.rounds,
                "frame": str(SIGNATURE.frame),
                "n_frames": N_FRAMES,
                "observe": {
                    f"lanes_{lanes}": measure_observe(client, echo_address, lanes, options)
                    for lanes in LANES
                },
                "sample": measure_sample(client, options),
            }


def describe(figures: dict[str, Any]) -> str:
    lines = [f"{figures['cpus']} CPUs, frames of {figures['frame']}, {figures['n_frames']} in a stack"]
    for name, observe in figures["observe"].items():
        lines.append(
            "observe, {lanes} lanes: {observe_us_median:.0f} µs ({observe_us_p90:.0f} p90); bare echo "
            "{echo_us_median:.0f} µs ({echo_us_p90:.0f} p90); ratio {median} ({min} to {max}); "
            "{rate:,.0f} steps/s written".format(
                lanes=name.removeprefix("lanes_"),
                rate=observe["steps_written_per_s"]["median"],
                **observe["observe_to_echo_ratio"],
                **observe,
            )
        )
    sample = figures["sample"]
    lines.append(
        "sample, batch {batch_size}, n-step {n_step}, {requests_in_flight} in flight: "
        "{rate:,.0f} samples/s; np.take in one process {floor:,.0f}; share {share[median]} "
        "({share[min]} to {share[max]})".format(
            rate=sample["samples_per_s"]["median"],
            floor=sample["take_floor_samples_per_s"]["median"],
            share=sample["share_of_take_floor"],
            **sample,
        )
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    figures = measure(options)
    print(describe(figures), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        write_json(options.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
