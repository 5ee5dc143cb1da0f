"""Named tensors as bytes: safetensors, with a checksum over names, shapes and contents.

Both the weights on the wire and the checkpoints on disk are in this form. Nothing in it can be
executed, and what is damaged is recognised.
"""

import json
import zlib
from collections.abc import Mapping

import safetensors
import safetensors.torch
from torch import Tensor

_CHECKSUM = "crc32"


class DamagedTensorsError(ValueError):
    """Bytes that are not, or not any more, what `pack` made."""


def pack(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return `tensors` and `metadata` as bytes."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    checksum = _checksum(contiguous, metadata)
    return safetensors.torch.save(contiguous, dict(metadata) | {_CHECKSUM: str(checksum)})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata in `data`, or raise DamagedTensorsError."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise DamagedTensorsError(f"{len(data)} bytes are no safetensors: {error!s:.100}") from None
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum != str(_checksum(tensors, metadata)):
        raise DamagedTensorsError(f"the checksum of {len(data)} bytes of tensors doesn't fit them")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    value = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.numpy().reshape(-1).view("u1").data, value)
    return value
