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
