"""What a table is to be from now on, where its folder is made anew."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fornix.common.errors import StorageError
from fornix.common.specs import LimiterSpec, SamplerSpec
from fornix.common.validation import first_fault
from fornix.replay.checks import check_table
from fornix.replay.durable.folder import Entry
from fornix.replay.limits import check_limits

SpecT = TypeVar("SpecT", bound=BaseModel)


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a table is to be from now on; what is None stays as it is."""

    capacity_steps: int | None = None
    sampler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its SamplerSpec."""
    limiter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its LimiterSpec; if there are any, they are laid over the limits that hold now."""

    def applied(self, entry: Entry) -> Entry:
        """Return a table with these changes, or raise StorageError or InvalidRequestError."""
        steps = entry.spec.steps if self.capacity_steps is None else self.capacity_steps
        if not 2 <= steps < 2**31:
            raise StorageError(f"capacity_steps {steps} must be from 2 to {2**31 - 1}")
        sampler = _laid_over(SamplerSpec, entry.spec.sampler, self.sampler)
        common = {"capacity_steps": steps, "sampler": sampler}
        limits = {"limiter": _laid_over(LimiterSpec, entry.limited.limiter, self.limiter)}
        created = entry.spec.model_copy(update=common | (limits if self.limiter else {}))
        limited = entry.limited.model_copy(update=common | limits)
        for spec in (created, limited):
            check_limits(spec.limiter, spec.steps, spec.sampler.uses)
            check_table(spec)
        return entry.model_copy(update={"spec": created, "limited": limited})


def _laid_over(kind: type[SpecT], known: SpecT, fields: Mapping[str, Any]) -> SpecT:
    try:
        return kind.model_validate(known.model_dump() | dict(fields))
    except ValidationError as error:
        raise StorageError(f"{first_fault(error, kind)}; correct that") from None
