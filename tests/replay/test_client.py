import numpy as np
import pytest

from fornix.common.errors import (
    FornixError,
    InvalidRequestError,
    UnknownTableError,
    WaitTimeoutError,
)
from fornix.replay.steps import Steps

from .builders import F, spec
from .desk import a_client, a_desk, steps, write


def test_steps_that_the_server_refuses_leave_the_writer_usable():
    desk = a_desk()
    client, _ = a_client(desk)
    writer = client.open_writer("t", "me", 1)
    bad = Steps.after_actions(
        np.zeros(1, np.int32),
        np.zeros(1, np.int32),
        np.array([np.nan], np.float32),
        np.zeros((1, 2), np.int32),
        np.zeros(1, np.bool_),
        np.zeros(1, np.bool_),
    )
    good = steps(np.ones((1, 2)))
    pending = writer.observe(bad)
    with pytest.raises(InvalidRequestError, match="the reward of lane 0 is nan"):
        pending.result()
    first = writer.observe(good)
    with pytest.raises(InvalidRequestError):
        pending.result()  # looking again changes nothing
    assert first.result().key.tolist() == [0]
    with pytest.raises(InvalidRequestError, match="FIRST while its episode is open"):
        writer.observe(good).result()
    assert desk.table()["steps_ever"] == 1


def test_a_request_that_would_wait_in_one_thread_is_told_to_poll():
    desk = a_desk()
    client, _ = a_client(desk)
    pending = client.sample("t", 4)
    assert not pending.done()
    with pytest.raises(WaitTimeoutError, match="use poll"):
        pending.result()
    write(desk, 1, (0, F, 0))
    assert not pending.done()


def test_an_error_reply_is_raised_under_its_own_class():
    client, _ = a_client(a_desk())
    with pytest.raises(UnknownTableError, match="did you mean 't'"):
        client.signature("tt")
    with pytest.raises(FornixError):
        client.create_table("t", spec(capacity=5))
