"""A writer for a vector of environments as Gymnasium steps it, in each of its autoreset modes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.errors import InvalidRequestError
from fornix.common.messages import FIRST, Stacks
from fornix.replay.autoreset import Autoreset
from fornix.replay.episode_ends import begun_frames, put_ends
from fornix.replay.gather import Array, Buffers
from fornix.replay.lane_stacks import LaneStacks
from fornix.replay.pending import Pending
from fornix.replay.steps import Steps
from fornix.replay.vector_arrays import (
    Leaves,
    Which,
    chosen,
    flags,
    gathered,
    spread,
    step_types,
    values,
    wide,
    wide_extras,
    wide_leaves,
)
from fornix.replay.vector_lanes import NO_KEY, Rows, VectorLanes
from fornix.replay.writer import Writer


@dataclass
class _Plan:
    """A request that is on its way."""

    rows: Rows
    sequence: int
    key: NDArray[np.int64] | None = None


class VectorWriter:
    """Writes what a vector of N environments gives; lane i is environment i.

        observation, info = envs.reset()
        stacks = rows.reset(observation).result().stack
        while True:
            action = policy(stacks)
            observation, reward, terminated, truncated, info = envs.step(action)
            stacks = rows.step(action, observation, reward, terminated, truncated, info).result().stack

    Arrays always have N rows, those of lanes that have left too; these are ignored. They are sent from
    where they lie: take the result before the environments step again, if they write into the same
    arrays (`copy=False`). An episode that ended both terminated and truncated counts as terminated.

    Where the caller resets (`disabled`), `reset(observation, done)` follows a step that ended episodes; or
    `step` is told of it by `first`, in one request instead of three. In `same_step`, an environment that
    returns one array over and over spoils its own last observation: Gymnasium keeps no copy of it.

    One request may be in flight. A call that raises has changed nothing, and neither has a request that
    the server refused; one that timed out is to be sent again (`unanswered.send_again()`).

    Args:
        writer: with N lanes, that nothing else writes with.
        autoreset: `next_step`, `same_step` or `disabled`, or a member of
            `gymnasium.vector.AutoresetMode`; `envs.metadata["autoreset_mode"]` is the right one.
    """

    def __init__(self, writer: Writer, autoreset: str | Enum) -> None:
        self.autoreset = Autoreset.of(autoreset)
        self._writer = writer
        self._lanes = VectorLanes.of(writer.lanes)
        self._plan: _Plan | None = None
        self._buffers = Buffers()
        self._version = 0

    @property
    def lanes(self) -> int:
        """N, those that have left included."""
        return len(self._lanes.joined)

    @property
    def unanswered(self) -> Pending[LaneStacks] | None:
        """The request that has no answer yet, as `Writer.unanswered`; its result is that of all lanes."""
        return cast("Pending[LaneStacks] | None", self._writer.unanswered)  # changed by `Pending.then`

    def reset(
        self,
        observation: Any,
        mask: Array | None = None,
        *,
        extras: Mapping[str, Any] | None = None,
        policy_version: int | None = None,
        stacks: bool = True,
        timeout_s: float = 10.0,
    ) -> Pending[LaneStacks]:
        """Write the FIRST steps of environments that the caller has reset.

        An episode that is still open ends, truncated. The stacks that come back are those of all lanes
        that are written, not just of these. If the result is a time-out, call `unanswered.send_again()`
        and take it again.

        Args:
            observation: [N, *obs], or a dict or tuple of such.
            mask: bool [N], which were reset; None for all.
            extras: [N, *extra] each.
            policy_version: version of the weights; the newest that was given if None.
            stacks: whether to answer with stacks, or with keys alone.
            timeout_s: how long the server may hold the request back.

        Raises:
            InvalidRequestError: if an array doesn't fit, or the request before has no answer yet.
        """
        lanes = self._settled()
        which = np.ones(self.lanes, np.bool_) if mask is None else flags("mask", mask, self.lanes)
        seen = wide_leaves("observation", observation, self.lanes)
        rows = lanes.begun(which)
        frame = trees.like(observation, gathered(rows, seen, None, self._buffers, "frame"))
        steps = Steps.first(self._writer.signature, rows.acted, frame, self._extras(rows, extras))
        return self._send(steps, rows, policy_version, stacks, timeout_s)

    def step(
        self,
        action: Any,
        observation: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        info: Mapping[str, Any] | None = None,
        *,
        first: Any = None,
        extras: Mapping[str, Any] | None = None,
        policy_version: int | None = None,
        stacks: bool = True,
        timeout_s: float = 10.0,
    ) -> Pending[LaneStacks]:
        """Write one step of all environments, in one request.

        If the result is a time-out, call `unanswered.send_again()` and take it again before the
        environments step on.

        Args:
            action: [N, *action], that was taken; ignored where the step reset the environment.
            observation: [N, *obs], or a dict or tuple of such, as `envs.step` returned it.
            reward: [N].
            terminated: bool [N].
            truncated: bool [N].
            info: as `envs.step` returned it; `same_step` has the last observations there.
            first: in mode `disabled`, what `envs.reset` returned, if all environments that this step ended
                have been reset already: then their LAST and FIRST go in this request. Otherwise call
                `reset` once they are.
            extras: [N, *extra] each; LAST and the next episode's FIRST get the same.
            policy_version: version of the weights that chose the actions; the newest given if None.
            stacks: whether to answer with stacks, or with keys alone.
            timeout_s: how long the server may hold the request back.

        Raises:
            InvalidRequestError: if an array doesn't fit, a last observation is missing, an environment
                had to be reset before, or the request before has no answer yet.
        """
        lanes = self._settled()
        ended = flags("terminated", terminated, self.lanes)
        done = ended | flags("truncated", truncated, self.lanes)
        seen = wide_leaves("observation", observation, self.lanes)
        first = None if first is None else wide_leaves("first", first, self.lanes)
        begun = begun_frames(self.autoreset, seen, first, info, done)
        rows = lanes.stepped(self.autoreset, done, begun is not None)
        frames = gathered(rows, seen, begun, self._buffers, "frame")
        if self.autoreset is Autoreset.SAME_STEP:
            put_ends(frames, rows.acted, lanes.open & done, info, seen)
        signature, step_type = self._writer.signature, step_types(rows, done)
        first_rows = step_type == FIRST
        action, reward = wide("action", action, self.lanes), wide("reward", reward, self.lanes)
        steps = Steps(
            np.concatenate([rows.acted, rows.again]),
            step_type,
            spread(rows, ended & ~rows.begins),
            values("action", spread(rows, action), signature.action, first_rows),
            values("reward", spread(rows, reward), signature.reward, first_rows),
            trees.like(observation, frames),
            self._extras(rows, extras),
        )
        return self._send(steps, rows, policy_version, stacks, timeout_s)

    def leave(self, which: Which) -> None:
        """Let lanes leave: from now on their rows are ignored, and no stack of theirs comes back.

        Their open episodes end, truncated, with the next request; `flush` sends one.

        Args:
            which: lanes by number, or bool [N].

        Raises:
            InvalidRequestError: if there is no such lane, or the request before has no answer yet.
        """
        lanes = self._settled()
        self._lanes = lanes.left(chosen(_listed(which), self.lanes))

    def join(self, which: Which, *, at_once: bool = False) -> None:
        """Let lanes that have left, or are new, be written again.

        Each waits until an episode of its environment begins: with the environments' own reset, or with
        the caller's (`reset`). Lanes beyond N are added; arrays have as many rows from now on. It isn't
        known of these whether they begin with the next step: say so (`at_once`), or reset them.

        Args:
            which: lanes by number, or bool [N].
            at_once: the next observation begins their episodes, whatever led to it.

        Raises:
            InvalidRequestError: if one has joined already, there can't be so many, or the request before
                has no answer yet.
        """
        lanes = self._settled()
        listed = _listed(which)
        wanted = len(listed) if listed.dtype == np.bool_ else int(listed.max(initial=-1)) + 1
        wanted = max(wanted, self.lanes)
        mask = chosen(listed, wanted)
        again = mask[: self.lanes] & lanes.joined
        if again.any():
            raise InvalidRequestError(
                f"lanes {np.flatnonzero(again).tolist()} have joined already; let them leave first"
            )
        if wanted > self.lanes:
            self._writer.grow(wanted)
            lanes = lanes.wider(wanted)
        self._lanes = lanes.joining(mask, at_once)

    def flush(self, *, stacks: bool = True, timeout_s: float = 10.0) -> Pending[LaneStacks]:
        """End the episodes of lanes that have left in a request of its own, which has no rows.

        The stacks that come back are those of the lanes that stay.
        """
        lanes = self._settled()
        rows = lanes.begun(np.zeros(self.lanes, np.bool_))
        signature = self._writer.signature
        frames = {p: np.empty((0, *spec.shape), spec.dtype) for p, spec in signature.frames.items()}
        extras = {n: np.empty((0, *spec.shape), spec.dtype) for n, spec in signature.extras.items()}
        steps = Steps.first(signature, rows.acted, trees.like(signature.frame, frames), extras)
        return self._send(steps, rows, None, stacks, timeout_s)

    def _settled(self) -> VectorLanes:
        """Return the lanes as the last request left them, or raise while it has no answer."""
        self._writer.require_answered()
        plan, self._plan = self._plan, None
        if plan is not None and self._writer.sequence > plan.sequence:
            after = plan.rows.after
            key = after.key.copy()
            key[plan.rows.answered] = NO_KEY if plan.key is None else plan.key
            self._lanes = replace(after, key=key)
        return self._lanes

    def _extras(self, rows: Rows, extras: Mapping[str, Any] | None) -> Leaves:
        return gathered(rows, wide_extras(extras, self.lanes), None, self._buffers, "extras")

    def _send(
        self, steps: Steps, rows: Rows, policy_version: int | None, stacks: bool, timeout_s: float
    ) -> Pending[LaneStacks]:
        version = self._version if policy_version is None else policy_version
        plan = _Plan(rows, self._writer.sequence)
        pending = self._writer.observe(
            steps,
            leave=rows.leave if len(rows.leave) or not len(steps.lane) else None,
            policy_version=version,
            stacks=stacks,
            timeout_s=timeout_s,
        )
        self._plan, self._version = plan, version
        return pending.then(lambda answer: self._shown(plan, answer))

    def _shown(self, plan: _Plan, answer: Stacks) -> LaneStacks:
        plan.key = answer.key
        return LaneStacks.of(plan.rows, answer, self._writer.stacks)


def _listed(which: Which) -> Array:
    return which if isinstance(which, np.ndarray) else np.asarray(list(which))
