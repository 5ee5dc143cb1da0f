"""The promise: what a learner trains on is, byte for byte, what an actor acted on; and nothing is lost."""

import collections
import contextlib
import importlib.util
import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fornix.actor.role import act
from fornix.common.config import RunConfig
from fornix.common.errors import EvictedError
from fornix.common.messages import Sample
from fornix.common.specs import Episode, Sequence, Transition
from fornix.common.transport import ZmqTransport
from fornix.replay.client import Client

from . import known_steps
from .known_steps import CAPACITY, TABLE, check, stack_of
from .programs import a_program, a_server

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "verify_stacks.py"
SHAPE, DTYPE = (3, 2), np.uint8


@pytest.fixture(scope="module")
def verify_stacks():
    """The checker, as a module."""
    spec = importlib.util.spec_from_file_location("verify_stacks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.system
def test_fault_0_2_every_sampled_stack_is_byte_for_byte_one_that_an_actor_acted_on():
    """The short form of `make verify-stacks`: on both paths, a real run of three actors and a learner."""
    wanted = 15_000
    done = subprocess.run(
        [sys.executable, SCRIPT, "--stacks", str(wanted), "--deadline-s", "50", "--json", "-"],
        capture_output=True,
        text=True,
        timeout=115,
    )
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    assert both.keys() == {"mapped", "socket"}
    for path, counts in both.items():
        assert counts["paths"] == [path]
        assert counts["compared"] >= wanted
        assert counts["different"] == 0
        assert counts["never_acted_on"] == 0
        assert counts["ring_wraps"] > 1
        assert counts["actors"] == 3


class Counted(ZmqTransport):
    """Counts the draws that are sent, by whether they ask for places, and are in place of lost samples."""

    def __init__(self, address):
        super().__init__(address)
        self.draws = collections.Counter()

    def send(self, request):
        if isinstance(request, Sample):
            self.draws[request.mapped, request.refill] += 1
        return super().send(request)


class Overtaken:
    """A reader of a ring that other processes write to as fast as they can; it lets itself be overtaken."""

    def __init__(self, client, wait_until):
        self._client, self._wait_until = client, wait_until
        wait_until(lambda: TABLE in client.list_tables() and self.head() > 2 * CAPACITY, "a full ring")
        self._began = self.head()

    def head(self):
        return self._client.info().tables[TABLE]["steps_ever"]

    def wraps(self):
        """How often the ring has wrapped so far."""
        return (self.head() - self._began) / CAPACITY

    def wait(self, is_there):
        """Wait until an answer has come, and then until every row that it may refer to is overwritten."""
        self._wait_until(is_there, "an answer")
        head = self.head()
        self._wait_until(lambda: self.head() >= head + CAPACITY, "the ring to wrap")

    def fetch_ahead(self, batches, wraps):
        """Draw so many; the last two stay as they are, the ring wraps so often between answer and copy."""
        with self._client.batches(
            TABLE, 32, Transition(n_step=3), discount=1.0, in_flight=3, keep=2
        ) as drawn:
            before = next(drawn)
            for turn, _ in enumerate(range(batches)):
                if turn % (batches // wraps) == 0:
                    self.wait(drawn.ready)
                batch = next(drawn)
                check(batch)
                check(before)
                before = batch

    def draw(self, units, wraps):
        """Draw one by one, as often from each kind of unit."""
        client, common = self._client, {"table": TABLE, "batch_size": 16, "discount": 1.0}
        for turn in range(units):
            for pending in (
                client.sample(unit=Transition(n_step=2), **common),
                client.sample(unit=Sequence(length=5, overlap=2), **common),
                client.sample(unit=Episode(), **common),
            ):
                if turn % (units // wraps) == 0:
                    self.wait(pending.done)
                check(pending.result())

    def look_up(self, queries):
        """Ask for the newest stacks of a batch by their keys, until they were there so often."""
        found, deadline = 0, itertools.count()
        while found < queries:
            assert next(deadline) < 20 * queries, f"only {found} of {queries} queries were answered"
            batch = self._client.sample(TABLE, 64, discount=1.0).result()
            newest = np.argsort(batch.key)[-8:]
            with contextlib.suppress(EvictedError):
                stacks = self._client.stacks(TABLE, batch.key[newest]).stack
                assert np.array_equal(stacks, stack_of(batch.extras["who"][newest]))
                found += 1


@pytest.mark.system
@pytest.mark.parametrize("memory", ["mapped", "socket"])
def test_every_stack_is_the_one_that_was_written_while_the_ring_wraps_under_its_reader(
    memory, ipc_address, wait_until
):
    """Thousands of draws, of which hardly one could be copied before rows of it were overwritten."""
    with (
        a_server(ipc_address),
        a_program(known_steps.__file__, ipc_address, memory) as writers,
        Client(transport := Counted(ipc_address), memory=memory) as client,
    ):
        reader = Overtaken(client, wait_until)
        reader.fetch_ahead(batches=800, wraps=20)
        reader.draw(units=40, wraps=5)
        reader.look_up(queries=50)
        assert client.memory_path(TABLE) == memory
        assert {w["memory"] for w in client.info().tables[TABLE]["writers"].values()} == {memory}
        wraps = reader.wraps()
        writers.stdin.close()
        assert json.loads(writers.stdout.read())["compared"] > 20 * CAPACITY
        assert writers.wait(10) == 0
    assert wraps >= 20
    refills = {mapped: transport.draws[mapped, True] for mapped in (True, False)}
    if memory == "mapped":
        assert refills[True] >= 200  # 35 at least; the other rows were overtaken by the mere speed
    else:
        assert transport.draws.keys() == {(False, False)}


def record(verify_stacks, folder):
    """Write down a run of which all is well: two actors, and a learner that drew from what they did."""
    rng = np.random.default_rng(0)
    stacks = rng.integers(0, 256, (200, *SHAPE), DTYPE)
    drawn = rng.integers(0, 200, 500)
    for name, keys in (
        ("acted-0", np.arange(0, 200, 2)),
        ("acted-1", np.arange(1, 200, 2)),
        ("sampled", drawn),
        ("followed", np.minimum(drawn + 3, 199)),
    ):
        recorder = verify_stacks.Recorder(folder / name)
        recorder.write(keys, stacks[keys])
        recorder.close() if hasattr(recorder, "close") else recorder._file.close()
    return drawn


def rewrite(verify_stacks, file, change):
    rows = np.fromfile(file, verify_stacks.row_dtype(SHAPE, DTYPE))
    change(rows)
    rows.tofile(file)


def test_the_checker_finds_nothing_where_nothing_is_wrong(verify_stacks, tmp_path):
    record(verify_stacks, tmp_path)
    counts = verify_stacks.compare(tmp_path, SHAPE, DTYPE)
    assert counts == {"acted": 200, "compared": 1000, "different": 0, "never_acted_on": 0}


@pytest.mark.parametrize("file", ["sampled", "followed"])
def test_the_checker_sees_one_byte_that_differs(file, verify_stacks, tmp_path):
    record(verify_stacks, tmp_path)

    def flip(rows):
        rows["stack"][17, 2, 1] ^= 1

    rewrite(verify_stacks, tmp_path / file, flip)
    counts = verify_stacks.compare(tmp_path, SHAPE, DTYPE)
    assert (counts["compared"], counts["different"], counts["never_acted_on"]) == (1000, 1, 0)


def test_the_checker_sees_a_byte_that_differs_in_what_was_acted_on(verify_stacks, tmp_path):
    drawn = record(verify_stacks, tmp_path)
    key = int(drawn[0]) // 2 * 2

    def flip(rows):
        rows["stack"][key // 2, 0, 0] ^= 128

    rewrite(verify_stacks, tmp_path / "acted-0", flip)
    followed = np.minimum(drawn + 3, 199)
    expected = np.count_nonzero(drawn == key) + np.count_nonzero(followed == key)
    assert expected > 0
    assert verify_stacks.compare(tmp_path, SHAPE, DTYPE)["different"] == expected


def test_the_checker_sees_a_stack_that_nobody_acted_on(verify_stacks, tmp_path):
    record(verify_stacks, tmp_path)

    def lose(rows):
        rows["key"][5] = 1_000_000

    rewrite(verify_stacks, tmp_path / "sampled", lose)
    counts = verify_stacks.compare(tmp_path, SHAPE, DTYPE)
    assert (counts["compared"], counts["never_acted_on"]) == (999, 1)
    # an episode's last stack is bootstrapped from, but nobody acts on it
    rewrite(verify_stacks, tmp_path / "followed", lose)
    counts = verify_stacks.compare(tmp_path, SHAPE, DTYPE)
    assert (counts["compared"], counts["never_acted_on"]) == (998, 1)


def test_fault_0_1_nothing_but_the_table_remembers_and_no_episode_clears_it(ipc_address, serve, wait_until):
    """An actor plays several episodes in each copy; every stack it ever acted on is still the table's."""
    config = RunConfig.model_validate(
        {
            "environment": {"height": 6, "width": 6, "agents": 2, "max_turns": 8},
            "network": {"width": 16},
            # nobody trains: below its minimum size the limiter holds nothing back
            "replay": {"address": ipc_address, "n_frames": 4, "min_size": 100_000},
            "weights": {"addresses": [f"{ipc_address}-weights"]},
            "actor": {"processes": 1, "copies": 4},
        }
    )
    seen, stop, threads = [], threading.Event(), torch.get_num_threads()
    actor = threading.Thread(target=act, args=(config, 0, stop, seen.append))
    with serve(ipc_address), Client.connect(ipc_address) as client:
        actor.start()
        try:
            wait_until(lambda: len(seen) >= 2 * (8 * 5 + 1), "five episodes in both halves", 30)
        finally:
            stop.set()
            actor.join(10)
        torch.set_num_threads(threads)
        table = client.info().tables["shared"]
        assert table["episodes"] >= 5 * 4 * 2
        assert table["steps"] == table["steps_ever"] == table["inserts"] + table["episodes"] + 4 * 2
        turns = {}
        for stacks in seen:
            again = client.stacks("shared", stacks.key)
            assert again.stack.tobytes() == stacks.stack.tobytes()
            turns |= dict(zip(stacks.key.tolist(), stacks.stack, strict=True))
        # an episode begins with zeros before its first frame, whatever came before in its lane
        firsts = [stack for stack in turns.values() if not stack[:-1].any()]
        assert len(firsts) >= 5 * 4 * 2
