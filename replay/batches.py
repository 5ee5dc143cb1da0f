"""What was drawn, as whoever trains on it wants it: stacks as views of each sample's window.

The arrays of stacks and windows are `[B, ...]` arrays where a frame is one array, and dicts or tuples of
such where a frame is a dict or tuple; `*obs` is the shape of one frame.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.errors import ProtocolError
from fornix.common.messages import Batch, Sample
from fornix.common.specs import Transition
from fornix.replay.gather import Array, Buffers, gather


@dataclass(frozen=True, eq=False)
class Drawn:
    """B samples: what `Transitions` and `Sequences` have in common."""

    batch: Batch
    """The arrays that came, all but the frames, which are in `window`."""
    window: Any
    """[B, W, *obs]: the stack of `key`, then the frames up to `next_key`, then zeros."""
    buffers: Buffers = field(default_factory=Buffers, repr=False)
    """Where more arrays are made if need be."""

    @property
    def key(self) -> NDArray[np.int64]:
        """int64 [B]: the step that each starts from."""
        return self.batch.key

    @property
    def weight(self) -> NDArray[np.float32]:
        """float32 [B]: the importance weight, 1 for the largest of the batch."""
        return self.batch.weight

    @property
    def action(self) -> Array:
        """[B, *action]; of sequences [B, T, *action]: what was done."""
        return self.batch.action

    @property
    def reward(self) -> NDArray[np.float32]:
        """float32 [B]: the n-step return; of sequences [B, T]: the reward of each step."""
        return self.batch.reward

    @property
    def discount(self) -> NDArray[np.float32]:
        """float32 [B], of sequences [B, T]: what the value of the next stack counts."""
        return self.batch.discount

    @property
    def extras(self) -> dict[str, Array]:
        """[B, *extra] each, of sequences [B, T, *extra]: of the steps that actions were taken in."""
        return self.batch.extras

    def copy(self) -> Self:
        """Return the same in arrays of its own, which nothing else writes to."""
        return replace(self, window=trees.mapped(self.window, np.copy), buffers=Buffers())

    @property
    def _width(self) -> int:
        """W, the frames of a window."""
        return int(next(iter(trees.leaves(self.window).values())).shape[1])

    def _views(self, view: Callable[[Array], Array]) -> Any:
        """Return views of the windows, in the form that they have."""
        return trees.mapped(self.window, view)


@dataclass(frozen=True, eq=False, kw_only=True)
class Transitions(Drawn):
    """A batch of B transitions, as docs/replay.md defines them; W = n_frames + n_step."""

    n_step: int

    @cached_property
    def n_frames(self) -> int:
        """Frames in a stack."""
        return self._width - self.n_step

    @cached_property
    def stack(self) -> Any:
        """[B, n_frames, *obs]: the states that the transitions start from; views."""
        return self._views(lambda window: window[:, : self.n_frames])

    @cached_property
    def next_stack(self) -> Any:
        """[B, n_frames, *obs]: the states that they bootstrap from; views if none is cut short."""
        steps, n_frames = self.batch.steps, self.n_frames
        if self.n_step == 1 or (steps == self.n_step).all():
            return self._views(lambda window: window[:, self.n_step :])
        first = np.arange(0, len(steps) * self._width, self._width) + steps
        index = first[:, None] + np.arange(n_frames)
        rows = {path: w.reshape(-1, *w.shape[2:]) for path, w in trees.leaves(self.window).items()}
        return trees.like(self.window, gather(rows, index, self.buffers, "next"))


@dataclass(frozen=True, eq=False, kw_only=True)
class Sequences(Drawn):
    """A batch of B sequences or episodes of at most T steps, as docs/replay.md defines them.

    W = n_frames + T. Where a sequence has fewer steps, zeros follow, and `mask` says so.
    """

    mask: NDArray[np.bool_]
    """bool [B, T]: which steps there are."""
    burn_in: int = 0
    """Steps at the beginning that only warm up a recurrent state."""

    @cached_property
    def loss_mask(self) -> NDArray[np.bool_]:
        """Which steps to learn from, bool [B, T]: `mask` without the first `burn_in`."""
        learned = self.mask.copy()
        learned[:, : self.burn_in] = False
        return learned

    @cached_property
    def n_frames(self) -> int:
        """Frames in a stack."""
        return self._width - int(self.mask.shape[1])

    @cached_property
    def stack(self) -> Any:
        """[B, T, n_frames, *obs]: the state that each step starts from; views."""
        return trees.mapped(self._stacks, lambda stacks: stacks[:, :-1])

    @cached_property
    def next_stack(self) -> Any:
        """[B, T, n_frames, *obs]: the state that each step leads to; views."""
        return trees.mapped(self._stacks, lambda stacks: stacks[:, 1:])

    @cached_property
    def frame(self) -> Any:
        """[B, T + 1, *obs]: the frame that each step starts from, and the last one; views."""
        return self._views(lambda window: window[:, self.n_frames - 1 :])

    @cached_property
    def _stacks(self) -> Any:
        """[B, T + 1, n_frames, *obs]: the stacks of all steps, without a copy."""
        slide = np.lib.stride_tricks.sliding_window_view
        # writeable like the window itself, or torch would warn of it
        return self._views(
            lambda window: np.moveaxis(slide(window, self.n_frames, axis=1, writeable=True), -1, 2)
        )


DrawnT = TypeVar("DrawnT", Transitions, Sequences)


def drawn(request: Sample, batch: Batch, window: Any, buffers: Buffers) -> Any:
    """Return `Transitions` or `Sequences`, as the request asked for, of the answer and its windows.

    Raises:
        ProtocolError: the windows are too short.
    """
    unit, mask = request.unit, batch.mask
    made: Transitions | Sequences
    if isinstance(unit, Transition) or mask is None:
        made = Transitions(batch, window, buffers, n_step=getattr(unit, "n_step", 1))
    else:
        made = Sequences(batch, window, buffers, mask=mask, burn_in=getattr(unit, "burn_in", 0))
    if made.n_frames < 1:
        raise ProtocolError(f"the server answered with windows too short for {unit.kind}s")
    return made
