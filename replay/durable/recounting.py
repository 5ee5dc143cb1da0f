"""What a limiter has counted, carried over to a table with another capacity, sampler or limits.

Inserts and consumed transitions stay. Where each start is drawn a number of times at most, the draws that
are lost follow from the starts that are left, as `replay.limiter` has it. The surplus goes on as when
limits are changed while a table runs.
"""

import numpy as np

from fornix.common.specs import TableSpec
from fornix.replay.limiter import Counts, Limiter
from fornix.replay.ring import held_at_least
from fornix.replay.stacking import Numbers


def recounted(counts: Counts, before: TableSpec, after: TableSpec, left: int) -> Counts:
    """Return the counts of a table that is made anew.

    Args:
        counts: of the one before, up to the newest row.
        before: what that one is now.
        after: what the new one is.
        left: how often the starts that the new one has may still be drawn; any number without a limit.
    """
    limiter = Limiter(before.limiter, before.steps, before.sampler.uses)
    limiter.restore(counts)
    inserts, consumed, uses = limiter.inserts, limiter.consumed, after.sampler.uses
    lost = 0 if uses is None else uses * inserts - consumed - left
    same = before.limiter == after.limiter and before.sampler.uses == uses
    if same:
        return limiter.counts()._replace(lost=lost)
    if uses is not None and after.limiter.samples_per_insert == uses:
        surplus = float(left - uses * min(inserts, after.limiter.min_size))
        gone = consumed + lost
    else:
        ahead = max(0, counts.origin_inserts - inserts)
        known = limiter.surplus
        surplus = 0.0 if known is None else known + (before.limiter.samples_per_insert or 0.0) * ahead
        gone = consumed
    return Counts(inserts, consumed, 0, lost, max(inserts, after.limiter.min_size), gone, surplus)


def table_tail(head: int, tail: int, slots: int, steps: int) -> int:
    """Return the oldest row of a table that has `steps` of the rows [tail, head) of a ring of `slots`."""
    return max(tail, *(_tail(head, capacity) for capacity in (slots, steps)))


def starts_among(numbers: Numbers, back: Numbers, low: int) -> Numbers:
    """Return the rows, `low` or above, that a row of `numbers` with its `back` goes on from."""
    starts = (numbers - back)[back > 0]
    return np.unique(starts[starts >= low])


def _tail(head: int, capacity: int) -> int:
    block = (capacity - held_at_least(capacity)) // 2
    needed = head - (capacity - block)
    return needed + -needed % max(1, block)
