"""What the processes of a chaos run share: counters, a file of faults, and how they are started."""

import contextlib
import ctypes
import json
import mmap
import os
import signal
import struct
import time
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fornix.common.transport import ZmqTransport
from fornix.replay.client import Client

TABLE, QUEUE = "chaos", "prioritized"
#: What learners put down: a few units of each batch, and all that were cut off with their episodes.
SEEN = ("drawn", "cut")
PATIENCE_S = 0.15  # how long a request lets the server wait
RETRY_AFTER_S = 0.2  # how soon beyond that it is sent again
GIVE_UP_AFTER_S = 60.0

_PR_SET_PDEATHSIG = 1

#: An entry of a writer's log: kind, request, monotonic ns, first key, number of keys, checksum of keys. No
#: page of the file ends within one: a kill may cut off a write between two pages, and nowhere else.
ENTRY = struct.Struct("<cQqqII31x")
INTENDED, ANSWERED = b"i", b"a"
ENTRY_DTYPE = np.dtype(
    {
        "names": ("kind", "sequence", "at", "key", "keys", "check"),
        "formats": ("S1", "<u8", "<i8", "<i8", "<u4", "<u4"),
        "offsets": (0, 1, 9, 17, 25, 29),
        "itemsize": ENTRY.size,
    }
)
_PAGE = 4096


class Counters:
    """Numbers that outlive whoever counts; each has one process at a time that counts it."""

    def __init__(self, names):
        self._at = {name: at for at, name in enumerate(names)}
        self._values = np.frombuffer(mmap.mmap(-1, 8 * len(names)), np.int64)

    def add(self, name, count=1):
        self._values[self._at[name]] += count

    def total(self, beginning):
        """Return the sum of all counters whose names begin so."""
        return int(sum(self._values[at] for name, at in self._at.items() if name.startswith(beginning)))


class Place(NamedTuple):
    """Where a run is, and what all of its processes know."""

    folder: Path
    seed: int
    counters: Counters

    @property
    def server(self):
        return f"ipc://{self.folder}/server"

    @property
    def proxy(self):
        return f"ipc://{self.folder}/proxy"

    @property
    def data(self):
        return self.folder / "data"

    def log(self, writer, incarnation):
        return self.folder / "logs" / f"{writer}-{incarnation}"

    def seen(self, kind, learner, incarnation):
        return self.folder / kind / f"{learner}-{incarnation}"

    def fault(self, source, what):
        """Put down that something is wrong."""
        line = json.dumps({"source": source, "what": str(what), "at": round(time.monotonic(), 3)})
        with (self.folder / "faults").open("a") as file:
            file.write(line + "\n")

    def faults(self):
        """Return what has been put down."""
        try:
            lines = (self.folder / "faults").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def client(self, address, name, memory):
        transport = ZmqTransport(address, retry_after_s=RETRY_AFTER_S, give_up_after_s=GIVE_UP_AFTER_S)
        return Client(transport, name, memory)


class Log:
    """What one incarnation of a writer was about to send, and what it was answered.

    Each entry is one call of the kernel: what was written stays, whenever the process is killed.
    """

    def __init__(self, place, writer, incarnation):
        path = place.log(writer, incarnation)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def intend(self, sequence):
        os.write(self._file, ENTRY.pack(INTENDED, sequence, time.monotonic_ns(), 0, 0, 0))

    def answered(self, sequence, keys):
        first = int(keys[0]) if len(keys) else 0
        entry = (ANSWERED, sequence, time.monotonic_ns(), first, len(keys), keys_check(keys))
        os.write(self._file, ENTRY.pack(*entry))


def keys_check(keys):
    """Return a checksum of keys, int64 [K], that depends on their order."""
    mixed = np.asarray(keys, np.int64).astype(np.uint64) * np.arange(3, 3 + 2 * len(keys), 2, np.uint64)
    return int(mixed.sum(dtype=np.uint64) % np.uint64(2**32 - 5))


def fork(target, *arguments):
    """Run a function in a process of its own, forked from this one; return its number.

    The process ends with this one. It must not be forked from one that has threads or sockets of ZeroMQ.
    """
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.getppid() == parent:
            status = target(*arguments) or 0
    except BaseException:  # of a forked process nothing must run that its parent had begun
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            os._exit(status)
    return child


assert _PAGE % ENTRY.size == 0
