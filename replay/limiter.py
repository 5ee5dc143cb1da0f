"""The samples-per-insert limiter: data and training tied together, in both directions.

With I inserts (steps that complete a transition: every step but an episode's FIRST), C transitions
consumed, L leased (drawn, and neither consumed nor given back yet), the minimum size M and the ratio ρ,
the table's surplus is

    d = ρ·(I - M) - C

(C has the draws too that starts had left when they were overwritten, where ρ is the number of times that
each may be drawn: a queue doesn't wait for what is gone.)

A sample may go ahead while I >= M and d - L > a; an insert may go ahead while I < M or d < b. The bounds
a < b are min_surplus and max_surplus, or -ρ·E and ρ·E with a buffer of E inserts.

Either side looks at the state before its own request, so a request may overshoot by its own size, and
with no lease at least one side is open: d <= a and b <= d can't both be. With leases both may be closed,
until these end: once all are consumed, d is what d - L was, at most a, and inserts are open; once all are
given back, samples are. So the two never wait for each other, only for whoever holds a lease, who
consumes it or is given up. (A sample may also wait for a start, with the limiter open; then the service
lets inserts go ahead.)
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from fornix.common.specs import LimiterSpec
from fornix.replay.limits import bounds, check_limits, number


class Counts(NamedTuple):
    """All that a limiter knows, to be kept."""

    inserts: int
    consumed: int
    leased: int
    lost: int
    origin_inserts: int
    origin_gone: int
    origin_surplus: float


@dataclass(frozen=True)
class _Origin:
    """From where the surplus is counted: what it is at so many inserts and transitions that are gone."""

    inserts: int
    gone: int = 0
    surplus: float = 0.0


@dataclass
class Limiter:
    """Counts inserts, leased and consumed transitions, and says who may go ahead."""

    spec: LimiterSpec
    capacity_steps: int
    uses: int | None = None
    """How often each start may be drawn; None for any number."""
    inserts: int = 0
    consumed: int = 0
    leased: int = 0
    lost: int = 0
    """Draws that starts had left when they went; below 0 for those of starts that were there at first."""
    _origin: _Origin = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._origin = _Origin(self.spec.min_size)

    @classmethod
    def create(cls, spec: LimiterSpec, capacity_steps: int, uses: int | None = None) -> "Limiter":
        """Return a limiter for a table, or raise InvalidRequestError if it could never open."""
        check_limits(spec, capacity_steps, uses)
        return cls(spec, capacity_steps, uses)

    def counts(self) -> Counts:
        """Return all that it knows."""
        since = self._origin
        return Counts(
            self.inserts, self.consumed, self.leased, self.lost, since.inserts, since.gone, since.surplus
        )

    def restore(self, counts: Counts) -> None:
        """Go on from what another one knew.

        What was leased counts as consumed: whoever holds it knows nothing of the change, and goes on.
        """
        self.inserts, self.lost = counts.inserts, counts.lost
        self.consumed, self.leased = counts.consumed + counts.leased, 0
        self._origin = _Origin(counts.origin_inserts, counts.origin_gone, counts.origin_surplus)

    def change(self, spec: LimiterSpec) -> None:
        """Put other limits in place of these; the counters stay.

        The surplus d goes on from its value, and the new ratio counts for the inserts from now on: else it
        would be asked of all that are past, and close one side for as long. d goes on from 0 where the
        limiter was free, and had none. A new minimum size counts all inserts; those until it is reached
        leave d, as it is then, at its value now.

        Where the ratio is the number of times that each start may be drawn, as in a queue or a stack, d
        must say what is left to draw, or some would never be drawn. So there d becomes what is left, plus
        what is leased, minus ρ for each insert of the minimum size: what it would be, had these limits
        held from the start.

        Args:
            spec: the new limits, for the same table and sampler.

        Raises:
            InvalidRequestError: as at creation; then nothing is changed.
        """
        check_limits(spec, self.capacity_steps, self.uses)
        if self.uses is not None and spec.samples_per_insert == self.uses:
            left = max(0, self.uses * self.inserts - self.consumed - self.lost - self.leased)
            surplus = float(left + self.leased - self.uses * min(self.inserts, spec.min_size))
        else:
            free = self.spec.samples_per_insert is None
            surplus = 0.0 if free else self._surplus_from(max(self.inserts, self._origin.inserts))
        self.spec = spec
        self._origin = _Origin(max(self.inserts, spec.min_size), self._gone(), surplus)

    @property
    def samples(self) -> int:
        """Transitions that have been charged: the consumed ones."""
        return self.consumed

    @property
    def surplus(self) -> float | None:
        """d: transitions that may still be consumed before the ratio is met; None with a free limiter."""
        return None if self.spec.samples_per_insert is None else self._surplus_from(self.inserts)

    def charge(self, samples: int) -> None:
        """Count transitions as consumed."""
        self.consumed += samples

    def lease(self, samples: int) -> None:
        """Count transitions as leased; `charge` them when they are consumed."""
        self.leased += samples

    def give_back(self, samples: int) -> None:
        """Count transitions as leased no more."""
        self.leased -= samples

    def lose(self, draws: int) -> None:
        """Count draws that starts had left when they went.

        Where every start is to be drawn as often as it may be, as in a queue, nobody is to wait for these.
        """
        self.lost += draws

    def may_sample(self) -> bool:
        """Whether a sample may go ahead now."""
        return self.inserts >= self.spec.min_size and self._left() > bounds(self.spec)[0]

    def may_insert(self) -> bool:
        """Whether an insert may go ahead now."""
        return self.inserts < self.spec.min_size or self._surplus_from(self.inserts) < bounds(self.spec)[1]

    def why_no_sample(self) -> str:
        """Return what a sample waits for, the numbers, and what would open it."""
        if self.may_sample():
            return "the limiter lets samples go ahead now"
        needed = self._inserts_needed()
        if self.inserts < self.spec.min_size:
            return (
                f"the table has {self.inserts} inserts and needs {self.spec.min_size} before the "
                f"first sample; it opens after {needed} more inserts"
            )
        leased = f" and {self.leased} more are leased and not yet consumed" if self.leased else ""
        waits = (
            ""
            if self.may_insert()
            else f", which wait until {self._samples_needed()} of the leased transitions are consumed"
        )
        return (
            f"{self.consumed} transitions have been drawn for {self.inserts} inserts{leased}, a surplus "
            f"of {number(self._left())}, as far ahead of {self._limit('min_surplus')} allows; inserts "
            f"still needed: {needed}{waits}"
        )

    def why_no_insert(self) -> str:
        """Return what an insert waits for, the numbers, and what would open it."""
        if self.may_insert():
            return "the limiter lets inserts go ahead now"
        leased = f" ({self.leased} more are leased and not yet consumed)" if self.leased else ""
        return (
            f"{self.inserts} inserts have been made and {self.consumed} transitions drawn{leased}, a "
            f"surplus of {number(self._surplus_from(self.inserts))}, as far ahead of "
            f"{self._limit('max_surplus')} allows; transitions still to be "
            f"{'consumed' if self.leased else 'drawn'}: {self._samples_needed()}"
        )

    def _surplus_from(self, inserts: int) -> float:
        """Return what d is, or would be, with so many inserts; any number with a free limiter."""
        since, ratio = self._origin, self.spec.samples_per_insert or 0.0
        return since.surplus + ratio * (inserts - since.inserts) - (self._gone() - since.gone)

    def _gone(self) -> int:
        """Return the draws that d counts as made."""
        return self.consumed + (self.lost if self.spec.samples_per_insert == self.uses else 0)

    def _left(self) -> float:
        """Return d - L."""
        return self._surplus_from(self.inserts) - self.leased

    def _inserts_needed(self) -> int:
        """Return after how many more inserts a sample may go ahead."""
        missing = self.spec.min_size - self.inserts
        if self.spec.samples_per_insert is None:
            return missing
        short = (bounds(self.spec)[0] - self._left()) / self.spec.samples_per_insert
        return max(missing, math.floor(short) + 1)

    def _samples_needed(self) -> int:
        """Return after how many more consumed transitions an insert may go ahead."""
        return math.floor(self._surplus_from(self.inserts) - bounds(self.spec)[1]) + 1

    def _limit(self, bound: str) -> str:
        name = bound if self.spec.error_buffer_inserts is None else "error_buffer_inserts"
        return f"samples_per_insert {self.spec.samples_per_insert} as {name} {getattr(self.spec, name)}"
