import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fornix.common.errors import InvalidRequestError, SignatureError
from fornix.common.signature import DTYPES, MAX_ITEMS, MAX_STEP_DIMENSIONS, ArraySpec, Signature


def a_signature(**changes):
    fields = {
        "frame": ArraySpec.of((4,), np.uint8),
        "action": ArraySpec.of((), np.int32, n_values=5),
        "extras": {"value": ArraySpec.of((2,), np.float32)},
        "n_frames": 3,
    }
    return Signature(**(fields | changes))


@pytest.mark.parametrize("dtype", [np.uint8, "u1", "|u1", np.dtype("uint8")])
def test_a_spec_takes_whatever_numpy_takes_for_a_dtype(dtype):
    assert ArraySpec.of((2, 3), dtype) == ArraySpec(shape=(2, 3), dtype="|u1")


def test_a_big_endian_dtype_is_stated_as_what_will_be_sent():
    assert ArraySpec.of((), ">f4").dtype == "<f4"


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 6), max_size=4).map(tuple))
def test_the_bytes_are_those_of_the_array(dtype, shape):
    assert ArraySpec(shape=shape, dtype=dtype).nbytes == np.zeros(shape, dtype).nbytes


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1,) * (MAX_STEP_DIMENSIONS + 1), f"at most {MAX_STEP_DIMENSIONS} dimensions"),
        ((2, 0), "each >= 1"),
        ((-1,), "each >= 1"),
        ((2**20, 2**20), f"holds {2**40} items; the limit is {MAX_ITEMS}"),
    ],
)
def test_a_shape_that_no_step_can_have_is_refused(shape, said):
    with pytest.raises(ValidationError, match=said):
        ArraySpec(shape=shape, dtype="|u1")


@pytest.mark.parametrize("dtype", ["|O", "<c8", ">i4", "<U3", "<M8[s]", "uint8", "|V8", ""])
def test_a_dtype_that_does_not_travel_is_refused(dtype):
    with pytest.raises(ValidationError, match=r"is not one of <f2, .*\|u1"):
        ArraySpec(dtype=dtype)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((1, 3, 4), np.uint8),
        np.zeros((3, 1, 4), np.uint8),
        np.zeros((4,), np.uint8),
        np.zeros((2, 4), np.uint8),
        np.zeros((3, 4), np.float32),
        np.zeros((3, 4), np.int8),
        np.zeros((3, 4), np.bool_),
    ],
)
def test_an_array_that_does_not_fit_is_refused_with_both_sides(array):
    with pytest.raises(InvalidRequestError) as caught:
        ArraySpec.of((4,), np.uint8).check("frame", array, 3)
    for part in (f"frame has shape {array.shape}", array.dtype.str, "(3, 4)", "|u1"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("dtype", "bad"), [("<i4", -1), ("<i4", 5), ("|u1", 255), ("<f4", np.nan)])
def test_a_discrete_value_out_of_range_is_refused(dtype, bad):
    spec = ArraySpec(dtype=dtype, n_values=5)
    spec.check("action", np.array([0, 4], dtype), 2)
    with pytest.raises(InvalidRequestError, match=rf"action holds {bad}.*\[0, 5\)"):
        spec.check("action", np.array([0, bad, 4], dtype), 3)


def test_no_rows_fit_any_range():
    ArraySpec(dtype="<i4", n_values=5).check("action", np.empty(0, np.int32), 0)


@pytest.mark.parametrize("reward", [ArraySpec(shape=(1,), dtype="<f4"), ArraySpec(dtype="<i4")])
def test_a_reward_is_a_float_scalar(reward):
    with pytest.raises(ValidationError, match="must be a scalar <f4 or <f8"):
        a_signature(reward=reward)


@pytest.mark.parametrize("n_frames", [0, 65])
def test_the_frames_of_a_stack_are_bounded(n_frames):
    with pytest.raises(ValidationError, match="n_frames"):
        a_signature(n_frames=n_frames)


def test_the_payload_of_a_step_is_all_its_arrays():
    assert a_signature().step_nbytes == 4 + 4 + 4 + 8


def test_equal_signatures_agree():
    a_signature().require_equal("t", a_signature())


@pytest.mark.parametrize(
    ("changes", "here", "there"),
    [
        ({"frame": ArraySpec.of((1, 4), np.uint8)}, "(4,) |u1", "(1, 4) |u1"),
        ({"frame": ArraySpec.of((4,), np.float32)}, "(4,) |u1", "(4,) <f4"),
        ({"n_frames": 4}, "n_frames: the table holds 3", "the client expects 4"),
        ({"action": ArraySpec.of((), np.int32, 6)}, "in [0, 5)", "in [0, 6)"),
        ({"action": ArraySpec.of((), np.int32)}, "in [0, 5)", "expects () <i4"),
        ({"reward": ArraySpec(dtype="<f8")}, "() <f4", "() <f8"),
        ({"extras": {}}, "extras.value: the table holds (2,) <f4", "expects nothing"),
        (
            {"extras": {"values": ArraySpec.of((2,), np.float32)}},
            "extras.value: the table holds (2,) <f4, the client expects nothing",
            "extras.values: the table holds nothing, the client expects (2,) <f4",
        ),
    ],
)
def test_a_difference_is_told_with_both_sides(changes, here, there):
    with pytest.raises(SignatureError) as caught:
        a_signature().require_equal("birds", a_signature(**changes))
    for part in ("'birds'", here, there):
        assert part in str(caught.value)


def test_all_differences_are_told_at_once():
    with pytest.raises(SignatureError) as caught:
        a_signature().require_equal("t", a_signature(n_frames=4, reward=ArraySpec(dtype="<f8")))
    assert "n_frames" in str(caught.value)
    assert "reward" in str(caught.value)
