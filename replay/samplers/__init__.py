"""Samplers: pure data structures that hold starts and draw from them."""

from collections.abc import Callable

from fornix.common.errors import InvalidRequestError
from fornix.replay.samplers.base import Draw, Sampler
from fornix.replay.samplers.epoch import EpochSampler
from fornix.replay.samplers.priorities import Priorities
from fornix.replay.samplers.prioritized import PrioritizedSampler
from fornix.replay.samplers.queues import FifoSampler, LifoSampler
from fornix.replay.samplers.times import LimitedSampler, TimesSampled
from fornix.replay.samplers.uniform import UniformSampler

__all__ = [
    "Draw",
    "EpochSampler",
    "FifoSampler",
    "LifoSampler",
    "LimitedSampler",
    "Priorities",
    "PrioritizedSampler",
    "Sampler",
    "TimesSampled",
    "UniformSampler",
    "make_sampler",
]

_UNPRIORITIZED: dict[str, Callable[[int], Sampler]] = {
    "uniform": UniformSampler,
    "fifo": FifoSampler,
    "lifo": LifoSampler,
    "epoch": EpochSampler,
}


def make_sampler(kind: str, slots: int, priorities: Priorities | None) -> Sampler:
    """Return an empty sampler.

    Args:
        kind: "uniform", "prioritized", "fifo", "lifo" or "epoch".
        slots: how many rows the table holds.
        priorities: those of the table, of as many slots; only "prioritized" needs them.

    Raises:
        InvalidRequestError: if there is no such kind, or the priorities are missing.
    """
    if kind == "prioritized":
        if priorities is None:
            raise InvalidRequestError(
                "a prioritized sampler needs a table with priorities; give the table a priority exponent"
            )
        return PrioritizedSampler(priorities)
    if kind not in _UNPRIORITIZED:
        kinds = ", ".join(sorted([*_UNPRIORITIZED, "prioritized"]))
        raise InvalidRequestError(f"there is no sampler {kind!r}; it must be one of {kinds}")
    return _UNPRIORITIZED[kind](slots)
