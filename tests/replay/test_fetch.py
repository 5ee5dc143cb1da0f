"""Frames over the socket and out of mapped memory, of which rows are overwritten meanwhile."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.common import trees
from fornix.common.errors import (
    EvictedError,
    FornixError,
    InvalidRequestError,
    ProtocolError,
    UnknownTableError,
)
from fornix.common.messages import (
    MAX_BATCH,
    Hello,
    MapTable,
    Observe,
    OpenWriter,
    Refused,
    Sample,
    StackQuery,
    Stacks,
    WriterOpened,
)
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import Episode, Sequence
from fornix.replay.client import Client
from fornix.replay.steps import Steps

from .fakes import SIGNATURE, FakeMemory, FakeServer, batch, ramp, sequences

CAPACITY = 16


@pytest.fixture
def server(monkeypatch):
    """A server whose memories can be mapped."""
    server = FakeServer()
    monkeypatch.setattr("fornix.replay.maps.MappedFrames.open", server.open)
    return server


def a_client(server, memory="mapped"):
    return Client(server.transport, memory=memory)


def value(key):
    """Return what every frame of a step holds."""
    return 100 + key


class Ring(FakeMemory):
    """A memory of steps that a test goes on writing; frames before key 0 are zero."""

    def __init__(self, number=7, head=CAPACITY):
        super().__init__(number, {"": np.zeros((CAPACITY + 1, 2), np.int32)})
        self.head = 0
        self.write(head)

    def write(self, count):
        """Append steps; the oldest are overwritten."""
        self.floor = max(self.floor, self.head + count - CAPACITY)
        for key in range(self.head, self.head + count):
            self.frames[""][key % CAPACITY] = value(key)
        self.head += count

    def refer(self, key):
        """Return the fields of a batch of one-step transitions from keys, whose stacks are two frames."""
        key = np.asarray(key)
        window = np.stack([key - 1, key, key + 1], axis=1)
        return {
            "index": window % CAPACITY,
            "oldest": window[:, 0].astype(np.int64),
            "memory": self.number,
            "key": key,
        }

    def draw(self, rows, begin=0):
        """Return a batch of the oldest steps that can be drawn."""
        tail = max(self.head - CAPACITY, 0) + 1
        return batch(**self.refer(tail + begin + np.arange(rows) % (CAPACITY - 2)))


def check(drawn):
    """Raise unless every frame is that of its step."""
    wanted = value(np.stack([drawn.key - 1, drawn.key, drawn.key + 1], axis=1))
    assert np.array_equal(drawn.window[..., 0], wanted)
    assert np.array_equal(drawn.window[..., 1], wanted)
    assert np.array_equal(drawn.batch.next_key, drawn.key + 1)
    assert np.array_equal(drawn.action, drawn.key)
    assert np.array_equal(drawn.reward, drawn.key)


def over_socket(ring, rows):
    """Return a batch with its frames."""
    found = ring.draw(rows)
    frames = np.concatenate([ring.frames[""][found.index].reshape(-1, 2), np.zeros((1, 2), np.int32)])
    index = np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    return found.model_copy(update={"index": index, "frame": frames, "oldest": None, "memory": 0})


def test_over_the_socket_every_frame_comes_once_and_is_put_where_it_belongs(server):
    frames = ramp(6)
    server.on[Sample] = lambda request: batch([[5, 0, 1], [0, 1, 2], [5, 5, 3]], frame=frames)
    drawn = a_client(server, "auto").sample("t", 3).result()
    assert not server.transport.requests(Sample)[0].mapped
    assert drawn.stack[..., 0].tolist() == [[0, 0], [0, 1], [0, 0]]
    assert drawn.next_stack[..., 1].tolist() == [[0, 1], [1, 2], [0, 3]]
    assert drawn.batch.frame is None  # so that its memory can go


def test_frames_of_several_arrays_get_the_form_of_the_table(server):
    arm = ArraySpec.of((), np.float32)
    form = {"eye": SIGNATURE.frame, "arms": (arm, arm)}
    server.signature = Signature(frame=form, action=SIGNATURE.action, n_frames=2)
    frames = {"eye": ramp(4), "arms.0": ramp(4, (), np.float32), "arms.1": ramp(4, (), begin=10)}
    server.on[Sample] = lambda request: batch([[3, 0, 1], [0, 1, 2]], frame=frames)
    client = a_client(server, "socket")
    for _ in range(2):
        drawn = client.sample("t", 2).result()
        assert drawn.stack["eye"].shape == (2, 2, 2)
        assert drawn.next_stack["arms"][1].tolist() == [[10, 11], [11, 12]]
        assert trees.leaves(drawn.window).keys() == frames.keys()
    assert len(server.transport.requests(Hello)) == 1

    stacks = {path: array[None, :2] for path, array in frames.items()}
    server.on[StackQuery] = lambda request: Stacks(key=request.key, stack=stacks)
    found = client.stacks("t", np.zeros(1, np.int64))
    assert found.stack["arms"][0].tolist() == [[0, 1]]

    server.on[Sample] = lambda request: batch([[3, 0, 1]], frame={"other": ramp(4)})
    with pytest.raises(ProtocolError, match="not those of the table's signature"):
        client.sample("t", 1).result()


def test_from_mapped_memory_only_places_come(server):
    ring = server.put(Ring())
    server.on[Sample] = lambda request: ring.draw(request.batch_size)
    drawn = a_client(server).sample("t", 5).result()
    check(drawn)
    (request,) = server.transport.requests(Sample)
    assert request.mapped
    assert not request.refill
    assert ring.asked == 1
    assert not np.shares_memory(drawn.window, ring.frames[""])


def test_samples_that_were_overwritten_are_drawn_anew_and_no_others(server):
    ring = server.put(Ring())
    server.on[Sample] = lambda request: ring.draw(request.batch_size)
    pending = a_client(server).sample("t", 6, discount=0.5, importance_exponent=1.0)
    assert pending.done()  # the places have come
    ring.write(3)
    drawn = pending.result()
    check(drawn)
    assert drawn.key.tolist() == [4, 5, 6, 4, 5, 6]
    first, again = server.transport.requests(Sample)
    assert again == first.model_copy(update={"batch_size": 3, "refill": True})
    assert ring.asked == 2


@given(st.lists(st.integers(0, CAPACITY), max_size=8), st.integers(1, 12))
@settings(deadline=None)
def test_whatever_is_overwritten_when_no_frame_is_of_another_step(writes, rows):
    server, ring = FakeServer(), Ring()
    writes = iter(writes)
    ring.on_intact = lambda: ring.write(next(writes, 0))

    def sample(request):
        found = ring.draw(request.batch_size) if request.mapped else over_socket(ring, request.batch_size)
        if request.mapped:
            ring.write(next(writes, 0))
        return found

    server.put(ring)
    server.on[Sample] = sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fornix.replay.maps.MappedFrames.open", server.open)
        drawn = a_client(server).sample("t", rows).result()
    check(drawn)
    sizes = [request.batch_size for request in server.transport.requests(Sample)]
    assert sizes[0] == len(drawn.key) == rows
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= 5


def test_after_some_tries_the_frames_come_over_the_socket(server):
    ring = server.put(Ring())
    ring.on_intact = lambda: ring.write(CAPACITY)
    server.on[Sample] = lambda request: (
        ring.draw(request.batch_size) if request.mapped else over_socket(ring, request.batch_size)
    )
    check(a_client(server).sample("t", 4).result())
    asked = [(request.mapped, request.refill) for request in server.transport.requests(Sample)]
    assert asked == [(True, False), *[(True, True)] * 3, (False, True)]


def test_weights_are_those_of_the_whole_batch_after_a_refill(server):
    ring = server.put(Ring())
    probabilities = iter([np.array([0.1, 0.2, 0.4]), np.array([0.05, 0.1])])

    def sample(request):
        probability = next(probabilities)
        weight = (probability.min() / probability).astype(np.float32)
        return ring.draw(len(probability)).model_copy(update={"probability": probability, "weight": weight})

    server.on[Sample] = sample
    pending = a_client(server).sample("t", 3, importance_exponent=1.0)
    assert pending.done()
    ring.write(2)
    drawn = pending.result()
    assert drawn.batch.probability.tolist() == [0.05, 0.1, 0.4]
    np.testing.assert_allclose(drawn.weight, [1, 0.5, 0.125])


def test_episodes_of_other_lengths_are_put_in_place_of_overwritten_ones(server):
    """Zeros follow where one is shorter than the longest."""
    ring = server.put(Ring())

    def episodes(request):
        begin = ring.head - CAPACITY + 1
        length = 2 if not request.refill else 3
        window = begin + np.arange(request.batch_size)[:, None] + np.arange(-1, length + 1)
        key = window[:, 1]
        return sequences(window % CAPACITY, length, key=key, oldest=window[:, 0].astype(np.int64), memory=7)

    server.on[Sample] = episodes
    pending = a_client(server).sample("t", 3, Episode())
    assert pending.done()
    ring.write(1)
    drawn = pending.result()
    assert drawn.mask.tolist() == [[True] * 3, [True, True, False], [True, True, False]]
    assert drawn.key.tolist() == [2, 2, 3]
    assert drawn.action.tolist() == [[2, 2, 2], [2, 2, 0], [3, 3, 0]]
    assert drawn.frame[..., 0].tolist() == [
        [value(key) for key in keys] + [0] * (4 - len(keys))
        for keys in ([2, 3, 4, 5], [2, 3, 4], [3, 4, 5])
    ]
    assert drawn.stack.shape == (3, 3, 2, 2)


def test_the_memory_of_another_server_is_never_gathered_from(server):
    """Its places mean other steps: the new server's memory is mapped in its place."""
    old = server.put(Ring(number=1, head=5))
    client = a_client(server)
    assert client.memory_path("t") == "mapped"
    new = server.put(Ring(number=2, head=40))
    server.on[Sample] = lambda request: new.draw(request.batch_size)
    for _ in range(2):
        check(client.sample("t", 4).result())
    assert old.closed
    assert old.asked == 0
    assert new.asked == 2
    assert len(server.transport.requests(MapTable)) == 2
    assert not any(request.refill for request in server.transport.requests(Sample))


def test_an_answer_from_a_server_that_is_gone_is_drawn_anew(server):
    gone, new = Ring(number=1), server.put(Ring(number=2, head=40))
    server.on[Sample] = lambda request: (
        over_socket(new, request.batch_size) if request.refill else gone.draw(request.batch_size)
    )
    drawn = a_client(server).sample("t", 4).result()
    check(drawn)
    assert drawn.key.min() > CAPACITY
    asked = [(request.mapped, request.refill) for request in server.transport.requests(Sample)]
    assert asked == [(True, False), (False, True)]


def test_frames_that_come_although_places_were_asked_for_are_taken(server):
    ring = server.put(Ring())
    server.on[Sample] = lambda request: over_socket(ring, request.batch_size)
    check(a_client(server).sample("t", 4).result())
    assert ring.asked == 0


def test_the_map_of_a_table_that_is_gone_goes_too(server):
    ring = server.put(Ring())
    client = a_client(server, "auto")
    client.memory_path("t")
    server.on[Sample] = lambda request: Refused(code="UNKNOWN_TABLE", message="there is no table 't'")
    with pytest.raises(UnknownTableError):
        client.sample("t", 4).result()
    assert ring.closed


def hostile(ring, **changes):
    """Return an answer with fields that it should not have."""
    return ring.draw(4).model_copy(update=changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": np.full((4, 3), CAPACITY + 1, np.int32)}, "among 17 frames"),
        ({"index": np.full((4, 3), -1, np.int32)}, "places from -1"),
        ({"index": np.zeros((3, 3), np.int32)}, r"\(4, W\)"),
        ({"index": np.zeros((4, 1), np.int32)}, "too short"),
        ({"oldest": None}, "without the oldest row"),
        ({"oldest": np.zeros(3, np.int64)}, "without the oldest row"),
        ({"oldest": np.zeros(4, np.int32)}, "without the oldest row"),
        ({"key": np.zeros(3, np.int64)}, "no batch of 4 transitions"),
        ({"steps": np.zeros(4, np.int32)}, "no batch of 4 transitions"),
        ({"steps": np.full(4, 2, np.int32)}, "no batch of 4 transitions"),
        ({"steps": np.ones(4, np.int64)}, "no batch of 4 transitions"),
        ({"action": np.zeros(())}, "no batch of 4 transitions"),
        ({"extras": {"e": np.zeros(5)}}, "no batch of 4 transitions"),
        ({"mask": np.ones((4, 1), np.bool_)}, "no batch of 4 transitions"),
        ({"frame": {}}, "one number of places"),
        ({"frame": {"": np.zeros((1, 2)), "a": np.zeros((2, 2))}}, "one number of places"),
    ],
)
def test_an_answer_that_can_not_be_right_is_refused(server, changes, message):
    ring = server.put(Ring())
    server.on[Sample] = lambda request: hostile(ring, **changes)
    with pytest.raises(ProtocolError, match=message):
        a_client(server).sample("t", 4).result()


def test_an_answer_without_frames_is_refused_where_they_were_asked_for(server):
    ring = server.put(Ring())
    server.on[Sample] = lambda request: ring.draw(4)
    with pytest.raises(ProtocolError, match="without frames"):
        a_client(server, "socket").sample("t", 4).result()


@pytest.mark.parametrize(
    "changes",
    [{"mask": None}, {"mask": np.ones(4, np.bool_)}, {"reward": np.zeros((4, 3), np.float32)}],
    ids=str,
)
def test_sequences_that_can_not_be_right_are_refused(server, changes):
    ring = server.put(Ring())
    answer = sequences(np.zeros((4, 4)), 2, **changes)
    server.on[Sample] = lambda request: answer
    with pytest.raises(ProtocolError, match="no batch of 4 sequences"):
        a_client(server).sample("t", 4, Sequence(length=2)).result()
    assert ring.asked == 0


def test_a_table_that_is_created_anew_between_a_batch_and_its_refill_is_an_error(server):
    ring = server.put(Ring())
    other = ring.draw(2).model_copy(update={"frame": np.zeros((20, 5), np.int32)})
    server.on[Sample] = lambda request: other if request.refill else ring.draw(request.batch_size)
    pending = a_client(server).sample("t", 4)
    assert pending.done()
    ring.write(2)
    with pytest.raises(UnknownTableError, match="another has its name"):
        pending.result()


def stacks_of(ring, key):
    """Return the answer that names the stacks of keys, and the memory that they are in."""
    return Stacks(key=np.asarray(key, np.int64), memory=ring.number, held_s=2.0)


def sent_stacks(ring, key):
    """Return the answer that has the stacks of keys, or refuses."""
    if len(key) and not ring.head - CAPACITY < key.min() <= key.max() < ring.head:
        return Refused(code="EVICTED", message=f"step {key.min()} has been overwritten")
    frames = ring.frames[""][np.stack([key - 1, key], axis=1) % CAPACITY]
    return Stacks(key=key, stack=frames)


@pytest.fixture
def writing(server):
    """A ring, a writer to it, and steps to write; the server answers with stacks 1, 2 and 3."""
    ring = server.put(Ring())
    server.on[Observe] = lambda request: stacks_of(ring, [1, 2, 3])
    server.on[StackQuery] = lambda request: sent_stacks(ring, request.key)
    server.on[OpenWriter] = lambda request: WriterOpened(sequence=1)
    writer = a_client(server).open_writer("t", "me", 3)
    steps = Steps.first(SIGNATURE, np.arange(3), np.zeros((3, 2), np.int32))
    return ring, writer, steps


def test_stacks_are_gathered_from_mapped_memory_too(server, writing):
    ring, writer, steps = writing
    answer = writer.observe(steps).result()
    assert answer.stack[..., 0].tolist() == [[value(k - 1), value(k)] for k in (1, 2, 3)]
    assert answer.key.tolist() == [1, 2, 3]
    assert answer.held_s == 2.0
    assert answer.memory == 0
    assert server.transport.requests(Observe)[0].mapped
    assert not server.transport.requests(StackQuery)
    assert ring.asked == 1


def test_a_stack_that_was_overwritten_is_asked_for_by_its_key(server, writing):
    """In time: the server has it, but the memory's floor has passed it by now."""
    ring, writer, steps = writing
    server.on[StackQuery] = lambda request: Stacks(
        key=request.key, stack=np.full((len(request.key), 2, 2), -1, np.int32)
    )
    pending = writer.observe(steps)
    assert pending.done()
    ring.write(2)
    answer = pending.result()
    assert answer.stack[..., 0].tolist() == [[-1, -1], [-1, -1], [value(2), value(3)]]
    (query,) = server.transport.requests(StackQuery)
    assert query.key.tolist() == [1, 2]


def test_a_stack_that_is_gone_is_an_error_and_its_steps_are_written(server, writing):
    ring, writer, steps = writing
    pending = writer.observe(steps)
    assert pending.done()
    ring.write(2)
    for _ in range(2):
        with pytest.raises(EvictedError, match="step 1 has been overwritten"):
            pending.result()
    writer.observe(steps)
    assert [request.sequence for request in server.transport.requests(Observe)] == [1, 2]


def test_stacks_in_the_memory_of_another_server_are_asked_for_by_their_keys(server, writing):
    _, writer, steps = writing
    gone = Ring(number=9)
    server.on[Observe] = lambda request: stacks_of(gone, [1, 2, 3])
    answer = writer.observe(steps).result()
    assert answer.stack[..., 0].tolist() == [[value(k - 1), value(k)] for k in (1, 2, 3)]
    (query,) = server.transport.requests(StackQuery)
    assert query.key.tolist() == [1, 2, 3]
    assert gone.asked == 0


def test_where_only_keys_are_asked_for_no_stacks_are_made(server, writing):
    ring, writer, steps = writing
    server.on[Observe] = lambda request: Stacks(key=np.arange(3))
    answer = writer.observe(steps, stacks=False).result()
    assert answer.stack is None
    assert ring.asked == 0
    assert not server.transport.requests(Observe)[0].mapped


@pytest.mark.parametrize("stack", [[1, 2], np.zeros((2, 2, 2)), np.zeros(3), {"": 3}], ids=str)
def test_stacks_that_can_not_be_right_are_refused(server, stack):
    server.on[StackQuery] = lambda request: Stacks(key=request.key, stack=stack)
    with pytest.raises(FornixError, match="no array of 3 stacks"):
        a_client(server, "socket").stacks("t", np.arange(3))


def ask_by(who, server):
    """Return the method that asks for stacks of table `t`, of a client or of a writer."""
    client = a_client(server)
    if who == "client":
        return lambda keys: client.stacks("t", keys)
    return client.open_writer("t", "me", 3).stacks


@pytest.mark.parametrize("who", ["client", "writer"])
def test_stacks_are_found_in_mapped_memory_without_a_word_to_the_server(server, writing, who):
    ring, *_ = writing
    ask = ask_by(who, server)
    for keys in ([4, 5], [15], [0, 15, 3, 3]):
        found = ask(np.array(keys))
        assert found.key.tolist() == keys
        assert found.stack[..., 1].tolist() == [[value(k - 1) if k else 0, value(k)] for k in keys]
        assert found.memory == 0
    assert not server.transport.requests(StackQuery)
    assert ring.asked == 3


@pytest.mark.parametrize("keys", [[4, CAPACITY], [4, 2**62], [-1, 4], [-(2**63)], [2**63 - 1]], ids=str)
def test_a_step_that_is_not_in_the_memory_is_the_server_s_to_refuse(server, writing, keys):
    ring, *_ = writing
    client = a_client(server)
    with pytest.raises(EvictedError):
        client.stacks("t", np.array(keys))
    (query,) = server.transport.requests(StackQuery)
    assert query.key.tolist() == keys
    assert ring.asked == 0


def test_a_step_that_was_overwritten_is_the_server_s_to_refuse(server, writing):
    ring, *_ = writing
    client = a_client(server)
    assert client.stacks("t", np.array([3])).stack[0, 1, 0] == value(3)
    ring.write(4)
    with pytest.raises(EvictedError, match="step 3 has been overwritten"):
        client.stacks("t", np.array([9, 3]))
    assert ring.asked == 1


def test_a_stack_that_reaches_below_the_floor_is_the_server_s_to_refuse(server, writing):
    ring, *_ = writing
    ring.write(4)
    client = a_client(server)
    with pytest.raises(EvictedError, match="step 4 has been overwritten"):
        client.stacks("t", np.array([9, 4, 10]))
    (query,) = server.transport.requests(StackQuery)
    assert query.key.tolist() == [4]


def test_stacks_that_are_overwritten_while_they_are_copied_are_asked_for(server, writing):
    ring, *_ = writing
    told = []

    def sent(request):
        told.extend(request.key.tolist())
        return Stacks(key=request.key, stack=np.full((len(request.key), 2, 2), -1, np.int32))

    server.on[StackQuery] = sent
    client = a_client(server)
    ring.on_intact = lambda: ring.write(4)
    found = client.stacks("t", np.array([6, 2, 5, 3, 4]))
    assert told == [2, 3, 4]
    assert found.stack[:, 1, 0].tolist() == [value(6), -1, value(5), -1, -1]


def test_nothing_is_answered_out_of_the_memory_of_a_server_that_is_dead(server, writing):
    ring, *_ = writing
    client = a_client(server)
    assert client.stacks("t", np.array([3])).stack[0, 1, 0] == value(3)
    ring.is_served = False
    ring.frames[""][:] = -1  # whatever it holds
    new = Ring(number=8)
    server.on[StackQuery] = lambda request: sent_stacks(new, request.key)
    assert client.stacks("t", np.array([3])).stack[0, 1, 0] == value(3)
    server.transport.unreachable = True
    with pytest.raises(FornixError, match="no server"):
        client.stacks("t", np.array([3]))
    assert ring.asked == 1


@pytest.mark.parametrize(
    "keys",
    [
        np.zeros(0, np.int64),
        np.array([3], np.int32),
        np.array([3.0]),
        np.array([True]),
        np.array([3], ">i8"),
        np.array(3),
        np.array([[3]]),
        np.zeros(MAX_BATCH + 1, np.int64),
    ],
    ids=lambda keys: f"{keys.dtype.str} {keys.shape}",
)
def test_keys_of_another_kind_are_the_server_s_to_judge(server, writing, keys):
    ring, *_ = writing
    ring.has = ring.stacks = None  # not even asked
    server.on[StackQuery] = lambda request: Refused(code="INVALID", message="key must be <i8 [K]")
    with pytest.raises(InvalidRequestError, match="key must be"):
        a_client(server).stacks("t", keys)
    (query,) = server.transport.requests(StackQuery)
    assert query.key is keys


@pytest.mark.parametrize("memory", ["mapped", "socket"])
@pytest.mark.parametrize("keys", [[3], 3, None, "3"], ids=str)
def test_keys_that_are_no_array_are_refused_before_they_are_sent(server, writing, keys, memory):
    with pytest.raises(InvalidRequestError, match="key"):
        a_client(server, memory).stacks("t", keys)
    assert not server.transport.requests(StackQuery)


@pytest.mark.parametrize(
    "key",
    [
        np.array([3.0]),
        np.array([[3]]),
        np.array(3),
        np.array([3], np.uint64),
        np.array([True]),
    ],
    ids=lambda key: f"{key.dtype.str} {key.shape}",
)
def test_stacks_of_keys_that_can_not_be_right_are_not_looked_for(server, writing, key):
    ring, writer, steps = writing
    server.on[Observe] = lambda request: Stacks(key=key, memory=ring.number)
    with pytest.raises(ProtocolError, match="key"):
        writer.observe(steps).result()


@pytest.mark.parametrize("answered", [[4, 3], [3], [3, 4, 5], [3.0, 4.0]], ids=str)
@pytest.mark.parametrize("memory", ["mapped", "socket"])
def test_stacks_of_other_keys_than_those_asked_for_are_refused(server, writing, answered, memory):
    ring, *_ = writing
    ring.is_served = False
    rows = np.zeros((len(answered), 2, 2), np.int32)
    server.on[StackQuery] = lambda request: Stacks(key=np.array(answered), stack=rows)
    with pytest.raises(ProtocolError):
        a_client(server, memory).stacks("t", np.array([3, 4]))
