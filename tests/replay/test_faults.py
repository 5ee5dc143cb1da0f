"""The faults of the system that this one replaces, numbered as its issue numbers them."""

import numpy as np
import pytest

from fornix.common.errors import (
    InvalidRequestError,
    SignatureError,
)
from fornix.common.signature import ArraySpec
from fornix.common.specs import Transition
from fornix.replay.steps import Steps

from .builders import CUT, F, M, observe, signature
from .desk import a_client, a_desk, lasting, steps


def test_fault_0_4_a_frame_of_1_n_is_refused_at_the_client_and_nothing_is_sent():
    desk = a_desk()
    client, transport = a_client(desk)
    writer = client.open_writer("t", "me", 1)
    sent = len(transport.sent)
    before = desk.info()
    for wrong in (np.zeros((1, 1, 2)), np.zeros((1, 3)), np.zeros(2)):
        with pytest.raises(InvalidRequestError) as caught:
            writer.observe(steps(wrong))
        assert f"frame has shape {wrong.shape}" in str(caught.value)
        assert "the table takes (1, 2)" in str(caught.value)
    with pytest.raises(InvalidRequestError, match=r"<f4; the table takes .* <i4"):
        writer.observe(steps(np.zeros((1, 2)), np.float32))
    assert len(transport.sent) == sent
    assert lasting(desk.info()) == lasting(before)
    assert writer.observe(steps(np.zeros((1, 2)))).result().key.tolist() == [0]


def test_fault_0_4_a_frame_of_1_n_is_refused_at_the_server_with_both_shapes():
    desk = a_desk()
    message = desk.refusal(observe(1, [(0, F, 0)], frame=np.zeros((1, 1, 2), np.int32)))
    assert "frame has shape (1, 1, 2)" in message
    assert "the table takes (1, 2)" in message
    assert "one value of shape (2,) for each step" in message
    assert desk.table()["steps_ever"] == 0


@pytest.mark.parametrize(
    ("expected", "here", "there"),
    [
        (signature(frame=ArraySpec.of((1, 2), np.int32)), "(2,) <i4", "(1, 2) <i4"),
        (signature(frame=ArraySpec.of((2,), np.float32)), "(2,) <i4", "(2,) <f4"),
        (signature(n_frames=5), "n_frames: the table holds 3", "the client expects 5"),
    ],
)
def test_fault_0_4_another_shape_dtype_or_n_frames_is_refused_at_the_hello(expected, here, there):
    desk = a_desk()
    client, _ = a_client(desk)
    with pytest.raises(SignatureError) as caught:
        client.hello({"t": expected})
    assert here in str(caught.value)
    assert there in str(caught.value)
    assert client.hello({"t": signature()}).tables == {"t": signature()}


def test_fault_0_1_a_new_episode_epoch_or_writer_clears_nothing():
    desk = a_desk(capacity=1000)
    handed_out = {}

    def play(client, incarnation):
        writer = client.open_writer("t", "actor", 2, incarnation)
        for episode in range(3):
            for at in range(6):
                kind = F if at == 0 else CUT if at == 5 else M
                value = 100 * incarnation + 10 * episode + at
                request = observe(1, [(0, kind, value), (1, kind, value + 50)])
                names = ("lane", "step_type", "terminated", "action", "reward", "frame")
                made = Steps(**{name: getattr(request, name) for name in names})
                answer = writer.observe(made).result()
                handed_out.update(zip(answer.key.tolist(), answer.stack.copy(), strict=True))

    for epoch in range(1, 5):
        client, _ = a_client(desk)
        play(client, epoch)
        client.close()
    assert len(handed_out) == 4 * 3 * 6 * 2
    client, _ = a_client(desk)
    keys = np.array(sorted(handed_out))
    stacks = client.stacks("t", keys).stack
    assert stacks.tobytes() == np.stack([handed_out[key] for key in keys.tolist()]).tobytes()
    drawn = client.sample("t", 4000, Transition(n_step=2)).result()
    keys, next_keys = drawn.batch.key.tolist(), drawn.batch.next_key.tolist()
    assert len(set(keys)) == 4 * 3 * 5 * 2  # every step of every epoch but the last ones of episodes
    assert drawn.stack.tobytes() == np.stack([handed_out[key] for key in keys]).tobytes()
    assert drawn.next_stack.tobytes() == np.stack([handed_out[key] for key in next_keys]).tobytes()
