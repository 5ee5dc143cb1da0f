"""A vector of environment copies whose agents act on the stacks that the memory hands them."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fornix.actor.environments import VectorEnvironment, VectorStep
from fornix.common.errors import InvalidRequestError, UnreachableError, WaitTimeoutError
from fornix.common.messages import Stacks
from fornix.common.policies import PolicyGroup
from fornix.replay.pending import Pending
from fornix.replay.steps import Steps
from fornix.replay.writer import Writer

#: Copies whose ε is below this count as greedy in scores.
GREEDY_BELOW = 0.01
_EPISODES_IN_SCORE = 2


class Policy(Protocol):
    """Chooses actions. Version 0 stands for a policy that has learned nothing yet."""

    @property
    def version(self) -> int:
        """How many publications of its weights there have been."""

    def refresh(self) -> None:
        """Take the newest weights, if there are newer ones."""

    def act(
        self, stacks: NDArray[np.generic], epsilon: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return actions [L] for stacks [L, n_frames, *obs], random with probability `epsilon` [L]."""


class AgentGroup:
    """The agents of one policy in all copies, and their writer: lane = copy · agents + agent."""

    def __init__(
        self, group: PolicyGroup, policy: Policy, writer: Writer, epsilon: NDArray[np.float64]
    ) -> None:
        self.agents = list(group.agents)
        self.policy = policy
        self._writer = writer
        self._lanes = np.arange(len(epsilon) * len(self.agents)).reshape(len(epsilon), -1)
        self._epsilon = np.repeat(epsilon, len(self.agents))
        self._pending: Pending[Stacks] | None = None

    def begin(self, frame: NDArray[np.generic], timeout_s: float) -> None:
        """Write the FIRST steps of every copy; `frame` is [copies, agents of a copy, *obs]."""
        steps = Steps.first(self._writer.signature, self._lanes.ravel(), _lanes_of(frame[:, self.agents]))
        self._pending = self._writer.observe(steps, timeout_s=timeout_s)

    def done(self) -> bool:
        """Whether the stacks are there."""
        return self._pending is not None and self._pending.done()

    def stacks(self) -> Stacks:
        """Return the stack of every lane's newest step; waits for it.

        Raises:
            WaitTimeoutError, UnreachableError: nothing has come yet. The request has been sent again,
                which the server applies once; so call this again.
        """
        if self._pending is None:
            raise InvalidRequestError("no steps have been written; call begin first")
        try:
            return self._pending.result()
        except (WaitTimeoutError, UnreachableError):
            self._pending.send_again()
            raise

    def abandon(self) -> None:
        """Let go of the request in flight."""
        if self._pending is not None:
            self._pending.forget()
            self._pending = None

    def act(self, stacks: Stacks, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the agents' actions, [copies, agents]."""
        return self.policy.act(stacks.stack, self._epsilon, rng).reshape(self._lanes.shape)

    def write(
        self,
        action: NDArray[np.int64],
        step: VectorStep,
        first_frame: NDArray[np.generic],
        timeout_s: float,
    ) -> None:
        """Write what an action of every agent led to, and the FIRST steps of the episodes after.

        Args:
            action: [copies, agents of this group].
            step: of all agents in a copy.
            first_frame: [copies, agents of a copy, *obs], of which the rows of copies whose episode
                ended are used.
            timeout_s: how long the server may hold the request back.
        """
        count = len(self.agents)
        ended = step.terminated | step.truncated
        steps = Steps.after_actions(
            self._lanes.ravel(),
            action.ravel().astype(self._writer.signature.action.dtype),
            step.reward[:, self.agents].ravel(),
            _lanes_of(step.frame[:, self.agents]),
            np.repeat(step.terminated, count),
            np.repeat(step.truncated, count),
        )
        if ended.any():
            steps += Steps.first(
                self._writer.signature,
                self._lanes[ended].ravel(),
                _lanes_of(first_frame[ended][:, self.agents]),
            )
        self._pending = self._writer.observe(steps, policy_version=self.policy.version, timeout_s=timeout_s)


class VectorActor:
    """Steps copies of an environment; one request for each policy carries a vector step.

    Args:
        environment: the copies.
        groups: the agents of each policy, with a writer each.
        epsilon: float [copies], exploration of each copy.
        rng: of the random actions.
        timeout_s: how long the server may hold a request back before it says what it waits for.
        clock: seconds, for the share of time spent waiting.
        seen: called with each answer's keys and stacks, before they are acted on.
    """

    def __init__(
        self,
        environment: VectorEnvironment,
        groups: Sequence[AgentGroup],
        epsilon: NDArray[np.float64],
        rng: np.random.Generator,
        *,
        timeout_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        seen: Callable[[Stacks], None] | None = None,
    ) -> None:
        self._environment = environment
        self._groups = groups
        self._greedy = epsilon < GREEDY_BELOW
        self._rng = rng
        self._timeout_s = timeout_s
        self._clock = clock
        self._seen = seen
        self._running = np.zeros(environment.copies)
        #: Scores of finished episodes, summed over agents, and the copy that each was played in.
        self.finished: deque[tuple[int, float]] = deque()
        #: Scores of the last two episodes of every copy, and of those that hardly explore.
        self.scores: deque[float] = deque(maxlen=_EPISODES_IN_SCORE * environment.copies)
        self.greedy_scores: deque[float] = deque(maxlen=_EPISODES_IN_SCORE * environment.copies)
        self.agent_steps = 0
        #: Time spent waiting for stacks, and time that the limiter held requests back, in seconds.
        self.waited_s = 0.0
        self.held_s = 0.0

    @property
    def copies(self) -> int:
        """Copies of the environment."""
        return self._environment.copies

    def begin(self) -> None:
        """Begin new episodes in all copies."""
        self._running[:] = 0
        frame = self._environment.reset(np.ones(self._environment.copies, np.bool_))
        for group in self._groups:
            group.begin(frame, self._timeout_s)

    def done(self) -> bool:
        """Whether `advance` would not wait."""
        return all(group.done() for group in self._groups)

    def abandon(self) -> None:
        """Let go of all requests in flight."""
        for group in self._groups:
            group.abandon()

    def advance(self) -> None:
        """Wait for the stacks, let every agent act on its own, and write what came of it.

        Raises:
            WaitTimeoutError, UnreachableError: not all stacks have come; nothing has been done, and
                this may be called again.
        """
        answers = self._stacks()
        action = np.empty((self._environment.copies, sum(len(g.agents) for g in self._groups)), np.int64)
        for group, answer in zip(self._groups, answers, strict=True):
            if self._seen is not None:
                self._seen(answer)
            group.policy.refresh()
            action[:, group.agents] = group.act(answer, self._rng)
        step = self._environment.step(action)
        ended = step.terminated | step.truncated
        first_frame = self._environment.reset(ended) if ended.any() else step.frame
        for group in self._groups:
            group.write(action[:, group.agents], step, first_frame, self._timeout_s)
        self._count(step, ended)

    def _stacks(self) -> list[Stacks]:
        """Return every group's stacks, and count the time that this took."""
        began = self._clock()
        answers: list[Stacks] = []
        try:
            answers = [group.stacks() for group in self._groups]
        finally:
            blocked_s = self._clock() - began
            # a refusal is the limiter's too: nothing else lets a request time out at the server
            held_s = min(blocked_s, max((a.held_s for a in answers), default=blocked_s))
            self.held_s += held_s
            self.waited_s += blocked_s - held_s
        return answers

    def _count(self, step: VectorStep, ended: NDArray[np.bool_]) -> None:
        self.agent_steps += step.reward.size
        self._running += step.reward.sum(axis=1)
        for copy in np.flatnonzero(ended):
            score = float(self._running[copy])
            self.finished.append((int(copy), score))
            self.scores.append(score)
            if self._greedy[copy]:
                self.greedy_scores.append(score)
        self._running[ended] = 0


def _lanes_of(frame: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return [copies, agents, *obs] as [lanes, *obs]."""
    return frame.reshape(-1, *frame.shape[2:])
