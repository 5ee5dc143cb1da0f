"""What a table is made of, how it is drawn from and limited, and the units that are drawn.

`docs/replay.md` defines them; here is how they are written, and which of them there can be.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fornix.common.signature import Signature, TableName

MAX_N_STEP = 64
MAX_SEQUENCE = 4096
MAX_OVERLAPPING = 64  # sequences that one step may be in: to find them costs the server as much
MAX_EPISODE = 65_536


class Frozen(BaseModel):
    """What is told between processes: frozen, strict, without unknown fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )


class LimiterSpec(Frozen):
    """How sampling and inserting are tied together; `replay.limiter` says what it does."""

    min_size: int = Field(1, ge=1)
    """Inserts that the table must have seen before the first sample."""
    samples_per_insert: float | None = Field(None, ge=1e-6, le=1e9, allow_inf_nan=False)
    """Transitions drawn for each insert, on average; None leaves both sides free."""
    error_buffer_inserts: float | None = Field(None, ge=1e-3, le=1e9, allow_inf_nan=False)
    """How far either side may run ahead, in inserts; None with a free limiter, or one with bounds."""
    min_surplus: float | None = Field(None, gt=-1e15, lt=1e15, allow_inf_nan=False)
    """Instead of the buffer: a sample goes ahead while the surplus is above this many transitions."""
    max_surplus: float | None = Field(None, gt=-1e15, lt=1e15, allow_inf_nan=False)
    """Instead of the buffer: an insert goes ahead while the surplus is below this many transitions."""

    @classmethod
    def at_least(cls, min_size: int) -> "LimiterSpec":
        """Samples wait for a minimum size alone."""
        return cls(min_size=min_size)

    @classmethod
    def ratio(
        cls, samples_per_insert: float, error_buffer_inserts: float, min_size: int = 1
    ) -> "LimiterSpec":
        """Either side waits where it runs ahead of a ratio by more than a buffer."""
        return cls(
            min_size=min_size,
            samples_per_insert=samples_per_insert,
            error_buffer_inserts=error_buffer_inserts,
        )

    @classmethod
    def queue(cls, size: int) -> "LimiterSpec":
        """At most `size` inserts that are not drawn yet; for a `fifo` sampler that draws each once."""
        return cls(min_size=1, samples_per_insert=1.0, min_surplus=-1.0, max_surplus=size - 1.0)

    @classmethod
    def stack(cls, size: int) -> "LimiterSpec":
        """At most `size` inserts that are not drawn yet; for a `lifo` sampler that draws each once."""
        return cls.queue(size)


SamplerKind = Literal["uniform", "prioritized", "fifo", "lifo", "epoch"]


class SamplerSpec(Frozen):
    """How starts are chosen; `replay.samplers` has them, and docs/replay.md defines them."""

    kind: SamplerKind = "uniform"
    """`uniform`, `prioritized`: with replacement; `epoch`: without; `fifo`, `lifo`: in order."""
    max_times_sampled: int | None = Field(None, ge=1, le=65_535)
    """How often a step may be drawn as a start; None for any number, and for `fifo` once."""
    priority_exponent: float = Field(0.6, ge=0, le=8, allow_inf_nan=False)
    """α of `prioritized`: a start is drawn in proportion to its priority to this power."""

    @property
    def uses(self) -> int | None:
        """How often a step may be drawn; None for any number."""
        return 1 if self.kind == "fifo" and self.max_times_sampled is None else self.max_times_sampled


class TableSpec(Frozen):
    """Everything that a table is created with."""

    signature: Signature
    capacity_steps: int | None = Field(None, ge=2, lt=2**31)
    """Steps in the ring; or give capacity_bytes."""
    capacity_bytes: int | None = Field(None, ge=1, lt=2**63)
    """Bytes of the ring, of which as many steps are made as fit."""
    limiter: LimiterSpec = LimiterSpec()
    sampler: SamplerSpec = SamplerSpec()
    rows_of: TableName | None = None
    """The table whose rows this one draws from, by a sampler and limiter of its own; None for rows of
    its own. Steps are written to that table."""

    @model_validator(mode="after")
    def _one_capacity(self) -> "TableSpec":
        if (self.capacity_steps is None) == (self.capacity_bytes is None):
            raise ValueError("give either capacity_steps or capacity_bytes")
        return self

    @property
    def steps(self) -> int:
        """Capacity in steps, of a spec that the server has resolved."""
        if self.capacity_steps is None:
            raise ValueError("capacity_bytes is not resolved to steps yet")
        return self.capacity_steps


class Transition(Frozen):
    """Draw single transitions of `n_step` steps, or fewer at an episode's end."""

    kind: Literal["transition"] = "transition"
    n_step: int = Field(1, ge=1, le=MAX_N_STEP)


class Sequence(Frozen):
    """Draw sequences of `length` steps of one episode, each beginning length - overlap after the last.

    The last of an episode may be shorter (Kapturowski et al. 2019).
    """

    kind: Literal["sequence"] = "sequence"
    length: int = Field(ge=1, le=MAX_SEQUENCE)
    overlap: int = Field(0, ge=0, lt=MAX_SEQUENCE)
    burn_in: int = Field(0, ge=0, lt=MAX_SEQUENCE)
    """Steps at the beginning that only warm up a recurrent state."""

    @model_validator(mode="after")
    def _fits(self) -> "Sequence":
        for name in ("overlap", "burn_in"):
            if getattr(self, name) >= self.length:
                raise ValueError(
                    f"{name} {getattr(self, name)} is not below length {self.length}; lower it"
                )
        if self.length > MAX_OVERLAPPING * self.period:
            raise ValueError(
                f"length {self.length} with overlap {self.overlap} puts each step into "
                f"{self.length // self.period} sequences; the limit is {MAX_OVERLAPPING}; lower one of them"
            )
        return self

    @property
    def period(self) -> int:
        """Steps from the beginning of one sequence to the next."""
        return self.length - self.overlap


class Episode(Frozen):
    """Draw whole episodes; those of more than `max_steps` steps are never drawn."""

    kind: Literal["episode"] = "episode"
    max_steps: int = Field(1000, ge=1, le=MAX_EPISODE)


#: What is drawn.
Unit = Annotated[Transition | Sequence | Episode, Field(discriminator="kind")]
