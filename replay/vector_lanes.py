"""What a `VectorWriter` knows of its lanes, and which rows come next; nothing here changes anything."""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import InvalidRequestError
from fornix.replay.autoreset import Autoreset

Lanes = NDArray[np.int32]
Flags = NDArray[np.bool_]

#: The key of a lane whose newest row is not known.
NO_KEY = -1


@dataclass(frozen=True)
class VectorLanes:
    """The lanes of a vector of N environments; bool [N] each."""

    joined: Flags
    """Written at all."""
    open: Flags
    """In an episode at the server; only lanes that have joined are."""
    fresh: Flags
    """The next observation is an episode's first."""
    new: Flags
    """Have neither been reset nor left since the writer was made."""
    over: Flags
    """Ended, and the caller has to reset; in mode `disabled`."""
    leaving: Flags
    """The next request ends the episode that is open at the server, as truncated."""
    shown: Flags
    """Whose stack the newest answer had."""
    key: NDArray[np.int64]
    """int64 [N]: the newest row of each lane, or NO_KEY."""

    @classmethod
    def of(cls, lanes: int) -> "VectorLanes":
        """Return lanes that have joined, none of them in an episode."""
        no = np.zeros(lanes, np.bool_)
        key = np.full(lanes, NO_KEY, np.int64)
        return cls(joined=~no, open=no, fresh=no, new=~no, over=no, leaving=no, shown=no, key=key)

    def wider(self, lanes: int) -> "VectorLanes":
        """Return these and further ones, which have not joined, `lanes` altogether."""
        more = lanes - len(self.joined)
        key = np.append(self.key, np.full(more, NO_KEY, np.int64))
        flags = [field.name for field in fields(self) if field.name != "key"]
        no = np.zeros(more, np.bool_)
        return VectorLanes(key=key, **{name: np.append(getattr(self, name), no) for name in flags})

    def left(self, which: Flags) -> "VectorLanes":
        """Return the lanes once those in `which`, bool [N], have left."""
        return replace(
            self,
            joined=self.joined & ~which,
            open=self.open & ~which,
            new=self.new & ~which,
            leaving=self.leaving | self.open & which,
            shown=self.shown & ~which,
        )

    def joining(self, which: Flags, at_once: bool) -> "VectorLanes":
        """Return the lanes once those in `which`, bool [N], have joined.

        Args:
            which: bool [N].
            at_once: whether the next observation is the first of their episodes.
        """
        fresh, over = (self.fresh | which, self.over & ~which) if at_once else (self.fresh, self.over)
        return replace(self, joined=self.joined | which, fresh=fresh, over=over)

    def begun(self, which: Flags) -> "Rows":
        """Return the rows that begin episodes where the caller has reset: `which`, bool [N]."""
        begins = self.joined & which
        after = replace(
            self,
            open=self.open | begins,
            fresh=self.fresh & ~which,
            new=self.new & ~which,
            over=self.over & ~which,
            leaving=np.zeros_like(which),
            shown=self.shown | begins,
        )
        leave = self.leaving | self.open & begins
        return Rows(_numbers(begins), begins, _numbers(begins)[:0], _numbers(leave), after)

    def stepped(self, mode: Autoreset, done: Flags, renewed: bool) -> "Rows":
        """Return the rows of one step of all environments.

        Args:
            mode: of the environments.
            done: bool [N], whether the step ended an episode.
            renewed: whether those that ended have begun another one already.

        Raises:
            InvalidRequestError: if one had to be reset before, or ended before it could begin.
        """
        if self.new.any():
            raise InvalidRequestError(
                f"lanes {_numbers(self.new).tolist()} have begun no episode yet; call reset(observation) "
                f"first, with what envs.reset returned, or let them leave"
            )
        stuck = self.joined & self.over
        if stuck.any():
            raise InvalidRequestError(
                f"lanes {_numbers(stuck).tolist()} ended and were not reset; call "
                f"envs.reset(options={{'reset_mask': mask}}) and then reset(observation, mask), or let "
                f"them leave"
            )
        begins = self.joined & self.fresh & ~self.open
        empty = begins & done
        if not renewed and empty.any():
            raise InvalidRequestError(
                f"lanes {_numbers(empty).tolist()} ended with the observation that begins their episode, "
                f"and an episode of no step can't be written; let them leave, or check that the "
                f"environments' autoreset mode is {mode.value}"
            )
        acted = self.open | begins
        again = self.joined & done & ~begins & renewed
        none = np.zeros_like(done)
        waits = none if renewed else done
        after = replace(
            self,
            open=acted & ~waits | again,
            fresh=waits if mode is Autoreset.NEXT_STEP else none,
            over=self.over & ~done | waits if mode is Autoreset.DISABLED else none,
            leaving=none,
            shown=acted | again,
        )
        return Rows(_numbers(acted), begins, _numbers(again), _numbers(self.leaving), after)


@dataclass(frozen=True)
class Rows:
    """The rows of one request: first one of each lane in `acted`, then FIRST of each in `again`."""

    acted: Lanes
    """int32 [A], ascending."""
    begins: Flags
    """bool [N]: where the row of `acted` is FIRST."""
    again: Lanes
    """int32 [B], ascending."""
    leave: Lanes
    """int32: lanes whose open episodes end before."""
    after: VectorLanes
    """The lanes once the request is applied; but `key` is as before."""

    @property
    def answered(self) -> Lanes:
        """The lanes in the order of the server's answer: that of their first rows."""
        if not len(self.again):
            return self.acted
        return np.concatenate([self.acted, np.setdiff1d(self.again, self.acted, assume_unique=True)])


def _numbers(which: Flags) -> Lanes:
    return np.flatnonzero(which).astype(np.int32)
