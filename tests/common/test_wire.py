import contextlib
import os
import pickle
import struct
import threading
from pathlib import Path

import msgpack
import msgpack_numpy
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from fornix.common import wire
from fornix.common.errors import InvalidRequestError, ProtocolError
from fornix.common.messages import (
    MAX_BATCH,
    PROTOCOL_VERSION,
    REPLIES,
    REQUESTS,
    Array,
    Batch,
    Column,
    Consume,
    CreateTable,
    Done,
    DropTable,
    Hello,
    Info,
    InfoQuery,
    ListTables,
    MapTable,
    Observe,
    OpenWriter,
    PrioritiesUpdated,
    Refused,
    Report,
    ResetTable,
    Sample,
    SetLimiter,
    StackQuery,
    Stacks,
    TableCreated,
    TableMap,
    Tables,
    UpdatePriorities,
    Welcome,
    WriterOpened,
)
from fornix.common.signature import DTYPES, ArraySpec, Signature
from fornix.common.specs import (
    MAX_EPISODE,
    MAX_N_STEP,
    MAX_SEQUENCE,
    Episode,
    LimiterSpec,
    SamplerSpec,
    Sequence,
    TableSpec,
    Transition,
)
from fornix.common.wire import (
    INLINE_BYTES,
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    MAX_HEADER_ITEMS,
    MAX_LIST_BYTES,
    MAX_MESSAGE_BYTES,
    UndecodableError,
    decode,
    encode,
)

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"

# what is sent comes back ---------------------------------------------------------------------------


DTYPE_NAMES = st.sampled_from(sorted(DTYPES))
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 17]), max_size=3)
LAYOUTS = st.sampled_from(["c", "fortran", "reversed", "strided", "transposed"])
NUMBERS = st.integers(0, 2**16)


@st.composite
def _arrays(draw):
    """Arrays of every dtype: empty, 0-d, small enough to stand in the header, large, not contiguous."""
    dtype, shape, number = np.dtype(draw(DTYPE_NAMES)), draw(SHAPES), draw(NUMBERS)
    if number % 5 == 4:
        shape = [INLINE_BYTES // dtype.itemsize + number % 3 - 1]  # about the limit
    items = int(np.prod(shape))
    flat = np.resize(np.random.default_rng(number).integers(0, 256, 999, np.uint8), items * dtype.itemsize)
    flat = flat % 2 if dtype.kind == "b" else flat
    array = flat.view(dtype).reshape(shape)
    layout = draw(LAYOUTS)
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "reversed" and shape:
        return np.flip(array)
    if layout == "strided" and shape:
        return array[::2]
    return array.T if layout == "transposed" else array


ARRAYS = _arrays()
words = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
counts = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 3600)
leaf_names = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True).filter(lambda name: name != "dtype")
shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)
specs = st.builds(
    ArraySpec,
    shape=shapes,
    dtype=st.sampled_from(sorted(DTYPES)),
    n_values=st.none() | st.integers(1, 2**31),
)
signatures = st.builds(
    Signature,
    frame=specs | st.dictionaries(leaf_names, specs | st.tuples(specs, specs), min_size=1, max_size=2),
    action=specs,
    reward=st.sampled_from([ArraySpec(dtype="<f4"), ArraySpec(dtype="<f8")]),
    extras=st.dictionaries(names, specs, max_size=3),
    n_frames=st.integers(1, 64),
)
limiters = st.builds(
    LimiterSpec,
    min_size=st.integers(1, 2**40),
    samples_per_insert=st.none() | st.floats(0.01, 1e6),
    error_buffer_inserts=st.none() | st.floats(0.01, 1e6),
)
samplers = st.builds(
    SamplerSpec,
    kind=st.sampled_from(["uniform", "prioritized", "fifo", "lifo", "epoch"]),
    max_times_sampled=st.none() | st.integers(1, 65_535),
    priority_exponent=st.floats(0, 8),
)
table_specs = st.builds(
    TableSpec,
    signature=signatures,
    capacity_steps=st.integers(2, 2**31 - 1),
    limiter=limiters,
    sampler=samplers,
    rows_of=st.none() | names,
) | st.builds(TableSpec, signature=signatures, capacity_bytes=st.integers(1, 2**63 - 1))
units = (
    st.builds(Transition, n_step=st.integers(1, MAX_N_STEP))
    | st.builds(Sequence, length=st.integers(10, MAX_SEQUENCE), overlap=st.integers(0, 9))
    | st.builds(Episode, max_steps=st.integers(1, MAX_EPISODE))
)
frames = ARRAYS | st.dictionaries(names, ARRAYS, min_size=1, max_size=3)
trees = st.recursive(
    ARRAYS,
    lambda inner: st.dictionaries(names, inner, max_size=2) | st.lists(inner, max_size=2).map(tuple),
    max_leaves=4,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | words,
    lambda inner: st.dictionaries(words, inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
described = st.dictionaries(words, plain, max_size=3)

MESSAGES = {
    "hello": st.builds(
        Hello, client=words.filter(len), expects=st.dictionaries(names, signatures, max_size=2)
    ),
    "welcome": st.builds(Welcome, server=words, tables=st.dictionaries(names, signatures, max_size=2)),
    "create_table": st.builds(CreateTable, table=names, spec=table_specs),
    "list_tables": st.builds(ListTables),
    "tables": st.builds(Tables, tables=st.dictionaries(names, table_specs, max_size=2)),
    "reset_table": st.builds(ResetTable, table=names),
    "drop_table": st.builds(DropTable, table=names),
    "set_limiter": st.builds(SetLimiter, table=names, limiter=limiters),
    "table_created": st.builds(TableCreated, created=st.booleans()),
    "open_writer": st.builds(
        OpenWriter, table=names, writer=names, incarnation=counts, lanes=st.integers(1, 65_536)
    ),
    "writer_opened": st.builds(WriterOpened, sequence=counts),
    "observe": st.builds(
        Observe,
        table=names,
        writer=names,
        incarnation=counts,
        sequence=counts,
        lane=ARRAYS,
        step_type=ARRAYS,
        terminated=ARRAYS,
        action=ARRAYS,
        reward=ARRAYS,
        frame=frames,
        extras=st.dictionaries(names, ARRAYS, max_size=3),
        leave=st.none() | ARRAYS,
        policy_version=counts,
        stacks=st.booleans(),
        timeout_s=seconds,
    ),
    "stack": st.builds(StackQuery, table=names, key=ARRAYS),
    "stacks": st.builds(Stacks, key=ARRAYS, stack=st.none() | trees, memory=counts, held_s=seconds),
    "sample": st.builds(
        Sample,
        table=names,
        batch_size=st.integers(1, MAX_BATCH),
        unit=units,
        discount=st.floats(0, 1),
        importance_exponent=st.floats(0, 8),
        mapped=st.booleans(),
        session=words,
        lease=counts,
        consumed=counts,
        timeout_s=seconds,
    ),
    "consume": st.builds(Consume, table=names, session=words.filter(len), consumed=counts),
    "update_priorities": st.builds(UpdatePriorities, table=names, key=ARRAYS, priority=ARRAYS),
    "priorities_updated": st.builds(PrioritiesUpdated, applied=counts, ignored=counts),
    "map_table": st.builds(MapTable, table=names),
    "table_map": st.builds(
        TableMap,
        path=words.filter(len),
        nbytes=st.integers(1, 2**48 - 1),
        token=ARRAYS,
        memory=counts,
        own=st.booleans(),
        columns=st.dictionaries(
            words,
            st.builds(
                Column,
                offset=st.integers(0, 2**48 - 1),
                shape=st.lists(st.integers(0, 2**40), min_size=1, max_size=8).map(tuple),
                dtype=st.sampled_from(sorted(DTYPES)),
            ),
            max_size=2,
        ),
    ),
    "batch": st.builds(
        Batch,
        **{name: ARRAYS for name, field in Batch.model_fields.items() if field.annotation == Array},
        frame=st.none() | frames,
        mask=st.none() | ARRAYS,
        oldest=st.none() | ARRAYS,
        extras=st.dictionaries(names, ARRAYS, max_size=2),
        held_s=seconds,
    ),
    "info": st.builds(InfoQuery),
    "info_reply": st.builds(
        Info,
        server=described,
        tables=st.dictionaries(names, described, max_size=2),
        reports=st.dictionaries(words, described, max_size=2),
    ),
    "report": st.builds(
        Report,
        source=names,
        doing=words,
        metrics=st.dictionaries(names, st.floats(), max_size=3),
    ),
    "done": st.builds(Done),
    "error": st.builds(Refused, code=words, message=words),
}


def fingerprint(value):
    """Return something that is equal for equal messages, down to the dtypes and bytes of arrays."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: fingerprint(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(fingerprint(inner) for inner in value)
    if isinstance(value, BaseModel):
        return type(value), {name: fingerprint(getattr(value, name)) for name in type(value).model_fields}
    return type(value), struct.pack("d", value) if isinstance(value, float) else value


def carried(message, number=3):
    """Return `message` as it comes out on the other side."""
    kinds = REQUESTS | REPLIES
    frames = [bytes(frame) for frame in encode(message, number)]
    came_number, came = decode(frames, kinds)
    assert came_number == number
    return came


def test_every_message_type_is_tried():
    assert MESSAGES.keys() == REQUESTS.keys() | REPLIES.keys()


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_a_message_comes_out_as_it_went_in(kind):
    @settings(max_examples=40, deadline=None)
    @given(message=MESSAGES[kind], number=st.integers(0, 2**64 - 1))
    def round_trip(message, number):
        came_number, came = decode([bytes(f) for f in encode(message, number)], REQUESTS | REPLIES)
        assert came_number == number
        assert fingerprint(came) == fingerprint(message)

    round_trip()


def query(key):
    return StackQuery(table="t", key=key)


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_a_large_array_is_a_frame_that_nobody_copies(dtype):
    array = np.zeros((INLINE_BYTES, 2), dtype)
    header, frame = encode(query(array), 1)
    assert len(header) < 100
    assert np.shares_memory(np.frombuffer(frame, dtype), array)
    _, came = decode([header, frame], REQUESTS)
    assert np.shares_memory(came.key, array)


def test_a_small_array_stands_in_the_header():
    assert len(encode(query(np.zeros(INLINE_BYTES - 1, np.uint8)), 1)) == 1
    assert len(encode(query(np.zeros(INLINE_BYTES, np.uint8)), 1)) == 2


def test_as_many_small_arrays_as_there_may_be_fit_in_a_header():
    array = np.zeros(INLINE_BYTES - 1, np.uint8)
    most = dict.fromkeys(("lane", "step_type", "terminated", "action", "reward", "leave"), array)
    request = an_observe(
        **most,
        frame={f"{'f' * 130}{at:02}": array for at in range(16)},
        extras={f"{'e' * 62}{at:02}": array for at in range(32)},
    )
    assert len(encode(request, 2**64 - 1)) == 1
    assert fingerprint(carried(request)) == fingerprint(request)


def test_what_comes_in_may_be_written_to():
    small, large = np.zeros(3, np.uint8), np.zeros(INLINE_BYTES, np.uint8)
    for array in (small, large):
        frames = [bytearray(frame) for frame in encode(query(array), 1)]
        _, came = decode([memoryview(frame) for frame in frames], REQUESTS)
        came.key[0] = 1
        assert array[0] == 0
    _, came = decode([bytes(frame) for frame in encode(query(small), 1)], REQUESTS)
    came.key[0] = 1
    _, came = decode(with_key(an_array()), REQUESTS)
    came.key[0] = 1


@pytest.mark.parametrize("size", [3, INLINE_BYTES, 10 * INLINE_BYTES])
def test_what_zeromq_brings_may_be_written_to(size, ipc_address):
    with zmq.Context() as context, context.socket(zmq.PAIR) as here, context.socket(zmq.PAIR) as there:
        here.bind(ipc_address)
        there.connect(ipc_address)
        array = np.zeros(size, np.uint8)
        there.send_multipart(encode(query(array), 1), copy=False)
        frames = here.recv_multipart(copy=False)
        _, came = decode([frame.buffer for frame in frames], REQUESTS)
        came.key[0] = 1
        assert came.key[:3].tolist() == [1, 0, 0]
        assert array[0] == 0


def test_no_two_arrays_overlap_and_all_of_the_header_are_aligned():
    came = carried(an_observe(frame={"a": np.ones((3, 7), np.uint8), "b": np.ones(3, np.float64)}))
    found = [came.lane, came.step_type, came.terminated, came.action, came.reward]
    found += [came.frame["a"], came.frame["b"]]
    assert all(array.flags.aligned for array in found)
    for at, array in enumerate(found):
        array[...] = 0
        for other in found[at + 1 :]:
            assert not np.shares_memory(array, other)


def test_a_large_array_that_is_not_contiguous_is_made_so():
    array = np.arange(4096, dtype=np.int64).reshape(64, 64).T
    assert np.array_equal(carried(query(array)).key, array)


def test_what_a_model_has_cached_is_not_sent():
    signature = Signature(frame=ArraySpec(dtype="|u1"), action=ArraySpec(dtype="|u1"), n_frames=1)
    assert signature.step_nbytes == 6
    assert "step_nbytes" in signature.__dict__
    assert carried(Hello(client="c", expects={"t": signature})).expects["t"] == signature


def test_an_array_that_no_list_has_room_for_is_written_as_msgpack_numpy_does():
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    frames = encode(Stacks(key=array, stack=(array, {"a": array})), 1)
    stack = msgpack.unpackb(frames[0], object_hook=msgpack_numpy.decode)["b"]["stack"]
    assert fingerprint(stack[0]) == fingerprint(stack[1]["a"]) == fingerprint(array)


@settings(max_examples=100, deadline=None)
@given(key=ARRAYS)
def test_what_msgpack_numpy_writes_is_taken_at_any_size(key):
    packed = msgpack.packb(
        {"v": PROTOCOL_VERSION, "t": "stack", "i": 1, "b": {"table": "t", "key": key}},
        default=msgpack_numpy.encode,
    )
    _, came = decode([packed], REQUESTS)
    assert fingerprint(came.key) == fingerprint(key)


def test_a_message_that_can_not_be_packed_spoils_no_other():
    before = encode(InfoQuery(), 1)
    for _ in range(3):
        with pytest.raises(TypeError):
            encode(Info(server={"a": "x" * 100, "b": object()}, tables={}, reports={}), 1)
        assert encode(InfoQuery(), 1) == before
        with pytest.raises(OverflowError):
            encode(InfoQuery(), 2**64)
        assert encode(InfoQuery(), 1) == before


def test_threads_encode_at_a_time():
    wrong = []

    def encodes(number):
        request = an_observe(lane=np.full(3, number, np.int32), writer=f"w{number}")
        expected = encode(request, number)[0]
        wrong.extend(at for at in range(300) if encode(request, number)[0] != expected)

    threads = [threading.Thread(target=encodes, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, ">i4"), np.zeros(3, "c16"), np.array([None]), np.zeros(2, "S3"), np.zeros(1, "M8")],
)
def test_an_array_that_no_peer_would_take_is_not_sent(array):
    for message in (query(array), an_observe(extras={"e": array}), Stacks(key=np.zeros(1), stack=(array,))):
        with pytest.raises(ProtocolError, match=r"can't be sent; it must be one of <f2, .*\|u1"):
            encode(message, 1)


def test_more_than_a_message_may_hold_is_not_sent():
    signature = Signature(frame=ArraySpec(dtype="|u1"), action=ArraySpec(dtype="|u1"), n_frames=1)
    with pytest.raises(ProtocolError, match=rf"header of \d+ bytes .* the limits are {MAX_HEADER_BYTES}"):
        encode(Hello(client="c", expects={f"t{at}": signature for at in range(10_000)}), 1)
    with pytest.raises(ProtocolError, match=rf"bytes of arrays; the limit is {MAX_MESSAGE_BYTES}"):
        encode(query(np.zeros(MAX_MESSAGE_BYTES + 1, np.uint8)), 1)
    for size in (1, INLINE_BYTES):
        many = {f"e{at}": np.zeros(size, np.uint8) for at in range(MAX_FRAMES + 1)}
        with pytest.raises(ProtocolError, match=rf"(66|70) arrays .* are {MAX_FRAMES} "):
            encode(an_observe(extras=many), 1)
    long = {"x" * MAX_LIST_BYTES: np.zeros(1, np.uint8)}
    with pytest.raises(ProtocolError, match=rf"bytes of names and shapes .* {MAX_LIST_BYTES}; send less"):
        encode(an_observe(frame=long), 1)
    encode(InfoQuery(), 1)


# whatever comes in ---------------------------------------------------------------------------------


def an_observe(**changes):
    fields = {
        "table": "t",
        "writer": "w",
        "incarnation": 1,
        "sequence": 1,
        "lane": np.arange(3, dtype=np.int32),
        "step_type": np.zeros(3, np.uint8),
        "terminated": np.zeros(3, np.bool_),
        "action": np.zeros(3, np.int32),
        "reward": np.zeros(3, np.float32),
        "frame": np.ones((3, INLINE_BYTES), np.uint8),
        "extras": {"value": np.ones((3, INLINE_BYTES), np.float32), "kind": np.ones(3, np.int8)},
    }
    return Observe(**(fields | changes))


def a_header(body=None, **changes):
    """Return the header of a `stack` request, with some of its parts replaced."""
    body = {"table": "t"} if body is None else body
    return msgpack.packb({"v": PROTOCOL_VERSION, "t": "stack", "i": 7, "b": body} | changes)


def with_key(key, *frames):
    """Return the frames of a `stack` request whose key is `key`, packed as it is given."""
    return [a_header({"table": "t", "key": key}), *frames]


def an_array(**changes):
    """Return a numpy array as msgpack-numpy writes it, with some of its parts replaced."""
    parts = {b"nd": True, b"type": "<i8", b"kind": b"", b"shape": [2], b"data": bytes(16)}
    return {key: value for key, value in (parts | changes).items() if value is not ...}


def listed(*parts, field="key", key=None):
    """Return a list of one array, as a header has it."""
    return msgpack.packb([(field, key, *parts)])


def with_small(written, data, **body):
    """Return the frames of a `stack` request whose key lies in the header, listed as it is given."""
    return [a_header({"table": "t"} | body, a=written, d=data)]


def with_large(written, *frames, **body):
    """Return the frames of a `stack` request whose key is a raw frame, listed as it is given."""
    return [a_header({"table": "t"} | body, f=written), *frames]


def refusal(frames, kinds=REQUESTS):
    """Return the error for frames that must be refused; it is one sentence of readable length."""
    with pytest.raises(UndecodableError) as caught:
        decode(frames, kinds)
    text = str(caught.value)
    assert "\n" not in text
    assert text.isprintable()
    assert 20 < len(text) < 500
    return caught.value


def survives(frames):
    """Decode frames that may or may not make sense."""
    with contextlib.suppress(UndecodableError):
        decode(frames, REQUESTS)


def test_the_helpers_make_a_message_where_nothing_is_replaced():
    assert decode(with_key(an_array()), REQUESTS)[1].key.tolist() == [0, 0]
    assert decode(with_small(listed("<i8", [1]), bytes(8)), REQUESTS)[1].key.tolist() == [0]
    assert decode(with_large(listed("<i8", [1]), bytes(8)), REQUESTS)[1].key.tolist() == [0]


@settings(max_examples=300, deadline=None)
@given(frames=st.lists(st.binary(max_size=200), max_size=4))
def test_random_bytes_are_refused(frames):
    refusal(frames)


keys_of_arrays = st.sampled_from(
    [b"nd", b"type", b"kind", b"shape", b"data", b"complex", "nd", "v", "t", "b"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.sampled_from([*DTYPES, "|O", "O", "V8", ">f4", "c16", "S5", "M8[s]", "", "t", "stack"])
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=20))
)
structures = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys_of_arrays, inner, max_size=6)
        | st.fixed_dictionaries(
            {b"nd": st.just(True), b"type": inner, b"kind": inner, b"shape": inner, b"data": inner}
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(value=structures, parts=st.dictionaries(st.sampled_from(["v", "t", "i", "b"]), structures))
def test_well_formed_msgpack_without_sense_is_refused(value, parts):
    survives([msgpack.packb(value)])
    survives(with_key(value))
    survives([a_header({"table": "t"}, **parts)])


@settings(max_examples=300, deadline=None)
@given(value=structures, data=structures, packed=st.booleans())
def test_a_list_without_sense_is_refused(value, data, packed):
    for parts in (value, [value], [("key", None, value, [1])], [("key", None, "|u1", value)]):
        written = msgpack.packb(parts) if packed else parts
        survives(with_small(written, data))
        survives(with_small(written, bytes(8)))
        survives(with_large(written, bytes(8)))


@st.composite
def claims(draw):
    """A list of arrays that may be, with data that may be too little, too much or misplaced."""
    parts, nbytes = [], 0
    for _ in range(draw(st.integers(0, 4))):
        dtype, shape = draw(st.sampled_from(sorted(DTYPES))), draw(st.lists(st.integers(0, 3), max_size=3))
        field = draw(st.sampled_from(["key", "table", "more"]))
        parts.append((field, draw(st.none() | st.just("k")), dtype, shape))
        nbytes += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 8) * 8
    return msgpack.packb(parts), bytes(max(0, nbytes + draw(st.sampled_from([0, 0, -8, -1, 1, 8]))))


@settings(max_examples=300, deadline=None)
@given(claim=claims())
def test_arrays_lie_within_what_came_or_are_refused(claim):
    written, data = claim
    with contextlib.suppress(UndecodableError):
        _, came = decode(with_small(written, data), REQUESTS)
        assert came.key.nbytes <= len(data)
        assert came.key.tobytes() == bytes(came.key.nbytes)


def test_every_truncated_message_is_refused():
    frames = [bytes(frame) for frame in encode(an_observe(), 5)]
    assert len(frames) == 3
    decode(frames, REQUESTS)
    for length in range(len(frames[0])):
        refusal([frames[0][:length], *frames[1:]])
    for at in (1, 2):
        for length in (*range(0, len(frames[at]), 97), len(frames[at]) - 1):
            refusal([*frames[:at], frames[at][:length], *frames[at + 1 :]])
        refusal(frames[:at])
        refusal([*frames[:at], frames[at] + b"\0", *frames[at + 1 :]])
    refusal([*frames, b""])
    refusal([frames[0], frames[2], frames[1]])


def test_every_flipped_bit_gives_a_message_or_a_refusal():
    header, *frames = (bytes(frame) for frame in encode(an_observe(), 5))
    for bit in range(len(header) * 8):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        survives([bytes(flipped), *frames])


class CreatesAFolder:
    """Unpickled, it creates the folder that it was made with."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", [b"O", b"", b"V", "O", None, [b"O"]])
@pytest.mark.parametrize("dtype", ["|O", "O", "object", b"O", [["f", "O"]]])
def test_no_pickle_is_ever_loaded(tmp_path, kind, dtype):
    path = tmp_path / "unpickled"
    payload = pickle.dumps(CreatesAFolder(path))
    for shape in ([1], [], [len(payload) // 8]):
        hostile = an_array(**{"type": dtype, "kind": kind, "shape": shape, "data": payload})
        hostile = {key if isinstance(key, bytes) else key.encode(): v for key, v in hostile.items()}
        refusal(with_key(hostile))
    assert not path.exists()


def test_the_pickle_of_these_tests_would_do_harm(tmp_path):
    path = tmp_path / "unpickled"
    msgpack_numpy.decode(
        an_array() | {b"type": "|O", b"kind": b"O", b"data": pickle.dumps(CreatesAFolder(path))}
    )
    assert path.exists()


HOSTILE_ARRAYS = {
    "object dtype, no kind": ({b"type": "|O"}, ["'|O'", "<f4"]),
    "object dtype, kind O": ({b"type": "|O", b"kind": b"O"}, ["b'O'", "plain dtypes"]),
    "structured, kind V": ({b"type": [["a", "<i8"]], b"kind": b"V"}, ["b'V'", "plain dtypes"]),
    "structured, no kind": ({b"type": [["a", "<i8"]]}, ["('a', '<i8')", "<i8"]),
    "kind is text": ({b"kind": ""}, ["kind ''", "plain dtypes"]),
    "kind is an array": ({b"kind": an_array()}, ["array([0, 0])", "plain dtypes"]),
    "complex dtype": ({b"type": "<c16"}, ["'<c16'", "<f8"]),
    "text dtype": ({b"type": "<U4"}, ["'<U4'", "<f8"]),
    "date dtype": ({b"type": "<M8[s]"}, ["'<M8[s]'", "<f8"]),
    "big-endian": ({b"type": ">i8"}, ["'>i8'", "<i8"]),
    "native spelling": ({b"type": "int64"}, ["'int64'", "<i8"]),
    "dtype is bytes": ({b"type": b"<i8"}, ["b'<i8'", "<i8"]),
    "dtype is a number": ({b"type": 8}, ["dtype 8", "<i8"]),
    "negative shape": ({b"shape": [-2]}, ["(-2,)", "[0, 2^31)"]),
    "two negatives": ({b"shape": [-1, -2]}, ["(-1, -2)", "[0, 2^31)"]),
    "huge shape": ({b"shape": [2**31]}, ["(2147483648,)", "[0, 2^31)"]),
    "product wraps to the size": (
        {b"shape": [2**30, 2**30, 2**4]},
        ["takes 147573952589676412928 bytes", "16 came"],
    ),
    "huge beside zero": ({b"shape": [0, 2**30, 2**30], b"data": b""}, ["1073741824", "product"]),
    "shape of floats": ({b"shape": [2.0]}, ["(2.0,)", "integers"]),
    "shape of bools": ({b"shape": [True, True], b"data": bytes(8)}, ["(True, True)", "integers"]),
    "shape of text": ({b"shape": "2"}, ["'2'", "integers"]),
    "shape is a number": ({b"shape": 2}, ["shape 2", "integers"]),
    "shape is an array": ({b"shape": an_array()}, ["array([0, 0])", "integers"]),
    "too many dimensions": ({b"shape": [1] * 9, b"data": bytes(8)}, ["1, 1, 1", "at most 8"]),
    "too little data": ({b"data": bytes(15)}, ["takes 16 bytes", "15 came"]),
    "too much data": ({b"data": bytes(17)}, ["takes 16 bytes", "17 came"]),
    "data is text": ({b"data": "x" * 16}, ["str", "must be bytes"]),
    "data is missing": ({b"data": ...}, ["exactly", "data"]),
    "kind is missing": ({b"kind": ...}, ["exactly", "kind"]),
    "a part too many": ({b"more": 1}, ["exactly", "nd=true"]),
    "nd is 1": ({b"nd": 1}, ["exactly", "nd=true"]),
    "a numpy scalar": ({b"nd": False, b"shape": ..., b"kind": ...}, ["exactly", "nd=true"]),
    "bools that are neither": ({b"type": "|b1", b"data": b"\1\2"}, ["byte 2", "0 or 1"]),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_a_hostile_array_is_refused(name):
    changes, said = HOSTILE_ARRAYS[name]
    parts = {key: value for key, value in (an_array() | changes).items() if value is not ...}
    text = str(refusal(with_key(parts)))
    assert all(part in text for part in said), text


def test_a_complex_number_is_refused():
    assert "two real arrays" in str(refusal(with_key({b"complex": True, b"data": b"1+2j"})))


def test_an_extension_is_refused():
    for code, size in ((0, 0), (1, 16), (127, 16)):
        text = str(refusal(with_key(msgpack.ExtType(code, bytes(size)))))
        assert f"extension {code} of {size} bytes" in text
    assert "key = Timestamp" in str(refusal(with_key(msgpack.Timestamp(1, 0))))


HOSTILE_LISTS = {
    "object dtype": (listed("|O", [1]), ["'|O'", "<i8"]),
    "structured": (listed([["a", "<i8"]], [1]), ["('a', '<i8')", "<i8"]),
    "big-endian": (listed(">i8", [1]), ["'>i8'", "<i8"]),
    "native spelling": (listed("int64", [1]), ["'int64'", "<i8"]),
    "dtype is bytes": (listed(b"<i8", [1]), ["b'<i8'", "<i8"]),
    "dtype is a number": (listed(8, [1]), ["dtype 8", "<i8"]),
    "dtype is nil": (listed(None, [1]), ["dtype None", "<i8"]),
    "negative shape": (listed("<i8", [-1]), ["(-1,)", "[0, 2^31)"]),
    "two negatives": (listed("|u1", [-2, -4]), ["(-2, -4)", "[0, 2^31)"]),
    "huge shape": (listed("<i8", [2**31]), ["(2147483648,)", "[0, 2^31)"]),
    "product wraps": (listed("<i8", [2**30, 2**30, 2**4]), ["bytes, but 8 came"]),
    "product wraps to the size": (listed("|u1", [2**30, 2**30, 2**4, 1]), ["bytes, but 8 came"]),
    "product wraps a word": (listed("|u1", [2**29 + 1, 8]), ["4294967304 bytes, but 8 came"]),
    "huge beside zero": (listed("<i8", [0, 2**30, 2**30]), ["1073741824", "product"]),
    "shape of floats": (listed("<i8", [1.0]), ["(1.0,)", "integers"]),
    "shape of bools": (listed("<i8", [True]), ["(True,)", "integers"]),
    "shape of text": (listed("<i8", "1"), ["'1'", "integers"]),
    "shape is a number": (listed("<i8", 1), ["shape 1", "integers"]),
    "shape is nil": (listed("<i8", None), ["shape None", "integers"]),
    "shape is an extension": (listed("<i8", msgpack.ExtType(1, b"1")), ["ExtType", "integers"]),
    "too many dimensions": (listed("<i8", [1] * 9), ["1, 1, 1", "at most 8"]),
    "too much": (listed("<i8", [2]), ["16 bytes, but 8 came"]),
    "too little": (listed("<i8", [0]), ["0 bytes, but 8 came"]),
    "neither 0 nor 1": (listed("|b1", [8]), ["byte 255", "0 or 1"]),
    "three parts": (msgpack.packb([("key", None, "<i8")]), ["[field, key, dtype, shape]"]),
    "five parts": (msgpack.packb([("key", None, "<i8", [1], 0)]), ["[field, key, dtype, shape]"]),
    "no parts": (msgpack.packb([7]), ["7 is listed", "[field, key, dtype, shape]"]),
    "four letters": (msgpack.packb(["four"]), ["'four' is listed", "[field, key, dtype, shape]"]),
    "an extension": (msgpack.packb([msgpack.ExtType(1, b"abcd")]), ["[field, key, dtype, shape]"]),
    "a map of parts": (msgpack.packb([{"key": 1}]), ["no well-formed msgpack"]),
    "a map": (msgpack.packb({"key": 1}), ["no well-formed msgpack"]),
    "a number": (msgpack.packb(7), ["a list of arrays is 7", "msgpack array"]),
    "field is bytes": (listed("<i8", [1], field=b"key"), ["field b'key'", "a str"]),
    "field is nil": (listed("<i8", [1], field=None), ["field None", "a str"]),
    "field is a list": (listed("<i8", [1], field=["key"]), ["field ('key',)", "a str"]),
    "key is a number": (listed("<i8", [1], key=0), ["key 0", "str or nil"]),
    "key is a list": (listed("<i8", [1], key=[]), ["key ()", "str or nil"]),
    "no msgpack": (b"\xc1", ["no well-formed msgpack"]),
    "no utf-8": (b"\x91\x94\xa1\xff\xc0\xa3<i8\x91\x01", ["no well-formed msgpack"]),
    "nothing": (b"", ["no well-formed msgpack"]),
    "trailing bytes": (listed("<i8", [1]) + b"\0", ["no well-formed msgpack"]),
    "deep": (b"\x91" * 2000 + b"\xc0", ["no well-formed msgpack"]),
    "false length": (b"\xdd\xff\xff\xff\xff", ["no well-formed msgpack"]),
    "too many": (msgpack.packb([("k", None, "|u1", [0])] * (MAX_FRAMES + 1)), ["65", "64"]),
    "too long": (
        listed("<i8", [1], field="x" * MAX_LIST_BYTES),
        ["no list", f"most {MAX_LIST_BYTES} bytes"],
    ),
    "text": ("key", ["'key' is no list of arrays", "must be bin"]),
    "not packed": ([("key", None, "<i8", [1])], ["is no list of arrays", "must be bin"]),
    "nil": (None, ["None is no list of arrays", "must be bin"]),
    "an array": (an_array(), ["is no list of arrays", "must be bin"]),
}


@pytest.mark.parametrize("frames", [with_small, with_large])
@pytest.mark.parametrize("name", HOSTILE_LISTS)
def test_a_hostile_list_is_refused(name, frames):
    written, said = HOSTILE_LISTS[name]
    for _ in range(2):  # nothing that is wrong is remembered
        error = refusal(frames(written, b"\xff" * 8))
        assert error.message_id == 7
        assert isinstance(error.error, ProtocolError)
        assert all(part in str(error) for part in said), str(error)


TWO = msgpack.packb([("key", None, "<i4", [1]), ("more", None, "|u1", [3])])
TWICE = msgpack.packb([("key", None, "|u1", [8])] * 2)
KEYED = listed("<i8", [1], key="a")
HOSTILE_MESSAGES = {
    "no data": ([a_header(a=listed("<i8", [1]))], ["take 8 bytes", "None came"]),
    "data is text": (with_small(listed("|u1", [8]), "12345678"), ["take 8 bytes", "no bin"]),
    "data is nil": (with_small(listed("|u1", [0]), None), ["take 0 bytes", "no bin"]),
    "data is an array": (with_small(listed("|u1", [8]), an_array()), ["take 8 bytes", "no bin"]),
    "data not padded": (with_small(listed("|u1", [3]), bytes(3)), ["take 8 bytes", "3 came"]),
    "data beyond the last": (with_small(TWO, bytes(24)), ["take 16 bytes", "24 came"]),
    "data back to back": (with_small(TWO, bytes(7)), ["take 16 bytes", "7 came"]),
    "bools behind others": (
        with_small(msgpack.packb([("key", None, "|u1", [3]), ("a", None, "|b1", [2])]), b"\7" * 16),
        ["byte 7", "0 or 1"],
    ),
    "many bools": (with_small(listed("|b1", [9000]), b"\3" * 9000), ["byte 3", "0 or 1"]),
    "a frame of bools": (with_large(listed("|b1", [9000]), b"\3" * 9000), ["byte 3", "0 or 1"]),
    "twice": (with_small(TWICE, bytes(16)), ["'key'", "comes twice"]),
    "twice, in frames": (with_large(TWICE, bytes(8), bytes(8)), ["'key'", "comes twice"]),
    "in the body too": (with_small(listed("<i8", [1]), bytes(8), key=1), ["'key'", "comes twice"]),
    "in the body and a frame": (with_large(listed("<i8", [1]), bytes(8), key=1), ["'key'", "twice"]),
    "here and there": (
        [a_header(a=listed("<i8", [1]), d=bytes(8), f=listed("<i8", [1])), bytes(8)],
        ["'key'", "comes twice"],
    ),
    "whole and in part": (
        with_small(msgpack.packb([("key", None, "<i8", [1]), ("key", "a", "<i8", [1])]), bytes(16)),
        ["'key', key 'a' comes twice"],
    ),
    "in part and whole": (
        with_small(msgpack.packb([("key", "a", "<i8", [1]), ("key", None, "<i8", [1])]), bytes(16)),
        ["'key', key None comes twice"],
    ),
    "a part twice": (
        with_small(msgpack.packb([("key", "a", "<i8", [1])] * 2), bytes(16)),
        ["'a' comes twice"],
    ),
    "a part of text": (with_small(KEYED, bytes(8), key="text"), ["'a' comes twice"]),
    "a part of an array": (with_small(KEYED, bytes(8), key=an_array()), ["'a' comes twice"]),
    "a part that is there": (with_small(KEYED, bytes(8), key={"a": 1}), ["'a' comes twice"]),
    "no body": ([a_header(b=None, a=listed("<i8", [1]), d=bytes(8))], ["b is None", "must be a map"]),
    "a list for a body": ([a_header(b=[], a=listed("<i8", [1]), d=bytes(8))], ["b is ()", "a map"]),
    "an array for a body": ([a_header(b=an_array(), f=msgpack.packb([]))], ["array([0, 0])", "a map"]),
    "no list of frames": (with_key(an_array(), bytes(8)), ["None is no list of arrays"]),
    "fewer frames": (with_large(TWO, bytes(4)), ["2 raw frames are listed, but 1 came"]),
    "more frames": (with_large(listed("<i8", [1]), bytes(8), b""), ["1 raw frames are listed, but 2"]),
    "no frames": (with_large(listed("<i8", [1])), ["1 raw frames are listed, but 0 came"]),
    "frames the other way round": (with_large(TWO, bytes(3), bytes(4)), ["takes 4 bytes", "3 came"]),
}


@pytest.mark.parametrize("name", HOSTILE_MESSAGES)
def test_arrays_that_do_not_fit_what_is_listed_are_refused(name):
    frames, said = HOSTILE_MESSAGES[name]
    error = refusal(frames)
    assert error.message_id == 7
    assert isinstance(error.error, ProtocolError)
    assert all(part in str(error) for part in said), str(error)


def test_an_array_that_a_list_gives_to_no_field_is_refused_by_name():
    text = str(refusal(with_small(listed("<i8", [1], field="keys"), bytes(8))))
    assert "'keys'" in text
    assert "did you mean 'key'?" in text
    two = msgpack.packb([("key", None, "<i8", [1]), ("table", None, "<i8", [1])])
    assert "table = array([0])" in str(refusal([a_header({}, a=two, d=bytes(16))]))
    assert "key" in str(refusal(with_small(KEYED, bytes(8))))


def test_arrays_of_one_field_may_come_in_every_form():
    body = msgpack.unpackb(encode(an_observe(extras={}), 7)[0])
    frames = encode(an_observe(extras={}), 7)
    header = msgpack.unpackb(frames[0])
    header["b"]["extras"] = {"inline": an_array()}
    header["a"] = msgpack.packb([*msgpack.unpackb(header["a"]), ("extras", "small", "<i8", [1])])
    header["d"] += bytes(8)
    header["f"] = msgpack.packb([*msgpack.unpackb(header["f"]), ("extras", "large", "<i8", [3])])
    _, came = decode([msgpack.packb(header), *frames[1:], bytes(24)], REQUESTS)
    assert {name: array.tolist() for name, array in came.extras.items()} == {
        "inline": [0, 0],
        "small": [0],
        "large": [0, 0, 0],
    }
    assert body["b"].keys() == header["b"].keys()


def test_a_peer_can_not_fill_the_memory_with_lists():
    before = wire._list_of.cache_info()
    assert before.maxsize <= 1024
    name = "x" * wire._REMEMBERED_LIST_BYTES
    refusal(with_small(listed("<i8", [1], field=name), bytes(8)))
    assert wire._list_of.cache_info() == before


@pytest.mark.parametrize("code", [-2, -1, -128])
def test_a_negative_extension_is_refused(code):
    packed = b"\xc7\x03" + struct.pack("b", code) + b"abc"
    assert "msgpack" in str(refusal([b"\x81\xa1v" + packed]))


FALSE_LENGTHS = {
    "array32": b"\xdd\xff\xff\xff\xff",
    "array16": b"\xdc\xff\xff",
    "map32": b"\xdf\xff\xff\xff\xff",
    "map16": b"\xde\xff\xff",
    "str32": b"\xdb\xff\xff\xff\xff",
    "str8": b"\xd9\xff",
    "bin32": b"\xc6\xff\xff\xff\xff",
    "ext32": b"\xc9\xff\xff\xff\xff\x01",
    "fixext16": b"\xd8\x01",
    "array within the limit": b"\xdd" + struct.pack(">I", MAX_HEADER_ITEMS),
    "array over the limit": b"\xdd" + struct.pack(">I", MAX_HEADER_ITEMS + 1),
}


@pytest.mark.parametrize("name", FALSE_LENGTHS)
def test_a_false_length_is_refused(name):
    assert "no well-formed msgpack" in str(refusal([FALSE_LENGTHS[name]]))
    assert "no well-formed msgpack" in str(refusal([b"\x81\xa1b" + FALSE_LENGTHS[name]]))


@pytest.mark.parametrize("items", [{f"{at}": 0 for at in range(MAX_HEADER_ITEMS + 1)}, [0] * 5000])
def test_more_items_than_a_header_may_have_are_refused(items):
    text = str(refusal([a_header(items)]))
    assert str(len(items)) in text
    assert str(MAX_HEADER_ITEMS) in text


@pytest.mark.parametrize("depth", [500, 1000, 1020, 100_000])
@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1b"])
@pytest.mark.parametrize("at", ["header", "v", "t", "i", "b", "key", "shape"])
def test_deep_nesting_is_refused(depth, opener, at):
    deep = opener * depth + b"\xc0"
    marker = b"\xc4\x04DEEP"
    if at == "header":
        frames = [deep]
    elif at == "key":
        frames = [with_key(b"DEEP")[0].replace(marker, deep)]
    elif at == "shape":
        frames = [with_key(an_array() | {b"shape": b"DEEP"})[0].replace(marker, deep)]
    else:
        frames = [a_header(**{at: b"DEEP"}).replace(marker, deep)]
    refusal(frames)


def test_oversized_messages_are_refused():
    text = str(refusal([bytes(MAX_HEADER_BYTES + 1)]))
    assert f"{MAX_HEADER_BYTES + 1} bytes" in text
    assert f"at most {MAX_HEADER_BYTES} bytes" in text
    text = str(refusal([a_header(), *[b""] * (MAX_FRAMES + 1)]))
    assert f"{MAX_FRAMES + 2} frames" in text
    assert f"at most {MAX_FRAMES} raw frames" in text
    half = np.zeros(MAX_MESSAGE_BYTES // 2 + MAX_HEADER_BYTES, np.uint8).data
    text = str(refusal([a_header(), half, half]))
    assert f"the limit is {MAX_MESSAGE_BYTES}" in text
    assert "a message of 0 frames" in str(refusal([]))


HEADERS = {
    "older version": (a_header(v=1), ["version 1 is not 3", "same release"]),
    "no version": (a_header(v=None), ["version None is not 3"]),
    "version true": (a_header(v=True), ["version True is not 3"]),
    "version array": (a_header(v=an_array()), ["version array([0, 0]) is not 3"]),
    "unknown type": (a_header(t="stak"), ["'stak'", "stack"]),
    "a reply's type": (a_header(t="stacks"), ["'stacks'", "stack"]),
    "type is a number": (a_header(t=3), ["type 3", "stack"]),
    "type is a list": (a_header(t=["stack"]), ["('stack',)", "stack"]),
    "id is text": (a_header(i="7"), ["message id '7'", "integer"]),
    "id is negative": (a_header(i=-1), ["message id -1", ">= 0"]),
    "id is a bool": (a_header(i=True), ["message id True", "integer"]),
    "id is an array": (a_header(i=an_array()), ["message id array", "integer"]),
    "a list": (msgpack.packb([1, 2]), ["tuple", "v, t, i and b"]),
    "an array": (msgpack.packb(an_array()), ["ndarray", "v, t, i and b"]),
    "trailing bytes": (a_header() + b"\0", ["no well-formed msgpack", "extra"]),
    "keys of a map": (b"\x81\x81\xc0\xc0\xc0", ["no well-formed msgpack"]),
    "no utf-8": (b"\x81\xa1\xff\xc0", ["no well-formed msgpack"]),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_wrong_header_is_refused(name):
    header, said = HEADERS[name]
    text = str(refusal([header]))
    assert all(part in text for part in said), text


FIELDS = {
    "no body": ("stack", None, ["stack:", "dictionary"]),
    "missing": ("stack", {"key": an_array()}, ["'table' is missing"]),
    "unknown": ("stack", {"table": "t", "keys": an_array()}, ["'keys'", "did you mean 'key'?"]),
    "far from all": (
        "stack",
        {"table": "t", "key": an_array(), "zzz": 1},
        ["'zzz'", "known: key, memory, table"],
    ),
    "list for array": ("stack", {"table": "t", "key": [1, 2]}, ["key = (1, 2)", "ndarray"]),
    "bad name": ("stack", {"table": "a b", "key": an_array()}, ["'a b'", "pattern"]),
    "long name": ("stack", {"table": "t" * 10_000, "key": an_array()}, ["...", "pattern"]),
    "number for name": ("stack", {"table": 5, "key": an_array()}, ["table = 5", "string"]),
    "batch 0": ("sample", {"batch_size": 0}, ["batch_size = 0", "greater than or equal to 1"]),
    "batch above": ("sample", {"batch_size": MAX_BATCH + 1}, ["= 65537", f"equal to {MAX_BATCH}"]),
    "batch as text": ("sample", {"batch_size": "256"}, ["batch_size = '256'", "integer"]),
    "n_step 0": (
        "sample",
        {"unit": {"kind": "transition", "n_step": 0}},
        ["unit.n_step = 0", "equal to 1"],
    ),
    "discount above 1": ("sample", {"discount": 1.5}, ["discount = 1.5", "equal to 1"]),
    "discount NaN": ("sample", {"discount": float("nan")}, ["discount = nan", "finite"]),
    "waits for ever": ("sample", {"timeout_s": float("inf")}, ["timeout_s = inf", "finite"]),
    "misspelt": ("sample", {"batchsize": 3}, ["'batchsize'", "did you mean 'batch_size'?"]),
    "unknown, long": ("sample", {"x" * 100_000: 3}, ["xxx...", "known: batch_size"]),
    "no lanes": ("open_writer", {"lanes": 0}, ["lanes = 0", "equal to 1"]),
    "huge incarnation": ("open_writer", {"incarnation": 2**63}, ["incarnation", "9223372036854775808"]),
}
COMPLETE = {
    "stack": {},
    "sample": {"table": "t", "batch_size": 1, "discount": 0.9},
    "open_writer": {"table": "t", "writer": "w", "incarnation": 1, "lanes": 1},
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_field_is_refused_by_name(name):
    kind, body, said = FIELDS[name]
    body = COMPLETE[kind] | body if body is not None else None
    error = refusal([a_header(t=kind, b=body)])
    assert error.message_id == 7
    assert isinstance(error.error, InvalidRequestError)
    assert all(part in str(error) for part in said), str(error)


def test_a_misspelt_field_within_a_signature_is_refused_by_name():
    body = {"table": "t", "spec": {"signature": {"n_frame": 5}, "capacity_steps": 9}}
    text = str(refusal([a_header(t="create_table", b=body)]))
    assert "spec.signature" in text


def test_a_reply_is_checked_like_a_request():
    assert "not one of batch, done" in str(refusal([a_header()], REPLIES))
    assert "'code' is missing" in str(refusal([a_header({"message": "no"}, t="error")], REPLIES))


# what docs/protocol.md shows -----------------------------------------------------------------------


def shown_bytes():
    """Return the hexadecimal dumps of messages in docs/protocol.md, as bytes."""
    example = PROTOCOL.read_text().split("## Worked example")[1].split("## The weights channel")[0]
    found = []
    for line in example.splitlines():
        if len(line) > 6 and line[4:6] == "  " and line[:4].isalnum():
            found += [b""] if line.startswith("0000") else []
            assert int(line[:4], 16) == len(found[-1])
            found[-1] += bytes.fromhex(line[6:54])
    return found


def test_the_bytes_in_the_docs_are_what_they_are_said_to_be():
    inline, small, header, refused = shown_bytes()
    asked = fingerprint(StackQuery(table="demo", key=np.zeros(1, np.int64)))
    for request in (inline, small):
        number, came = decode([request], REQUESTS)
        assert (number, fingerprint(came)) == (7, asked)
    stack = np.zeros((1, 4, 5000), np.uint8)
    stack[0, -1] = 7
    number, came = decode([header, stack.tobytes()], REPLIES)
    assert (number, fingerprint(came)) == (7, fingerprint(Stacks(key=np.zeros(1, np.int64), stack=stack)))
    number, came = decode([refused], REPLIES)
    assert (number, came.code) == (8, "UNKNOWN_TABLE")
