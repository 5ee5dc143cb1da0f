"""Which limits a table may have: those that can open, and can be kept."""

import math

from fornix.common.errors import InvalidRequestError
from fornix.common.specs import LimiterSpec
from fornix.replay.ring import held_at_least

_MAX_BOUND = 1e15  # below it a float64 still counts single transitions


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


def check_limits(spec: LimiterSpec, capacity_steps: int, uses: int | None = None) -> None:
    """Raise InvalidRequestError for limits that contradict themselves, or could never open or be kept.

    Args:
        spec: the limits.
        capacity_steps: of the table.
        uses: how often a start may be drawn; None for any number.
    """
    if spec.min_size > capacity_steps:
        raise InvalidRequestError(
            f"min_size {spec.min_size} is more than the {capacity_steps} steps that the table holds, so "
            f"it could never hold so many at once; lower min_size or raise capacity_steps"
        )
    _check_fields(spec)
    if spec.samples_per_insert is not None:
        _check_bounds(spec)
        if uses is not None:
            _check_uses(spec, spec.samples_per_insert, held_at_least(capacity_steps), uses)


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
            f"min_surplus {number(low)} is not below max_surplus {number(high)}, so neither side could "
            f"ever go ahead from a surplus of {number(high)}; raise max_surplus or lower min_surplus (the "
            f"size of a queue or a stack is at least 1)"
        )


def _check_uses(spec: LimiterSpec, ratio: float, held: int, uses: int) -> None:
    """Raise InvalidRequestError if starts that are drawn `uses` times at most can't keep the limits."""
    high = bounds(spec)[1]
    often = "once" if uses == 1 else f"{uses} times"
    if ratio > uses:
        raise InvalidRequestError(
            f"samples_per_insert {ratio} can't be kept where each start is drawn {often} at most (a fifo "
            f"sampler draws it once if max_times_sampled is not set): samples would run dry, and inserts "
            f"close for good; lower samples_per_insert to {uses}, or raise max_times_sampled"
        )
    least = -uses * spec.min_size
    if high <= least:
        raise InvalidRequestError(
            f"max_surplus {number(high)} can't be undercut: with min_size {spec.min_size} inserts, each "
            f"drawn {often} at most, the surplus is never less than {least}, so inserts would stay closed; "
            f"raise max_surplus above {least}, or raise min_size or max_times_sampled"
        )
    behind = spec.min_size + high / ratio
    if ratio == uses and behind > held:
        raise InvalidRequestError(
            f"draws may fall {number(behind)} inserts behind and the table holds {held} steps, "
            f"so starts could be overwritten before they are drawn {often}, and samples_per_insert {ratio} "
            f"counts on every draw; lower the size of the queue or stack (max_surplus, or "
            f"error_buffer_inserts), lower samples_per_insert, or raise capacity_steps"
        )


def number(value: float) -> str:
    """Return a number as a person writes it."""
    return f"{value:.15g}"
