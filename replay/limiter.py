"""The samples-per-insert limiter: data and training tied together, in both directions.

With I inserts (steps that complete a transition: every step but an episode's FIRST), S transitions
drawn, the minimum size M, the ratio ρ and the buffer E (in inserts), the table's surplus is

    d = ρ·(I - M) - S

A sample may go ahead while I >= M and d > -ρ·E; an insert may go ahead while I < M or d < ρ·E. Either
side looks at the state before its own request, so a request may overshoot by its own size, and in
every state at least one side is open: the two can never wait for each other. (A sample may also wait
for a start, with the limiter open; then the service lets inserts go ahead.)
"""

import math
from dataclasses import dataclass

from fornix.common.errors import InvalidRequestError
from fornix.common.messages import LimiterSpec

_MAX_BOUND = 1e15  # below it a float64 still counts single transitions


@dataclass
class Limiter:
    """Counts inserts and samples, and says who may go ahead."""

    spec: LimiterSpec
    inserts: int = 0
    samples: int = 0

    @classmethod
    def create(cls, spec: LimiterSpec, capacity_steps: int) -> "Limiter":
        """Return a limiter for a table, or raise InvalidRequestError if it could never open."""
        if spec.min_size > capacity_steps:
            raise InvalidRequestError(
                f"min_size {spec.min_size} is more than the {capacity_steps} steps that the table "
                f"holds, so no sample could ever be drawn; lower min_size or raise capacity_steps"
            )
        if (spec.samples_per_insert is None) != (spec.error_buffer_inserts is None):
            raise InvalidRequestError(
                "samples_per_insert and error_buffer_inserts belong together; set both, or neither "
                "for a free limiter"
            )
        limiter = cls(spec)
        if spec.samples_per_insert is not None and not 0 < limiter._bound < _MAX_BOUND:
            raise InvalidRequestError(
                f"samples_per_insert {spec.samples_per_insert} × error_buffer_inserts "
                f"{spec.error_buffer_inserts} is {limiter._bound}, so one side could never open; it "
                f"must lie in (0, {_MAX_BOUND:g})"
            )
        return limiter

    @property
    def surplus(self) -> float | None:
        """d: transitions that may still be drawn before the ratio is met; None with a free limiter."""
        if self.spec.samples_per_insert is None:
            return None
        return self.spec.samples_per_insert * (self.inserts - self.spec.min_size) - self.samples

    @property
    def _bound(self) -> float:
        return (self.spec.samples_per_insert or 0.0) * (self.spec.error_buffer_inserts or 0.0)

    def may_sample(self) -> bool:
        """Whether a sample may go ahead now."""
        if self.inserts < self.spec.min_size:
            return False
        return self.surplus is None or self.surplus > -self._bound

    def may_insert(self) -> bool:
        """Whether an insert may go ahead now."""
        if self.inserts < self.spec.min_size:
            return True
        return self.surplus is None or self.surplus < self._bound

    def why_no_sample(self) -> str:
        """Return what a sample waits for, the numbers, and what would open it."""
        if self.inserts < self.spec.min_size:
            return (
                f"the table has {self.inserts} inserts and needs {self.spec.min_size} before the "
                f"first sample; it opens after {self.spec.min_size - self.inserts} more inserts"
            )
        return (
            f"{self.samples} transitions have been drawn for {self.inserts} inserts, as far ahead of "
            f"samples_per_insert {self.spec.samples_per_insert} as error_buffer_inserts "
            f"{self.spec.error_buffer_inserts} allows; inserts still needed: "
            f"{math.floor((-self._bound - (self.surplus or 0)) / (self.spec.samples_per_insert or 1)) + 1}"
        )

    def why_no_insert(self) -> str:
        """Return what an insert waits for, the numbers, and what would open it."""
        return (
            f"{self.inserts} inserts have been made and {self.samples} transitions drawn, as far "
            f"ahead of samples_per_insert {self.spec.samples_per_insert} as error_buffer_inserts "
            f"{self.spec.error_buffer_inserts} allows; transitions still "
            f"to be drawn: {math.floor((self.surplus or 0) - self._bound) + 1}"
        )
