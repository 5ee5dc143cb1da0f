"""How a client draws: one batch at a time, or an iterator over batches that are asked for ahead."""

from collections.abc import Callable
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fornix.common.messages import (
    Episode,
    PrioritiesUpdated,
    Sample,
    Sequence,
    Transition,
    Unit,
    UpdatePriorities,
)
from fornix.replay.batches import Sequences, Transitions
from fornix.replay.fetch import Fetch
from fornix.replay.gather import Allocate, Buffers
from fornix.replay.pending import Pending, make
from fornix.replay.prefetch import Prefetch

_ONE_STEP = Transition()


class Drawing:
    """The part of a `Client` that draws from tables and says what the draws were worth.

    What all draws have in common: `batch_size` B; `discount` γ; `importance_exponent` β of the weights;
    and `timeout_s`, how long the server may wait for data before it refuses with WaitTimeoutError.
    """

    def __init__(self, fetch: Fetch, name: str) -> None:
        self._fetch = fetch
        self._name = name

    def sample(
        self,
        table: str,
        batch_size: int,
        *,
        n_step: int = 1,
        discount: float = 0.99,
        importance_exponent: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Pending[Transitions]:
        """Ask for transitions of `n_step` rewards, or fewer at an episode's end."""
        unit = {"kind": "transition", "n_step": n_step}
        request = _request(table, batch_size, unit, discount, importance_exponent, timeout_s)
        return self._fetch.sample(request, Buffers())

    def sample_sequences(
        self,
        table: str,
        batch_size: int,
        *,
        length: int,
        overlap: int = 0,
        burn_in: int = 0,
        discount: float = 0.99,
        importance_exponent: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Pending[Sequences]:
        """Ask for sequences of `length` steps, each beginning `length` - `overlap` after the last.

        The first `burn_in` steps of each are for a recurrent state to warm up, and not in `loss_mask`.
        """
        unit = {"kind": "sequence", "length": length, "overlap": overlap, "burn_in": burn_in}
        request = _request(table, batch_size, unit, discount, importance_exponent, timeout_s)
        return self._fetch.sample(request, Buffers())

    def sample_episodes(
        self,
        table: str,
        batch_size: int,
        *,
        max_steps: int = 1000,
        discount: float = 0.99,
        importance_exponent: float = 0.0,
        timeout_s: float = 10.0,
    ) -> Pending[Sequences]:
        """Ask for whole episodes; those of more than `max_steps` steps are never drawn."""
        unit = {"kind": "episode", "max_steps": max_steps}
        request = _request(table, batch_size, unit, discount, importance_exponent, timeout_s)
        return self._fetch.sample(request, Buffers())

    @overload
    def batches(
        self,
        table: str,
        batch_size: int,
        unit: Transition = ...,
        *,
        discount: float = ...,
        importance_exponent: float = ...,
        timeout_s: float = ...,
        in_flight: int = ...,
        per_request: int = ...,
        keep: int = ...,
        leased: bool = ...,
        consumed: Callable[[], int] | None = ...,
        allocate: Allocate = ...,
    ) -> Prefetch[Transitions]: ...

    @overload
    def batches(
        self,
        table: str,
        batch_size: int,
        unit: Sequence | Episode,
        *,
        discount: float = ...,
        importance_exponent: float = ...,
        timeout_s: float = ...,
        in_flight: int = ...,
        per_request: int = ...,
        keep: int = ...,
        leased: bool = ...,
        consumed: Callable[[], int] | None = ...,
        allocate: Allocate = ...,
    ) -> Prefetch[Sequences]: ...

    def batches(
        self,
        table: str,
        batch_size: int,
        unit: Unit = _ONE_STEP,
        *,
        discount: float = 0.99,
        importance_exponent: float = 0.0,
        timeout_s: float = 10.0,
        in_flight: int = 2,
        per_request: int = 1,
        keep: int = 1,
        leased: bool = True,
        consumed: Callable[[], int] | None = None,
        allocate: Allocate = np.empty,
    ) -> Prefetch[Transitions] | Prefetch[Sequences]:
        """Return an iterator over batches that are asked for ahead, in memory that is used again.

        A batch stays as it is until the next is asked for, or `keep` more, and counts as consumed once
        the next is asked for, or as `consumed` says. `Prefetch` says this exactly, and the rest.
        """
        request = _request(table, batch_size, unit, discount, importance_exponent, timeout_s)
        made: Prefetch[Transitions] = Prefetch(
            self._fetch,
            request,
            self._name,
            in_flight=in_flight,
            per_request=per_request,
            keep=keep,
            leased=leased,
            consumed=consumed,
            allocate=allocate,
        )
        return made

    def update_priorities(
        self, table: str, key: NDArray[np.int64], priority: NDArray[np.floating]
    ) -> Pending[PrioritiesUpdated]:
        """Set the priorities of steps that were drawn.

        Args:
            table: with a `prioritized` sampler.
            key: int64 [K], as `batch.key` has them; of a key that is there twice, the last counts.
            priority: float64 or float32 [K], finite and >= 0; what has 0 is not drawn.
        """
        request = make(UpdatePriorities, table=table, key=key, priority=priority)
        return self._fetch.sent(request, PrioritiesUpdated, table)


def _request(
    table: str,
    batch_size: int,
    unit: object,
    discount: float,
    importance_exponent: float,
    timeout_s: float,
) -> Sample:
    return make(
        Sample,
        table=table,
        batch_size=batch_size,
        unit=unit,
        discount=discount,
        importance_exponent=importance_exponent,
        timeout_s=timeout_s,
    )
