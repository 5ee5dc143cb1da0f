"""A writer by itself: what has no answer yet, and lanes that leave."""

import gc
import weakref

import numpy as np
import pytest

from fornix.common.errors import (
    EvictedError,
    InvalidRequestError,
    ServerError,
    UnreachableError,
    WaitTimeoutError,
)
from fornix.common.messages import FIRST
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.replay.client import Client
from fornix.replay.steps import Steps

from .vector_envs import open_table

LANES = 2


def first(writer, value=0):
    return Steps.first(writer.signature, range(LANES), np.full((LANES, 3), value, np.int32))


def then(writer, value):
    action, reward, no = np.zeros(LANES, np.int64), np.zeros(LANES, np.float32), [False] * LANES
    frame = np.full((LANES, 3), value, np.int32)
    return Steps.after_actions(range(LANES), action, reward, frame, no, no)


class Silence:
    """In place of `Transport.wait`, lets replies go by a few times."""

    def __init__(self, transport, times):
        self._wait, self._left = transport.wait, times

    def __call__(self, number):
        if self._left:
            self._left -= 1
            raise UnreachableError("as the test wants it")
        return self._wait(number)


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("error", [WaitTimeoutError, ServerError, UnreachableError])
def test_a_request_without_an_answer_is_at_the_writer_and_can_be_sent_again(error, tries, monkeypatch):
    client, transport, writer = open_table(LANES)
    assert writer.unanswered is None
    writer.observe(first(writer)).result()
    if error is UnreachableError:
        monkeypatch.setattr(transport, "wait", Silence(transport, tries))
    else:
        transport.refuse = [error] * tries
    writer.observe(then(writer, 1))
    for _ in range(tries):
        with pytest.raises(error):
            writer.unanswered.result()
        with pytest.raises(
            InvalidRequestError, match=r"request 2 of writer 'w' .*unanswered\.send_again\(\)"
        ):
            writer.observe(then(writer, 9))
        with pytest.raises(InvalidRequestError, match=r"take unanswered\.result\(\) first"):
            writer.grow(LANES + 1)
        writer.unanswered.send_again()
    assert (writer.unanswered.result().stack[:, -1] == 1).all()
    assert writer.unanswered is None
    writer.observe(then(writer, 2)).result()
    assert client.info().tables["t"]["steps_ever"] == 3 * LANES


def test_a_request_that_was_held_too_long_goes_on_once_it_may(serve, ipc_address):
    _, _, like = open_table()
    held = LimiterSpec(min_size=1, samples_per_insert=1.0, max_surplus=1.0, min_surplus=-10.0)
    with serve(ipc_address), Client.connect(ipc_address) as client:
        client.create_table("t", TableSpec(signature=like.signature, capacity_steps=100, limiter=held))
        writer = client.open_writer("t", "w", LANES)
        writer.observe(first(writer)).result()
        writer.observe(then(writer, 1)).result()
        with pytest.raises(WaitTimeoutError):
            writer.observe(then(writer, 2), timeout_s=0.05).result()
        client.set_limiter("t", LimiterSpec())
        writer.unanswered.send_again()
        assert (writer.unanswered.result().stack[:, -1] == 2).all()
        assert client.info().tables["t"]["steps_ever"] == 3 * LANES
        writer.observe(then(writer, 3)).result()


def test_a_request_in_flight_is_at_the_writer_until_its_result_is_taken():
    _, _, writer = open_table(LANES)
    pending = writer.observe(first(writer))
    assert pending.done()
    assert writer.unanswered is pending
    pending.result()
    assert writer.unanswered is None


@pytest.mark.parametrize("error", [InvalidRequestError, EvictedError])
def test_a_request_that_was_refused_is_not_kept(error):
    _, transport, writer = open_table(LANES)
    transport.refuse = [error]
    with pytest.raises(error):
        writer.observe(first(writer)).result()
    assert writer.unanswered is None
    writer.observe(first(writer)).result()


def test_an_answer_to_an_older_request_leaves_the_one_in_flight_at_the_writer():
    _, _, writer = open_table(LANES)
    older = writer.observe(first(writer))
    older.result()
    newer = writer.observe(then(writer, 1))
    older.send_again()
    older.result()
    assert writer.unanswered is newer
    newer.result()
    assert writer.unanswered is None


def test_an_answered_request_and_its_writer_go_without_the_collector():
    client, transport, writer = open_table(LANES)
    gc.disable()
    try:
        writer.observe(first(writer)).result()
        transport.refuse = [WaitTimeoutError]
        pending = writer.observe(then(writer, 1))
        with pytest.raises(WaitTimeoutError):
            pending.result()
        pending.send_again()
        pending.result()
        gone = [weakref.ref(pending), weakref.ref(writer)]
        del pending, writer
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()
    del client


# --- lanes that leave ---


@pytest.mark.parametrize("leave", [[1], np.array([1]), np.array([1], np.uint8), np.array([1], np.int32)])
def test_lanes_leave_by_integers_of_any_width(leave):
    _, transport, writer = open_table(LANES)
    writer.observe(first(writer)).result()
    again = Steps.first(writer.signature, [1], np.ones((1, 3), np.int32))
    writer.observe(again, leave=leave).result()
    assert transport.requests[-1].leave.dtype == np.int32
    assert [row if row == "left" else row[0] for row in transport.rows[1]] == [FIRST, "left", FIRST]


@pytest.mark.parametrize(
    ("leave", "match"),
    [
        ([0.5], r"leave is \[0.5\], of shape \(1,\) and dtype <f8"),
        ([True, False], r"leave is \[True, False\]"),
        ([2**32], "leave holds 4294967296, which int32 can't hold"),
        (1, r"leave is 1, of shape \(\)"),
    ],
)
def test_other_lanes_that_leave_are_refused_and_nothing_is_sent(leave, match):
    _, transport, writer = open_table(LANES)
    with pytest.raises(InvalidRequestError, match=match):
        writer.observe(first(writer), leave=leave)
    assert transport.requests == []
    assert writer.unanswered is None
    writer.observe(first(writer)).result()
