"""Stacks as views of windows, against a model that makes each by itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.common import trees
from fornix.common.errors import ProtocolError
from fornix.common.messages import Sample
from fornix.common.specs import Episode, Sequence, Transition
from fornix.replay.batches import Sequences, Transitions, drawn
from fornix.replay.gather import Buffers

from .fakes import batch, ramp, sequences

sizes = st.integers(1, 4)


def window_of(rows, width, obs=(2,)):
    """Return windows [rows, width, *obs] of which every frame is another."""
    return ramp(rows * width + 1, obs)[:-1].reshape(rows, width, *obs)


@given(rows=st.integers(1, 5), n_frames=sizes, n_step=sizes, data=st.data())
@settings(deadline=None)
def test_stacks_of_transitions_are_slices_of_their_windows(rows, n_frames, n_step, data):
    steps = data.draw(st.lists(st.integers(1, n_step), min_size=rows, max_size=rows))
    window = window_of(rows, n_frames + n_step)
    index = np.zeros((rows, n_frames + n_step))
    made = Transitions(batch(index, steps=steps), window, n_step=n_step)
    assert made.n_frames == n_frames
    assert np.array_equal(made.stack, window[:, :n_frames])
    assert np.shares_memory(made.stack, window)
    wanted = [window[at, m : m + n_frames] for at, m in enumerate(steps)]
    assert np.array_equal(made.next_stack, wanted)
    assert np.shares_memory(made.next_stack, window) == (min(steps) == n_step)


@given(rows=st.integers(1, 5), n_frames=sizes, length=st.integers(1, 6), data=st.data())
@settings(deadline=None)
def test_stacks_of_sequences_slide_over_their_windows(rows, n_frames, length, data):
    burn_in = data.draw(st.integers(0, length - 1))
    mask = data.draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows))
    mask = np.arange(length) < np.array(mask)[:, None]
    window = window_of(rows, n_frames + length)
    answer = sequences(np.zeros((rows, n_frames + length)), length, mask=mask)
    made = Sequences(answer, window, mask=mask, burn_in=burn_in)
    assert made.n_frames == n_frames
    assert made.frame.shape == (rows, length + 1, 2)
    assert made.stack.shape == made.next_stack.shape == (rows, length, n_frames, 2)
    for at in range(rows):
        for t in range(length):
            assert np.array_equal(made.stack[at, t], window[at, t : t + n_frames])
            assert np.array_equal(made.next_stack[at, t], window[at, t + 1 : t + 1 + n_frames])
            assert np.array_equal(made.frame[at, t], made.stack[at, t, -1])
            assert made.loss_mask[at, t] == (mask[at, t] and t >= burn_in)
    for view in (made.stack, made.next_stack, made.frame):
        assert np.shares_memory(view, window)
        assert view.flags.writeable


def test_frames_of_several_arrays_keep_their_form():
    windows = {"eye": window_of(3, 4), "arm": (window_of(3, 4, ()), window_of(3, 4, (2, 2)))}
    made = Transitions(batch(np.zeros((3, 4)), steps=[2, 1, 2]), windows, n_step=2)
    for path, window in trees.leaves(windows).items():
        alone = Transitions(made.batch, window, n_step=2)
        assert np.array_equal(trees.leaves(made.stack)[path], alone.stack)
        assert np.array_equal(trees.leaves(made.next_stack)[path], alone.next_stack)
    assert isinstance(made.next_stack["arm"], tuple)
    slid = Sequences(sequences(np.zeros((3, 4)), 2), windows, mask=np.ones((3, 2), np.bool_))
    assert slid.stack["arm"][1].shape == (3, 2, 2, 2, 2)
    assert slid.frame["eye"].shape == (3, 3, 2)


def test_a_copy_has_memory_of_its_own():
    buffers = Buffers()
    window = window_of(3, 4)
    made = Transitions(batch(np.zeros((3, 4)), steps=[2, 1, 2]), window, buffers, n_step=2)
    wanted = made.next_stack.copy()
    kept = made.copy()
    assert np.array_equal(kept.next_stack, wanted)
    window[:] = made.next_stack[:] = -1
    assert np.array_equal(kept.next_stack, wanted)
    assert not np.shares_memory(kept.window, window)
    assert kept.n_step == 2
    assert type(kept) is Transitions


def test_a_next_stack_is_made_once_and_in_the_buffers():
    buffers = Buffers()
    made = Transitions(batch(np.zeros((3, 4)), steps=[2, 1, 2]), window_of(3, 4), buffers, n_step=2)
    assert made.next_stack is made.next_stack
    assert buffers.nbytes == made.next_stack.nbytes


@pytest.mark.parametrize(
    ("unit", "kind"),
    [
        (Transition(n_step=2), Transitions),
        (Sequence(length=2, burn_in=1), Sequences),
        (Episode(), Sequences),
    ],
)
def test_what_was_drawn_is_what_was_asked_for(unit, kind):
    request = Sample(table="t", batch_size=3, unit=unit)
    index = np.zeros((3, 4))
    answer = batch(index, n_step=2) if kind is Transitions else sequences(index, 2)
    made = drawn(request, answer, window_of(3, 4), Buffers())
    assert type(made) is kind
    assert made.n_frames == 2
    assert made.key is answer.key
    assert made.weight is answer.weight
    assert getattr(made, "burn_in", 1) == (0 if isinstance(unit, Episode) else 1)
    with pytest.raises(ProtocolError, match="too short"):
        drawn(request, answer, window_of(3, 2), Buffers())
