import numpy as np
import pytest

from fornix.common.messages import Sample
from fornix.replay.refill import form_of, put_all

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


def frames(shape=(2,), dtype=np.uint8):
    return {"": np.zeros((9, *shape), dtype)}


@pytest.mark.parametrize(
    ("more", "of"),
    [
        (batch([[4, 5]]), frames(dtype=np.float32)),
        (batch([[4, 5]]), frames(shape=(1,))),
        (batch([[4, 5]]), {"image": frames()[""]}),
        (batch([[4, 5, 6]]), frames()),
        (batch([[4, 5]], action=np.array([0.5], np.float32)), frames()),
    ],
)
def test_what_is_not_of_the_same_form_could_not_be_put_in(more, of):
    """Numpy would cast and stretch it to fit."""
    form = form_of(REQUEST, batch(INDEX), frames())
    assert form == form_of(REQUEST, batch([[4, 5]]), frames())
    assert form != form_of(REQUEST, more, of)
