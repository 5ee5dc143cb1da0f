"""Stacks that a client makes itself, out of a real service's memory: the same that it would be sent."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fornix.common import trees
from fornix.common.errors import (
    EvictedError,
    InvalidRequestError,
    UnknownTableError,
    UnreachableError,
)
from fornix.common.messages import MAX_BATCH, CreateTable, OpenWriter, Refused, StackQuery
from fornix.common.signature import ArraySpec
from fornix.common.specs import TableSpec
from fornix.replay.client import Client
from fornix.replay.steps import Steps
from fornix.replay.storage import HEADER_NBYTES

from .builders import CUT, END, F, M, observe, signature, spec
from .desk import Desk, Recorder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")

NESTED = {
    "eye": ArraySpec.of((3, 2), np.uint8),
    "body": (ArraySpec.of((), np.float64), {"arm": ArraySpec.of((2,), np.int16)}),
}
LANES = 4
GONE = 2**63 - 1
PATIENCE_S = 20.0


class World:
    """A service that shares its memory, a table `t`, and clients of it on both ways."""

    def __init__(self, capacity=40, like=None, lanes=LANES):
        self.like = like or signature()
        self.desk = Desk(share=True)
        self.sequence = 0
        self.create(capacity, lanes)
        self._transport = Recorder(self.desk.service)
        self.mapped = Client(self._transport, memory="mapped")
        self.sent = Client(Recorder(self.desk.service), memory="socket")

    def create(self, capacity, lanes=LANES, name="t", **fields):
        made = TableSpec(signature=self.like, capacity_steps=capacity, **fields)
        self.desk.ask(CreateTable(table=name, spec=made))
        if "rows_of" not in fields:
            self.sequence = 0
            self.desk.ask(OpenWriter(table=name, writer="w", incarnation=1, lanes=lanes))

    @property
    def ring(self):
        return self.desk.service._catalog["t"].table.memory.ring

    def write(self, *rows, table="t"):
        self.sequence += 1
        reply = self.desk.ask(observe(self.sequence, rows, table=table, like=self.like, stacks=False))
        assert not isinstance(reply, Refused), reply

    def queries(self):
        """Return the keys that the client with the mapped memory has asked the server for."""
        return [request.key.tolist() for request in self._transport.sent if isinstance(request, StackQuery)]

    def close(self):
        self.mapped.close()
        self.desk.service.close()


@pytest.fixture
def world():
    """Return a function that makes worlds, and end them."""
    with contextlib.ExitStack() as stack:

        def make(*args, **options):
            made = World(*args, **options)
            stack.callback(made.close)
            return made

        yield make


class Wandering:
    """Rows of lanes that take turns in ever another order; their episodes have any length, one row too."""

    def __init__(self, seed, lanes=LANES, begin=0):
        self._random = np.random.default_rng(seed)
        self._open = [False] * lanes
        self._turns = []
        self._value = begin

    def row(self):
        if not self._turns:
            self._turns = self._random.permutation(len(self._open)).tolist()
        lane = self._turns.pop()
        kind = (M, END, CUT)[self._random.choice(3, p=[0.8, 0.1, 0.1])] if self._open[lane] else F
        self._open[lane] = kind in (F, M)
        self._value += 1
        return lane, kind, self._value

    def rows(self, count):
        return [self.row() for _ in range(count)]


def raw(tree):
    """Return the arrays of stacks, by path, as their forms and their bytes, stack by stack."""
    return {
        path: (array.dtype.str, array.shape[1:], [stack.tobytes() for stack in array])
        for path, array in trees.leaves(tree).items()
    }


@pytest.mark.parametrize("frame", [ArraySpec.of((2,), np.int32), NESTED], ids=["flat", "nested"])
@pytest.mark.parametrize("n_frames", [1, 2, 5])
@pytest.mark.parametrize(("capacity", "rows"), [(41, 7), (520, 90)], ids=["no guard", "guard"])
def test_they_are_those_of_the_server_for_all_steps_that_it_has(world, frame, n_frames, capacity, rows):
    one = world(capacity, signature(n_frames, frame=frame))
    wandering, remembered, in_guard = Wandering(n_frames), {}, 0
    for _ in range(4 * capacity // rows):  # several times round
        one.write(*wandering.rows(rows))
        ring = one.ring
        live = []
        for key in range(ring.tail, ring.head):
            with contextlib.suppress(EvictedError):
                remembered[key] = raw(one.sent.stacks("t", np.array([key])).stack)
                live.append(key)
        keys = np.random.default_rng(ring.head).permutation(live)
        asked = one.queries()
        found, sent = one.mapped.stacks("t", keys), one.sent.stacks("t", keys)
        assert found.key.tolist() == keys.tolist()
        assert raw(found.stack) == raw(sent.stack)
        assert type(found.stack) is type(sent.stack)
        assert one.queries() == asked  # of which the server never heard
        # what the server refuses may be there still, until it is overwritten: then with the same bytes
        for key in sorted(set(range(ring.head - capacity - 3, ring.head)) - set(live)):
            try:
                stack = one.mapped.stacks("t", np.array([key])).stack
            except EvictedError:
                continue
            in_guard += 1
            assert key >= ring.head - capacity
            assert raw(stack) == remembered[key]
    assert ring.head > 3 * capacity
    assert (in_guard > 0) == (capacity > 256)


def test_floor_and_head_are_moved_before_and_after_the_rows_are_written(world, monkeypatch):
    one, wandering, moves = world(), Wandering(0), []
    one.write(*wandering.rows(15))
    columns = one.ring.columns

    def content():
        return Path(columns.table_map().path).read_bytes()[HEADER_NBYTES:]

    def heard(name):
        move = getattr(columns, name)

        def moved(number):
            moves.append((name, number, content()))
            move(number)

        monkeypatch.setattr(columns, name, moved)

    heard("raise_floor")
    heard("raise_head")
    for head in (30, 45, 60):
        before = content()
        one.write(*wandering.rows(15))
        after = content()
        assert moves == [("raise_floor", head - 40, before), ("raise_head", head, after)]
        assert before != after
        moves.clear()


def test_what_comes_before_an_episode_s_beginning_is_zero(world):
    one = world(like=signature(3, frame=NESTED))
    one.write((0, F, 1), (1, F, 2), (0, M, 3), (0, END, 4), (0, F, 5), (1, M, 6), (0, M, 7))
    frames = one.mapped.stacks("t", np.arange(7)).stack["eye"]
    values = [[0, 0, 2], [0, 0, 3], [0, 2, 4], [2, 4, 5], [0, 0, 6], [0, 3, 7], [0, 6, 8]]
    assert frames[:, :, 0, 0].tolist() == values  # of a value v, the first item is v + 1
    assert one.queries() == []


def refused(one, keys, kind=EvictedError, match="is not there"):
    """Ask for stacks that must be refused by the server, not by the client."""
    asked = one.queries()
    with pytest.raises(kind, match=match):
        one.mapped.stacks("t", np.array(keys))
    assert one.queries() == [*asked, keys]


@pytest.mark.parametrize("others", [[], [5]], ids=["alone", "among others"])
def test_a_step_that_is_not_written_yet_is_refused_by_the_server(world, others):
    one, wandering = world(), Wandering(0)
    one.write(*wandering.rows(8))
    for key in (8, 9, 2**40, GONE):
        refused(one, [*others, key], match=f"step {key} is not there: the table holds the steps 0 to 7")
    for key in (-1, -41, -GONE - 1):
        refused(one, [*others, key], match=f"step {key} is not there")
    asked = one.queries()
    one.write(wandering.row())
    assert one.mapped.stacks("t", np.array([*others, 8])).stack.shape == (len(others) + 1, 3, 2)
    assert one.queries() == asked


@pytest.mark.parametrize("others", [[], [45]], ids=["alone", "among others"])
def test_a_step_that_was_overwritten_is_refused_by_the_server(world, others):
    one, wandering = world(capacity=40), Wandering(0)
    one.write(*wandering.rows(15))
    assert len(one.mapped.stacks("t", np.arange(15)).stack) == 15
    for _ in range(3):
        one.write(*wandering.rows(15))
    for key in (0, 14, 19):
        refused(one, [*others, key], match=f"step {key} is not there: the table holds the steps 20 to 59")


def test_a_stack_of_which_a_row_was_overwritten_is_refused_by_the_server(world):
    one = world(capacity=40, lanes=1)
    one.write(*[(0, F if value == 0 else M, value) for value in range(20)])
    for begin in (20, 35):
        one.write(*[(0, M, value) for value in range(begin, begin + 15)])
    assert one.ring.tail == 10
    asked = one.queries()
    assert len(one.mapped.stacks("t", np.array([12, 49])).stack) == 2
    assert one.queries() == asked
    with pytest.raises(EvictedError, match="step 11 is not there"):
        one.mapped.stacks("t", np.array([13, 11, 10, 12]))
    assert one.queries() == [*asked, [11, 10]]


@pytest.mark.parametrize(
    "keys",
    [
        np.array([3], np.int32),
        np.array([3], np.uint64),
        np.array([3.0]),
        np.array([True]),
        np.array(3),
        np.array([[3]]),
        np.zeros((0, 3), np.int64),
        np.zeros(MAX_BATCH + 1, np.int64),
    ],
    ids=lambda keys: f"{keys.dtype.str} {keys.shape}",
)
def test_keys_of_another_kind_are_refused_as_the_server_refuses_them(world, keys):
    one = world()
    one.write(*Wandering(0).rows(8))
    one.mapped.stacks("t", np.array([3]))
    reasons = []
    for client in (one.mapped, one.sent):
        with pytest.raises(InvalidRequestError) as error:
            client.stacks("t", keys)
        reasons.append(str(error.value))
    assert reasons[0] == reasons[1]


def test_no_keys_have_no_stacks(world):
    one = world(like=signature(3, frame=NESTED))
    one.write(*Wandering(0).rows(8))
    for client in (one.mapped, one.sent):
        found = client.stacks("t", np.zeros(0, np.int64))
        assert found.stack["eye"].shape == (0, 3, 3, 2)


def test_after_a_reset_only_new_steps_are_there(world):
    one = world()
    one.write(*Wandering(0).rows(8))
    one.mapped.stacks("t", np.array([3]))
    one.mapped.reset_table("t")
    refused(one, [3])
    writer = one.mapped.open_writer("t", "v", 1)
    writer.observe(Steps.first(one.like, np.zeros(1, np.int32), np.full((1, 2), 9, np.int32))).result()
    asked = one.queries()
    assert one.mapped.stacks("t", np.array([8])).stack[0, :, 0].tolist() == [0, 0, 9]
    assert one.queries() == asked


def test_a_dropped_table_has_no_steps_whoever_has_it_mapped(world):
    one = world()
    one.write(*Wandering(0).rows(8))
    one.mapped.stacks("t", np.arange(8))
    memory = one.mapped._maps.known("t")
    one.sent.drop_table("t")
    assert memory.floor == GONE
    assert memory.is_served
    assert not memory.has(np.array([3]))
    assert not memory.stacks(np.arange(8))[1].any()
    refused(one, [3], UnknownTableError, "no table 't'")
    assert one.mapped._maps.known("t") is None


def test_a_table_that_was_created_anew_has_its_own_steps(world):
    one = world()
    one.write(*Wandering(0).rows(8))
    old = one.mapped.stacks("t", np.arange(8)).stack
    one.sent.drop_table("t")
    one.create(40)
    refused(one, [3])
    one.write(*Wandering(0, begin=1000).rows(8))
    refused(one, [3])
    keys = one.mapped.sample("t", 99).result().key.min() + np.arange(8)
    new = one.mapped.stacks("t", keys).stack
    assert raw(new) == raw(one.sent.stacks("t", keys).stack) != raw(old)


@pytest.mark.parametrize("n_frames", [2, 3])
def test_a_table_on_the_rows_of_another_has_stacks_of_its_own_depth(world, n_frames):
    one = world()
    one.write(*Wandering(0).rows(8))
    one.create(20, name="u", rows_of="t")
    one.like = one.like.model_copy(update={"n_frames": n_frames})
    one.create(20, name="v", rows_of="t")
    for name, frames in (("u", 3), ("v", n_frames), ("t", 3)):
        found, sent = (client.stacks(name, np.arange(8)).stack for client in (one.mapped, one.sent))
        assert raw(found) == raw(sent)
        assert found.shape == (8, frames, 2)


def a_second_table(one, n_frames, rows_of="t"):
    """Make table `u`, on the rows of another."""
    one.like = signature(n_frames)
    one.create(20, name="u", rows_of=rows_of)


def test_a_table_on_the_rows_of_another_is_gone_once_it_was_dropped(world):
    one = world()
    one.write(*Wandering(0).rows(8))
    a_second_table(one, 1)
    one.mapped.stacks("u", np.array([3]))
    one.sent.drop_table("u")
    with pytest.raises(UnknownTableError):
        one.mapped.stacks("u", np.array([3]))


@pytest.mark.parametrize("rows_of", ["t", "t2"])
def test_a_table_that_was_created_anew_on_the_rows_of_another_is_what_it_is_now(world, rows_of):
    one = world()
    one.write(*Wandering(0).rows(8))
    a_second_table(one, 1)
    assert one.mapped.stacks("u", np.array([3])).stack.shape == (1, 1, 2)
    one.sent.drop_table("u")
    one.like = signature()
    one.create(40, name="t2")
    for row in ((0, F, 400), (0, M, 500)):
        one.write(row, table="t2")
    a_second_table(one, 2, rows_of)
    found, sent = (client.stacks("u", np.array([1])).stack for client in (one.mapped, one.sent))
    assert found.shape == sent.shape == (1, 2, 2)
    assert raw(found) == raw(sent)


# another process -----------------------------------------------------------------------------------

#: A program that serves at an address for ever.
SERVER = """
import sys, time
from fornix.replay.server import ReplayServer
from fornix.replay.service import ReplayService

server = ReplayServer(ReplayService(time.monotonic, seed=0, share=True), sys.argv[1])
print("serving", flush=True)
server.serve()
"""


@contextlib.contextmanager
def another_server(address):
    """Yield a server's process; it is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", SERVER, address], stdout=subprocess.PIPE)
    with process:
        try:
            assert process.stdout.readline() == b"serving\n"
            yield process
        finally:
            process.kill()


def frames(value, lanes):
    """Return frames, [lanes, 2], that tell lane and value."""
    return np.stack([np.arange(lanes), np.full(lanes, value)], axis=1).astype(np.int32)


def play(writer, lanes, begin, count, stop=None):
    """Write an endless episode of some lanes, at values from `begin`."""
    lane, no = np.arange(lanes, dtype=np.int32), np.zeros(lanes, np.bool_)
    writer.observe(Steps.first(signature(), lane, frames(begin, lanes)), stacks=False).result()
    for value in range(begin + 1, begin + count):
        if stop is not None and stop.is_set():
            break
        steps = Steps.after_actions(lane, lane, np.zeros(lanes, np.float32), frames(value, lanes), no, no)
        writer.observe(steps, stacks=False).result()


def test_nothing_is_answered_out_of_the_memory_of_a_server_that_was_killed(ipc_address, wait_until):
    with Client.connect(ipc_address, memory="mapped", give_up_after_s=1.0) as client:
        with another_server(ipc_address) as process:
            client.create_table("t", spec())
            play(client.open_writer("t", "w", 2), 2, 10, 20)
            keys = np.array([4, 39])
            assert client.stacks("t", keys).stack[..., 1].tolist() == [[10, 11, 12], [27, 28, 29]]
            memory = client._maps.known("t")
            assert memory.has(keys)
            assert memory.is_served
            process.send_signal(signal.SIGKILL)
            wait_until(lambda: not memory.is_served, "the server to die")
            assert memory.has(keys)  # its memory is there still
            assert memory.stacks(keys)[1].all()
            with pytest.raises(UnreachableError):
                client.stacks("t", keys)
        with another_server(ipc_address):
            with pytest.raises(UnknownTableError):
                client.stacks("t", keys)
            client.create_table("t", spec())
            with pytest.raises(EvictedError):
                client.stacks("t", keys)
            play(client.open_writer("t", "w", 2), 2, 50, 20)
            assert client.stacks("t", keys).stack[..., 1].tolist() == [[50, 51, 52], [67, 68, 69]]
            assert not memory.is_served


def test_they_are_right_while_the_ring_is_overwritten_by_another_process(ipc_address):
    """Keys from the oldest to the newest: each has its stack, or is refused."""
    stop, lanes, made, gone = threading.Event(), 4, 0, 0

    def write():
        with Client.connect(ipc_address, name="writer") as other:
            play(other.open_writer("t", "w", lanes), lanes, 0, 2**30, stop)

    with another_server(ipc_address), Client.connect(ipc_address, memory="mapped") as client:
        client.create_table("t", spec(capacity=60))
        thread = threading.Thread(target=write)
        thread.start()
        try:
            random, head = np.random.default_rng(0), 0
            deadline = time.monotonic() + PATIENCE_S
            while made < 5_000 or gone < 50:
                assert time.monotonic() < deadline, (made, gone)
                known = client._maps.known("t")
                head = int(known._marks[1]) if known is not None else head
                keys = np.array([max(0, head - 1 - random.integers(0, 62))])
                try:
                    stack = client.stacks("t", keys).stack
                except EvictedError:
                    gone += 1
                    continue
                value, lane = divmod(int(keys[0]), lanes)
                values = [max(0, value - 2), max(0, value - 1), value]
                assert stack[0, :, 1].tolist() == values
                assert stack[0, :, 0].tolist() == [lane * (value >= back) for back in (2, 1, 0)]
                made += 1
        finally:
            stop.set()
            thread.join()
