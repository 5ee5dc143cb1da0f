import contextlib
import os
import pickle
import struct

import msgpack
import msgpack_numpy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.common.errors import InvalidRequestError, ProtocolError
from fornix.common.messages import (
    MAX_BATCH,
    PROTOCOL_VERSION,
    REPLIES,
    REQUESTS,
    Batch,
    CreateTable,
    Done,
    Hello,
    Info,
    InfoQuery,
    LimiterSpec,
    Observe,
    OpenWriter,
    Refused,
    Report,
    Sample,
    StackQuery,
    Stacks,
    TableCreated,
    TableSpec,
    Welcome,
    WriterOpened,
)
from fornix.common.signature import DTYPES, ArraySpec, Signature
from fornix.common.wire import (
    INLINE_BYTES,
    MAX_FRAMES,
    MAX_HEADER_BYTES,
    MAX_HEADER_ITEMS,
    MAX_MESSAGE_BYTES,
    UndecodableError,
    decode,
    encode,
)

# what is sent comes back ---------------------------------------------------------------------------


@st.composite
def arrays(draw):
    """Arrays of every dtype: empty, 0-d, small enough to stand inline, large, and not contiguous."""
    dtype = np.dtype(draw(st.sampled_from(sorted(DTYPES))))
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 17]), max_size=3))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    flat = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), np.uint8)
    flat = flat % 2 if dtype.kind == "b" else flat
    array = flat.view(dtype).reshape(shape)
    layout = draw(st.sampled_from(["c", "fortran", "reversed", "strided", "transposed"]))
    if layout == "fortran":
        return np.asfortranarray(array)
    if layout == "reversed" and shape:
        return np.flip(array)
    if layout == "strided" and shape:
        return array[::2]
    return array.T if layout == "transposed" else array


words = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
counts = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 3600)
shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)
specs = st.builds(
    ArraySpec,
    shape=shapes,
    dtype=st.sampled_from(sorted(DTYPES)),
    n_values=st.none() | st.integers(1, 2**31),
)
signatures = st.builds(
    Signature,
    frame=specs,
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
    "create_table": st.builds(
        CreateTable,
        table=names,
        spec=st.builds(
            TableSpec, signature=signatures, capacity_steps=st.integers(2, 2**31 - 1), limiter=limiters
        ),
    ),
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
        lane=arrays(),
        step_type=arrays(),
        terminated=arrays(),
        action=arrays(),
        reward=arrays(),
        frame=arrays(),
        extras=st.dictionaries(names, arrays(), max_size=3),
        policy_version=counts,
        stacks=st.booleans(),
        timeout_s=seconds,
    ),
    "stack": st.builds(StackQuery, table=names, key=arrays()),
    "stacks": st.builds(Stacks, key=arrays(), stack=arrays(), held_s=seconds),
    "sample": st.builds(
        Sample,
        table=names,
        batch_size=st.integers(1, MAX_BATCH),
        n_step=st.integers(1, 64),
        discount=st.floats(0, 1),
        timeout_s=seconds,
    ),
    "batch": st.builds(
        Batch,
        **{name: arrays() for name in Batch.model_fields.keys() - {"extras", "held_s"}},
        extras=st.dictionaries(names, arrays(), max_size=2),
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
        metrics=st.dictionaries(words.filter(len), st.floats(), max_size=3),
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
    if hasattr(value, "__dict__"):
        return type(value), fingerprint(value.__dict__)
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


def test_what_comes_in_may_be_written_to():
    small, large = np.zeros(3, np.uint8), np.zeros(INLINE_BYTES, np.uint8)
    for array in (small, large):
        frames = [bytearray(frame) for frame in encode(query(array), 1)]
        _, came = decode([memoryview(frame) for frame in frames], REQUESTS)
        came.key[0] = 1
        assert array[0] == 0


def test_a_large_array_that_is_not_contiguous_is_made_so():
    array = np.arange(4096, dtype=np.int64).reshape(64, 64).T
    assert np.array_equal(carried(query(array)).key, array)


@pytest.mark.parametrize(
    "array",
    [np.zeros(3, ">i4"), np.zeros(3, "c16"), np.array([None]), np.zeros(2, "S3"), np.zeros(1, "M8")],
)
def test_an_array_that_no_peer_would_take_is_not_sent(array):
    with pytest.raises(ProtocolError, match=r"can't be sent; it must be one of <f2, .*\|u1"):
        encode(query(array), 1)


def test_more_than_a_message_may_hold_is_not_sent():
    signature = Signature(frame=ArraySpec(dtype="|u1"), action=ArraySpec(dtype="|u1"), n_frames=1)
    with pytest.raises(ProtocolError, match=rf"header of \d+ bytes .* the limits are {MAX_HEADER_BYTES}"):
        encode(Hello(client="c", expects={f"t{at}": signature for at in range(10_000)}), 1)
    with pytest.raises(ProtocolError, match=rf"bytes of arrays; the limit is {MAX_MESSAGE_BYTES}"):
        encode(query(np.zeros(MAX_MESSAGE_BYTES + 1, np.uint8)), 1)
    many = {f"e{at}": np.zeros(INLINE_BYTES, np.uint8) for at in range(MAX_FRAMES)}
    with pytest.raises(ProtocolError, match=rf"{MAX_FRAMES + 1} large arrays; .* and {MAX_FRAMES};"):
        encode(an_observe(extras=many), 1)  # its frames are the one array more


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
        "frame": np.ones((3, 500), np.uint8),
        "extras": {"value": np.ones((3, 400), np.float32)},
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


def a_reference(*parts):
    return msgpack.ExtType(1, msgpack.packb(parts))


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
    assert decode(with_key(a_reference(0, "<i8", [1]), bytes(8)), REQUESTS)[1].key.tolist() == [0]


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
    | st.builds(lambda parts: a_reference(*parts), st.lists(st.integers(-3, 3) | st.text(), max_size=4))
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
    survives(with_key(value, bytes(8)))
    survives([a_header({"table": "t"}, **parts)])


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


HOSTILE_REFERENCES = {
    "no such frame": (a_reference(1, "<i8", [1]), ["raw frame 1", "has 1"]),
    "far beyond": (a_reference(2**63, "<i8", [1]), ["raw frame 9223372036854775808", "has 1"]),
    "negative frame": (a_reference(-1, "<i8", [1]), ["raw frame -1", "has 1"]),
    "frame True": (a_reference(True, "<i8", [1]), ["raw frame True", "has 1"]),
    "frame 0.0": (a_reference(0.0, "<i8", [1]), ["raw frame 0.0", "has 1"]),
    "frame None": (a_reference(None, "<i8", [1]), ["raw frame None", "has 1"]),
    "object dtype": (a_reference(0, "|O", [1]), ["'|O'", "<i8"]),
    "negative shape": (a_reference(0, "<i8", [-1]), ["(-1,)", "[0, 2^31)"]),
    "wrong size": (a_reference(0, "<i8", [2]), ["takes 16 bytes", "8 came"]),
    "neither 0 nor 1": (a_reference(0, "|b1", [8]), ["byte 255", "0 or 1"]),
    "two parts": (a_reference(0, "<i8"), ["(index of the frame, dtype, shape)"]),
    "no list": (msgpack.ExtType(1, msgpack.packb(0)), ["(index of the frame, dtype, shape)"]),
    "no msgpack": (msgpack.ExtType(1, b"\xc1"), ["no well-formed msgpack"]),
    "too long": (msgpack.ExtType(1, bytes(257)), ["extension 1 of 257 bytes", "at most 256"]),
    "another code": (msgpack.ExtType(2, b""), ["extension 2 of 0 bytes", "only"]),
    "code 127": (msgpack.ExtType(127, bytes(16)), ["extension 127 of 16 bytes", "only"]),
    "a timestamp": (msgpack.Timestamp(1, 0), ["key = Timestamp", "ndarray"]),
}


@pytest.mark.parametrize("name", HOSTILE_REFERENCES)
def test_a_hostile_reference_to_a_frame_is_refused(name):
    reference, said = HOSTILE_REFERENCES[name]
    text = str(refusal(with_key(reference, b"\xff" * 8)))
    assert all(part in text for part in said), text


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
    "newer version": (a_header(v=2), ["version 2 is not 1", "same release"]),
    "no version": (a_header(v=None), ["version None is not 1"]),
    "version true": (a_header(v=True), ["version True is not 1"]),
    "version array": (a_header(v=an_array()), ["version array([0, 0]) is not 1"]),
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
    "far from all": ("stack", {"table": "t", "key": an_array(), "zzz": 1}, ["'zzz'", "known: key, table"]),
    "list for array": ("stack", {"table": "t", "key": [1, 2]}, ["key = (1, 2)", "ndarray"]),
    "bad name": ("stack", {"table": "a b", "key": an_array()}, ["'a b'", "pattern"]),
    "long name": ("stack", {"table": "t" * 10_000, "key": an_array()}, ["...", "pattern"]),
    "number for name": ("stack", {"table": 5, "key": an_array()}, ["table = 5", "string"]),
    "batch 0": ("sample", {"batch_size": 0}, ["batch_size = 0", "greater than or equal to 1"]),
    "batch above": ("sample", {"batch_size": MAX_BATCH + 1}, ["= 65537", f"equal to {MAX_BATCH}"]),
    "batch as text": ("sample", {"batch_size": "256"}, ["batch_size = '256'", "integer"]),
    "n_step 0": ("sample", {"n_step": 0}, ["n_step = 0", "equal to 1"]),
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
    "sample": {"table": "t", "batch_size": 1, "n_step": 1, "discount": 0.9},
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
