"""What the arrays of a table look like; stated by both sides before any data flows."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fornix.common import trees
from fornix.common.errors import InvalidRequestError, SignatureError

#: The dtypes that travel and are stored, in numpy's own spelling; all little-endian or one byte.
DTYPES = frozenset(("|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"))
MAX_DIMENSIONS = 8
MAX_STEP_DIMENSIONS = MAX_DIMENSIONS - 2  # a batch of stacks has two more
MAX_ITEMS = 2**31
MAX_EXTRAS = 32
MAX_LEAVES = 16
MAX_DEPTH = 4

_LEAF_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")

TableName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ArraySpec(BaseModel):
    """Shape and dtype of one array of a step, and for discrete actions how many there are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    shape: tuple[int, ...] = ()
    """Shape of one step's value; `()` for a scalar."""
    dtype: str
    """numpy's spelling of the dtype, such as `|u1` or `<f4`."""
    n_values: int | None = Field(None, ge=1)
    """A discrete value lies in [0, n_values); None for a continuous one."""

    @field_validator("shape")
    @classmethod
    def _bounded(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) > MAX_STEP_DIMENSIONS or min(shape, default=1) < 1:
            raise ValueError(f"{shape} must have at most {MAX_STEP_DIMENSIONS} dimensions, each >= 1")
        items = 1
        for size in shape:
            items *= size
        if items > MAX_ITEMS:
            raise ValueError(f"{shape} holds {items} items; the limit is {MAX_ITEMS}")
        return shape

    @field_validator("dtype")
    @classmethod
    def _known(cls, dtype: str) -> str:
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not one of {', '.join(sorted(DTYPES))}")
        return dtype

    @classmethod
    def of(cls, shape: tuple[int, ...], dtype: Any, n_values: int | None = None) -> "ArraySpec":
        """Return the spec of `shape` and anything that numpy takes for a dtype."""
        kind = np.dtype(dtype).newbyteorder("<").str
        return cls(shape=tuple(int(n) for n in shape), dtype=kind, n_values=n_values)

    @property
    def nbytes(self) -> int:
        """Bytes of one step's value."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def check(self, name: str, array: NDArray[Any], rows: int) -> None:
        """Raise InvalidRequestError unless `array` is `[rows, *shape]` of this dtype and range."""
        wanted = (rows, *self.shape)
        if array.shape != wanted or array.dtype.str != self.dtype:
            raise InvalidRequestError(
                f"{name} has shape {array.shape} and dtype {array.dtype.str}; the table takes "
                f"{wanted} and {self.dtype} ([steps, *shape of one]); send one value of shape "
                f"{self.shape} for each step"
            )
        if self.n_values is not None and rows:
            low, high = array.min(), array.max()
            if not (low >= 0 and high < self.n_values):  # NaN is neither
                raise InvalidRequestError(
                    f"{name} holds {high if low >= 0 else low}; a value must lie in [0, {self.n_values})"
                )

    def __str__(self) -> str:
        values = "" if self.n_values is None else f" in [0, {self.n_values})"
        return f"{self.shape} {self.dtype}{values}"


def _frame(value: Any, depth: int = 0) -> Any:
    """Return what a client says of a frame as a spec, or as a dict or tuple of such."""
    if isinstance(value, ArraySpec):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("dtype"), str):
        shape = value.get("shape", ())
        # JSON has lists alone
        return ArraySpec.model_validate(
            {**value, "shape": tuple(shape) if isinstance(shape, list) else shape}
        )
    if not isinstance(value, Mapping | tuple | list) or not value or depth == MAX_DEPTH:
        raise ValueError(
            f"a frame is an array's shape and dtype, or a dict or tuple of such, at most {MAX_DEPTH} deep "
            f"and not empty"
        )
    if not isinstance(value, Mapping):
        return tuple(_frame(inner, depth + 1) for inner in value)
    for name in value:
        if not isinstance(name, str) or not _LEAF_NAME.fullmatch(name):
            raise ValueError(f"a part of a frame is named {name!r:.80}; use letters, digits, _ and -")
    return {name: _frame(inner, depth + 1) for name, inner in value.items()}


#: One array, or a dict or tuple of such.
FrameSpec = Annotated[Any, BeforeValidator(_frame)]

REWARD = ArraySpec(shape=(), dtype="<f4")


def _names(frames: Mapping[str, Any]) -> list[str]:
    return sorted(path or "the frame itself" for path in frames)


def frame_name(path: str) -> str:
    """Return what an array of a frame is called where it stands beside other arrays."""
    return f"frame.{path}" if path else "frame"


class Signature(BaseModel):
    """Shapes and dtypes of a table's frame, action, reward and extras, and its `n_frames`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    frame: FrameSpec
    """One observation, of shape `obs`; or a dict or tuple of such, which may be nested."""
    action: ArraySpec
    """The action that led to a frame."""
    reward: ArraySpec = REWARD
    """The reward that came with a frame: a float32 or float64 scalar."""
    extras: dict[TableName, ArraySpec] = Field(default_factory=dict, max_length=MAX_EXTRAS)
    """Further columns by name, stored with the frame that they arrive with."""
    n_frames: int = Field(ge=1, le=64)
    """Frames in a stack."""

    @model_validator(mode="after")
    def _reward_is_a_scalar(self) -> "Signature":
        if self.reward.shape != () or self.reward.dtype not in ("<f4", "<f8"):
            raise ValueError(f"reward is {self.reward}; it must be a scalar <f4 or <f8")
        return self

    @model_validator(mode="after")
    def _frame_is_bounded(self) -> "Signature":
        if len(self.frames) > MAX_LEAVES:
            raise ValueError(f"a frame of {len(self.frames)} arrays is refused; the limit is {MAX_LEAVES}")
        return self

    @cached_property
    def frames(self) -> dict[str, ArraySpec]:
        """The arrays that a frame consists of, by path; the path of a single one is empty."""
        return trees.leaves(self.frame)

    @cached_property
    def frame_nbytes(self) -> int:
        """Bytes of one frame."""
        return sum(spec.nbytes for spec in self.frames.values())

    @cached_property
    def step_nbytes(self) -> int:
        """Bytes of one step's payload: frame, action, reward and extras."""
        specs = (self.action, self.reward, *self.extras.values())
        return self.frame_nbytes + sum(spec.nbytes for spec in specs)

    def check_frame(self, frames: Mapping[str, NDArray[Any]], rows: int) -> None:
        """Raise InvalidRequestError unless `frames` are all arrays of `rows` frames, by path."""
        if frames.keys() != self.frames.keys():
            raise InvalidRequestError(
                f"a frame has the arrays {_names(frames)}; the table takes {_names(self.frames)}; send "
                f"just these"
            )
        for path, spec in self.frames.items():
            spec.check(frame_name(path), frames[path], rows)

    def lines(self) -> Mapping[str, str]:
        """Return every part of the signature as text, by its name."""
        parts = {frame_name(path): spec for path, spec in self.frames.items()}
        parts |= {"action": self.action, "reward": self.reward}
        parts |= {f"extras.{name}": spec for name, spec in sorted(self.extras.items())}
        return {name: str(spec) for name, spec in parts.items()} | {"n_frames": str(self.n_frames)}

    def require_equal(self, table: str, expected: "Signature") -> None:
        """Raise SignatureError with both sides of each difference to what a client expects."""
        if self == expected:
            return
        here, there = self.lines(), expected.lines()
        differences = [
            f"{name}: the table holds {here.get(name, 'nothing')}, "
            f"the client expects {there.get(name, 'nothing')}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ] or ["frame: one of them is a dict where the other is a tuple of the same arrays"]
        raise SignatureError(
            f"table {table!r} has another signature: {'; '.join(differences)}; change the client, "
            f"or use another table name"
        )
