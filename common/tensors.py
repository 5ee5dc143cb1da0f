"""Named tensors as bytes: safetensors, with a checksum over names, shapes and contents.

Both the weights on the wire and the checkpoints on disk are in this form. Nothing in it can be
executed, and what is damaged is recognised.
"""

import json
import zlib
from collections.abc import Mapping

import safetensors.torch
import torch
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
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        fits = metadata.pop(_CHECKSUM, None) == str(_checksum(tensors, metadata))
    except Exception as error:  # a false header can lead into any corner of safetensors and torch
        raise DamagedTensorsError(f"{len(data)} bytes are no safetensors: {error!s:.100}") from None
    if not fits:
        raise DamagedTensorsError(f"the checksum of {len(data)} bytes of tensors doesn't fit them")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    value = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), value)
        if tensor.numel():  # the strides of an empty one may be such that it can't be viewed as bytes
            value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return value
