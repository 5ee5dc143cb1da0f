"""From the arrays of a vector of N environments to the rows of one request."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.errors import InvalidRequestError
from fornix.common.messages import FIRST, LAST, MAX_LANES, MID
from fornix.common.signature import ArraySpec
from fornix.replay.gather import Array, Buffers
from fornix.replay.vector_lanes import Flags, Rows

#: Arrays by path, as `fornix.common.trees` names them.
Leaves = dict[str, Array]
#: Lanes by number, or bool [N].
Which = Array | Iterable[int]


def wide(name: str, given: Any, lanes: int) -> Array:
    """Return an array, or raise InvalidRequestError unless it has N rows."""
    array = np.asarray(given)
    if array.shape[:1] != (lanes,):
        raise InvalidRequestError(
            f"{name} has shape {array.shape}; it must have {lanes} rows, one for each lane of the writer, "
            f"those that have left too; join(range({lanes}, n)) adds lanes"
        )
    return array


def wide_leaves(name: str, given: Any, lanes: int) -> Leaves:
    """Return the arrays of a dict or tuple by path, or raise InvalidRequestError as `wide` does."""
    return {
        path: wide(f"{name}.{path}" if path else name, leaf, lanes)
        for path, leaf in trees.leaves(given).items()
    }


def flags(name: str, given: Any, lanes: int) -> Flags:
    """Return bool [N], or raise InvalidRequestError."""
    array = wide(name, given, lanes)
    if array.dtype != np.bool_ or array.ndim != 1:
        raise InvalidRequestError(
            f"{name} has shape {array.shape} and dtype {array.dtype.str}; it must be bool ({lanes},), one "
            f"for each lane"
        )
    return array


def chosen(which: Array, lanes: int) -> Flags:
    """Return bool [N] of lanes by number, or by bool [N]; raises InvalidRequestError."""
    if lanes > MAX_LANES:
        raise InvalidRequestError(f"lane {lanes - 1} is beyond {MAX_LANES} lanes, the limit for a writer")
    if which.dtype == np.bool_:
        return flags("which", which, lanes)
    if which.ndim != 1 or (len(which) and which.dtype.kind not in "iu"):
        raise InvalidRequestError(
            f"lanes are given with shape {which.shape} and dtype {which.dtype.str}; give a list of their "
            f"numbers, or bool ({lanes},)"
        )
    if len(which) and not (which.min() >= 0 and which.max() < lanes):
        wrong = which.min() if which.min() < 0 else which.max()
        raise InvalidRequestError(f"there is no lane {wrong}; lanes are 0 to {lanes - 1}")
    mask = np.zeros(lanes, np.bool_)
    mask[which.astype(np.intp)] = True
    return mask


def values(name: str, given: Array, spec: ArraySpec, first: Flags) -> Array:
    """Return the actions or rewards of rows in the table's dtype, and 0 on FIRST.

    Integers may have any width, and floats too, which are rounded. What the table doesn't take is left as
    it is, for `Steps.check` to say so.

    Args:
        name: of them.
        given: [K, …].
        spec: what the table takes.
        first: bool [K], which rows are FIRST.

    Raises:
        InvalidRequestError: if the table's dtype can't hold an integer.
    """
    if first.any():
        given = given.copy()
        given[first] = 0
    dtype = np.dtype(spec.dtype)
    kinds = given.dtype.kind + dtype.kind
    if given.dtype == dtype or kinds not in ("ii", "iu", "ui", "uu", "if", "uf", "ff"):
        return given
    with np.errstate(over="ignore"):  # the server refuses infinite rewards
        cast = given.astype(dtype)
    if dtype.kind in "iu" and (cast != given).any():
        raise InvalidRequestError(
            f"{name} holds {given[cast != given][0]}, which the table's {dtype.str} can't hold"
        )
    return cast


def step_types(rows: Rows, done: Flags) -> NDArray[np.uint8]:
    """Return uint8 [A + B]: FIRST, MID or LAST, where `done`, bool [N], says what the step ended."""
    return spread(rows, np.where(rows.begins, FIRST, np.where(done, LAST, MID)).astype(np.uint8))


def spread(rows: Rows, given: Array) -> Array:
    """Return [A + B, …] of [N, …]: what led to the steps of `acted`, and zeros for `again`."""
    acted, again = len(rows.acted), len(rows.again)
    if acted == len(given) and not again:
        return given
    out = np.zeros((acted + again, *given.shape[1:]), given.dtype)
    out[:acted] = given[rows.acted]
    return out


def gathered(rows: Rows, given: Leaves, begun: Leaves | None, buffers: Buffers, name: str) -> Leaves:
    """Return [A + B, …] of [N, …]: what came with the steps of `acted`, and with those of `again`.

    Where all lanes act and none begins again, these are the arrays that were given; else the buffers'.

    Args:
        rows: of the request.
        given: [N, …] by path, of `acted`.
        begun: of `again`; the same as `given` if None.
        buffers: that give the arrays.
        name: of these in the buffers.
    """
    acted, again = len(rows.acted), len(rows.again)
    found = {}
    for path, array in given.items():
        found[path] = array
        if acted == len(array) and not again:
            continue
        out = buffers.get(f"{name}.{path}", (acted + again, *array.shape[1:]), array.dtype)
        # mode="clip": with "raise", numpy would gather into a buffer of its own first
        np.take(array, rows.acted, axis=0, out=out[:acted], mode="clip")
        np.take((begun or given)[path], rows.again, axis=0, out=out[acted:], mode="clip")
        found[path] = out
    return found


def wide_extras(given: Mapping[str, Any] | None, lanes: int) -> Leaves:
    """Return extras as arrays of N rows, or raise InvalidRequestError."""
    return {name: wide(f"extras.{name}", array, lanes) for name, array in (given or {}).items()}
