"""One actor over an in-process transport: its memory, its policies, its versions, its exploration."""

import contextlib
import threading
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from fornix.actor.policies import GreedyPolicy, epsilon_schedule
from fornix.actor.process import Actor, LearningPolicy, make_network, table_spec
from fornix.actor.reporting import Reporter
from fornix.actor.role import act
from fornix.actor.treasurehunt import TreasureHunt
from fornix.common.config import RunConfig
from fornix.common.errors import FencedError, SignatureError, UnknownTableError
from fornix.common.messages import LAST, Observe
from fornix.common.policies import policy_groups
from fornix.common.specs import Transition
from fornix.common.weights import LocalWeights
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps


def a_config(**changes):
    values = {
        "environment": {"height": 6, "width": 7, "agents": 3, "max_turns": 6, "spawn_prob": 0.1},
        "network": {"width": 16, "layers": 1, "cosines": 8},
        "replay": {"n_frames": 4, "min_size": 1, "capacity_steps": 20_000, "error_buffer_inserts": 1e6},
        "actor": {"copies": 5, "processes": 1},
    }
    return RunConfig.model_validate(values | changes)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small matrices gain nothing from more, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recording(LocalTransport):
    """Remembers what was written; its service may be exchanged for an empty one."""

    def __init__(self):
        super().__init__(ReplayService(time.monotonic, seed=0))
        self.observed = []

    def send(self, request):
        if isinstance(request, Observe):
            self.observed.append(request)
        return super().send(request)

    def restart_server(self):
        self._service = ReplayService(time.monotonic, seed=0)


class Setup:
    """An actor, its server and its learner's place."""

    def __init__(self, config, index=0):
        self.config = config
        self.transport = Recording()
        self.client = Client(self.transport)
        self.weights = LocalWeights()
        self.seen = []
        self.actor = Actor(
            config, index, self.client, self.weights.subscriber, incarnation=1, seen=self.seen.append
        )
        self.network = make_network(config, self.actor.spec, seed=99)

    def turn(self, times=1):
        for _ in range(times):
            for vector in self.actor.vectors:
                vector.advance()

    def publish(self, policy="shared", version=1, network=None):
        tensors = {name: tensor.clone() for name, tensor in (network or self.network).state_dict().items()}
        self.weights.publish(policy, version, tensors)


@pytest.fixture
def set_up():
    """Return a function that makes an actor, which is closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(config=None, index=0):
            setup = Setup(config or a_config(), index)
            stack.callback(setup.actor.close)
            return setup

        yield make


def test_what_it_acts_on_is_byte_for_byte_what_the_table_stacks(set_up):
    setup = set_up()
    setup.actor.begin()
    setup.turn(20)
    assert len(setup.seen) == 40
    table = {}
    for stacks in setup.seen:
        again = setup.client.stacks("shared", stacks.key)
        assert again.stack.tobytes() == stacks.stack.tobytes()
        table |= dict(zip(stacks.key.tolist(), stacks.stack, strict=True))
    drawn = setup.client.sample("shared", 5000, Transition(n_step=3), discount=0.9).result()
    for key, stack in zip(drawn.batch.key.tolist(), drawn.stack, strict=True):
        assert stack.tobytes() == table[key].tobytes()
    known = [at for at, key in enumerate(drawn.batch.next_key.tolist()) if key in table]
    assert len(known) > 1000
    for at in known:
        assert drawn.next_stack[at].tobytes() == table[int(drawn.batch.next_key[at])].tobytes()


def test_an_action_is_chosen_from_the_stack_that_the_table_hands_out(set_up, monkeypatch):
    """Nothing but the answer's stack reaches the policy: no frame is remembered anywhere else."""
    setup, acted = set_up(), []
    act = GreedyPolicy.act
    monkeypatch.setattr(
        GreedyPolicy, "act", lambda self, stacks, *rest: (acted.append(stacks), act(self, stacks, *rest))[1]
    )
    setup.publish()
    setup.actor.begin()
    setup.turn(10)
    assert len(acted) == len(setup.seen) == 20
    assert all(stack is answer.stack for stack, answer in zip(acted, setup.seen, strict=True))


class Watched(TreasureHunt):
    """Notes every frame that it shows, with its number of copies."""

    shown: ClassVar = []

    def step(self, action):
        step = super().step(action)
        self.shown.append((self.copies, step.frame.reshape(-1, *self.spec.frame_shape).copy()))
        return step

    def reset(self, mask):
        frame = super().reset(mask)
        self.shown.append((self.copies, frame.reshape(-1, *self.spec.frame_shape).copy()))
        return frame


def test_the_frames_written_are_those_that_the_world_showed(set_up, monkeypatch):
    """The last frame of an episode is written, and the next episode's first one beside it."""
    monkeypatch.setattr("fornix.actor.treasurehunt.TreasureHunt", Watched)
    monkeypatch.setattr(Watched, "shown", [])
    setup = set_up()
    setup.actor.begin()
    setup.turn(12)
    for half, copies in enumerate((2, 3)):
        written = [one for one in setup.transport.observed if one.writer == f"actor-0.{half}"]
        frames = [frame for of, frame in Watched.shown if of == copies]
        assert np.array_equal(written[0].frame, frames.pop(0))
        for turn, request in enumerate(written[1:], 1):
            now = frames.pop(0)
            assert np.array_equal(request.frame[: copies * 3], now)
            if turn % 6 == 0:
                assert set(request.step_type[: copies * 3].tolist()) == {LAST}
                first = frames.pop(0)
                assert np.array_equal(request.frame[copies * 3 :], first)
                assert not np.array_equal(first, now)
            else:
                assert len(request.frame) == copies * 3
        assert frames == []


def test_without_weights_it_acts_evenly_at_random(set_up):
    setup = set_up()
    setup.actor.begin()
    setup.turn(60)
    actions = np.concatenate([one.action[one.step_type != 0] for one in setup.transport.observed])
    assert len(actions) == 60 * 5 * 3
    np.testing.assert_allclose(np.bincount(actions, minlength=4) / len(actions), 0.25, atol=0.06)
    assert {one.policy_version for one in setup.transport.observed} == {0}
    assert all(policy.version == 0 for policy in setup.actor.policies)


def test_each_step_carries_the_version_that_chose_its_action(set_up):
    setup = set_up()
    setup.actor.begin()
    for version in (0, 1, 2, 7):
        if version:
            setup.publish(version=version)
        setup.turn(3)
    stamped = [one.policy_version for one in setup.transport.observed]
    assert stamped == [0] * 8 + [1] * 6 + [2] * 6 + [7] * 6  # two halves begin, then take three turns each
    drawn = setup.client.sample("shared", 4000, Transition(n_step=1)).result().batch
    assert set(drawn.policy_version.tolist()) == {0, 1, 2, 7}


def test_it_acts_by_the_weights_that_were_published(set_up):
    config = a_config(actor={"copies": 5, "processes": 1, "epsilon": 0.0})
    quiet = config.model_copy(update={"network": config.network.model_copy(update={"noisy": False})})
    setup = set_up(quiet)
    setup.publish()
    setup.actor.begin()
    setup.turn(8)
    policy = GreedyPolicy(setup.network)
    lanes = {half: [one for one in setup.transport.observed if f".{half}" in one.writer] for half in (0, 1)}
    for at, answer in enumerate(setup.seen):
        turn, half = divmod(at, 2)
        expected = policy.act(answer.stack, np.zeros(len(answer.stack)), np.random.default_rng(0))
        request = lanes[half][turn + 1]
        assert np.array_equal(request.action[: len(expected)], expected)


def test_noise_in_the_network_explores_too(set_up):
    setup = set_up(a_config(actor={"copies": 5, "processes": 1, "epsilon": 0.0}))
    setup.publish()
    policy, stack = setup.actor.policies[0], np.ones((8, 4, *setup.actor.spec.frame_shape), np.uint8)
    policy.refresh()
    rng = np.random.default_rng(0)
    chosen = {policy.act(stack, np.zeros(8), rng).tobytes() for _ in range(30)}
    assert len(chosen) > 1


def test_each_lane_explores_by_its_place_in_the_schedule_of_the_whole_run(set_up, monkeypatch):
    explored = []
    monkeypatch.setattr(
        GreedyPolicy,
        "act",
        lambda self, stacks, epsilon, rng: (explored.append(epsilon), np.zeros(len(stacks), np.int64))[1],
    )
    whole = epsilon_schedule(3 * 5, 0.4, 7.0)
    of_copies = []
    for index in range(3):
        setup = set_up(a_config(actor={"copies": 5, "processes": 3, "epsilon": 0.4}), index)
        setup.publish()
        setup.actor.begin()
        explored.clear()
        setup.turn()
        lanes = np.concatenate(explored).reshape(-1, 3)
        assert (lanes == lanes[:, :1]).all()  # the agents of a copy explore alike
        assert all(early > late for early, late in pairwise(lanes[:, 0]))
        of_copies.extend(lanes[:, 0])
    np.testing.assert_allclose(sorted(of_copies, reverse=True), whole)


def test_each_agents_policy_has_its_own_table_weights_and_moves(set_up):
    config = a_config(policy={"sharing": "per_agent"}, actor={"copies": 5, "processes": 1, "epsilon": 0.0})
    config = config.model_copy(update={"network": config.network.model_copy(update={"noisy": False})})
    setup = set_up(config)
    networks = [make_network(config, setup.actor.spec, seed) for seed in range(3)]
    for agent in (0, 2):  # agent_1's learner has published nothing yet
        setup.publish(f"agent_{agent}", agent + 1, networks[agent])
    setup.actor.begin()
    setup.turn(8)
    assert list(setup.client.hello().tables) == ["agent_0", "agent_1", "agent_2"]
    written = setup.transport.observed
    assert {one.table: one.policy_version for one in written[-3:]} == {
        "agent_0": 1,
        "agent_1": 0,
        "agent_2": 3,
    }
    for agent in (0, 2):
        policy = GreedyPolicy(networks[agent])
        for half in (0, 1):
            mine = [
                one for one in written if (one.table, one.writer) == (f"agent_{agent}", f"actor-0.{half}")
            ]
            answers = setup.seen[half * 3 + agent :: 6]
            for answer, request in zip(answers, mine[1:], strict=True):
                expected = policy.act(answer.stack, np.zeros(len(answer.stack)), np.random.default_rng(0))
                assert np.array_equal(request.action[: len(expected)], expected)


def test_the_server_may_forget_it_and_it_begins_again(set_up):
    setup = set_up()
    setup.publish(version=4)
    setup.actor.begin()
    setup.turn(4)
    setup.transport.restart_server()
    # what was asked before is answered still; the write after it finds no table
    setup.turn()
    with pytest.raises(UnknownTableError):
        setup.turn()
    setup.actor.begin()
    setup.seen.clear()
    setup.turn(3)
    assert setup.client.info().tables["shared"]["inserts"] == 3 * 5 * 3
    first = setup.seen[0].stack
    assert not first[:, :-1].any()  # new episodes: nothing before them
    assert setup.transport.observed[-1].policy_version == 4  # it kept its weights


def test_its_successor_closes_the_episodes_that_it_left_open(set_up):
    setup = set_up(a_config(environment={"agents": 3, "max_turns": 1000}))
    setup.actor.begin()
    setup.turn(4)
    successor = Actor(setup.config, 0, setup.client, setup.weights.subscriber, incarnation=2)
    with contextlib.closing(successor):
        successor.begin()
    with pytest.raises(FencedError):
        setup.turn(2)
    drawn = setup.client.sample("shared", 5000, Transition(n_step=3), discount=0.5).result().batch
    # their last transitions are shorter, and are bootstrapped from: cut off, not terminated
    assert set(drawn.steps.tolist()) == {1, 2, 3}
    np.testing.assert_allclose(drawn.discount, 0.5**drawn.steps)


def test_the_same_seed_does_the_same_and_another_does_not(set_up):
    def run(seed, index=0):
        setup = set_up(a_config(seed=seed), index)
        setup.publish()
        setup.actor.begin()
        setup.turn(10)
        return b"".join(one.frame.tobytes() + one.action.tobytes() for one in setup.transport.observed)

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_one_that_slept_until_its_steps_were_overwritten_begins_new_episodes(
    ipc_address, serve, wait_until, caplog
):
    config = a_config(
        environment={"height": 6, "width": 7, "agents": 3, "max_turns": 10**6},
        replay={"address": ipc_address, "capacity_steps": 200, "min_size": 1, "error_buffer_inserts": 1e9},
        weights={"addresses": [f"{ipc_address}-weights"]},
    )
    seen, awake, stop = [], threading.Event(), threading.Event()

    def look(stacks):
        seen.append(stacks)
        awake.wait(20)

    actor = threading.Thread(target=act, args=(config, 0, stop, look))
    with serve(ipc_address), Client.connect(ipc_address) as client:
        actor.start()
        try:
            wait_until(lambda: seen, "the actor to be about to act")
            overwrite(client, 200)
            awake.set()
            wait_until(lambda: len(seen) > 20, "it to go on")
        finally:
            awake.set()
            stop.set()
            actor.join(10)
        assert "begins anew" in caplog.text
        assert "has been overwritten" in caplog.text


def overwrite(client, steps):
    """Let someone else write so many steps."""
    signature = client.signature("shared")
    writer = client.open_writer("shared", "someone-else", lanes=1)
    frame = np.zeros((1, *signature.frame.shape), np.uint8)
    no, lane = np.zeros(1, np.bool_), np.zeros(1, np.int32)
    writer.observe(Steps.first(signature, lane, frame)).result()
    for _ in range(steps):
        writer.observe(Steps.after_actions(lane, lane, np.zeros(1, np.float32), frame, no, no)).result()


def test_two_actors_of_a_run_do_not_do_the_same(set_up):
    config = a_config(actor={"copies": 4, "processes": 2})
    worlds = [set_up(config, index) for index in range(2)]
    for setup in worlds:
        setup.actor.begin()
        setup.turn(3)
    observed = [one for setup in worlds for one in setup.transport.observed]
    assert len({one.frame.tobytes() for one in observed if one.sequence == 1}) == 4  # nor do its halves
    assert len({one.action.tobytes() for one in observed if one.sequence == 2}) == 4


def test_a_gymnasium_environment_is_acted_in_alike(set_up):
    setup = set_up(a_config(environment={"kind": "gymnasium", "id": "CartPole-v1"}))
    setup.publish()
    setup.actor.begin()
    setup.turn(60)
    signature = setup.client.signature("shared")
    assert (signature.frame.shape, signature.frame.dtype) == ((4,), "<f4")
    assert signature.action.n_values == 2
    drawn = setup.client.sample("shared", 3000, Transition(n_step=1)).result()
    ends = drawn.batch.discount == 0
    assert ends.any()
    # the pole has fallen in the last frame: it is the real one, not the first of the next episode
    position, angle = np.abs(drawn.next_stack[ends][:, -1, [0, 2]]).T
    assert ((angle > 0.2095) | (position > 2.4)).all()
    assert (np.abs(drawn.stack[:, -1, 2]) <= 0.2095).all()


def test_another_configuration_than_the_tables_is_refused(set_up):
    setup = set_up()
    setup.actor.begin()
    other = a_config(replay={"n_frames": 3, "min_size": 1})
    actor = Actor(other, 1, setup.client, setup.weights.subscriber)
    with contextlib.closing(actor), pytest.raises(SignatureError, match="n_frames"):
        actor.begin()


def test_weights_of_another_network_are_left_alone(set_up, caplog):
    setup = set_up()
    setup.weights.publish("shared", 1, {"w": torch.zeros(3)})
    setup.actor.begin()
    setup.turn()
    assert "give actor and learner the same network" in caplog.text
    assert setup.actor.policies[0].version == 0


def test_a_learning_policy_is_random_until_there_are_weights(set_up):
    setup = set_up()
    network = GreedyPolicy(setup.network)
    policy = LearningPolicy(network, setup.weights.subscriber("shared"), 4)
    stacks, rng = np.zeros((400, 4, *setup.actor.spec.frame_shape), np.uint8), np.random.default_rng(0)
    policy.refresh()
    assert set(policy.act(stacks, np.zeros(400), rng)) == {0, 1, 2, 3}  # though ε is 0
    setup.publish(version=5)
    policy.refresh()
    assert policy.version == 5
    assert len(set(policy.act(stacks, np.zeros(400), rng))) == 1


def test_it_reports_what_it_does_and_how_fast(set_up, monkeypatch):
    monkeypatch.setattr("fornix.actor.reporting.PERIOD_S", 0.0)
    setup = set_up()
    reporter = Reporter(setup.actor, setup.client, "actor-0")
    setup.actor.begin()
    reporter.report("waits: " + "long " * 100)
    first = setup.client.info().reports["actor-0"]
    assert first["doing"].startswith("waits: long")
    assert (first["metrics"]["agent_steps"], first["metrics"]["policy_version"]) == (0, 0)
    assert "score" not in first["metrics"]  # no episode has ended
    setup.publish(version=3)
    setup.turn(6)
    reporter.report("acts")
    metrics = setup.client.info().reports["actor-0"]["metrics"]
    assert (metrics["agent_steps"], metrics["policy_version"]) == (6 * 5 * 3, 3)
    assert metrics["agent_steps_per_s"] > 0
    assert metrics["score"] == pytest.approx(np.mean([s for v in setup.actor.vectors for s in v.scores]))


def test_one_that_began_again_reports_no_negative_rates(set_up, monkeypatch):
    monkeypatch.setattr("fornix.actor.reporting.PERIOD_S", 0.0)
    setup = set_up()
    reporter = Reporter(setup.actor, setup.client, "actor-0")
    setup.actor.begin()
    setup.turn(5)
    reporter.report("acts")
    setup.transport.restart_server()
    setup.actor.begin()
    setup.turn(1)
    reporter.report("acts")
    assert setup.client.info().reports["actor-0"]["metrics"]["agent_steps_per_s"] > 0


def test_reports_are_a_second_apart(set_up, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fornix.actor.reporting.time", SimpleNamespace(monotonic=lambda: now[0]))
    setup = set_up()
    setup.actor.begin()
    reporter = Reporter(setup.actor, setup.client, "actor-0")
    told = []
    for now[0] in (100.5, 100.9, 101.0, 101.5, 101.9, 102.1):
        reporter.report(f"at {now[0]}")
        told.append(setup.client.info().reports.get("actor-0", {}).get("doing"))
    assert told == [None, None, "at 101.0", "at 101.0", "at 101.0", "at 102.1"]


def test_tables_are_created_with_what_the_configuration_says(set_up):
    config = a_config()
    spec = table_spec(config, set_up(config).actor.spec)
    assert (spec.capacity_steps, spec.signature.n_frames) == (20_000, 4)
    assert spec.limiter.samples_per_insert == config.replay.samples_per_insert
    assert [group.policy for group in policy_groups(config)] == ["shared"]
