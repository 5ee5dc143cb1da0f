"""Rows of episodes as Arrow tables and back. pyarrow is imported when it is first needed."""

from typing import Any

import numpy as np

from fornix.common.errors import ConfigurationError, InvalidRequestError
from fornix.common.signature import ArraySpec, Signature
from fornix.replay.episodes import Array
from fornix.replay.parquet_rows import NUMBERS, Rows, columns

_MAX_LIST = 2**31 - 1
_ELEMENT = "element"


def arrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet, or raise ConfigurationError if they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"files of episodes need {error.name}; pip install 'fornix[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet


def schema(signature: Signature) -> Any:
    """Return the Arrow schema of episodes: scalars, and lists of fixed size of each array's items."""
    pa, _ = arrow()
    return pa.schema(
        [pa.field(name, _type(name, spec), nullable=False) for name, spec in columns(signature).items()]
    )


def options(signature: Signature) -> dict[str, Any]:
    """Return how a file is written.

    Bytes go through dictionaries, since Parquet's integers have 32 bits. Floats don't: two NaN of
    different bits would become one.
    """
    all_columns = columns(signature)
    small = {_path(name, spec) for name, spec in all_columns.items() if _is_small(spec)}
    others = {_path(name, spec) for name, spec in all_columns.items() if not _is_small(spec)}
    return {
        "compression": "zstd",
        "use_dictionary": sorted(small - others),
        "write_page_checksum": True,
        "write_statistics": [*NUMBERS, "reward"],
    }


def to_table(rows: Rows, signature: Signature) -> Any:
    """Return rows as an Arrow table."""
    pa, _ = arrow()
    made = schema(signature)
    arrays = [_to_arrow(rows[field.name], field.type) for field in made]
    return pa.Table.from_arrays(arrays, schema=made)


def from_table(table: Any, signature: Signature) -> Rows:
    """Return the rows in an Arrow table that has the signature's schema, or raise ValueError."""
    return {name: _from_arrow(name, table.column(name), spec) for name, spec in columns(signature).items()}


def check_schema(found: Any, signature: Signature) -> None:
    """Raise ValueError unless the columns of a file are those of its signature."""
    due = schema(signature)
    if found.remove_metadata().equals(due):
        return
    for at, field in enumerate(due):
        other = found.field(at) if at < len(found) else None
        if other is None or not other.remove_metadata().equals(field):
            raise ValueError(f"column {at} is {other or 'missing'}; it must be {field}")
    raise ValueError(f"it has {len(found)} columns; it must have {len(due)}")


def _type(name: str, spec: ArraySpec | None) -> Any:
    pa, _ = arrow()
    if spec is None:
        return pa.string()
    kind = pa.from_numpy_dtype(np.dtype(spec.dtype))
    if not spec.shape:
        return kind
    items = int(np.prod(spec.shape, dtype=np.int64))
    if items > _MAX_LIST:
        raise InvalidRequestError(
            f"{name} has {items} items; a list in Parquet has {_MAX_LIST} at most; export smaller arrays"
        )
    return pa.list_(pa.field(_ELEMENT, kind, nullable=False), items)


def _is_small(spec: ArraySpec | None) -> bool:
    return spec is None or spec.dtype in ("|u1", "|i1")


def _path(name: str, spec: ArraySpec | None) -> str:
    """Return what Parquet calls the values of a column."""
    return f"{name}.list.{_ELEMENT}" if spec is not None and spec.shape else name


def _to_arrow(array: Array, kind: Any) -> Any:
    pa, _ = arrow()
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(array, kind)
    flat = pa.array(np.ascontiguousarray(array).reshape(-1), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _from_arrow(name: str, chunks: Any, spec: ArraySpec | None) -> Array:
    column = chunks.combine_chunks()
    if column.null_count:
        raise ValueError(f"column {name} holds nulls")
    if spec is None:
        return np.array(column.to_pylist(), object)
    flat = column.flatten() if spec.shape else column
    array: Array = flat.to_numpy(zero_copy_only=False)
    return array.reshape(len(column), *spec.shape)
