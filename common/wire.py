"""The wire form of a message: `[header, frame, frame, ...]`, as docs/protocol.md defines it.

The header is a small msgpack map. An array of less than INLINE_BYTES stands in it as msgpack-numpy
writes it; a larger one is a ZeroMQ frame of its own, and the header holds a reference to it: sent and
received without a copy. Whatever comes in is checked before an array is made of it: msgpack-numpy's
own `decode` unpickles arrays of kind `O` and trusts every dtype, so only what the guard admits
reaches it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgpack
import msgpack_numpy
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from fornix.common.errors import InvalidRequestError, ProtocolError
from fornix.common.messages import PROTOCOL_VERSION, Reply, Request
from fornix.common.signature import DTYPES, MAX_DIMENSIONS
from fornix.common.validation import first_fault, shown

INLINE_BYTES = 1024
MAX_HEADER_BYTES = 1 << 20
MAX_HEADER_ITEMS = 4096  # in one array or map of the header
MAX_FRAMES = 64
MAX_MESSAGE_BYTES = 1 << 28

_FRAME_REFERENCE = 1  # the msgpack extension type of a reference to a raw frame
_MAX_REFERENCE_BYTES = 256

_ARRAY_PARTS = frozenset((b"nd", b"type", b"kind", b"shape", b"data"))
_ITEMSIZES = {dtype: np.dtype(dtype).itemsize for dtype in DTYPES}

Buffer = bytes | memoryview
MessageT = TypeVar("MessageT", bound=Request | Reply)


def encode(message: Request | Reply, message_id: int) -> list[Buffer]:
    """Return the frames of `message`: the header, then each large array, not copied if contiguous."""
    frames: list[Buffer] = []
    body = _packable(message, frames)
    header = msgpack.packb({"v": PROTOCOL_VERSION, "t": message.type, "i": message_id, "b": body})
    if len(header) > MAX_HEADER_BYTES or len(frames) > MAX_FRAMES:
        raise ProtocolError(
            f"{message.type!r} has a header of {len(header)} bytes and {len(frames)} large arrays; "
            f"the limits are {MAX_HEADER_BYTES} and {MAX_FRAMES}; send less at once"
        )
    if sum(len(frame) for frame in frames) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            f"{message.type!r} has {sum(len(frame) for frame in frames)} bytes of arrays; the limit "
            f"is {MAX_MESSAGE_BYTES}; send less at once"
        )
    return [header, *frames]


def decode(frames: Sequence[Buffer], kinds: Mapping[str, type[MessageT]]) -> tuple[int, MessageT]:
    """Return the id and the message that `frames` hold.

    Large arrays are views of the frames, small ones are copies; both are the caller's to write to.

    Args:
        frames: the header and the raw frames.
        kinds: the messages that may come in, by their type: REQUESTS or REPLIES.

    Raises:
        UndecodableError: with the message's id where it could still be read.
    """
    header, fault = _unpack_header(frames)
    message_id = header.get("i")
    if not isinstance(message_id, int) or isinstance(message_id, bool) or message_id < 0:
        raise UndecodableError(
            None, fault or ProtocolError(f"message id {shown(message_id)} is no integer >= 0")
        )
    try:
        if fault is not None:
            raise fault
        return message_id, _build(header, kinds)
    except (ProtocolError, InvalidRequestError) as error:
        raise UndecodableError(message_id, error) from error


class UndecodableError(ProtocolError):
    """Frames that hold no message. `message_id` says which request it was, where that is known."""

    def __init__(self, message_id: int | None, error: ProtocolError | InvalidRequestError) -> None:
        super().__init__(str(error))
        self.message_id = message_id
        self.error = error


def _build(header: Mapping[str, object], kinds: Mapping[str, type[MessageT]]) -> MessageT:
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
    try:
        return cast(MessageT, kind.model_validate(header.get("b")))
    except ValidationError as error:
        raise InvalidRequestError(f"{kind.type}: {first_fault(error, kind)}") from None


def _unpack_header(frames: Sequence[Buffer]) -> tuple[dict[str, object], ProtocolError | None]:
    """Return the header, and what is wrong with an array in it, if anything is."""
    sizes = [len(frame) for frame in frames]
    if not sizes or sizes[0] > MAX_HEADER_BYTES or len(sizes) - 1 > MAX_FRAMES:
        raise UndecodableError(
            None,
            ProtocolError(
                f"a message of {len(sizes)} frames with a header of {sizes[0] if sizes else 0} bytes "
                f"is refused; it must have a header of at most {MAX_HEADER_BYTES} bytes and at most "
                f"{MAX_FRAMES} raw frames"
            ),
        )
    if sum(sizes) > MAX_MESSAGE_BYTES + MAX_HEADER_BYTES:
        raise UndecodableError(
            None,
            ProtocolError(
                f"a message of {sum(sizes)} bytes is refused; the limit is {MAX_MESSAGE_BYTES}; "
                f"send less at once"
            ),
        )
    guard = _Guard(frames[1:])
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


def _packable(value: object, frames: list[Buffer]) -> object:
    """Return what msgpack packs for `value`; large arrays are appended to `frames`.

    Not msgpack's own `default` hook: two packers would work at a time, and each has a large buffer
    whose memory the allocator then takes and gives back for every message.
    """
    if isinstance(value, np.ndarray):
        return _encode_array(value, frames)
    if isinstance(value, BaseModel):
        value = value.__dict__
    if isinstance(value, dict):
        return {key: _packable(inner, frames) for key, inner in value.items()}
    return value


def _encode_array(array: NDArray[Any], frames: list[Buffer]) -> object:
    if array.dtype.str not in DTYPES:
        raise ProtocolError(
            f"an array of dtype {array.dtype.str} can't be sent; it must be one of "
            f"{', '.join(sorted(DTYPES))}"
        )
    if array.nbytes < INLINE_BYTES:
        return msgpack_numpy.encode(array)
    frames.append(np.ascontiguousarray(array).data.cast("B"))
    reference = (len(frames) - 1, array.dtype.str, array.shape)
    return msgpack.ExtType(_FRAME_REFERENCE, msgpack.packb(reference))


class _Guard:
    """Turns what a header says of arrays into arrays, if all of it is true and harmless.

    The first fault is kept, not raised: the rest of the header may tell which request it is in.
    """

    def __init__(self, frames: Sequence[Buffer]) -> None:
        self._frames = frames
        self.fault: ProtocolError | None = None

    def map(self, value: dict[Any, Any]) -> object:
        """Admit a map; one that msgpack-numpy would decode must be a plain array."""
        return self._keeping_fault(self._map, value)

    def extension(self, code: int, data: bytes) -> object:
        """Admit a reference to a raw frame, and nothing else."""
        return self._keeping_fault(self._extension, code, data)

    def _keeping_fault(self, admit: Callable[..., object], *value: object) -> object:
        try:
            return admit(*value)
        except ProtocolError as error:
            self.fault = self.fault or error
            return None

    def _map(self, value: dict[Any, Any]) -> object:
        if b"complex" in value:
            raise ProtocolError("complex numbers are refused; send two real arrays")
        if b"nd" not in value:
            return value
        if value.keys() != _ARRAY_PARTS or value[b"nd"] is not True:
            raise ProtocolError("an array must have exactly nd=true, type, kind, shape and data")
        kind = value[b"kind"]
        if not isinstance(kind, bytes) or kind:
            raise ProtocolError(
                f"an array of kind {shown(kind)} is refused; only plain dtypes are admitted, of kind b''"
            )
        data = value[b"data"]
        if not isinstance(data, bytes):
            raise ProtocolError(f"an array's data is a {type(data).__name__}; it must be bytes")
        _check_array(value[b"type"], value[b"shape"], len(data))
        return _checked_bools(msgpack_numpy.decode(value).copy())

    def _extension(self, code: int, data: bytes) -> object:
        if code != _FRAME_REFERENCE or len(data) > _MAX_REFERENCE_BYTES:
            raise ProtocolError(
                f"msgpack extension {code} of {len(data)} bytes is refused; only {_FRAME_REFERENCE} is "
                f"admitted, a reference to a raw frame, of at most {_MAX_REFERENCE_BYTES} bytes"
            )
        reference = msgpack.unpackb(data, use_list=False)
        if not isinstance(reference, tuple) or len(reference) != 3:
            raise ProtocolError("a reference to a raw frame must be (index of the frame, dtype, shape)")
        index, dtype, shape = reference
        if type(index) is not int or not 0 <= index < len(self._frames):
            raise ProtocolError(
                f"raw frame {shown(index)} is referred to; the message has {len(self._frames)}"
            )
        _check_array(dtype, shape, len(self._frames[index]))
        return _checked_bools(np.frombuffer(self._frames[index], dtype=dtype).reshape(shape))


def _check_array(dtype: object, shape: object, nbytes: int) -> None:
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
    wanted = math.prod(shape) * itemsize
    if wanted != nbytes:
        raise ProtocolError(
            f"an array of shape {shape} and dtype {dtype} takes {wanted} bytes, but {nbytes} came"
        )


def _checked_bools(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array`; numpy trusts a bool's byte to be 0 or 1, and computes nonsense with another."""
    if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
        raise ProtocolError(f"a bool array holds the byte {array.view(np.uint8).max()}; it must be 0 or 1")
    return array
