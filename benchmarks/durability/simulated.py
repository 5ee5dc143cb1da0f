"""A disk that may lose its power at any time, and a server on it, under a clock that the test turns.

Nothing but the disk and the waiting for it is simulated: service, store, recovery and clients are those
of production. The disk takes sectors of 512 bytes, each whole or not at all. Between syncs it may write
any of them at any time; when the power goes, it keeps what it has.
"""

import numpy as np

from fornix.common.errors import DiskError, StorageError
from fornix.replay.durable.folder import Folder
from fornix.replay.service import ReplayService

SECTOR = 512


class SimulatedFile:
    """What programs have written, and what the disk has of it."""

    def __init__(self, disk, nbytes):
        padded = nbytes + -nbytes % SECTOR
        self.nbytes = nbytes
        self.descriptor = -1
        self._memory = bytearray(padded)
        self.buffer = memoryview(self._memory)[:nbytes]
        self.written = np.frombuffer(self._memory, np.uint8).reshape(-1, SECTOR)
        self.kept = self.written.copy()
        self._disk = disk

    def write(self, offset, data):
        self.buffer[offset : offset + data.nbytes] = data.tobytes()

    def sync(self):
        if self._disk.fails:
            raise OSError(5, "Input/output error")
        self._disk.syncs += 1
        self.kept[:] = self.written

    def write_back(self, rng, share):
        """Let the disk take some of the sectors that differ."""
        dirty = np.flatnonzero((self.kept != self.written).any(axis=1))
        taken = dirty[rng.random(len(dirty)) < share]
        self.kept[taken] = self.written[taken]

    def after_power_cut(self):
        """Return the file as it is found when the power is back."""
        found = SimulatedFile(self._disk, self.nbytes)
        found.written[:] = found.kept[:] = self.kept
        return found

    def after_death(self):
        """Return the file as the next process finds it: nothing is lost."""
        found = SimulatedFile(self._disk, self.nbytes)
        found.written[:] = self.written
        found.kept[:] = self.kept
        return found

    def close(self):
        pass


class SimulatedDisk:
    """A folder on a disk that may lose its power."""

    def __init__(self):
        self.boot = "boot-0"
        self.files = {}
        self.small = {}
        self.fails = False
        self.syncs = 0
        self.room = None

    def create(self, name, nbytes):
        if self.room is not None and nbytes > self.room:
            raise StorageError(f"the disk has room for {self.room} bytes, and {nbytes} are to be set aside")
        assert name not in self.files
        self.files[name] = SimulatedFile(self, nbytes)
        return self.files[name]

    def open(self, name, writable=True):
        if name not in self.files:
            raise StorageError(f"{name} is not there")
        return self.files[name]

    def write_whole(self, name, data):
        self.small[name] = bytes(data)

    def read(self, name):
        return self.small.get(name)

    def remove(self, name):
        self.files.pop(name, None)
        self.small.pop(name, None)

    def names(self):
        return sorted([*self.files, *self.small])

    def close(self):
        pass

    def write_back(self, rng, share=0.3):
        for file in self.files.values():
            file.write_back(rng, share)

    def cut_power(self, rng):
        """The power goes, after the disk took some more; the machine boots again."""
        self.write_back(rng, rng.random())
        self.files = {name: file.after_power_cut() for name, file in self.files.items()}
        self.boot = f"boot-{int(self.boot.split('-')[1]) + 1}"

    def copy(self):
        """Return another disk that holds the same."""
        made = SimulatedDisk()
        made.boot = self.boot
        made.small = dict(self.small)
        made.files = {name: file.after_death() for name, file in self.files.items()}
        return made

    def let_process_die(self):
        """The server's process dies; what it wrote is the kernel's."""
        self.files = {name: file.after_death() for name, file in self.files.items()}


class StepFlusher:
    """Syncs when the test lets it: `fraction` of the files now, the rest later."""

    def __init__(self):
        self._files = []
        self.lets = True
        self._error = None

    def begin(self, files):
        self._files = list(files)
        if self.lets:
            self.step(len(self._files))

    def step(self, files=1):
        """Sync some of the files that are due."""
        for _ in range(min(files, len(self._files))):
            try:
                self._files.pop(0).sync()
            except OSError as error:
                self._error = error

    def done(self):
        if self._error is not None:
            raise DiskError.of(self._error)
        if self._files and self.lets:
            self.step(len(self._files))
        return not self._files

    def close(self):
        self.step(len(self._files))


class Host:
    """A machine with a disk, on which a server runs, dies and starts again."""

    def __init__(self, clock, seed=0, period_s=0.1):
        self.disk = SimulatedDisk()
        self.clock = clock
        self.rng = np.random.default_rng(seed)
        self._period_s = period_s
        self._keys = 10**6
        self.start()

    def start(self):
        """Start the server."""
        self.flusher = StepFlusher()
        folder = Folder(self.disk, self.flusher, self.clock, self._period_s)
        self.service = ReplayService(self.clock, seed=0, first_key=lambda: self._keys, folder=folder)

    def kill(self):
        """Kill the server's process, and start the next."""
        self.disk.let_process_die()
        self.start()

    def cut_power(self):
        """Cut the power, and start the server when it is back."""
        self.disk.cut_power(self.rng)
        self.start()
