"""The environment loop: what is written, what is acted on, and what happens where episodes end."""

import itertools
import time

import numpy as np
import pytest

from fornix.actor.environments import EnvironmentSpec, VectorStep
from fornix.actor.vector import AgentGroup, VectorActor
from fornix.common.errors import InvalidRequestError, WaitTimeoutError
from fornix.common.messages import FIRST, LAST, MID, Observe
from fornix.common.policies import PolicyGroup
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService

COPIES, AGENTS, FRAMES = 3, 3, 3
SIGNATURE = Signature(
    frame=ArraySpec.of((4,), np.int32), action=ArraySpec.of((), np.int32, n_values=1000), n_frames=FRAMES
)


class Counting:
    """Copy c has episodes of c + 2 turns; those of copy 1 terminate, all others are truncated.

    A frame is (copy, agent, episode, turn). A reward is the action plus a hundredth of the agent.
    """

    copies = COPIES

    def __init__(self):
        self.spec = EnvironmentSpec(
            (4,), np.dtype(np.int32), 1000, tuple(f"agent_{i}" for i in range(AGENTS))
        )
        self.turn = np.zeros(COPIES, np.int32)
        self.episode = np.full(COPIES, -1, np.int32)
        self.actions = []

    def reset(self, mask):
        self.turn[mask] = 0
        self.episode[mask] += 1
        return self._frame()

    def step(self, action):
        self.actions.append(action.copy())
        self.turn += 1
        over = self.turn == np.arange(COPIES) + 2
        terminated = over & (np.arange(COPIES) == 1)
        reward = (action + np.arange(AGENTS) / 100).astype(np.float32)
        return VectorStep(self._frame(), reward, terminated, over & ~terminated)

    def close(self):
        pass

    def _frame(self):
        frame = np.zeros((COPIES, AGENTS, 4), np.int32)
        frame[..., 0] = np.arange(COPIES)[:, None]
        frame[..., 1] = np.arange(AGENTS)
        frame[..., 2] = self.episode[:, None]
        frame[..., 3] = self.turn[:, None]
        return frame


class Numbering:
    """Answers each lane with an action of its own: 100·policy + 10·copy + agent, as the frame says.

    Its version is how often it was refreshed.
    """

    def __init__(self, number=0):
        self.number = number
        self.version = 0
        self.epsilons = []
        self.versions = []

    def refresh(self):
        self.version += 1

    def act(self, stacks, epsilon, rng):
        self.epsilons.append(epsilon)
        self.versions.append(self.version)
        newest = stacks[:, -1].astype(np.int64)
        return 100 * self.number + 10 * newest[:, 0] + newest[:, 1]


class Recording(LocalTransport):
    """Remembers what was written."""

    def __init__(self, service):
        super().__init__(service)
        self.observed = []

    def send(self, request):
        if isinstance(request, Observe):
            self.observed.append(request)
        return super().send(request)


class Setup:
    """A vector actor over the counting environment, and all that it touches."""

    def __init__(
        self,
        groups=((0, 1, 2),),
        limiter=None,
        epsilon=(0.5, 0.25, 0.001),
        server_clock=time.monotonic,
        client=None,
        **options,
    ):
        self.transport = Recording(ReplayService(server_clock, seed=0))
        self.client = client or Client(self.transport)
        self.environment = Counting()
        self.policies = [Numbering(number) for number in range(len(groups))]
        self.seen = []
        epsilon = np.array(epsilon)
        spec = TableSpec(signature=SIGNATURE, capacity_steps=10_000, limiter=limiter or LimiterSpec())
        self.groups = []
        for policy, agents in zip(self.policies, groups, strict=True):
            table = f"table_{policy.number}"
            self.client.create_table(table, spec)
            writer = self.client.open_writer(table, "actor-0.0", COPIES * len(agents), incarnation=1)
            self.groups.append(AgentGroup(PolicyGroup(table, agents), policy, writer, epsilon))
        self.actor = VectorActor(
            self.environment,
            self.groups,
            epsilon,
            np.random.default_rng(0),
            seen=self.seen.append,
            **options,
        )

    def run(self, turns):
        self.actor.begin()
        for _ in range(turns):
            self.actor.advance()
        return self

    def transitions(self, table="table_0", **options):
        """Draw often enough that every start is among what is drawn."""
        options = {"discount": 0.5} | options
        return self.client.sample(table, 20_000, **options).result()


def test_every_agent_acts_on_what_the_table_stacks():
    setup = Setup().run(12)
    assert len(setup.seen) == 12
    for stacks in setup.seen:
        again = setup.client.stacks("table_0", stacks.key)
        assert again.stack.tobytes() == stacks.stack.tobytes()
        assert again.stack.shape == (COPIES * AGENTS, FRAMES, 4)


def test_a_stack_is_the_lanes_own_frames_and_never_crosses_an_episode():
    setup = Setup().run(12)
    for turn, stacks in enumerate(setup.seen):
        for lane, stack in enumerate(stacks.stack):
            copy, agent = divmod(lane, AGENTS)
            episode, now = divmod(turn, copy + 2)
            frames = [[copy, agent, episode, t] if t >= 0 else [0] * 4 for t in range(now - 2, now + 1)]
            assert stack.tolist() == frames


def test_an_episodes_last_step_and_the_next_ones_first_go_in_one_request():
    setup = Setup().run(6)
    assert len(setup.transport.observed) == 7
    for turn, request in enumerate(setup.transport.observed[1:], 1):
        ended = [copy for copy in range(COPIES) if turn % (copy + 2) == 0]
        assert request.step_type.tolist() == [
            LAST if copy in ended else MID for copy in range(COPIES) for _ in range(AGENTS)
        ] + [FIRST] * (AGENTS * len(ended))
        assert request.lane.tolist() == [
            *range(COPIES * AGENTS),
            *(copy * AGENTS + agent for copy in ended for agent in range(AGENTS)),
        ]
        assert request.sequence == turn + 1
    first = setup.transport.observed[0]
    assert set(first.step_type.tolist()) == {FIRST}


def test_the_last_frame_of_an_episode_is_the_real_one():
    """Not the first of the next episode, which an environment that resets itself would hand out."""
    setup = Setup().run(12)
    drawn = setup.transitions()
    start, end = drawn.stack[:, -1], drawn.next_stack[:, -1]
    copies = start[:, 0]
    assert np.array_equal(end[:, :3], start[:, :3])  # the same copy, agent and episode
    assert np.array_equal(end[:, 3], start[:, 3] + 1)
    final = end[:, 3] == copies + 2
    assert set(copies[final]) == {0, 1, 2}
    # copy 1 terminates: nothing to bootstrap; the others are cut off: bootstrap from the real last frame
    assert np.array_equal(drawn.batch.discount == 0, final & (copies == 1))
    assert np.array_equal(drawn.next_stack[final][:, -1, 3], copies[final] + 2)


def test_an_action_and_its_reward_belong_to_the_step_that_they_led_to():
    drawn = Setup().run(12).transitions()
    newest = drawn.stack[:, -1]
    action = 10 * newest[:, 0] + newest[:, 1]
    assert np.array_equal(drawn.batch.action, action)
    np.testing.assert_allclose(drawn.batch.reward, action + newest[:, 1] / 100, rtol=1e-6)


def test_each_policy_writes_to_its_own_table_and_moves_its_own_agents():
    setup = Setup(groups=((0, 2), (1,))).run(8)
    for action in setup.environment.actions:
        assert action.tolist() == [
            [10 * copy, 100 + 10 * copy + 1, 10 * copy + 2] for copy in range(COPIES)
        ]
    for table, agents in (("table_0", {0, 2}), ("table_1", {1})):
        drawn = setup.transitions(table)
        newest = drawn.stack[:, -1]
        assert set(newest[:, 1]) == agents
        assert set(newest[:, 0]) == {0, 1, 2}
        np.testing.assert_allclose(drawn.batch.reward, drawn.batch.action + newest[:, 1] / 100, rtol=1e-6)
        writer = setup.client.info().tables[table]["writers"]["actor-0.0"]
        assert writer["lanes"] == COPIES * len(agents)


def test_lanes_of_a_policy_with_some_of_the_agents_are_in_order():
    setup = Setup(groups=((0, 2), (1,))).run(1)
    first = next(request for request in setup.transport.observed if request.table == "table_0")
    assert first.lane.tolist() == list(range(6))
    assert first.frame[:, :2].tolist() == [[copy, agent] for copy in range(COPIES) for agent in (0, 2)]


def test_each_lane_explores_as_its_copy_does():
    setup = Setup(groups=((0, 2), (1,)), epsilon=(0.5, 0.25, 0.001)).run(1)
    assert setup.policies[0].epsilons[0].tolist() == [0.5, 0.5, 0.25, 0.25, 0.001, 0.001]
    assert setup.policies[1].epsilons[0].tolist() == [0.5, 0.25, 0.001]


def test_a_step_carries_the_version_of_the_weights_that_chose_its_action():
    setup = Setup().run(12)
    policy = setup.policies[0]
    assert policy.versions == list(range(1, 13))  # refreshed before each act
    assert [request.policy_version for request in setup.transport.observed] == [0, *policy.versions]
    drawn = setup.transitions()
    turns = drawn.stack[:, -1, 2] * (drawn.stack[:, -1, 0] + 2) + drawn.stack[:, -1, 3]
    assert np.array_equal(drawn.batch.policy_version, turns + 1)


def test_scores_are_summed_over_agents_and_kept_by_copy():
    setup = Setup().run(12)

    def score(copy):
        return (copy + 2) * sum(10 * copy + agent + agent / 100 for agent in range(AGENTS))

    played = {copy: [s for c, s in setup.actor.finished if c == copy] for copy in range(COPIES)}
    for copy, scores in played.items():
        np.testing.assert_allclose(scores, [score(copy)] * (12 // (copy + 2)), rtol=1e-5)
    latest = [score for _, score in setup.actor.finished][-2 * COPIES :]
    assert list(setup.actor.scores) == latest
    assert list(setup.actor.greedy_scores) == played[2]  # of the copy whose ε is next to nothing
    assert setup.actor.agent_steps == 12 * COPIES * AGENTS


def test_what_was_abandoned_is_not_waited_for():
    setup = Setup().run(1)
    assert setup.actor.done()
    setup.actor.abandon()
    assert not setup.actor.done()


# waiting ----------------------------------------------------------------------------------------

TIGHT = LimiterSpec(min_size=1, samples_per_insert=1.0, error_buffer_inserts=1.0)


def test_while_the_limiter_holds_it_back_nothing_is_done_and_it_goes_on_after():
    setup = Setup(limiter=TIGHT)
    setup.actor.begin()
    setup.actor.advance()  # its steps come after the first ones: the limiter takes them
    setup.actor.advance()  # its answer is there, but these steps have to wait
    assert not setup.actor.done()
    for _ in range(3):
        with pytest.raises(WaitTimeoutError):
            setup.actor.advance()
    assert len(setup.environment.actions) == 2
    before = setup.client.info().tables["table_0"]
    assert before["limiter"]["waiting_inserts"] == 1  # though it was sent four times
    setup.transitions()
    assert setup.actor.done()
    setup.actor.advance()
    assert len(setup.environment.actions) == 3
    for stacks in setup.seen:
        again = setup.client.stacks("table_0", stacks.key)
        assert again.stack.tobytes() == stacks.stack.tobytes()
    turns = [stacks.stack[1 * AGENTS, -1, 3] for stacks in setup.seen]
    assert turns == [0, 1, 2]


def test_a_refusal_of_the_servers_is_met_by_asking_again(ipc_address, serve):
    with serve(ipc_address), Client.connect(ipc_address) as client:
        setup = Setup(limiter=TIGHT, client=client, timeout_s=0.05)
        setup.actor.begin()
        setup.actor.advance()
        setup.actor.advance()
        for _ in range(2):
            with pytest.raises(WaitTimeoutError, match=r"waited 0\.05 s: 9 inserts have been made"):
                setup.actor.advance()
        assert len(setup.environment.actions) == 2
        setup.transitions()
        for _ in range(3):
            setup.actor.advance()
        assert len(setup.environment.actions) == 5
        assert client.info().tables["table_0"]["writers"]["actor-0.0"]["sequence"] >= 5


def test_one_policy_that_is_held_back_holds_back_the_copy_but_loses_nothing():
    setup = Setup(groups=((0, 2), (1,)), limiter=TIGHT)
    setup.actor.begin()
    setup.actor.advance()
    setup.actor.advance()
    setup.transitions("table_0")
    with pytest.raises(WaitTimeoutError):
        setup.actor.advance()
    setup.transitions("table_1")
    setup.actor.advance()
    assert len(setup.environment.actions) == 3
    turns = [stacks.stack[-1, -1].tolist() for stacks in setup.seen]
    assert turns == [[2, agent, 0, turn] for turn in range(3) for agent in (2, 1)]


def test_waiting_is_counted_by_what_it_was_for():
    """Each wait takes a second by the actor's clock; by the server's, the limiter held it for a quarter."""
    server_now, own = [0.0], itertools.count()
    setup = Setup(limiter=TIGHT, server_clock=lambda: server_now[0], clock=lambda: next(own))
    actor = setup.actor
    actor.begin()
    for seconds in (1, 2):
        actor.advance()
        assert (actor.waited_s, actor.held_s) == (seconds, 0)
    with pytest.raises(WaitTimeoutError):
        actor.advance()
    assert (actor.waited_s, actor.held_s) == (2, 1)  # nothing but the limiter lets a request time out
    server_now[0] = 0.25
    setup.transitions()
    actor.advance()
    assert (actor.waited_s, actor.held_s) == (2.75, 1.25)


def test_acting_before_beginning_is_refused():
    setup = Setup()
    assert not setup.actor.done()
    with pytest.raises(InvalidRequestError, match="call begin first"):
        setup.actor.advance()


def test_fault_0_1_nothing_is_cleared_when_an_episode_ends():
    """The table remembers every step of every episode, and each stack of long ago is as it was."""
    setup = Setup().run(40)
    table = setup.client.info().tables["table_0"]
    episodes = sum(AGENTS * (1 + 40 // (copy + 2)) for copy in range(COPIES))
    assert table["steps"] == 40 * COPIES * AGENTS + episodes
    assert table["inserts"] == 40 * COPIES * AGENTS
    first = setup.seen[0]
    assert setup.client.stacks("table_0", first.key).stack.tobytes() == first.stack.tobytes()
