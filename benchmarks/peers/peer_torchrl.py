"""TorchRL's driver: two buffers in this process.

Todo: notes.
"""
# ruff: noqa: E402 - how shared objects are bound has to be said before torchrl is imported

import itertools
import os
import sys
from typing import Any

os.environ.setdefault("RL_LOGGING_LEVEL", "WARNING")
sys.setdlopenflags(os.RTLD_LAZY)

import protocol
import torch
from protocol import BATCH_SIZE, PRIORITY_EXPONENT, WEIGHT_EXPONENT, Buffer, Workload
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import PrioritizedSampler, RandomSampler

sys.setdlopenflags(os.RTLD_NOW)

DEFAULT = {"form": "record", "storage": "tensor", "prefetch": None, "threads": 1}
BEST = {"vector": DEFAULT, "pixels": DEFAULT}
TRIALS = [
    {},
    {"form": "copies"},
    {"form": "window"},
    {"storage": "memmap"},
    {"prefetch": 2},
    {"threads": 2},
    {"form": "copies", "threads": 2},
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
        protocol.check_batch(self._workload, arrays, self._like)
        if self._prioritized:
            batch["td_error"] = next(self._priorities)
            self._buffer.update_tensordict_priority(batch)


if __name__ == "__main__":
    protocol.run_in_process(
        __doc__ or "", ("torchrl", "tensordict", "torch", "numpy"), TorchBuffer, BEST, TRIALS
    )
