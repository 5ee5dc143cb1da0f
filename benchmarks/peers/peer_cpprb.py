"""cpprb's driver: two buffers in this process.

What --explore tried, on two noisy cores (best of two rounds, in thousand samples/s uniformly, of vector and
pixels): "window", the frames of both stacks once, 1250 and 360; "record", all of a transition in one row,
1240 and 340; "copies" of both stacks 690 and 210; next_of 820 and 210; stack_compress 440 and 18; both of
these 500 and 18. They save memory more than time: next_of a half of what copies take, stack_compress four
fifths (three quarters of pixels), both nine tenths (seven eighths).
"""

import functools
import itertools

import cpprb
import in_process
import numpy as np
import protocol
from in_process import Buffer
from protocol import BATCH_SIZE, PRIORITY_EXPONENT, WEIGHT_EXPONENT, Workload

FORMS = ("copies", "window", "record", "next_of", "stack_compress", "next_of and stack_compress")
BEST = {"vector": {"form": "window"}, "pixels": {"form": "window"}}
TRIALS = [{"form": form} for form in FORMS]


class CpprbBuffer(Buffer):
    """Holds copies of both stacks, or what cpprb can leave out of those; or a window or a record."""

    def __init__(self, workload: Workload, capacity: int, prioritized: bool, *, form: str) -> None:
        batches = self.batches(workload, form)
        fields = {
            name: {"shape": value.shape[1:] or 1, "dtype": value.dtype}
            for name, value in batches[0].items()
            if not (name == "next_obs" and "next_of" in form)
        }
        options = {"next_of": "obs"} if "next_of" in form else {}
        if "stack_compress" in form:
            options["stack_compress"] = [name for name in fields if name.endswith("obs")]
        if prioritized:
            self._buffer = cpprb.PrioritizedReplayBuffer(
                capacity, fields, alpha=PRIORITY_EXPONENT, **options
            )
        else:
            self._buffer = cpprb.ReplayBuffer(capacity, fields, **options)
        self._workload, self._like, self._prioritized = workload, batches[0], prioritized
        self._batches, self._episode, self._added = itertools.cycle(batches), len(batches), 0
        self._priorities = itertools.cycle(protocol.priorities())

    @staticmethod
    @functools.cache
    def batches(workload: Workload, form: str) -> list[dict[str, np.ndarray]]:
        """Return what is added in turn; a stack that is compressed is the last axis."""
        batches = in_process.transitions(workload, form)
        if "stack_compress" not in form:
            return batches
        return [
            {name: np.moveaxis(value, min(1, value.ndim - 1), -1) for name, value in batch.items()}
            for batch in batches
        ]

    def add(self) -> None:
        self._buffer.add(**next(self._batches))
        self._added += 1
        if self._added % self._episode == 0:
            self._buffer.on_episode_end()

    def take(self) -> None:
        if self._prioritized:
            batch = self._buffer.sample(BATCH_SIZE, beta=WEIGHT_EXPONENT)
        else:
            batch = self._buffer.sample(BATCH_SIZE)
        in_process.check_batch(self._workload, batch, self._like)
        if self._prioritized:
            self._buffer.update_priorities(batch["indexes"], next(self._priorities))


if __name__ == "__main__":
    in_process.run(__doc__ or "", ("cpprb", "numpy"), CpprbBuffer, BEST, TRIALS)
