import numpy as np
import pytest

from fornix.common.errors import UnknownTableError
from fornix.common.messages import Sample
from fornix.replay.refill import put_all

from .fakes import batch

INDEX = [[0, 1], [1, 2], [2, 3]]
LOST = np.array([1])
REQUEST = Sample(table="t", batch_size=3)


def windows(value, shape=(2,), dtype=np.uint8, rows=3):
    return {"": np.full((rows, 2, *shape), value, dtype)}


def test_what_was_lost_is_put_in_its_place():
    made, frames = put_all(
        REQUEST, (batch(INDEX), windows(7)), (batch([[4, 5]], key=[9]), windows(8, rows=1)), LOST
    )
    assert made.key.tolist() == [0, 9, 2]
    assert frames[""][:, 0, 0].tolist() == [7, 8, 7]


@pytest.mark.parametrize(
    "other",
    [
        windows(300.75, dtype=np.float32, rows=1),
        windows(8, shape=(1,), rows=1),
        {"image": windows(8, rows=1)[""]},
    ],
)
def test_frames_of_another_table_are_not_cast_or_stretched_to_fit(other):
    into = windows(7)
    with pytest.raises(UnknownTableError, match="another has its name now"):
        put_all(REQUEST, (batch(INDEX), into), (batch([[4, 5]]), other), LOST)
    assert (into[""] == 7).all()


def test_actions_of_another_table_are_not_cast_to_fit():
    more = batch([[4, 5]], action=np.array([0.5], np.float32))
    with pytest.raises(UnknownTableError):
        put_all(REQUEST, (batch(INDEX), windows(7)), (more, windows(8, rows=1)), LOST)
