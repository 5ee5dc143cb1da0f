"""Rows of an `observe`, made of what a vector of environments gives."""

import numpy as np
import pytest

from fornix.common import trees
from fornix.common.errors import InvalidRequestError
from fornix.common.messages import FIRST, LAST, MID
from fornix.common.signature import ArraySpec, Signature
from fornix.replay.steps import Steps

EYE, ARM = ArraySpec.of((2, 2), np.uint8), ArraySpec.of((3,), np.float32)
ACTION = ArraySpec.of((), np.int32)
FORMS = {
    "one array": EYE,
    "dict": {"eye": EYE, "arm": ARM},
    "tuple": (ARM, EYE),
    "nested": {"a": ({"b": EYE}, ARM), "c": ARM},
}


def signature(form):
    return Signature(frame=form, action=ACTION, n_frames=2)


def frames(form, rows, value=0):
    return trees.mapped(form, lambda spec: np.full((rows, *spec.shape), value, spec.dtype))


def after(form, rows, value, ended=False):
    numbers, no = np.arange(rows), np.zeros(rows, np.bool_)
    reward = np.ones(rows, np.float32)
    return Steps.after_actions(
        numbers, numbers.astype(np.int32), reward, frames(form, rows, value), no, no | ended
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_frames_of_any_form_are_put_together(form):
    both = after(form, 3, 1, ended=True) + Steps.first(signature(form), [0, 2], frames(form, 2, 7))
    both.check(signature(form))
    assert both.lane.tolist() == [0, 1, 2, 0, 2]
    assert both.step_type.tolist() == [LAST] * 3 + [FIRST] * 2
    assert both.action.tolist() == [0, 1, 2, 0, 0]
    assert type(both.frame) is type(frames(form, 1))
    for path, array in trees.leaves(both.frame).items():
        spec = signature(form).frames[path]
        assert array.shape == (5, *spec.shape)
        assert (array[:3] == 1).all()
        assert (array[3:] == 7).all()
    assert after(form, 2, 1).step_type.tolist() == [MID, MID]


def test_lists_become_arrays_as_before():
    steps = Steps.first(
        signature(ArraySpec.of((2,), np.int64)), [0, 1], np.array([[1, 2], [3, 4]]).tolist()
    )
    assert steps.frame.shape == (2, 2)


@pytest.mark.parametrize("form", list(FORMS.values())[1:], ids=list(FORMS)[1:])
def test_frames_of_another_form_are_refused(form):
    wanted = signature(form)
    with pytest.raises(InvalidRequestError, match="a frame has the arrays"):
        after(EYE, 2, 0).check(wanted)
    with pytest.raises(InvalidRequestError, match="can't be put together"):
        after(form, 2, 0) + after(EYE, 2, 0)
    short = after(form, 2, 0)
    path = list(wanted.frames)[-1]
    trees.leaves(short.frame)[path].resize((2, 1), refcheck=False)
    with pytest.raises(InvalidRequestError, match=rf"frame\.{path} has shape \(2, 1\)"):
        short.check(wanted)


# --- lanes and flags ---


def steps_of(lane, terminated=(False, False), truncated=(False, False)):
    made = after(EYE, 2, 0)
    return Steps.after_actions(lane, made.action, made.reward, made.frame, terminated, truncated)


@pytest.mark.parametrize("dtype", ["|i1", "|u1", "<u2", ">i4", "<i4", "<i8", "<u8", None])
def test_lanes_may_be_integers_of_any_width(dtype):
    lanes = [3, 5] if dtype is None else np.array([3, 5], dtype)
    for steps in (Steps.first(signature(EYE), lanes, frames(EYE, 2)), steps_of(lanes)):
        assert steps.lane.dtype == np.int32
        assert steps.lane.tolist() == [3, 5]
    assert (steps.lane is lanes) == (dtype == "<i4")


def test_there_may_be_no_lanes():
    assert Steps.first(signature(EYE), [], frames(EYE, 0)).lane.dtype == np.int32
    none = after(EYE, 0, 0)
    steps = Steps.after_actions([], none.action, none.reward, none.frame, [], [])
    steps.check(signature(EYE))
    assert (steps.lane.dtype, steps.terminated.dtype) == (np.int32, np.bool_)


@pytest.mark.parametrize(
    ("lanes", "match"),
    [
        ([0.9, 1.0], r"lane is \[0.9, 1.0\], of shape \(2,\) and dtype <f8; .*give the lanes' numbers"),
        ([True, False], r"dtype \|b1"),
        (["0", "1"], "dtype <U1"),
        ([0, None], r"dtype \|O"),
        ([[0, 1]], r"shape \(1, 2\)"),
        (0, r"lane is 0, of shape \(\)"),
        (np.zeros((0, 2), np.int32), r"shape \(0, 2\)"),
        ([0, 2**32], "lane holds 4294967296, which int32 can't hold; give numbers from 0 to"),
        ([0, -(2**31) - 1], "lane holds -2147483649"),
        (np.array([1, 2**64 - 1], np.uint64), "lane holds 18446744073709551615"),
        ([0, 2**64], r"dtype \|O"),
    ],
)
def test_lanes_that_are_none_are_refused(lanes, match):
    with pytest.raises(InvalidRequestError, match=match):
        Steps.first(signature(EYE), lanes, frames(EYE, 2))
    with pytest.raises(InvalidRequestError, match=match):
        steps_of(lanes)


def test_flags_are_bools_as_arrays_or_lists():
    flags = [True, False]
    for terminated, truncated in ((flags, np.array(flags)[::-1]), (np.array(flags), flags[::-1])):
        steps = steps_of([0, 1], terminated, truncated)
        assert steps.terminated.tolist() == flags
        assert steps.step_type.tolist() == [LAST, LAST]


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ([0.3, 0.0], r"is \[0.3, 0.0\], of dtype <f8; it must be bool: .* > 0"),
        ([0, 1], "<i8"),
        (["", "x"], "U"),
    ],
)
def test_flags_that_are_no_bools_are_refused(flags, match):
    with pytest.raises(InvalidRequestError, match=f"terminated .*{match}"):
        steps_of([0, 1], flags, [False, False])
    with pytest.raises(InvalidRequestError, match=f"truncated .*{match}"):
        steps_of([0, 1], [False, False], flags)
