"""The rows of one `observe` request, made from what a vector of environments gives."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fornix.common import trees
from fornix.common.errors import InvalidRequestError
from fornix.common.messages import FIRST, LAST, MID
from fornix.common.signature import Signature
from fornix.common.validation import shown

Array = NDArray[Any]


@dataclass(frozen=True)
class Steps:
    """K new steps of some lanes, in order; the fields are those of `messages.Observe`.

    But `frame` has the form of the table's frames: an array [K, *obs], or a dict or tuple of such.
    """

    lane: Array
    step_type: Array
    terminated: Array
    action: Array
    reward: Array
    frame: Any
    extras: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def first(
        cls, signature: Signature, lane: ArrayLike, frame: Any, extras: dict[str, Array] | None = None
    ) -> "Steps":
        """Return the FIRST steps of new episodes.

        Args:
            signature: of the table.
            lane: int [K], of any width.
            frame: [K, *obs], or a dict or tuple of such.
            extras: [K, *extra] each.

        Raises:
            InvalidRequestError: if `lane` holds anything but integers, or one beyond int32.
        """
        lanes = lane_numbers("lane", lane)
        count = len(lanes)
        return cls(
            lanes,
            np.full(count, FIRST, np.uint8),
            np.zeros(count, np.bool_),
            np.zeros((count, *signature.action.shape), signature.action.dtype),
            np.zeros(count, signature.reward.dtype),
            trees.mapped(frame, np.asarray),
            extras or {},
        )

    @classmethod
    def after_actions(
        cls,
        lane: ArrayLike,
        action: Array,
        reward: Array,
        frame: Any,
        terminated: ArrayLike,
        truncated: ArrayLike,
        extras: dict[str, Array] | None = None,
    ) -> "Steps":
        """Return the steps that actions led to: LAST where an episode ended, else MID.

        Args:
            lane: int [K], of any width.
            action: [K, *action], that was taken.
            reward: [K], that it brought.
            frame: [K, *obs], or a dict or tuple of such, that it led to: the real last one where the
                episode ended.
            terminated: bool [K].
            truncated: bool [K].
            extras: [K, *extra] each.

        Raises:
            InvalidRequestError: if `lane` holds anything but integers, or one beyond int32, or a flag is
                no bool.
        """
        final = _flags("terminated", terminated)
        ended = final | _flags("truncated", truncated)
        return cls(
            lane_numbers("lane", lane),
            np.where(ended, LAST, MID).astype(np.uint8),
            final,
            np.asarray(action),
            np.asarray(reward),
            trees.mapped(frame, np.asarray),
            extras or {},
        )

    def __add__(self, other: "Steps") -> "Steps":
        """Return both, these first."""
        pairs = {
            name: np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("lane", "step_type", "terminated", "action", "reward")
        }
        frames = _joined("frame", trees.leaves(self.frame), trees.leaves(other.frame))
        extras = _joined("extras", self.extras, other.extras)
        return Steps(**pairs, frame=trees.like(self.frame, frames), extras=extras)

    def check(self, signature: Signature) -> None:
        """Raise InvalidRequestError unless every array fits the table's signature."""
        rows = len(self.lane)
        signature.check_frame(trees.leaves(self.frame), rows)
        signature.action.check("action", self.action, rows)
        signature.reward.check("reward", self.reward, rows)
        for name, spec in signature.extras.items():
            spec.check(f"extras.{name}", self.extras.get(name, np.empty(0)), rows)


def lane_numbers(name: str, given: ArrayLike) -> NDArray[np.int32]:
    """Return lanes as int32 [K], those given if they are that.

    Args:
        name: of them, for the error.
        given: integers [K] of any width.

    Raises:
        InvalidRequestError: if they are no such, or int32 can't hold one.
    """
    array = np.asarray(given)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):  # an empty list is float64
        raise InvalidRequestError(
            f"{name} is {shown(array.tolist())}, of shape {array.shape} and dtype {array.dtype.str}; it "
            f"must be one-dimensional and of integers: give the lanes' numbers, such as [0, 1]"
        )
    lanes = array.astype(np.int32, copy=False)
    if (lanes != array).any():
        raise InvalidRequestError(
            f"{name} holds {array[lanes != array][0]}, which int32 can't hold; give numbers from 0 to the "
            f"writer's lanes - 1"
        )
    return lanes


def _flags(name: str, given: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(given)
    if array.dtype != np.bool_ and array.size:  # an empty list is float64
        raise InvalidRequestError(
            f"{name} is {shown(array.tolist())}, of dtype {array.dtype.str}; it must be bool: give the "
            f"outcome of a comparison, such as {name} > 0"
        )
    return array.astype(np.bool_, copy=False)


def _joined(name: str, mine: dict[str, Array], others: dict[str, Array]) -> dict[str, Array]:
    if mine.keys() != others.keys():
        raise InvalidRequestError(
            f"steps whose {name} are {sorted(mine)} and {sorted(others)} can't be put together"
        )
    return {part: np.concatenate([array, others[part]]) for part, array in mine.items()}
