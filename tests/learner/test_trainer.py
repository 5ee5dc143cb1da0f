"""One policy's training: gradient steps, publications, checkpoints, and going on to the bit."""

import logging
import threading

import numpy as np
import pytest
import torch

from fornix.common.config import RunConfig
from fornix.common.errors import CheckpointError, ConfigurationError
from fornix.common.signature import ArraySpec, Signature
from fornix.learner.checkpoints import Checkpoint, folder, list_checkpoints, load, save
from fornix.learner.trainer import PolicyTrainer, check_run_dir, save_all
from fornix.learner.update import Batch

SIGNATURE = Signature(
    frame=ArraySpec.of((6,), np.uint8), action=ArraySpec.of((), np.int32, n_values=4), n_frames=3
)
CONFIG = RunConfig.model_validate(
    {
        "network": {"width": 16, "layers": 1, "cosines": 8},
        "learner": {
            "gradient_steps": 12,
            "batch_size": 8,
            "publish_period_steps": 5,
            "checkpoint_period_steps": 4,
            "tau": 0.1,
        },
    }
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small matrices gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Batches:
    """Hands out the batches of gradient steps from `first` on; none at the `gaps`."""

    doing = ""

    def __init__(self, first=0, gaps=()):
        self.asked = 0
        self._next = first
        self._gaps = gaps

    def get(self, timeout_s):
        self.asked += 1
        if self.asked in self._gaps:
            return None
        self._next += 1
        return batch(self._next - 1)

    def close(self):
        pass


class Board:
    """Where weights are published."""

    def __init__(self):
        self.published = []

    def publish(self, policy, version, tensors):
        self.published.append((policy, version, tensors))

    @property
    def versions(self):
        return [version for _, version, _ in self.published]


class Clock:
    """Each look at it takes a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def batch(seed):
    source = np.random.default_rng(seed)
    stack, next_stack = (torch.from_numpy(source.integers(0, 2, (8, 3, 6), np.uint8)) for _ in range(2))
    reward = torch.from_numpy(source.normal(size=8).astype(np.float32))
    return Batch(
        stack, torch.from_numpy(source.integers(0, 4, 8)), reward, torch.full((8,), 0.9), next_stack
    )


def a_trainer(run_dir, batches=None, config=CONFIG, policy="shared", signature=SIGNATURE, **more):
    board = more.pop("board", None) or Board()
    return PolicyTrainer(config, policy, signature, batches or Batches(), board, run_dir, **more)


def with_learner(**changes):
    return CONFIG.model_copy(update={"learner": CONFIG.learner.model_copy(update=changes)})


def run(trainer):
    while not trainer.done:
        trainer.step(0)
    return trainer


def assert_equal(one, other):
    assert one.scalars == other.scalars
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name


def test_a_resumed_training_makes_the_same_bits_as_an_uninterrupted_one(tmp_path):
    whole = run(a_trainer(tmp_path / "whole"))
    stopped = a_trainer(tmp_path / "stopped")
    for _ in range(7):
        stopped.step(0)
    stopped.save()
    again = a_trainer(tmp_path / "stopped", Batches(first=7))
    again.resume()
    assert again.learner.gradient_steps == 7
    run(again)
    assert_equal(again.learner.state_dict(), whole.learner.state_dict())


def test_it_goes_on_from_the_last_checkpoint_of_one_that_was_killed(tmp_path):
    killed = a_trainer(tmp_path)
    for _ in range(10):
        killed.step(0)
    again = a_trainer(tmp_path, Batches(first=8))
    again.resume()
    assert again.learner.gradient_steps == 8
    for _ in range(2):
        again.step(0)
    assert_equal(again.learner.state_dict(), killed.learner.state_dict())


def test_weights_are_published_every_period_and_at_the_end(tmp_path):
    board = Board()
    trainer = a_trainer(tmp_path, board=board)
    expected = []
    while not trainer.done:
        trainer.step(0)
        if trainer.learner.gradient_steps in (5, 10, 12):
            expected.append(trainer.learner.weights())
    assert board.versions == [1, 2, 3]
    assert trainer.version == 3
    for (policy, _, tensors), weights in zip(board.published, expected, strict=True):
        assert policy == "shared"
        assert tensors.keys() == weights.keys()
        assert all(torch.equal(tensors[name], weight) for name, weight in weights.items())


def test_versions_go_on_after_a_resume_and_the_weights_are_there_at_once(tmp_path):
    stopped = a_trainer(tmp_path)
    for _ in range(6):
        stopped.step(0)
    stopped.save()
    board = Board()
    again = a_trainer(tmp_path, board=board)
    again.resume()
    assert board.versions == [2]
    weights = stopped.learner.weights()
    assert all(torch.equal(board.published[0][2][name], weight) for name, weight in weights.items())


def test_checkpoints_are_made_every_period(tmp_path):
    trainer = a_trainer(tmp_path)
    made = []
    while not trainer.done:
        trainer.step(0)
        made.append([load(path).step for path in list_checkpoints(tmp_path, "shared")])
    # the last one, after 12, is its caller's to make: it is made after a stop as well
    assert made == [[]] * 3 + [[4]] * 4 + [[4, 8]] * 5
    trainer.save()
    newest = load(list_checkpoints(tmp_path, "shared")[-1])
    assert (newest.step, newest.version, newest.signature) == (12, 3, SIGNATURE)
    assert newest.seconds == trainer.seconds
    assert_equal(newest.state, trainer.learner.state_dict())


def test_a_checkpoint_that_can_not_be_saved_does_not_stop_training(tmp_path, caplog):
    (tmp_path / "checkpoints").write_text("a file, where a folder should be")
    board = Board()
    trainer = a_trainer(tmp_path, board=board)
    with caplog.at_level(logging.ERROR):
        run(trainer)
    assert trainer.learner.gradient_steps == 12
    assert board.versions == [1, 2, 3]
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"can't save {folder(tmp_path, 'shared') / f'step-{step:010d}.safetensors'}" for step in (4, 8)
    ]
    with pytest.raises(CheckpointError, match="can't save"):
        trainer.save()  # whoever asks for one is told


def test_without_a_batch_nothing_happens_but_waiting(tmp_path):
    trainer = a_trainer(tmp_path, Batches(gaps=(1, 2)), clock=Clock())
    trainer.begin(resume=False)
    before = trainer.learner.state_dict()
    assert [trainer.step(0), trainer.step(0)] == [False, False]
    assert_equal(trainer.learner.state_dict(), before)
    assert trainer.metrics == {}
    # the clock is looked at before and after each wait, and for the seconds since it began
    assert (trainer.waited_s, trainer.seconds) == (2, 5)
    assert trainer.step(0)
    assert (trainer.waited_s, trainer.seconds) == (3, 8)
    assert trainer.metrics.keys() == {"loss", "value", "learning_rate"}


def test_its_time_goes_on_after_a_resume_and_ends_with_the_last_step(tmp_path):
    clock = Clock()
    stopped = a_trainer(tmp_path, clock=clock)
    stopped.begin(resume=False)
    clock.now += 100  # outside of steps too
    stopped.step(0)
    stopped.save()
    saved = load(list_checkpoints(tmp_path, "shared")[-1]).seconds
    assert 100 < saved < 110
    clock.now += 1000
    again = a_trainer(tmp_path, clock=clock)
    again.begin(resume=True)
    assert again.seconds == saved + 1
    ended = run(again).seconds
    clock.now += 1000
    assert again.seconds == ended < 200
    again.save()
    finished = a_trainer(tmp_path, clock=clock)
    finished.begin(resume=True)
    assert finished.seconds == ended


def test_a_last_checkpoint_is_tried_until_there_is_room(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("fornix.learner.trainer._SAVE_AGAIN_AFTER_S", 0.01)
    full, other = a_trainer(tmp_path), a_trainer(tmp_path, policy="other")
    save_whole, left = full.save, [1, 2, 3]

    def save_late():
        if left:
            left.pop()
            raise CheckpointError("can't save: full")
        save_whole()

    monkeypatch.setattr(full, "save", save_late)
    save_all([full, other], threading.Event())
    assert caplog.text.count("can't save: full") == 3
    assert list_checkpoints(tmp_path, "shared")
    stop = threading.Event()
    stop.set()
    left.append(1)
    third = a_trainer(tmp_path, policy="third")
    with pytest.raises(CheckpointError, match="can't save: full"):
        save_all([full, third], stop)
    assert list_checkpoints(tmp_path, "third")  # whatever became of the first


def test_a_run_without_checkpoints_is_told_to_begin_anew(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        check_run_dir(tmp_path, ["shared"], resume=False)
        assert not caplog.records
        check_run_dir(tmp_path, ["shared"], resume=True)
    assert f"no checkpoint in {folder(tmp_path, 'shared')}, begins at gradient step 0" in caplog.text
    a_trainer(tmp_path).save()
    with pytest.raises(CheckpointError, match="--resume"):
        check_run_dir(tmp_path, ["shared"], resume=False)


def test_one_that_is_done_draws_on_but_learns_no_more(tmp_path):
    """Else its table's limiter would hold back the actors, and with them the other policies."""
    board, batches = Board(), Batches()
    trainer = run(a_trainer(tmp_path, batches, board=board))
    state, seconds = trainer.learner.state_dict(), trainer.seconds
    assert trainer.step(0) is False
    assert batches.asked == 13
    assert_equal(trainer.learner.state_dict(), state)
    assert trainer.seconds == seconds
    assert board.versions == [1, 2, 3]


def test_it_says_what_it_does(tmp_path):
    batches = Batches()
    trainer = a_trainer(tmp_path, batches)
    assert trainer.doing == "trains"
    batches.doing = "waits: for data"
    assert trainer.doing == "waits: for data"
    assert run(trainer).doing == "is done"


def test_the_seed_and_the_policy_decide_the_first_weights(tmp_path):
    one, same = a_trainer(tmp_path), a_trainer(tmp_path)
    other_policy = a_trainer(tmp_path, policy="agent_1")
    other_seed = a_trainer(tmp_path, config=CONFIG.model_copy(update={"seed": 1}))
    assert_equal(one.learner.state_dict(), same.learner.state_dict())
    for other in (other_policy, other_seed):
        name = "embedding.weight"
        assert not torch.equal(one.learner.weights()[name], other.learner.weights()[name])


def test_a_fresh_training_begins_fresh_and_a_resumed_one_goes_on(tmp_path):
    for resume in (True, False):
        trainer = a_trainer(tmp_path)
        trainer.begin(resume)
        assert trainer.learner.gradient_steps == 0
    for _ in range(4):
        trainer.step(0)
    again = a_trainer(tmp_path)
    again.begin(resume=True)
    assert again.learner.gradient_steps == 4


def test_two_trainings_are_not_mixed_in_one_folder(tmp_path):
    """The newest checkpoint would be that of the one that got further, and the other's be dropped."""
    save(tmp_path, Checkpoint("shared", SIGNATURE, 1, 0.0, a_trainer(tmp_path).learner.state_dict()))
    with pytest.raises(CheckpointError, match=r"checkpoints/shared holds checkpoints .* --resume"):
        a_trainer(tmp_path).begin(resume=False)
    a_trainer(tmp_path, policy="agent_1").begin(resume=False)


def test_what_can_not_be_resumed_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint"):
        a_trainer(tmp_path).resume()
    a_trainer(tmp_path).save()
    wider = CONFIG.model_copy(update={"network": CONFIG.network.model_copy(update={"width": 17})})
    with pytest.raises(CheckpointError, match="resume with the configuration"):
        a_trainer(tmp_path, config=wider).resume()
    other = SIGNATURE.model_copy(update={"n_frames": 4})
    with pytest.raises(CheckpointError, match=r"'n_frames': '3'.*'n_frames': '4'"):
        a_trainer(tmp_path, signature=other).resume()
    path = list_checkpoints(tmp_path, "shared")[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        a_trainer(tmp_path).resume()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_it(tmp_path, caplog):
    trainer = a_trainer(tmp_path)
    for _ in range(2):
        trainer.step(0)
        trainer.save()
    earlier, newest = list_checkpoints(tmp_path, "shared")
    data = newest.read_bytes()
    newest.write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    )
    resumed = a_trainer(tmp_path)
    with caplog.at_level("INFO"):
        resumed.begin(resume=True)
    assert resumed.learner.gradient_steps == trainer.learner.gradient_steps - 1
    assert f"instead of a newer one: checkpoint {newest} is damaged" in caplog.text
    assert list_checkpoints(tmp_path, "shared") == [earlier]


@pytest.mark.parametrize(
    "action",
    [ArraySpec.of((), np.int32), ArraySpec.of((2,), np.int32, n_values=3), ArraySpec.of((), "<f4")],
)
def test_actions_that_are_not_discrete_are_refused(action, tmp_path):
    with pytest.raises(ConfigurationError, match=r"needs one\s+discrete action"):
        a_trainer(tmp_path, signature=SIGNATURE.model_copy(update={"action": action}))


def test_it_is_finished_when_its_last_step_is_saved(tmp_path):
    """Other learners end then: one that could be thrown back would train without them."""
    trainer = run(a_trainer(tmp_path))
    assert trainer.done
    assert not trainer.finished
    trainer.save()
    assert trainer.finished
    again = a_trainer(tmp_path)
    assert not again.finished
    again.begin(resume=True)
    assert again.finished


def test_more_gradient_steps_may_be_asked_of_a_finished_training(tmp_path):
    run(a_trainer(tmp_path)).save()
    longer = a_trainer(tmp_path, Batches(first=12), with_learner(gradient_steps=15))
    longer.begin(resume=True)
    assert not longer.done
    assert run(longer).learner.gradient_steps == 15
