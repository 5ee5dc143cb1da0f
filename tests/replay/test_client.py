"""The client, against the service: in one process, over a socket, and with its memory mapped."""

import contextlib
import itertools
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fornix.common.errors import (
    EvictedError,
    FornixError,
    InvalidRequestError,
    UnknownTableError,
    WaitTimeoutError,
)
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import Episode, LimiterSpec, SamplerSpec, Sequence, TableSpec, Transition
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

from .builders import F, spec
from .desk import Desk, a_client, a_desk, steps, write

_PATIENCE_S = 30.0


def test_steps_that_the_server_refuses_leave_the_writer_usable():
    desk = a_desk()
    client, _ = a_client(desk)
    writer = client.open_writer("t", "me", 1)
    bad = Steps.after_actions(
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        np.array([np.nan], np.float32),
        np.zeros((1, 2), np.int32),
        np.zeros(1, np.bool_),
        np.zeros(1, np.bool_),
    )
    good = steps(np.ones((1, 2)))
    pending = writer.observe(bad)
    with pytest.raises(InvalidRequestError, match="the reward of lane 0 is nan"):
        pending.result()
    first = writer.observe(good)
    with pytest.raises(InvalidRequestError):
        pending.result()  # looking again changes nothing
    assert first.result().key.tolist() == [0]
    with pytest.raises(InvalidRequestError, match="FIRST while its episode is open"):
        writer.observe(good).result()
    assert desk.table()["steps_ever"] == 1


def test_a_request_that_would_wait_in_one_thread_is_told_to_poll():
    desk = a_desk()
    client, _ = a_client(desk)
    pending = client.sample("t", 4)
    assert not pending.done()
    with pytest.raises(WaitTimeoutError, match="use poll"):
        pending.result()
    write(desk, 1, (0, F, 0))
    assert not pending.done()


def test_an_error_reply_is_raised_under_its_own_class():
    client, _ = a_client(a_desk())
    with pytest.raises(UnknownTableError, match="did you mean 't'"):
        client.signature("tt")
    with pytest.raises(FornixError):
        client.create_table("t", spec(capacity=5))


EYE, ARM = ArraySpec.of((2, 2), np.uint8), ArraySpec.of((), np.float32)
NESTED = Signature(frame={"eye": EYE, "arms": (ARM, ARM)}, action=ArraySpec.of((), np.int32), n_frames=2)


def nested(*values):
    """Return frames that tell their values in every array."""
    made = np.array(values)
    return {
        "eye": np.broadcast_to(made[:, None, None], (len(made), 2, 2)).astype(np.uint8),
        "arms": (made.astype(np.float32), made.astype(np.float32) + 100),
    }


def play(writer, count, begin=0, lane=0, ended=True):
    """Write an episode whose frames, actions and rewards count from `begin`; return its last answer."""
    lanes, no = np.array([lane], np.int32), np.zeros(1, np.bool_)
    answer = writer.observe(Steps.first(NESTED, lanes, nested(begin))).result()
    for value in range(begin + 1, begin + count):
        over = np.array([ended and value == begin + count - 1])
        action, reward = np.array([value], np.int32), np.array([value], np.float32)
        steps = Steps.after_actions(lanes, action, reward, nested(value), over, no)
        answer = writer.observe(steps).result()
    return answer


@contextlib.contextmanager
def a_table(address, serve, way, capacity=64, **fields):
    """Yield a client that comes by frames in some way, of a table `t` of nested frames."""
    shared = ReplayService(time.monotonic, seed=0, share=True)
    with contextlib.ExitStack() as stack:
        if way == "in process":
            client = Client(LocalTransport(shared))
        else:
            stack.enter_context(serve(address, shared))
            client = stack.enter_context(Client.connect(address, memory=way))
        client.create_table("t", TableSpec(signature=NESTED, capacity_steps=capacity, **fields))
        assert client.memory_path("t") == ("mapped" if way == "mapped" else "socket")
        yield client
    shared.close()


WAYS = ["in process", "socket", "mapped"]


@pytest.mark.parametrize("way", WAYS)
def test_frames_of_several_arrays_come_back_in_their_form_whatever_the_way(way, ipc_address, serve):
    with a_table(ipc_address, serve, way) as client:
        answer = play(client.open_writer("t", "me", 1), 10)
        assert answer.stack["arms"][1].tolist() == [[108, 109]]
        assert answer.stack["eye"].shape == (1, 2, 2, 2)
        found = client.stacks("t", np.array([0, 4]))
        assert found.stack["arms"][0].tolist() == [[0, 0], [3, 4]]
        drawn = client.sample("t", 50, Transition(n_step=3)).result()
        for form, tree in (("stack", drawn.stack), ("next_stack", drawn.next_stack)):
            newest = drawn.key if form == "stack" else drawn.batch.next_key
            assert tree["arms"][0][:, -1].tolist() == newest.tolist()
            assert (tree["eye"][:, -1] == newest[:, None, None]).all()
            before = np.maximum(newest - 1, 0)
            assert tree["arms"][0][:, 0].tolist() == before.tolist()
        assert drawn.action.tolist() == (drawn.key + 1).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_sequences_and_episodes(way, ipc_address, serve):
    with a_table(ipc_address, serve, way) as client:
        writer = client.open_writer("t", "me", 1)
        play(writer, 10)
        play(writer, 4, begin=20)
        drawn = client.sample("t", 40, Sequence(length=4, overlap=2, burn_in=1)).result()
        assert set(drawn.key.tolist()) == {0, 2, 4, 6, 10}  # 8 - 10 would hold nothing that 6 - 10 lacks
        for row, key in enumerate(drawn.key.tolist()):
            first = key if key < 10 else 20
            there = 3 if key in (6, 10) else 4
            assert drawn.mask[row].tolist() == [True] * there + [False] * (4 - there)
            assert drawn.loss_mask[row].tolist() == [False, *drawn.mask[row, 1:].tolist()]
            values = drawn.frame["arms"][0][row]
            assert values.tolist() == [first + t if t <= there else 0 for t in range(5)]
            assert drawn.action[row, :there].tolist() == [first + t + 1 for t in range(there)]
            assert (drawn.stack["arms"][0][row, :there, -1] == values[:there]).all()
            assert (drawn.next_stack["arms"][0][row, :there, -1] == values[1 : there + 1]).all()
        episodes = client.sample("t", 30, Episode()).result()
        assert set(episodes.key.tolist()) == {0, 10}
        assert episodes.mask.sum(axis=1).tolist() == [9 if key == 0 else 3 for key in episodes.key]
        assert client.sample("t", 3, Episode(max_steps=5)).result().mask.shape == (3, 3)


def test_samples_whose_rows_are_overwritten_meanwhile_are_drawn_anew(ipc_address, serve, wait_until):
    with a_table(ipc_address, serve, "mapped", capacity=32) as client:
        writer = client.open_writer("t", "me", 1)
        play(writer, 30, ended=False)
        pending = client.sample("t", 64)
        wait_until(pending.done, "the places")
        with Client.connect(ipc_address, memory="socket") as other:
            second = other.open_writer("t", "other", 1)
            play(second, 20, begin=40, ended=False)
        drawn = pending.result()
        assert drawn.key.min() >= 50 - 32
        values = np.where(drawn.key < 30, drawn.key, drawn.key + 10)
        assert drawn.stack["arms"][0][:, -1].tolist() == values.tolist()
        assert drawn.action.tolist() == (values + 1).tolist()
        # what is drawn anew is charged to nobody
        assert client.info().tables["t"]["samples"] == 64


def test_a_stack_that_is_overwritten_before_it_is_copied_is_evicted(ipc_address, serve, wait_until):
    with a_table(ipc_address, serve, "mapped", capacity=32) as client:
        writer = client.open_writer("t", "me", 1)
        steps = Steps.first(NESTED, np.zeros(1, np.int32), nested(1))
        pending = writer.observe(steps)
        wait_until(pending.done, "the places")
        with Client.connect(ipc_address, memory="socket") as other:
            play(other.open_writer("t", "other", 1), 40)
        with pytest.raises(EvictedError):
            pending.result()


def test_a_client_outlives_its_server_and_maps_the_next_ones_memory(ipc_address, serve):
    with Client.connect(ipc_address) as client:
        for begin in (0, 100):
            with serve(ipc_address, ReplayService(time.monotonic, seed=0, share=True)):
                client.create_table("t", TableSpec(signature=NESTED, capacity_steps=64))
                play(client.open_writer("t", "me", 1), 10, begin=begin)
                for _ in range(3):
                    drawn = client.sample("t", 20).result()
                    assert drawn.stack["arms"][0][:, -1].tolist() == (drawn.key + begin).tolist()
                assert client.memory_path("t") == "mapped"


def test_batches_are_right_while_the_ring_is_overwritten(ipc_address, serve):
    """A writer goes round a small ring as fast as it can."""
    stop = threading.Event()

    def write():
        with Client.connect(ipc_address, name="writer") as other:
            writer = other.open_writer("t", "me", 1)
            while not stop.is_set():
                play(writer, 40)

    with a_table(ipc_address, serve, "mapped", capacity=64) as client:
        thread = threading.Thread(target=write)
        thread.start()
        try:
            with client.batches("t", 32, Transition(n_step=3), in_flight=4) as batches:
                for drawn in itertools.islice(batches, 200):
                    start = drawn.key % 40
                    end = drawn.batch.next_key % 40
                    assert (drawn.stack["arms"][0][:, -1] == start).all()
                    assert (drawn.next_stack["eye"][:, -1, 0, 0] == end).all()
                    assert (drawn.next_stack["arms"][1][:, 0] == np.maximum(end - 1, 0) + 100).all()
                    assert (drawn.action == start + 1).all()
        finally:
            stop.set()
            thread.join()


def test_tables_are_listed_changed_emptied_and_dropped(ipc_address, serve):
    with a_table(ipc_address, serve, "socket") as client:
        assert client.list_tables()["t"].signature == NESTED
        client.set_limiter("t", LimiterSpec(min_size=5))
        assert client.list_tables()["t"].limiter.min_size == 5
        play(client.open_writer("t", "me", 1), 10)
        client.reset_table("t")
        assert client.info().tables["t"]["steps"] == 0
        client.drop_table("t")
        assert client.list_tables() == {}
        with pytest.raises(UnknownTableError):
            client.drop_table("t")


def test_priorities_decide_what_is_drawn(ipc_address, serve):
    sampler = SamplerSpec(kind="prioritized", priority_exponent=1.0)
    with a_table(ipc_address, serve, "socket", sampler=sampler) as client:
        play(client.open_writer("t", "me", 1), 5)
        keys = np.array([0, 1, 2, 3, 9])
        told = client.update_priorities("t", keys, np.array([0.0, 1.0, 0.0, 3.0, 1.0])).result()
        assert (told.applied, told.ignored) == (4, 1)
        drawn = client.sample("t", 400, importance_exponent=1.0).result()
        assert set(drawn.key.tolist()) == {1, 3}
        assert set(zip(drawn.key.tolist(), drawn.weight.tolist(), strict=True)) == {
            (1, 1.0),
            (3, np.float32(1 / 3)),
        }


def test_lanes_that_leave_end_their_episodes(ipc_address, serve):
    with a_table(ipc_address, serve, "socket") as client:
        writer = client.open_writer("t", "me", 1)
        play(writer, 4, ended=False)
        steps = Steps.first(NESTED, np.zeros(1, np.int32), nested(50))
        writer.observe(steps, leave=np.zeros(1, np.int32)).result()
        assert set(client.sample("t", 50).result().key.tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.sample("t", 65_537), r"batch_size = 65537"),
        (lambda client: client.sample("t", 2, 3), r"unit = 3"),
        (lambda client: client.batches("t", 2, discount=2.0), r"discount = 2"),
        (lambda client: client.sample("t", 2, importance_exponent=-1.0), r"importance_exponent = -1"),
    ],
)
def test_a_request_that_can_not_be_right_is_refused_before_it_is_sent(call, message):
    client, transport = a_client(a_desk())
    with pytest.raises(InvalidRequestError, match=message):
        call(client)
    assert transport.sent == []


DROPPED = """
import contextlib, gc, sys
from fornix.common.errors import UnreachableError
from fornix.replay.client import Client

def use(client):
    {use}

use(Client.connect(sys.argv[1], give_up_after_s=0.1))
gc.collect()
print("done")
"""


@pytest.mark.parametrize(
    "use",
    [
        "pass",
        "client.mine = client, client.report('me', 'this', {})",
        "client.mine = client, client.batches('t', 2).ready()",
        "with contextlib.suppress(UnreachableError): client.list_tables()",
    ],
    ids=["nothing asked", "a request in flight", "batches in flight", "no server"],
)
def test_a_client_that_is_dropped_unclosed_holds_nobody_up(use, ipc_address):
    """It is in cycles, so a collector has it, sockets and context in any order."""
    code = DROPPED.format(use=use)
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", code, ipc_address]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PATIENCE_S)
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_the_keys_of_a_dropped_table_are_nobodys():
    client, _ = a_client(Desk())
    sampled = spec(sampler=SamplerSpec(kind="prioritized"))
    found = []
    for _ in range(2):
        client.create_table("t", sampled)
        key = client.open_writer("t", "me", 1).observe(steps(np.ones((1, 2)))).result().key
        assert client.stacks("t", key).stack.shape == (1, 3, 2)
        found.append(key)
        if len(found) == 1:
            client.drop_table("t")
    old, new = found
    assert new.tolist() != old.tolist()
    told = client.update_priorities("t", old, np.ones(len(old))).result()
    assert (told.applied, told.ignored) == (0, 1)
    with pytest.raises(EvictedError):
        client.stacks("t", old)


@pytest.mark.parametrize("way", ["socket", "auto"])
def test_a_client_that_is_left_gives_back_what_its_iterators_lease(way, ipc_address, serve, wait_until):
    with a_table(ipc_address, serve, "socket") as other:
        play(other.open_writer("t", "me", 1), 10)
        with Client.connect(ipc_address, memory=way) as client:
            several = [client.batches("t", 4, in_flight=3) for _ in range(2)]
            for batches in several:
                next(batches)
            wait_until(lambda: other.info().tables["t"]["leased"] == 2 * 3 * 4, "all to be leased")
        assert other.info().tables["t"]["leased"] == 0
        assert [list(batches) for batches in several] == [[], []]


@pytest.mark.parametrize("count", [1, 4])
def test_a_client_whose_server_is_gone_is_closed_soon(count, ipc_address, serve):
    with Client.connect(ipc_address) as client:
        with serve(ipc_address):
            client.create_table("t", TableSpec(signature=NESTED, capacity_steps=64))
            play(client.open_writer("t", "me", 1), 10)
            several = [client.batches("t", 4) for _ in range(count)]
            for batches in several:
                next(batches)
        began = time.monotonic()
        client.close()
        assert time.monotonic() - began < 3.0  # however many there are; it gives up after 15 s
        assert [list(batches) for batches in several] == [[]] * count


def test_a_closed_client_says_so(ipc_address, serve):
    with a_table(ipc_address, serve, "socket") as other:
        play(other.open_writer("t", "me", 1), 10)
        client = Client.connect(ipc_address)
        asked, batches, unused = client.sample("t", 4), client.batches("t", 4), client.batches("t", 4)
        next(batches)
        client.close()
        client.close()
        for ask in (
            client.list_tables,
            client.info,
            lambda: client.sample("t", 4),
            lambda: client.report("me", "this", {}),
            lambda: next(client.batches("t", 4)),
            asked.result,
        ):
            with pytest.raises(InvalidRequestError, match="closed"):
                ask()
        assert asked.done()
        for each in (batches, unused):
            each.close()
            assert not each.ready()


def test_a_closed_client_decides_nothing_about_memory(ipc_address, serve):
    with a_table(ipc_address, serve, "socket"):
        client = Client.connect(ipc_address)
        client.sample("t", 4)  # asks in passing how frames come
        client.close()
        for _ in range(2):
            with pytest.raises(InvalidRequestError, match="closed"):
                client.memory_path("t")
