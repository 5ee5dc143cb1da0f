"""From the arrays of a batch to the tensors that are trained on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fornix.learner.update import Batch
from fornix.replay.batches import Transitions


def _stay(tensor: Tensor) -> Tensor:
    return tensor


def to_batch(transitions: Transitions, move: Callable[[Tensor], Tensor] = _stay) -> Batch:
    """Return transitions as tensors; stacks are views of what became of the window.

    Args:
        transitions: whose frames are one array.
        move: returns a contiguous tensor where it is wanted; by default it stays where it is, on the CPU.
            Frames that a stack and its next one share are moved once.
    """
    window = move(torch.from_numpy(transitions.window))
    if np.may_share_memory(transitions.next_stack, transitions.window):
        next_stack = window[:, transitions.n_step :]
    else:  # some are cut short, and all were gathered into an array of their own
        next_stack = move(torch.from_numpy(transitions.next_stack))
    return Batch(
        stack=window[:, : transitions.n_frames],
        action=move(torch.from_numpy(transitions.action).long()),
        reward=move(torch.from_numpy(transitions.reward)),
        discount=move(torch.from_numpy(transitions.discount)),
        next_stack=next_stack,
    )


class Transfer:
    """Makes tensors on one device. On the CPU they are views, and nothing is copied.

    To a CUDA device, frames are copied from page-locked memory, whole arrays at a time, on a stream of
    their own. While they are on their way, the device goes on computing, and so does the thread that
    trains.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._stream: torch.cuda.Stream | None = None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def allocate(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> NDArray[Any]:
        """Return memory for a batch's frames: page-locked if the device is a CUDA one."""
        if self._stream is None:
            return np.empty(shape, dtype)
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        return memory.numpy().view(dtype).reshape(shape)

    def __call__(self, transitions: Transitions) -> Batch:
        """Return transitions as tensors; those on another device than the CPU are complete copies."""
        if self._device.type == "cpu":
            return to_batch(transitions)
        with torch.cuda.stream(self._stream):
            made = to_batch(transitions, self._moved)
        if self._stream is not None:
            self._stream.synchronize()  # of this thread; then the arrays may be written to again
        return made

    def _moved(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self._device, non_blocking=True)
        if self._stream is not None:
            # or its memory could be taken for the next copy while it is still being computed with
            moved.record_stream(torch.cuda.default_stream(self._device))
        return moved
