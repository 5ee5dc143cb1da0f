"""The rows of one `observe` request, made from what a vector of environments gives."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import FIRST, LAST, MID
from fornix.common.signature import Signature

Array = NDArray[Any]


@dataclass(frozen=True)
class Steps:
    """K new steps of some lanes, in order; the fields are those of `messages.Observe`."""

    lane: Array
    step_type: Array
    terminated: Array
    action: Array
    reward: Array
    frame: Array
    extras: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def first(
        cls, signature: Signature, lane: Array, frame: Array, extras: dict[str, Array] | None = None
    ) -> "Steps":
        """Return the FIRST steps of new episodes.

        Args:
            signature: of the table.
            lane: int [K].
            frame: [K, *obs].
            extras: [K, *extra] each.
        """
        count = len(lane)
        return cls(
            np.asarray(lane, np.int32),
            np.full(count, FIRST, np.uint8),
            np.zeros(count, np.bool_),
            np.zeros((count, *signature.action.shape), signature.action.dtype),
            np.zeros(count, signature.reward.dtype),
            np.asarray(frame),
            extras or {},
        )

    @classmethod
    def after_actions(
        cls,
        lane: Array,
        action: Array,
        reward: Array,
        frame: Array,
        terminated: Array,
        truncated: Array,
        extras: dict[str, Array] | None = None,
    ) -> "Steps":
        """Return the steps that actions led to: LAST where an episode ended, else MID.

        Args:
            lane: int [K].
            action: [K, *action], that was taken.
            reward: [K], that it brought.
            frame: [K, *obs], that it led to: the real last one where the episode ended.
            terminated: bool [K].
            truncated: bool [K].
            extras: [K, *extra] each.
        """
        terminated = np.asarray(terminated, np.bool_)
        ended = terminated | np.asarray(truncated, np.bool_)
        return cls(
            np.asarray(lane, np.int32),
            np.where(ended, LAST, MID).astype(np.uint8),
            terminated,
            np.asarray(action),
            np.asarray(reward),
            np.asarray(frame),
            extras or {},
        )

    def __add__(self, other: "Steps") -> "Steps":
        """Return both, these first."""
        pairs = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("lane", "step_type", "terminated", "action", "reward", "frame")
        }
        extras = {name: np.concatenate([array, other.extras[name]]) for name, array in self.extras.items()}
        return Steps(**pairs, extras=extras)

    def check(self, signature: Signature) -> None:
        """Raise InvalidRequestError unless every array fits the table's signature."""
        rows = len(self.lane)
        signature.frame.check("frame", self.frame, rows)
        signature.action.check("action", self.action, rows)
        signature.reward.check("reward", self.reward, rows)
        for name, spec in signature.extras.items():
            spec.check(f"extras.{name}", self.extras.get(name, np.empty(0)), rows)
