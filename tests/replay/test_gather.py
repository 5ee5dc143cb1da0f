"""One routine for both ways: places in, frames out, into memory that is used again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fornix.common.errors import ProtocolError
from fornix.replay.gather import Buffers, check_frames, check_places, gather

DTYPES = [np.uint8, np.int32, np.float32, np.bool_]


@st.composite
def sources(draw):
    """Frames of one to three arrays, and an index into them."""
    places = draw(st.integers(1, 9))
    count = draw(st.integers(1, 3))
    frames = {
        path: draw(
            hnp.arrays(
                draw(st.sampled_from(DTYPES)), (places, *draw(hnp.array_shapes(min_dims=0, max_dims=3)))
            )
        )
        for path in ["", "a.0", "b"][:count]
    }
    shape = (draw(st.integers(0, 5)), draw(st.integers(1, 4)))
    return frames, draw(hnp.arrays(np.int32, shape, elements=st.integers(0, places - 1)))


@given(st.lists(sources(), min_size=1, max_size=4))
@settings(deadline=None)
def test_what_is_gathered_is_what_stands_at_the_places_however_often(asked):
    buffers = Buffers()
    for frames, index in asked:
        check_frames(frames)
        check_places(index, len(index), frames)
        made = gather(frames, index, buffers, "window")
        assert made.keys() == frames.keys()
        for path, array in frames.items():
            assert made[path].dtype == array.dtype
            assert np.array_equal(made[path], array[index], equal_nan=array.dtype.kind == "f")
            assert made[path].flags.c_contiguous


@given(
    hnp.arrays(np.int32, (3, 4), elements=st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 5)),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_a_place_that_there_is_not_is_refused(index, places):
    frames = {"": np.zeros((places, 2))}
    if index.min() >= 0 and index.max() < places:
        check_places(index, 3, frames)
    else:
        with pytest.raises(ProtocolError, match=f"among {places} frames"):
            check_places(index, 3, frames)


def test_a_place_is_checked_in_whatever_order_the_index_lies():
    index = np.zeros((4, 3), np.int32).T
    check_places(index, 3, {"": np.zeros((1, 2))})
    index[2, 3] = 1
    with pytest.raises(ProtocolError):
        check_places(index, 3, {"": np.zeros((1, 2))})


@pytest.mark.parametrize(
    "index",
    [
        np.zeros((2, 3), np.int32),
        np.zeros(3, np.int32),
        np.zeros((3, 2, 1), np.int32),
        np.zeros((3, 2), int),
    ],
    ids=str,
)
def test_an_index_of_another_shape_or_dtype_is_refused(index):
    with pytest.raises(ProtocolError, match=r"\(3, W\) and <i4 were due"):
        check_places(index, 3, {"": np.zeros((1, 2))})


@pytest.mark.parametrize(
    "frames",
    [{}, {"a": np.zeros(2), "b": np.zeros(3)}, {"": np.zeros(())}, {"a": np.zeros(2), "b": np.zeros(())}],
    ids=str,
)
def test_arrays_with_different_numbers_of_frames_are_refused(frames):
    with pytest.raises(ProtocolError, match="one number of places"):
        check_frames(frames)


def test_memory_is_allocated_only_where_the_last_was_too_small():
    made = []

    def allocate(shape, dtype):
        made.append((shape, np.dtype(dtype)))
        return np.empty(shape, dtype)

    buffers = Buffers(allocate)
    for rows in (4, 2, 4, 3):
        buffers.get("window", (rows, 5), np.dtype(np.int32))
    assert made == [((20,), np.int32)]
    buffers.get("window", (5, 5), np.dtype(np.int32))
    buffers.get("window", (5, 5), np.dtype(np.float32))
    buffers.get("next", (1, 5), np.dtype(np.float32))
    assert made[1:] == [((25,), np.int32), ((25,), np.float32), ((5,), np.float32)]
    assert buffers.nbytes == 4 * 30
