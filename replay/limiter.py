"""The samples-per-insert limiter: data and training tied together, in both directions.

With I inserts (steps that complete a transition: every step but an episode's FIRST), C transitions
consumed, L leased (drawn, and neither consumed nor given back yet), the minimum size M and the ratio ρ,
the table's surplus is

    d = ρ·(I - M) - C

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

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import LimiterSpec
from fornix.replay.ring import held_at_least

_MAX_BOUND = 1e15  # below it a float64 still counts single transitions


@dataclass(frozen=True)
class _Origin:
    """From where the surplus is counted: what it is at so many inserts and consumed transitions."""

    inserts: int
    consumed: int = 0
    surplus: float = 0.0


@dataclass
class Limiter:
    """Counts inserts, leased and consumed transitions, and says who may go ahead."""

    spec: LimiterSpec
    capacity_steps: int
    sampler_kind: str = "uniform"
    max_times_sampled: int | None = None
    inserts: int = 0
    consumed: int = 0
    leased: int = 0
    _origin: _Origin = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._origin = _Origin(self.spec.min_size)

    @classmethod
    def create(
        cls,
        spec: LimiterSpec,
        capacity_steps: int,
        sampler_kind: str = "uniform",
        max_times_sampled: int | None = None,
    ) -> "Limiter":
        """Return a limiter for a table, or raise InvalidRequestError if it could never open."""
        check_limits(spec, capacity_steps, sampler_kind, max_times_sampled)
        return cls(spec, capacity_steps, sampler_kind, max_times_sampled)

    def change(self, spec: LimiterSpec) -> None:
        """Put other limits in place of these; the counters stay.

        The surplus d goes on from its value, and the new ratio counts for the inserts from now on: else it
        would be asked of all that are past, and close one side for as long. d goes on from 0 where the
        limiter was free, and had none. A new minimum size counts all inserts; those until it is reached
        leave d, as it is then, at its value now.

        Where the ratio is the number of times that each start may be drawn, as in a queue or a stack, d
        must say what is left to draw, or some would never be drawn. So there d becomes what is left, by
        the counters, plus what is leased, minus ρ for each insert of the minimum size: what it would be,
        had these limits held from the start. That is exact unless starts were overwritten undrawn.

        Args:
            spec: the new limits, for the same table and sampler.

        Raises:
            InvalidRequestError: as at creation; then nothing is changed.
        """
        check_limits(spec, self.capacity_steps, self.sampler_kind, self.max_times_sampled)
        times = _times(self.sampler_kind, self.max_times_sampled)
        if times is not None and spec.samples_per_insert == times:
            reckoned = times * self.inserts - self.consumed - self.leased
            undrawn = max(0, min(reckoned, times * self.capacity_steps))
            surplus = float(undrawn + self.leased - times * min(self.inserts, spec.min_size))
        else:
            free = self.spec.samples_per_insert is None
            surplus = 0.0 if free else self._surplus_from(max(self.inserts, self._origin.inserts))
        self._origin = _Origin(max(self.inserts, spec.min_size), self.consumed, surplus)
        self.spec = spec

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
            f"of {_number(self._left())}, as far ahead of {self._limit('min_surplus')} allows; inserts "
            f"still needed: {needed}{waits}"
        )

    def why_no_insert(self) -> str:
        """Return what an insert waits for, the numbers, and what would open it."""
        if self.may_insert():
            return "the limiter lets inserts go ahead now"
        leased = f" ({self.leased} more are leased and not yet consumed)" if self.leased else ""
        return (
            f"{self.inserts} inserts have been made and {self.consumed} transitions drawn{leased}, a "
            f"surplus of {_number(self._surplus_from(self.inserts))}, as far ahead of "
            f"{self._limit('max_surplus')} allows; transitions still to be "
            f"{'consumed' if self.leased else 'drawn'}: {self._samples_needed()}"
        )

    def _surplus_from(self, inserts: int) -> float:
        """Return what d is, or would be, with so many inserts; any number with a free limiter."""
        since, ratio = self._origin, self.spec.samples_per_insert or 0.0
        return since.surplus + ratio * (inserts - since.inserts) - (self.consumed - since.consumed)

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


def bounds(spec: LimiterSpec) -> tuple[float, float]:
    """Return a and b: samples go ahead above a, inserts below b."""
    if spec.samples_per_insert is None:
        return -math.inf, math.inf
    if spec.error_buffer_inserts is not None:
        bound = spec.samples_per_insert * spec.error_buffer_inserts
        return -bound, bound
    if spec.min_surplus is None or spec.max_surplus is None:
        raise ValueError(f"{spec!r} has no bounds; check_limits refuses it")
    return spec.min_surplus, spec.max_surplus


def check_limits(
    spec: LimiterSpec,
    capacity_steps: int,
    sampler_kind: str = "uniform",
    max_times_sampled: int | None = None,
) -> None:
    """Raise InvalidRequestError for limits that contradict themselves, or could never open or be kept.

    Args:
        spec: the limits.
        capacity_steps: of the table.
        sampler_kind: of the table; `fifo` draws each start once if max_times_sampled is None.
        max_times_sampled: how often a start may be drawn; None for any number.
    """
    if spec.min_size > capacity_steps:
        raise InvalidRequestError(
            f"min_size {spec.min_size} is more than the {capacity_steps} steps that the table holds, so "
            f"it could never hold so many at once; lower min_size or raise capacity_steps"
        )
    _check_fields(spec)
    if spec.samples_per_insert is not None:
        _check_bounds(spec)
        times = _times(sampler_kind, max_times_sampled)
        if times is not None:
            _check_times(spec, spec.samples_per_insert, held_at_least(capacity_steps), times)


def _times(sampler_kind: str, max_times_sampled: int | None) -> int | None:
    """Return how often a start may be drawn; None for any number."""
    return 1 if sampler_kind == "fifo" and max_times_sampled is None else max_times_sampled


def _check_fields(spec: LimiterSpec) -> None:
    """Raise InvalidRequestError unless the fields that are set belong together."""
    given = [name for name in ("min_surplus", "max_surplus") if getattr(spec, name) is not None]
    if given and spec.error_buffer_inserts is not None:
        raise InvalidRequestError(
            f"error_buffer_inserts {spec.error_buffer_inserts} and {given[0]} {getattr(spec, given[0])} "
            f"both say how far a side may run ahead; give either the buffer, or min_surplus and max_surplus"
        )
    if len(given) == 1:
        raise InvalidRequestError(
            f"min_surplus and max_surplus belong together, and only {given[0]} is set; set both, or "
            f"error_buffer_inserts in their place"
        )
    if given and spec.samples_per_insert is None:
        raise InvalidRequestError(
            "min_surplus and max_surplus bound the surplus over samples_per_insert, which is not set; the "
            "three belong together: set it too, or none of them for a free limiter"
        )
    if not given and (spec.samples_per_insert is None) != (spec.error_buffer_inserts is None):
        raise InvalidRequestError(
            "samples_per_insert and error_buffer_inserts belong together; set both, or neither for a free "
            "limiter (or, in place of the buffer, min_surplus and max_surplus)"
        )


def _check_bounds(spec: LimiterSpec) -> None:
    """Raise InvalidRequestError unless a < b, both small enough to count single transitions."""
    low, high = bounds(spec)
    if spec.error_buffer_inserts is not None and not 0 < high < _MAX_BOUND:
        raise InvalidRequestError(
            f"samples_per_insert {spec.samples_per_insert} × error_buffer_inserts "
            f"{spec.error_buffer_inserts} is {high}, so one side could never open; it must lie in "
            f"(0, {_MAX_BOUND:g})"
        )
    if not low < high:
        raise InvalidRequestError(
            f"min_surplus {_number(low)} is not below max_surplus {_number(high)}, so neither side could "
            f"ever go ahead from a surplus of {_number(high)}; raise max_surplus or lower min_surplus (the "
            f"size of a queue or a stack is at least 1)"
        )


def _check_times(spec: LimiterSpec, ratio: float, held: int, times: int) -> None:
    """Raise InvalidRequestError if starts that are drawn `times` at most can't keep the limits."""
    high = bounds(spec)[1]
    often = "once" if times == 1 else f"{times} times"
    if ratio > times:
        raise InvalidRequestError(
            f"samples_per_insert {ratio} can't be kept where each start is drawn {often} at most (a fifo "
            f"sampler draws it once if max_times_sampled is not set): samples would run dry, and inserts "
            f"close for good; lower samples_per_insert to {times}, or raise max_times_sampled"
        )
    least = -times * spec.min_size
    if high <= least:
        raise InvalidRequestError(
            f"max_surplus {_number(high)} can't be undercut: with min_size {spec.min_size} inserts, each "
            f"drawn {often} at most, the surplus is never less than {least}, so inserts would stay closed; "
            f"raise max_surplus above {least}, or raise min_size or max_times_sampled"
        )
    behind = spec.min_size + high / ratio
    if ratio == times and behind > held:
        raise InvalidRequestError(
            f"draws may fall {_number(behind)} inserts behind and the table holds {held} steps, "
            f"so starts could be overwritten before they are drawn {often}, and samples_per_insert {ratio} "
            f"counts on every draw; lower the size of the queue or stack (max_surplus, or "
            f"error_buffer_inserts), lower samples_per_insert, or raise capacity_steps"
        )


def _number(value: float) -> str:
    return f"{value:.15g}"
