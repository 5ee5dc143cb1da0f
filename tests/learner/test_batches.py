"""Where batches come from: asked for ahead by a thread that explains what it waits for."""

import contextlib
import logging
import threading
import time

import numpy as np
import pytest
import torch

from fornix.common.config import LearnerConfig
from fornix.common.errors import InvalidRequestError, SignatureError, WaitTimeoutError
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec, Transition
from fornix.learner.batches import LocalBatches, PrefetchedBatches
from fornix.learner.transfer import Transfer, to_batch
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps

SIGNATURE = Signature(
    frame=ArraySpec.of((2,), np.uint8), action=ArraySpec.of((), np.int32, n_values=4), n_frames=3
)
CONFIG = LearnerConfig(batch_size=16, n_step=2, discount=0.5)
TABLE = "shared"
LANES = 4
PATIENCE_S = 20.0


def create(client, min_size=1, signature=SIGNATURE):
    spec = TableSpec(signature=signature, capacity_steps=1000, limiter=LimiterSpec(min_size=min_size))
    client.create_table(TABLE, spec)


def write(client, turns=8, stop=None):
    """Write one truncated episode of each lane, whose frames count the turns, unless it is to stop."""
    writer = client.open_writer(TABLE, "actor-0.0", LANES)
    lanes = np.arange(LANES)
    steps = Steps.first(SIGNATURE, lanes, frames(0))
    for turn in range(1, turns + 1):
        if not observe(writer, steps, stop):
            return
        over = np.full(LANES, turn == turns)
        steps = Steps.after_actions(
            lanes,
            np.full(LANES, turn % 4, np.int32),
            np.ones(LANES, np.float32),
            frames(turn),
            np.zeros(LANES, np.bool_),
            over,
        )
    observe(writer, steps, stop)


def observe(writer, steps, stop):
    """Write steps, however long the limiter holds them back; return whether that was before the stop."""
    pending = writer.observe(steps, timeout_s=0.1)
    while stop is None or not stop.is_set():
        with contextlib.suppress(WaitTimeoutError):
            pending.result()
            return True
        pending.send_again()
    return False


def frames(turn):
    return np.full((LANES, 2), turn, np.uint8)


@pytest.fixture
def local():
    """A client of a service in this thread, with a table."""
    client = Client(LocalTransport(ReplayService(time.monotonic, seed=0)))
    create(client)
    return client


def prefetching(address, **options):
    return contextlib.closing(PrefetchedBatches(address, TABLE, SIGNATURE, CONFIG, **options))


def get(source):
    """Return the next batch, whatever it takes."""
    deadline = time.monotonic() + PATIENCE_S
    while (batch := source.get(0.1)) is None:
        assert time.monotonic() < deadline, source.doing
    return batch


def check(batch):
    """Frames count turns, so every field of a transition is known from its stack."""
    turn = batch.stack[:, -1, 0].long()
    steps = torch.minimum(8 - turn, torch.tensor(2))
    assert batch.stack.shape == batch.next_stack.shape == (CONFIG.batch_size, 3, 2)
    assert torch.equal(batch.next_stack[:, -1, 0].long(), turn + steps)
    assert batch.action.dtype == torch.int64
    assert torch.equal(batch.action, (turn + 1) % 4)
    assert torch.equal(batch.reward, 1 + 0.5 * (steps - 1))
    assert torch.equal(batch.discount, 0.5**steps)  # truncated: bootstrap from the real last frame
    assert batch.reward.dtype == batch.discount.dtype == torch.float32


def test_a_batch_says_what_the_memory_holds(local):
    write(local)
    transitions = local.sample(TABLE, 16, Transition(n_step=2), discount=0.5).result()
    check(to_batch(transitions))


def test_views_stay_views(local):
    write(local)
    transitions = local.sample(TABLE, 16, Transition(n_step=2), discount=0.5).result()
    batch = to_batch(transitions)
    assert np.shares_memory(batch.stack.numpy(), transitions.window)
    assert np.shares_memory(batch.next_stack.numpy(), transitions.next_stack)


@pytest.mark.parametrize(("n_step", "cut"), [(1, False), (3, False), (3, True)])
def test_what_is_moved_is_contiguous_and_arrives_bit_for_bit(n_step, cut, local):
    """A view would first be copied into memory that is not page-locked."""
    turns = 8 if cut else 40
    write(local, turns)
    transitions = local.sample(TABLE, 16, Transition(n_step=n_step), discount=0.5).result()
    while not cut and (transitions.batch.steps < n_step).any():  # one in twenty starts is cut short
        transitions = local.sample(TABLE, 16, Transition(n_step=n_step), discount=0.5).result()
    assert (transitions.batch.steps < n_step).any() == cut
    taken = []

    def move(tensor):
        assert tensor.is_contiguous()
        taken.append(tensor)
        return tensor.clone()

    moved, stayed = to_batch(transitions, move), to_batch(transitions)
    for name, tensor in vars(moved).items():
        wanted = getattr(transitions, name)
        assert np.array_equal(tensor.numpy(), wanted), name
        assert torch.equal(tensor, getattr(stayed, name)), name
        assert tensor.dtype == getattr(stayed, name).dtype
        assert not np.shares_memory(tensor.numpy(), wanted), name
    # the frames of both stacks at once; the next ones again where they are no part of the window
    frames = [transitions.window, transitions.next_stack] if cut else [transitions.window]
    assert [tensor.data_ptr() for tensor in taken[: len(frames)]] == [array.ctypes.data for array in frames]
    assert len(taken) == len(frames) + 3


def test_to_another_device_everything_is_moved(local):
    write(local)
    transfer = Transfer("meta")
    assert transfer.allocate((3, 2), np.float32).shape == (3, 2)
    batch = transfer(local.sample(TABLE, 16).result())
    assert {tensor.device.type for tensor in vars(batch).values()} == {"meta"}
    assert batch.stack.shape == (16, 3, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_to_a_cuda_device_batches_come_from_page_locked_memory(local):
    write(local)
    transfer = Transfer("cuda")
    with local.batches(TABLE, 16, allocate=transfer.allocate) as batches:
        for _ in range(20):
            transitions = next(batches)
            assert torch.from_numpy(transitions.window).is_pinned()
            assert torch.from_numpy(transitions.next_stack).is_pinned()
            wanted, moved = to_batch(transitions), transfer(transitions)
            for name, tensor in vars(moved).items():
                assert tensor.is_cuda
                assert torch.equal(tensor.cpu(), getattr(wanted, name))


def test_in_one_process_a_batch_comes_as_soon_as_there_is_data(local):
    source = LocalBatches(local, TABLE, CONFIG)
    assert source.get(0) is None
    assert source.get(100) is None  # it can't wait: nobody else could act meanwhile
    write(local)
    check(source.get(0))
    check(source.get(0))
    # one request waited, however often it was looked for
    assert local.info().tables[TABLE]["samples"] == 2 * CONFIG.batch_size
    source.close()


def test_batches_are_fetched_ahead_but_not_far(ipc_address, serve, wait_until):
    with serve(ipc_address), Client.connect(ipc_address) as client:
        create(client)
        write(client)
        seen = []
        with prefetching(ipc_address, seen=lambda drawn: seen.append(drawn.copy())) as source:

            def drawn():
                table = client.info().tables[TABLE]
                return (table["samples"] + table["leased"]) / CONFIG.batch_size

            wait_until(lambda: drawn() >= 4, "batches before anyone asked")
            for at in range(10):
                batch = get(source)
                check(batch)
                assert torch.equal(batch.stack, torch.from_numpy(seen[at].stack))
            wait_until(lambda: len(seen) == 13, "two ready, and one at hand")
            assert source.get(0) is not None
            wait_until(lambda: len(seen) == 14, "one more in place of the one taken")
            assert drawn() <= len(seen) + 2
        assert source.doing == ""


@pytest.mark.parametrize("share", [False, True], ids=["socket", "mapped"])
def test_a_batch_in_use_is_never_written_to_however_slow_its_consumer(
    share, ipc_address, serve, wait_until
):
    """The prefetcher has all the time that it wants: until it waits for the consumer."""
    service = ReplayService(time.monotonic, seed=0, share=share)
    fetched, places = [], set()
    with serve(ipc_address, service), Client.connect(ipc_address) as client:
        create(client)
        write(client)
        assert client.memory_path(TABLE) == ("mapped" if share else "socket")
        with prefetching(ipc_address, seen=lambda drawn: fetched.append(len(fetched))) as source:
            for taken in range(1, 26):
                batch = get(source)
                as_it_came = {name: tensor.clone() for name, tensor in vars(batch).items()}
                check(batch)
                wait_until(lambda due=taken + 3: len(fetched) == due, "two ready, and one at hand")
                for name, tensor in as_it_came.items():
                    assert torch.equal(getattr(batch, name), tensor)
                places.add(batch.stack.data_ptr())
        assert len(places) == 4  # and no more memory than that is used


def test_what_was_fetched_and_not_got_is_given_back(ipc_address, serve, wait_until):
    """It was not trained on, so the limiter must not count it."""
    seen = []
    with serve(ipc_address), Client.connect(ipc_address) as client:
        create(client)
        write(client)
        with prefetching(ipc_address, seen=seen.append) as source:
            for _ in range(5):
                get(source)
            wait_until(lambda: len(seen) == 8, "two ready, and one at hand")
        table = client.info().tables[TABLE]
        assert table["samples"] == 5 * CONFIG.batch_size
        assert table["leased"] == 0


def test_what_waits_for_the_trainer_is_leased(ipc_address, serve, wait_until):
    with serve(ipc_address), Client.connect(ipc_address) as client:
        create(client)
        write(client)
        with prefetching(ipc_address) as source:
            for _ in range(5):
                get(source)

            def told():
                table = client.info().tables[TABLE]
                return table["samples"] / CONFIG.batch_size, table["leased"] / CONFIG.batch_size

            # four used up; the fifth, two that are ready, one at hand, and one on its way
            wait_until(lambda: told() == (4, 5), "all that it may fetch")
        assert told() == (5, 0)


@pytest.mark.parametrize("batch_size", [1, 16, 256])
def test_nobody_waits_for_ever_at_the_tightest_limiter(batch_size, ipc_address, serve):
    """A batch is many times what lies between the limiter's bounds: none may be held back."""
    stop = threading.Event()

    def act():
        with Client.connect(ipc_address) as other:
            while not stop.is_set():
                write(other, stop=stop)

    limiter = LimiterSpec(min_size=1, samples_per_insert=4.0, error_buffer_inserts=1.0)
    config = CONFIG.model_copy(update={"batch_size": batch_size})
    with serve(ipc_address), Client.connect(ipc_address) as client:
        client.create_table(TABLE, TableSpec(signature=SIGNATURE, capacity_steps=1000, limiter=limiter))
        actor = threading.Thread(target=act)
        actor.start()
        source = PrefetchedBatches(ipc_address, TABLE, SIGNATURE, config)
        try:
            for _ in range(50):
                assert len(get(source).reward) == batch_size
        finally:
            stop.set()
            source.close()
            actor.join()
        table = client.info().tables[TABLE]
        assert (table["samples"], table["leased"]) == (50 * batch_size, 0)


@pytest.mark.parametrize(
    ("memory", "path"), [("auto", "mapped"), ("mapped", "mapped"), ("socket", "socket")]
)
def test_frames_come_the_way_that_is_asked_for(memory, path, ipc_address, serve, wait_until):
    service = ReplayService(time.monotonic, seed=0, share=True)
    with serve(ipc_address, service), Client.connect(ipc_address) as client:
        create(client)
        write(client)
        with prefetching(ipc_address, memory=memory) as source:

            def ways():
                check(get(source))
                return {reader["memory"] for reader in client.info().tables[TABLE]["readers"].values()}

            wait_until(lambda: ways() == {path}, "the way")


def test_it_says_what_it_waits_for_until_data_comes(ipc_address, serve, wait_until):
    with serve(ipc_address), Client.connect(ipc_address) as client, prefetching(ipc_address) as source:
        wait_until(lambda: "there is no table 'shared'" in source.doing, "the table's name")
        create(client, min_size=30)
        wait_until(lambda: "needs 30 before the first sample" in source.doing, "the limiter's reason")
        assert source.get(0) is None
        write(client)
        check(get(source))
        wait_until(lambda: source.doing == "", "it waits no more")


def test_it_outlives_its_server(ipc_address, serve, wait_until, monkeypatch):
    monkeypatch.setattr("fornix.learner.batches._GIVE_UP_AFTER_S", 0.2)
    with prefetching(ipc_address) as source:
        for _ in range(2):
            wait_until(
                lambda: f"no replay server answered at {ipc_address}" in source.doing,
                "no server",
                PATIENCE_S,
            )
            with serve(ipc_address), Client.connect(ipc_address) as client:
                create(client)
                write(client)
                for _ in range(20):
                    check(get(source))
            while source.get(0.01) is not None:
                pass


def test_a_table_that_comes_back_as_another_is_refused(ipc_address, serve, wait_until):
    with serve(ipc_address), Client.connect(ipc_address) as client, prefetching(ipc_address) as source:
        wait_until(lambda: "there is no table" in source.doing, "no table")
        create(client, signature=SIGNATURE.model_copy(update={"n_frames": 2}))
        with pytest.raises(SignatureError, match="n_frames"):
            get(source)


def test_a_wait_is_logged_once_in_a_while_and_its_end(ipc_address, serve, wait_until, caplog):
    with caplog.at_level(logging.INFO), serve(ipc_address), Client.connect(ipc_address) as client:
        with prefetching(ipc_address) as source:
            wait_until(lambda: "there is no table" in source.doing, "no table")
            create(client, min_size=30)
            wait_until(lambda: "needs 30" in source.doing, "the limiter's reason")
            write(client)
            check(get(source))
        said = [r.getMessage() for r in caplog.records if r.name == "fornix.learner.batches"]
    assert len(said) == 2
    assert "there is no table" in said[0]
    assert said[1] == "goes on with table 'shared'"


def test_a_refused_request_is_raised(ipc_address, serve):
    with serve(ipc_address), Client.connect(ipc_address) as client:
        create(client)
        config = CONFIG.model_copy(update={"batch_size": 70_000})
        source = PrefetchedBatches(ipc_address, TABLE, SIGNATURE, config)
        with contextlib.closing(source), pytest.raises(InvalidRequestError, match="batch_size = 70000"):
            get(source)


def test_a_fault_in_the_thread_is_raised_too(ipc_address, serve):
    """Otherwise the learner would wait for ever."""

    def full_disk(transitions):
        raise OSError("No space left on device")

    with serve(ipc_address), Client.connect(ipc_address) as client:
        create(client)
        write(client)
        with (
            prefetching(ipc_address, seen=full_disk) as source,
            pytest.raises(OSError, match="No space left"),
        ):
            get(source)


@pytest.mark.parametrize("served", [True, False], ids=["full queue", "no server"])
def test_closing_ends_the_thread_soon(served, ipc_address, serve):
    with contextlib.ExitStack() as stack:
        if served:
            stack.enter_context(serve(ipc_address))
            client = stack.enter_context(Client.connect(ipc_address))
            create(client)
            write(client)
        source = PrefetchedBatches(ipc_address, TABLE, SIGNATURE, CONFIG)
        if served:
            get(source)
        began = time.monotonic()
        source.close()
        assert time.monotonic() - began < 6
