"""The wire form of a message: `[header, frame, frame, ...]`, as docs/protocol.md defines it.

The header is a small msgpack map. Arrays of less than INLINE_BYTES stand in it back to back, with a list
of what they are; a larger one is a ZeroMQ frame of its own, sent and received without a copy. An array
that is neither a field nor in a dict that is one is written as msgpack-numpy does, and arrays in that form
are taken anywhere. Whatever comes in is checked before an array is made of it: msgpack-numpy's own
`decode` unpickles arrays of kind `O` and trusts every dtype, so only what the guard admits reaches it.

This runs for every step and every batch, so it is written for speed: what lists say is remembered, and no
function of ours is called for each array.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import msgpack
import msgpack_numpy
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from fornix.common.errors import InvalidRequestError, ProtocolError
from fornix.common.messages import PROTOCOL_VERSION, Reply, Request
from fornix.common.signature import DTYPES, MAX_DIMENSIONS
from fornix.common.validation import first_fault, shown

INLINE_BYTES = 16_384  # from about twice as many on, a frame costs less than the copies
MAX_HEADER_BYTES = 1 << 20
MAX_HEADER_ITEMS = 4096  # in one array or map of the header
MAX_FRAMES = 64  # and arrays in one list of the header
MAX_LIST_BYTES = 1 << 14
MAX_MESSAGE_BYTES = 1 << 28

_ALIGNMENT = 8
_REMEMBERED_LISTS = 512
_REMEMBERED_LIST_BYTES = 2048  # no longer one is remembered: a peer could fill the memory with them
_FEW_BOOLS = 4096  # up to so many, bytes.translate is faster than numpy

_ARRAY_PARTS = frozenset((b"nd", b"type", b"kind", b"shape", b"data"))
_ITEMSIZES = {dtype: np.dtype(dtype).itemsize for dtype in DTYPES}
_PLAIN = frozenset((str, int, float, bool, type(None)))
_PACKERS: list[msgpack.Packer] = []  # that nobody uses now; to get and give back their buffers takes long

Buffer = bytes | memoryview
_Named = tuple[str, str | None, NDArray[Any]]  # an array, by its field and, in a dict, its key
MessageT = TypeVar("MessageT", bound=Request | Reply)


def encode(message: Request | Reply, message_id: int) -> list[Buffer]:
    """Return the frames of `message`: the header, then each large array, not copied if contiguous."""
    body, arrays = _taken_apart(message)
    small: list[Any] = []  # field, key, dtype and shape of one array after another
    large: list[Any] = []
    data: list[bytes] = []
    frames: list[Buffer] = []
    for field, key, array in arrays:
        if array.nbytes < INLINE_BYTES:
            small += (field, key, array.dtype, array.shape)
            part = array.tobytes()
            data.append(part)
            if len(part) % _ALIGNMENT:
                data.append(bytes(-len(part) % _ALIGNMENT))
        else:
            large += (field, key, array.dtype, array.shape)
            frames.append(np.ascontiguousarray(array).data.cast("B"))
    header = {"v": PROTOCOL_VERSION, "t": message.type, "i": message_id, "b": body}
    if small:
        header["a"] = _written_list(tuple(small))
        header["d"] = b"".join(data)
    if large:
        header["f"] = _written_list(tuple(large))
        if sum(map(len, frames)) > MAX_MESSAGE_BYTES:
            raise ProtocolError(
                f"{message.type!r} has {sum(map(len, frames))} bytes of arrays; the limit is "
                f"{MAX_MESSAGE_BYTES}; send less at once"
            )
    return [_packed_header(header, len(frames)), *frames]


def decode(frames: Sequence[Buffer], kinds: Mapping[str, type[MessageT]]) -> tuple[int, MessageT]:
    """Return the id and the message that `frames` hold.

    Arrays from the header are the caller's to write to; those that it lists are views of one buffer of
    the message's own. An array of a raw frame is a view of it, to write to if the frame's buffer is, as
    that of a received `zmq.Frame` is. No two arrays overlap.

    Args:
        frames: the header and the raw frames.
        kinds: the messages that may come in, by their type: REQUESTS or REPLIES.

    Raises:
        UndecodableError: with the message's id where it could still be read.
    """
    header, fault = _unpacked_header(frames)
    message_id = header.get("i")
    if type(message_id) is not int or message_id < 0:
        raise UndecodableError(
            None, fault or ProtocolError(f"message id {shown(message_id)} is no integer >= 0")
        )
    try:
        if fault is not None:
            raise fault
        return message_id, _built(header, frames, kinds)
    except (ProtocolError, InvalidRequestError) as error:
        raise UndecodableError(message_id, error) from error


class UndecodableError(ProtocolError):
    """Frames that hold no message. `message_id` says which request it was, where that is known."""

    def __init__(self, message_id: int | None, error: ProtocolError | InvalidRequestError) -> None:
        super().__init__(str(error))
        self.message_id = message_id
        self.error = error


# to the wire ---------------------------------------------------------------------------------------


def _taken_apart(message: BaseModel) -> tuple[dict[str, object], list[_Named]]:
    """Return what msgpack packs of a message's fields, and the arrays in them by field and key."""
    body: dict[str, object] = {}
    arrays: list[_Named] = []
    values = message.__dict__
    for field in type(message).__pydantic_fields__:
        value = values[field]
        if type(value) in _PLAIN:
            body[field] = value
        elif isinstance(value, np.ndarray):
            arrays.append((field, None, value))
        elif isinstance(value, dict):
            body[field] = rest = {}
            for key, part in value.items():
                if isinstance(part, np.ndarray):
                    arrays.append((field, key, part))
                else:
                    rest[key] = _packable(part)
        else:
            body[field] = _packable(value)
    return body, arrays


def _packable(value: object) -> object:
    """Return what msgpack packs for `value`.

    Not msgpack's own `default` hook: within it another packer would be at work.
    """
    if type(value) in _PLAIN:
        return value
    fields = getattr(type(value), "__pydantic_fields__", None)
    if fields is not None:  # these alone: a model may have cached properties beside them
        return {name: _packable(value.__dict__[name]) for name in fields}
    if isinstance(value, np.ndarray):
        _check_sendable(value.dtype, value.shape)
        return msgpack_numpy.encode(value)
    if isinstance(value, dict):
        return {key: _packable(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_packable(inner) for inner in value]
    return value


@lru_cache(maxsize=_REMEMBERED_LISTS)
def _written_list(parts: tuple[Any, ...]) -> bytes:
    """Return how the header lists arrays, of which `parts` has field, key, dtype, shape, field, ..."""
    listed = []
    for at in range(0, len(parts), 4):
        field, key, dtype, shape = parts[at : at + 4]
        _check_sendable(dtype, shape)
        listed.append((field, key, dtype.str, shape))
    written = cast(bytes, msgpack.packb(listed))
    if len(listed) > MAX_FRAMES or len(written) > MAX_LIST_BYTES:
        raise ProtocolError(
            f"{len(listed)} arrays with {len(written)} bytes of names and shapes can't be sent; the limits "
            f"are {MAX_FRAMES} and {MAX_LIST_BYTES}; send less at once"
        )
    return written


def _check_sendable(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype.str not in DTYPES:
        raise ProtocolError(
            f"an array of dtype {dtype.str} can't be sent; it must be one of {', '.join(sorted(DTYPES))}"
        )
    _array_bytes(dtype.str, shape)


def _packed_header(header: Mapping[str, object], frames: int) -> bytes:
    try:
        packer = _PACKERS.pop()  # so that no other thread, nor a finalizer in this one, has it too
    except IndexError:
        packer = msgpack.Packer()
    packed = cast(bytes, packer.pack(header))
    if len(packed) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"{header['t']!r} has a header of {len(packed)} bytes and {frames} large arrays; the limits "
            f"are {MAX_HEADER_BYTES} and {MAX_FRAMES}; send less at once"
        )
    _PACKERS.append(packer)
    return packed


# from the wire -------------------------------------------------------------------------------------


def _built(
    header: Mapping[str, object], frames: Sequence[Buffer], kinds: Mapping[str, type[MessageT]]
) -> MessageT:
    version = header.get("v")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"protocol version {shown(version)} is not {PROTOCOL_VERSION}; use the same release of "
            f"fornix on both sides"
        )
    name = header.get("t")
    kind = kinds.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"message type {shown(name)} is not one of {', '.join(sorted(kinds))}")
    body = header.get("b")
    if "a" in header:
        _put_small(body, _read_list(header["a"]), header.get("d"))
    if "f" in header or len(frames) > 1:
        _put_large(body, _read_list(header.get("f")), frames[1:])
    try:
        # as model_validate does, but without its half a microsecond of options
        return cast(MessageT, kind.__pydantic_validator__.validate_python(body))
    except ValidationError as error:
        raise InvalidRequestError(f"{kind.type}: {first_fault(error, kind)}") from None


def _unpacked_header(frames: Sequence[Buffer]) -> tuple[dict[str, object], ProtocolError | None]:
    """Return the header, and what is wrong with an array in it, if anything is."""
    if not frames or len(frames[0]) > MAX_HEADER_BYTES or len(frames) - 1 > MAX_FRAMES:
        raise UndecodableError(
            None,
            ProtocolError(
                f"a message of {len(frames)} frames with a header of {len(frames[0]) if frames else 0} "
                f"bytes is refused; it must have a header of at most {MAX_HEADER_BYTES} bytes and at most "
                f"{MAX_FRAMES} raw frames"
            ),
        )
    if len(frames) > 1 and sum(map(len, frames)) > MAX_MESSAGE_BYTES + MAX_HEADER_BYTES:
        raise UndecodableError(
            None,
            ProtocolError(
                f"a message of {sum(map(len, frames))} bytes is refused; the limit is "
                f"{MAX_MESSAGE_BYTES}; send less at once"
            ),
        )
    guard = _Guard()
    try:
        header = msgpack.unpackb(
            frames[0],
            object_hook=guard.map,
            ext_hook=guard.extension,
            use_list=False,
            max_array_len=MAX_HEADER_ITEMS,
            max_map_len=MAX_HEADER_ITEMS,
        )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        text = f"the header is no well-formed msgpack map ({type(error).__name__}: {error!s:.100})"
        raise UndecodableError(None, ProtocolError(text)) from None
    if not isinstance(header, dict):
        text = f"the header is a {type(header).__name__}; it must be a map of v, t, i and b"
        raise UndecodableError(None, guard.fault or ProtocolError(text))
    return header, guard.fault


class _List(NamedTuple):
    """What a list says of its arrays."""

    arrays: tuple[tuple[str, str | None, np.dtype[Any], tuple[int, ...], int], ...]
    """Field, key, dtype, shape of each, and where it begins if they lie back to back."""
    bools: tuple[int, ...]
    """Which of them are bools."""
    sizes: tuple[int, ...]
    """The bytes of each."""
    nbytes: int
    """The bytes of all if they lie back to back."""


def _read_list(written: object) -> _List:
    if not isinstance(written, bytes) or len(written) > MAX_LIST_BYTES:
        raise ProtocolError(
            f"{shown(written)} is no list of arrays; it must be bin of at most {MAX_LIST_BYTES} bytes"
        )
    return (_list_of if len(written) <= _REMEMBERED_LIST_BYTES else _list_of.__wrapped__)(written)


@lru_cache(maxsize=_REMEMBERED_LISTS)
def _list_of(written: bytes) -> _List:
    try:
        parts = msgpack.unpackb(written, use_list=False, max_array_len=MAX_FRAMES, max_map_len=0)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        text = f"a list of arrays is no well-formed msgpack ({type(error).__name__}: {error!s:.100})"
        raise ProtocolError(text) from None
    if not isinstance(parts, tuple):
        raise ProtocolError(f"a list of arrays is {shown(parts)}; it must be a msgpack array")
    arrays, bools, sizes, begin = [], [], [], 0
    for at, part in enumerate(parts):
        if not isinstance(part, tuple) or len(part) != 4:
            raise ProtocolError(f"{shown(part)} is listed; list [field, key, dtype, shape] of an array")
        field, key, dtype, shape = part
        if not isinstance(field, str) or not isinstance(key, str | None):
            raise ProtocolError(
                f"an array of field {shown(field)} and key {shown(key)} is listed; a field is a str, and a "
                f"key a str or nil"
            )
        nbytes = _array_bytes(dtype, shape)
        arrays.append((field, key, np.dtype(dtype), shape, begin))
        sizes.append(nbytes)
        if dtype == "|b1":
            bools.append(at)
        begin += nbytes + -nbytes % _ALIGNMENT
    return _List(tuple(arrays), tuple(bools), tuple(sizes), begin)


def _put_small(body: object, listed: _List, data: object) -> None:
    """Put arrays that lie back to back in `data` into the body's fields."""
    arrays, bools, sizes, nbytes = listed
    fields = _fields(body)
    if not isinstance(data, bytes) or len(data) != nbytes:
        came = f"{len(data)} came" if isinstance(data, bytes) else f"{shown(data)} came, no bin"
        raise ProtocolError(f"the arrays that the header lists take {nbytes} bytes, but {came}")
    for at in bools:
        begin = arrays[at][-1]
        _check_bools(data[begin : begin + sizes[at]])
    own = bytearray(data)
    for field, key, dtype, shape, begin in arrays:
        if key is None and field not in fields:
            fields[field] = np.ndarray(shape, dtype, own, begin)
        else:
            _put(fields, field, key, np.ndarray(shape, dtype, own, begin))


def _put_large(body: object, listed: _List, frames: Sequence[Buffer]) -> None:
    """Put arrays, each of which is one of `frames`, into the body's fields."""
    arrays, bools, sizes, _ = listed
    fields = _fields(body)
    if len(arrays) != len(frames):
        raise ProtocolError(f"{len(arrays)} raw frames are listed, but {len(frames)} came")
    for (field, key, dtype, shape, _), nbytes, frame in zip(arrays, sizes, frames, strict=True):
        if len(frame) != nbytes:
            raise _wrong_size(dtype.str, shape, nbytes, len(frame))
        _put(fields, field, key, np.ndarray(shape, dtype, frame))
    for at in bools:
        _check_bools(frames[at])


def _fields(body: object) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ProtocolError(f"b is {shown(body)}; it must be a map of the message's fields")
    return body


def _put(fields: dict[str, Any], field: str, key: str | None, array: NDArray[Any]) -> None:
    into, name = (fields, field) if key is None else (fields.setdefault(field, {}), key)
    if not isinstance(into, dict) or name in into:
        raise ProtocolError(f"field {shown(field)}, key {shown(key)} comes twice; send it once")
    into[name] = array


class _Guard:
    """Turns what msgpack-numpy wrote into arrays, if all of it is true and harmless.

    The first fault is kept, not raised: the rest of the header may tell which request it is in.
    """

    def __init__(self) -> None:
        self.fault: ProtocolError | None = None

    def map(self, value: dict[Any, Any]) -> object:
        """Admit a map; one that msgpack-numpy would decode must be a plain array."""
        if b"nd" not in value and b"complex" not in value:
            return value
        try:
            return _array_of(value)
        except ProtocolError as error:
            self.fault = self.fault or error
            return None

    def extension(self, code: int, data: bytes) -> None:
        """Admit no extension of msgpack."""
        self.fault = self.fault or ProtocolError(
            f"msgpack extension {code} of {len(data)} bytes is refused; no extension is admitted"
        )


def _array_of(value: Mapping[bytes, Any]) -> NDArray[Any]:
    if b"complex" in value:
        raise ProtocolError("complex numbers are refused; send two real arrays")
    if value.keys() != _ARRAY_PARTS or value[b"nd"] is not True:
        raise ProtocolError("an array must have exactly nd=true, type, kind, shape and data")
    kind, data, dtype, shape = value[b"kind"], value[b"data"], value[b"type"], value[b"shape"]
    if not isinstance(kind, bytes) or kind:
        raise ProtocolError(
            f"an array of kind {shown(kind)} is refused; only plain dtypes are admitted, of kind b''"
        )
    if not isinstance(data, bytes):
        raise ProtocolError(f"an array's data is a {type(data).__name__}; it must be bytes")
    nbytes = _array_bytes(dtype, shape)
    if nbytes != len(data):
        raise _wrong_size(dtype, shape, nbytes, len(data))
    if dtype == "|b1":
        _check_bools(data)
    return cast(NDArray[Any], msgpack_numpy.decode(value).copy())


def _array_bytes(dtype: object, shape: object) -> int:
    """Return how many bytes an array has, if there may be one of such a dtype and shape."""
    itemsize = _ITEMSIZES.get(dtype) if isinstance(dtype, str) else None
    if itemsize is None:
        raise ProtocolError(
            f"dtype {shown(dtype)} is refused; it must be one of {', '.join(sorted(DTYPES))}"
        )
    if (
        not isinstance(shape, tuple)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 2**31 for size in shape)
        or (0 in shape and math.prod(size or 1 for size in shape) >= 2**31)
    ):
        raise ProtocolError(
            f"shape {shown(shape)} is refused; it must be at most {MAX_DIMENSIONS} integers in "
            f"[0, 2^31), with a product in that range whatever is 0"
        )
    return math.prod(shape) * itemsize


def _wrong_size(dtype: object, shape: object, nbytes: int, came: int) -> ProtocolError:
    return ProtocolError(
        f"an array of shape {shape} and dtype {dtype} takes {nbytes} bytes, but {came} came"
    )


def _check_bools(data: Buffer) -> None:
    """Numpy trusts a bool's byte to be 0 or 1, and computes nonsense with another."""
    if len(data) <= _FEW_BOOLS:
        sound = not bytes(data).translate(None, b"\0\1")
    else:
        sound = bool(np.frombuffer(data, np.uint8).max() <= 1)
    if not sound:
        raise ProtocolError(f"a bool array holds the byte {max(data)}; it must be 0 or 1")
