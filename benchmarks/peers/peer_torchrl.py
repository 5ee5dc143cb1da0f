"""TorchRL's driver: two buffers in this process.

torchrl 0.14.1 is compiled for a newer torch than 2.13.0, and none from 0.12.0 on for that one. Its shared
object looks for one function in vain, which the trees of priorities don't call: so symbols are bound when
they are called, and not before.

What --explore tried, on two noisy cores (best of two rounds, in thousand samples/s uniformly, of vector and
pixels): "record" 540 and 100, "window" 480 and 36, "copies" 310 and 24, each with one thread; "record" with
two 790 and 260. A gather goes value by value, so rows of int64 win, the more so over bytes. With
LazyMemmapStorage it comes to the same as with LazyTensorStorage, and with prefetching to less. Two threads
spin while one waits for the other, and fall to 15 when another process has one of the cores. With
GOMP_SPINCOUNT at 1000 they don't, and keep most of what they gain (640 and 180, the best of three rounds).
"""
# ruff: noqa: E402 - how shared objects are bound has to be said before torchrl is imported

import itertools
import os
import sys
from typing import Any

os.environ |= {"RL_LOGGING_LEVEL": "WARNING", "GOMP_SPINCOUNT": "1000"}
sys.setdlopenflags(os.RTLD_LAZY)

import in_process
import protocol
import torch
from in_process import Buffer
from protocol import BATCH_SIZE, PRIORITY_EXPONENT, WEIGHT_EXPONENT, Workload
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import PrioritizedSampler, RandomSampler

sys.setdlopenflags(os.RTLD_NOW)

DEFAULT = {"form": "record", "storage": "tensor", "prefetch": None, "threads": 2}
BEST = {"vector": DEFAULT, "pixels": DEFAULT}
TRIALS = [
    {},
    {"form": "copies"},
    {"form": "window"},
    {"storage": "memmap"},
    {"prefetch": 2},
    {"threads": 1},
    {"threads": 1, "form": "copies"},
]
STORAGES = {"tensor": LazyTensorStorage, "memmap": LazyMemmapStorage}


class TorchBuffer(Buffer):
    """Holds copies of both stacks, or one of their frames."""

    def __init__(self, workload: Workload, capacity: int, prioritized: bool, **settings: Any) -> None:
        torch.set_num_threads(settings["threads"])
        batches = self.batches(workload, settings["form"])
        self._workload, self._like = workload, batches[0]
        self._batches = itertools.cycle([TensorDict(batch, [BATCH_SIZE]) for batch in batches])
        self._priorities = itertools.cycle(torch.from_numpy(protocol.priorities()))
        self._prioritized = prioritized
        by_priority = (capacity, PRIORITY_EXPONENT, WEIGHT_EXPONENT)
        sampler = PrioritizedSampler(*by_priority) if prioritized else RandomSampler()
        self._buffer = TensorDictReplayBuffer(
            storage=STORAGES[settings["storage"]](capacity),
            sampler=sampler,
            prefetch=settings["prefetch"],
            batch_size=BATCH_SIZE,
            priority_key="td_error",
        )

    def add(self) -> None:
        self._buffer.extend(next(self._batches))

    def take(self) -> None:
        batch = self._buffer.sample()
        arrays = {name: batch[name].numpy() for name in self._like}
        in_process.check_batch(self._workload, arrays, self._like)
        if self._prioritized:
            batch["td_error"] = next(self._priorities)
            self._buffer.update_tensordict_priority(batch)


if __name__ == "__main__":
    in_process.run(__doc__ or "", ("torchrl", "tensordict", "torch", "numpy"), TorchBuffer, BEST, TRIALS)
