"""Reverb's driver: its server, its writer and its sampler (this process) are processes of their own.

sample_uniform and sample_prioritized (each batch's keys get new priorities before the next batch is taken)
count samples in whole batches, as NumPy arrays; write counts steps which the server has confirmed, of one
writer; sample_uniform_while_writing has both. What was fetched ahead is used up before a clock runs.

What --explore tried, on two noisy cores (best of two rounds, in thousand samples/s out and steps/s in; of
vector, then of pixels):

  form, StructuredWriter    out        in         form, TrajectoryWriter    out        in
  frames                    23   12    23   20    frames                    19   11     7    7
  stacks                    21    9    24   11    stacks                    31   13     9    6
  transitions               46   21    17    6    transitions               21   12     6    5
  windows                   59   21    25   14    windows                   30   22     8    7
  record                    88   41    35   18    record                    52   40    16    9

Each column of an item is a chunk of its own to fetch and to unpack, so one column wins, and one chunk an
item. For pixels "frames" writes as fast as "record", and samples a quarter as fast. Chunks of 2, 3, 6 or as
many as Reverb likes gain "frames" a fifth at best. Four writers in one process, or 8 unconfirmed items in
place of 32 or more, lose. All the datasets come to the same within the noise (the medians of five rounds in
turn are 0.65 to 1.06 of the one chosen); Client.sample comes to a twentieth. A TF client sends priorities
as fast as a client. 0.14 has neither a flexible_batch_size nor a way to turn compression off.
"""

import dataclasses
import functools
import itertools
import json
import os
import time

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "GRPC_VERBOSITY": "ERROR"}

import protocol
import reverb_store
import tensorflow as tf
from protocol import Child, Lines, Message
from reverb_sampler import Sampler
from reverb_store import Settings

BEST = {"vector": Settings(), "pixels": Settings()}
SAMPLERS = [
    {"workers": 1, "in_flight": 512},
    {"workers": 2, "in_flight": 64},
    {"workers": 2, "in_flight": 256},
    {"workers": 4, "in_flight": 64},
    {"workers": 4, "in_flight": 128},
    {"workers": 4, "in_flight": 256},
    {"workers": 8, "in_flight": 64},
    {"workers": -1, "in_flight": 512},
    {"prefetch": 2},
    {"sampler": "parallel"},
    {"sampler": "interleave", "workers": -1, "in_flight": 512},
    {"sampler": "interleave", "workers": 2, "in_flight": 128},
    {"sampler": "timestep"},
    {"sampler": "client"},
    {"update": "client"},
    {"update": "tf"},
]
STORES = [
    *({"form": form, "writer": "structured"} for form in reverb_store.FORMS),
    {"lanes": 4},
    {"unconfirmed": 8},
    {"unconfirmed": 200},
    *({"form": form, "writer": "trajectory"} for form in reverb_store.FORMS),
    *({"form": "frames", "writer": "trajectory", "chunk": chunk} for chunk in (0, 2, 3, 6)),
    {"form": "stacks", "writer": "trajectory", "chunk": 2},
]


class Peer:
    """A filled server, its writer and two samplers; all of them rest between measures."""

    def __init__(self, workload: str, capacity: int, settings: Settings, started: list[Child]) -> None:
        self._common = ("--workload", workload, "--capacity", str(capacity))
        self._common += ("--settings", json.dumps(dataclasses.asdict(settings)))
        server = self._start(started, "--role", "server")
        self._address, empty = f"localhost:{server.ready['port']}", server.memory_bytes()
        self._writer = self._start(started, "--role", "writer", "--address", self._address)
        self.memory_bytes = server.memory_bytes() - empty  # what is in both tables is held once
        self._workload = protocol.WORKLOADS[workload]
        self.choose(settings)

    def _start(self, started: list[Child], *role: str) -> Child:
        started.append(Child(__file__, *self._common, *role))
        return started[-1]

    def choose(self, settings: Settings) -> None:
        """Sample with these settings from now on."""
        self._samplers = {
            table: Sampler(self._address, table, self._workload, settings) for table in reverb_store.TABLES
        }

    def sample(self, table: str, seconds: float) -> Message:
        sampler = self._samplers[table]
        sampler.use_up()
        return protocol.timed(sampler.step, seconds)

    def write(self, seconds: float) -> Message:
        start = self._writer.ask(write=True)
        time.sleep(seconds)
        return steps_between(start, self._writer.ask(stop=True))

    def sample_while_writing(self, seconds: float) -> Message:
        sampler = self._samplers["uniform"]
        self._writer.ask(write=True)
        sampler.use_up()
        start = self._writer.ask(count=True)
        sampled = protocol.timed(sampler.step, seconds)
        written = steps_between(start, self._writer.ask(count=True))
        self._writer.ask(stop=True)
        return {**sampled, "written": written["value"], "written_unit": "steps/s"}

    def measures(self) -> dict[str, protocol.Measure]:
        return {
            "sample_uniform": functools.partial(self.sample, "uniform"),
            "sample_uniform_while_writing": self.sample_while_writing,
            "sample_prioritized": functools.partial(self.sample, "prioritized"),
            "write": self.write,
        }


def steps_between(first: Message, last: Message) -> Message:
    steps, seconds = last["steps"] - first["steps"], last["at"] - first["at"]
    return {"value": round(steps / seconds, 1), "steps": steps, "seconds": round(seconds, 4)}


def try_store(workload: str, capacity: int, seconds: float, change: Message) -> Message:
    with protocol.children() as started:
        peer = Peer(workload, capacity, dataclasses.replace(BEST[workload], **change), started)
        found = {name: peer.measures()[name](seconds)["value"] for name in ("write", "sample_uniform")}
        return {"memory_bytes": peer.memory_bytes, **found}


def try_sampler(peer: Peer, workload: str, seconds: float, change: Message) -> Message:
    peer.choose(dataclasses.replace(BEST[workload], **change))
    name = "sample_prioritized" if "update" in change else "sample_uniform"
    try:
        return {name: peer.measures()[name](seconds)["value"]}
    except (ValueError, tf.errors.OpError) as error:
        return {"error": str(error)[:200]}


def explore(lines: Lines, workload: str, capacity: int, seconds: float) -> None:
    """Print what each of the settings gives, in each of two rounds."""
    with protocol.children() as started:
        peer = Peer(workload, capacity, BEST[workload], started)
        for number, change in itertools.product(range(2), SAMPLERS):
            lines.send(round=number, settings=change, **try_sampler(peer, workload, seconds, change))
    for number, change in itertools.product(range(2), STORES):
        lines.send(round=number, settings=change, **try_store(workload, capacity, seconds, change))


def main() -> None:
    parser = protocol.parser(__doc__ or "")
    parser.add_argument("--role", choices=("driver", "server", "writer"), default="driver")
    parser.add_argument("--address", help="the server's, for the writer")
    options = parser.parse_args()
    lines = Lines.standard()
    protocol.die_with_parent()
    workload = protocol.WORKLOADS[options.workload]
    capacity = options.capacity or workload.capacity
    settings = dataclasses.replace(BEST[options.workload], **options.settings)
    if options.role == "server":
        reverb_store.serve(lines, workload, settings, capacity)
    elif options.role == "writer":
        reverb_store.write(lines, workload, settings, capacity, options.address)
    elif options.explore:
        explore(lines, options.workload, capacity, options.seconds)
    else:
        with protocol.children() as started:
            peer = Peer(options.workload, capacity, settings, started)
            lines.send(
                ready=True,
                versions=protocol.versions("dm-reverb", "tensorflow", "numpy"),
                settings={"chosen": dataclasses.asdict(settings), "tried": [*SAMPLERS, *STORES]},
                memory_bytes=peer.memory_bytes,
            )
            protocol.answer_requests(lines, peer.measures())
        os._exit(0)  # TensorFlow takes seconds to find that the server is gone


if __name__ == "__main__":
    main()
