"""Flips single bits in the files of a memory, and looks whether anything wrong is ever handed out."""

from collections import Counter

import numpy as np

from durability.histories import TABLE, World, check_transitions
from durability.simulated import Host
from fornix.common.errors import EvictedError, FornixError, StorageError
from fornix.common.specs import SamplerSpec, Transition


class Flips:
    """One memory, of which each flip damages a copy.

    Args:
        seed: of its history, and of the flips.
    """

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.world = World(seed, capacity=64, faults=0.0, sampler=SamplerSpec(kind="prioritized"))
        for _ in range(120):
            self.world.step()
        for actor in range(3):
            self.world.write(actor)
        memory = self.world.table.memory
        self.keys = np.arange(memory.ring.tail, memory.ring.head)
        self.stacks = self._stacks(memory)
        self.world.host.flusher.lets = True  # it is waited for
        self.world.host.service.close()
        self.disk = self.world.host.disk
        self.counts = Counter()

    def flip(self):
        """Flip a bit, start a server, and hold all that it hands out against what was written."""
        disk = self.disk.copy()
        file = disk.files[["rows-0", "rows-0", "rows-0", "draws-0"][self.rng.integers(4)]]
        used = np.flatnonzero(file.written.any(axis=1))  # sectors that hold anything
        sector = int(self.rng.choice(used))
        at = int(self.rng.integers(512))
        file.written[sector, at] ^= np.uint8(1 << self.rng.integers(8))
        self.counts["flips"] += 1
        host = Host.__new__(Host)
        host.__dict__.update(self.world.host.__dict__, disk=disk)
        try:
            host.start()
        except StorageError:
            self.counts["refused to start"] += 1
            return
        self.world.host = host
        memory = self.world.table.memory
        before = len(memory.broken)
        self._sample()
        self._compare(memory)
        self.counts["rows lost"] += len(memory.broken)
        self.counts["found at the start"] += before > 0
        host.service.close()

    def _sample(self):
        starts = self.world.table.starts(Transition(n_step=2))
        for _ in range(3):
            if not len(starts):
                return
            try:
                batch = self.world.admin.sample(TABLE, 64, Transition(n_step=2), timeout_s=0.0).result()
            except FornixError:
                return
            check_transitions(batch, 2)
            self.counts["sampled"] += 64

    def _compare(self, memory):
        """Every stack that is handed out is the one that was."""
        found = self._stacks(memory)
        assert memory.ring.head - self.keys[-1] - 1 in (0,), "the head moved"
        for key, stack in found.items():
            assert key in self.stacks, f"step {key} was never there"
            assert np.array_equal(stack, self.stacks[key]), f"step {key} is another"
        self.counts["stacks compared"] += len(found)

    def _stacks(self, memory):
        found = {}
        for key in self.keys.tolist():
            try:
                stack = memory.stacks(np.array([key])).stack[0].copy()
            except EvictedError:
                continue
            found[key] = stack
        return found
