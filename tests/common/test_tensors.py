"""Named tensors as bytes: what comes back is what was packed, and what is damaged is recognised."""

import json
import pickle
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.common.tensors import DamagedTensorsError, pack, unpack

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.uint8,
    torch.int8,
    torch.int64,
    torch.bool,
)


@st.composite
def tensors(draw):
    """Tensors of every dtype and of 0 to 3 dimensions, empty ones and transposed ones among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).integers(0, 2, shape)
    tensor = torch.from_numpy(values).to(dtype)
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


def packed():
    return pack(
        {"weight": torch.arange(6.0).view(2, 3), "step": torch.tensor(7)},
        {"version": "12", "policy": "shared"},
    )


def header_of(data):
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def a_file(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@given(
    st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"), tensors()),
    st.dictionaries(st.text(max_size=8).filter(lambda name: name != "crc32"), st.text(max_size=8)),
)
@settings(deadline=None)
def test_what_is_packed_comes_back(named, metadata):
    found, found_metadata = unpack(pack(named, metadata))
    assert found_metadata == metadata
    assert found.keys() == named.keys()
    for name, tensor in named.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_a_packed_tensor_is_a_copy_without_its_gradient():
    weight = torch.ones(3, requires_grad=True)
    data = pack({"weight": weight}, {})
    with torch.no_grad():
        weight.zero_()
    found = unpack(data)[0]["weight"]
    assert found.tolist() == [1, 1, 1]
    assert not found.requires_grad


def test_any_flipped_bit_is_recognised():
    data = packed()
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(DamagedTensorsError):
                unpack(bytes(damaged))


def test_any_truncation_is_recognised():
    data = packed()
    for length in range(len(data)):
        with pytest.raises(DamagedTensorsError):
            unpack(data[:length])


@given(st.binary(min_size=1, max_size=64))
def test_anything_appended_is_recognised(more):
    with pytest.raises(DamagedTensorsError):
        unpack(packed() + more)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_recognised_or_harmless(data):
    """Spaces after the header may become other white space, which changes nothing."""
    whole = packed()
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found, metadata = unpack(bytes(damaged))
    except DamagedTensorsError:
        return
    assert metadata == {"version": "12", "policy": "shared"}
    assert found["step"].item() == 7
    assert torch.equal(found["weight"], torch.arange(6.0).view(2, 3))
    assert header_of(bytes(damaged)) == header_of(whole)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(DamagedTensorsError):
        unpack(data)


def entry(dtype, shape, end):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


HOSTILE = {
    "a list": a_file([]),
    "no checksum": safetensors.torch.save({"x": torch.ones(2)}),
    "no metadata at all": a_file({}),
    "metadata that is null": a_file({"__metadata__": None}),
    "metadata that is no text": a_file({"__metadata__": {"version": 1}}),
    "deep nesting": a_file(b'{"x":' * 5000 + b"1" + b"}" * 5000),
    "a header longer than the file": a_file({}, length=100),
    "a header longer than any file": a_file({}, length=2**63),
    "an unknown dtype": a_file(entry("O", [1], 8), b"12345678"),
    "a dtype of half a byte": a_file(entry("F4", [2], 1), b"1"),
    "a dtype that numpy doesn't know": a_file(entry("BF16", [2], 4), b"1234"),
    "a negative shape": a_file(entry("F32", [-1], 0)),
    "a shape that overflows": a_file(entry("F32", [2**62, 4], 0)),
    "an empty shape that overflows": a_file(entry("F32", [2**62, 0, 4], 0)),
    "an empty shape beyond int64": a_file(entry("F32", [2**64 - 1, 0], 0)),
    "a thousand dimensions": a_file(entry("F32", [1] * 1000, 4), b"1234"),
    "a thousand empty dimensions": a_file(entry("F32", [0] * 1000, 0)),
    "offsets beyond the body": a_file(entry("U8", [100], 100), b"1234"),
    "tensors that overlap": a_file({name: entry("U8", [4], 4)["x"] for name in "ab"}, b"1234"),
    "UTF-16": a_file(json.dumps({}).encode("utf-16")),
    "a pickle": pickle.dumps({"weight": [1.0]}),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused(data):
    with pytest.raises(DamagedTensorsError, match=f"{len(data)} bytes"):
        unpack(data)


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "metadata"])
def test_the_checksum_covers_names_shapes_dtypes_and_metadata(change):
    header, body = header_of(packed())
    if change == "name":
        header["other"] = header.pop("weight")
    elif change == "dtype":
        header["weight"]["dtype"] = "I32"
    elif change == "shape":
        header["weight"]["shape"] = [3, 2]
    else:
        header["__metadata__"]["version"] = "13"
    with pytest.raises(DamagedTensorsError, match="checksum"):
        unpack(a_file(header, body))
