"""The samples of a batch: checked as they come, and put in place of others whose rows were overwritten."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.common.errors import ProtocolError
from fornix.common.messages import Batch, Sample
from fornix.common.specs import Transition

_OF_SAMPLES = ("key", "next_key", "probability", "weight", "steps")
_OF_STEPS = ("action", "reward", "discount", "policy_version")

Array = NDArray[Any]
#: A batch, and its windows by path.
Filled = tuple[Batch, dict[str, Array]]


def check(batch: Batch, request: Sample) -> None:
    """Raise ProtocolError unless a server's batch has the samples and steps that were asked for."""
    of_samples = (request.batch_size,)
    of_steps = of_samples if batch.mask is None else batch.mask.shape
    if isinstance(request.unit, Transition):
        fits, longest = batch.mask is None, request.unit.n_step
    else:
        fits = len(of_steps) == 2 and of_steps[:1] == of_samples
        longest = of_steps[-1] if fits else 0
    fits = fits and all(getattr(batch, name).shape == of_samples for name in _OF_SAMPLES)
    arrays = [getattr(batch, name) for name in _OF_STEPS] + list(batch.extras.values())
    fits = fits and all(array.shape[: len(of_steps)] == of_steps for array in arrays)
    # as unsigned numbers the negative ones are the largest
    if not fits or batch.steps.dtype != np.int32 or (batch.steps - 1).view(np.uint32).max() >= longest:
        raise ProtocolError(
            f"the server answered with no batch of {request.batch_size} {request.unit.kind}s: steps has "
            f"shape {batch.steps.shape}, action {batch.action.shape}, reward {batch.reward.shape}"
        )


def form_of(request: Sample, batch: Batch, frames: Mapping[str, Array]) -> dict[str, object]:
    """Return what one item of each array of a batch is, and how many frames a stack has.

    Batches of different forms can't be put together: numpy would cast and stretch one to fit another in
    silence.
    """
    if isinstance(request.unit, Transition):
        axes, steps = 1, request.unit.n_step
    else:
        axes, steps = 2, batch.reward.shape[1]
    arrays = {name: (getattr(batch, name), axes) for name in _OF_STEPS}
    arrays |= {f"extras.{name}": (array, axes) for name, array in batch.extras.items()}
    arrays |= {f"frame.{path}": (array, 1) for path, array in frames.items()}
    form = {name: (array.dtype, array.shape[axes:]) for name, (array, axes) in arrays.items()}
    return {"n_frames": batch.index.shape[1] - steps, **form}


def parts_of(batch: Batch, batch_size: int, importance_exponent: float) -> Iterator[Batch]:
    """Yield so many samples at a time, each as a batch of its own; views, but for the weights."""

    def parted(array: Array) -> Array:
        return array.reshape(-1, batch_size, *array.shape[1:])

    named = {
        name: parted(array)
        for name in (*_OF_SAMPLES, *_OF_STEPS, "index", "oldest", "mask")
        if (array := getattr(batch, name)) is not None
    }
    if importance_exponent:
        named["weight"] = _weights(named["probability"], importance_exponent)
    extras = {name: parted(array) for name, array in batch.extras.items()}
    for at, values in enumerate(zip(*named.values(), strict=True)):
        update: dict[str, Any] = dict(zip(named, values, strict=True))
        update["extras"] = {name: array[at] for name, array in extras.items()}
        yield batch.model_copy(update=update)


def put_all(request: Sample, into: Filled, more: Filled, rows: NDArray[np.intp]) -> Filled:
    """Return a batch and its windows with the samples of `more`, of the same form, in place of `rows`.

    Where `more` has longer sequences, the others get zeros at their ends. Weights become those of the
    whole batch. `index`, `frame` and `oldest` are left as they were.
    """
    windows = {path: put_steps(array, more[1][path], rows) for path, array in into[1].items()}
    return _put_batch(into[0], more[0], rows, request.importance_exponent), windows


def _put_batch(batch: Batch, more: Batch, rows: NDArray[np.intp], importance_exponent: float) -> Batch:
    for name in _OF_SAMPLES:
        getattr(batch, name)[rows] = getattr(more, name)
    put = _put_rows if batch.mask is None else put_steps
    made: dict[str, Any] = {
        name: put(getattr(batch, name), getattr(more, name), rows) for name in _OF_STEPS
    }
    made["extras"] = {name: put(array, more.extras[name], rows) for name, array in batch.extras.items()}
    if batch.mask is not None and more.mask is not None:
        made["mask"] = put_steps(batch.mask, more.mask, rows)
    if importance_exponent:
        made["weight"] = _weights(batch.probability, importance_exponent)
    return batch.model_copy(update=made)


def _weights(probability: Array, importance_exponent: float) -> NDArray[np.float32]:
    """Return (N · probability)^-β over the largest of the last axis; N cancels out."""
    least = probability.min(axis=-1, keepdims=True)
    weight: NDArray[np.float32] = ((least / probability) ** importance_exponent).astype(np.float32)
    return weight


def put_steps(into: Array, values: Array, rows: NDArray[np.intp]) -> Array:
    """Write `values` [len(rows), T', ...] to rows of `into` [B, T, ...], with zeros after; return it.

    Where T' is above T, a longer array is returned, with zeros after the other rows.
    """
    length = values.shape[1]
    if length > into.shape[1]:
        longer = np.zeros((len(into), length, *into.shape[2:]), into.dtype)
        longer[:, : into.shape[1]] = into
        into = longer
    into[rows, :length] = values
    into[rows, length:] = 0
    return into


def _put_rows(into: Array, values: Array, rows: NDArray[np.intp]) -> Array:
    into[rows] = values
    return into
