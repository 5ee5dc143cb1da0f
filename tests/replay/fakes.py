"""A server made by hand: a transport that a test answers, and memory that it overwrites."""

import numpy as np

from fornix.common.errors import UnreachableError, WaitTimeoutError
from fornix.common.messages import Batch, Column, Done, Hello, MapTable, Refused, Sample, TableMap, Welcome
from fornix.common.signature import ArraySpec, Signature, frame_name
from fornix.common.specs import Transition

SIGNATURE = Signature(frame=ArraySpec.of((2,), np.int32), action=ArraySpec.of((), np.int32), n_frames=2)


class FakeTransport:
    """Hands each request to `answer`, which returns a reply, or None while there is none yet."""

    def __init__(self, answer):
        self.answer = answer
        self.sent = []
        self.forgotten = []
        self.unreachable = False
        self._replies = {}

    def send(self, request):
        self.sent.append(request)
        self._replies[len(self.sent)] = None
        return len(self.sent)

    def poll(self, number, timeout_s=0.0):
        if self.unreachable:
            raise UnreachableError("no server")
        if self._replies[number] is None:
            self._replies[number] = self.answer(self.sent[number - 1])
        if self._replies[number] is None:
            return None
        return self._replies.pop(number)

    def wait(self, number):
        reply = self.poll(number)
        if reply is None:
            raise WaitTimeoutError("the test would wait for ever")
        return reply

    def forget(self, number):
        self.forgotten.append(number)
        self._replies.pop(number, None)

    def close(self):
        pass

    def requests(self, kind):
        return [request for request in self.sent if isinstance(request, kind)]


class FakeMemory:
    """Frames of one endless episode, of which the rows below `floor` count as overwritten.

    `on_intact` hears of each copy before it is judged. Stacks have two frames, as SIGNATURE says, and
    rows before the first are zero.
    """

    def __init__(self, number, frames, floor=0, head=0):
        self.number = number
        self.frames = frames
        self.floor = floor
        self.head = head
        self.is_served = True
        self.closed = False
        self.asked = 0
        self.on_intact = lambda: None

    def has(self, keys):
        return bool(keys.min() >= self.floor and keys.max() < self.head)

    def stacks(self, keys):
        rows = np.stack([keys - 1, keys], axis=1)
        made = {}
        for path, array in self.frames.items():
            made[path] = array[rows % (len(array) - 1)]
            made[path][rows < 0] = 0
        return made, self.intact(np.maximum(rows[:, 0], 0))

    def intact(self, oldest):
        self.asked += 1
        self.on_intact()
        return oldest >= self.floor

    def close(self):
        self.closed = True


def ramp(places, obs=(2,), dtype=np.int32, begin=0):
    """Return frames [places, *obs] that tell their places, the last of them zero."""
    values = begin + np.arange(places).reshape(-1, *[1] * len(obs))
    frames = np.broadcast_to(values, (places, *obs)).astype(dtype)
    frames[-1] = 0
    return frames


def batch(index, *, key=None, n_step=1, steps=None, **changes):
    """Return a batch of transitions; what the windows have is the caller's."""
    index = np.asarray(index, np.int32)
    rows = len(index)
    key = np.arange(rows) if key is None else np.asarray(key)
    fields = {
        "key": key.astype(np.int64),
        "next_key": key + 1,
        "probability": np.full(rows, 0.25),
        "weight": np.ones(rows, np.float32),
        "index": index,
        "steps": np.full(rows, n_step if steps is None else steps, np.int32),
        "action": key.astype(np.int32),
        "reward": key.astype(np.float32),
        "discount": np.full(rows, 0.5, np.float32),
        "policy_version": key.astype(np.int64),
        "extras": {},
    }
    return Batch(**(fields | changes))


def sequences(index, length, *, key=None, **changes):
    """Return a batch of sequences of `length` steps."""
    rows = len(index)
    key = np.arange(rows) if key is None else np.asarray(key)
    times = np.repeat(key[:, None], length, axis=1)
    fields = {
        "steps": np.full(rows, length, np.int32),
        "action": times.astype(np.int32),
        "reward": times.astype(np.float32),
        "discount": np.full((rows, length), 0.5, np.float32),
        "policy_version": times.astype(np.int64),
        "mask": np.ones((rows, length), np.bool_),
    }
    return batch(index, key=key, **(fields | changes))


def table_map(number, frames):
    columns = {
        frame_name(path): Column(offset=8192, shape=a.shape, dtype=a.dtype.str)
        for path, a in frames.items()
    }
    rows = len(next(iter(frames.values()))) - 1
    return TableMap(
        path=f"memory {number}",
        nbytes=1 << 20,
        token=np.zeros(16, np.uint8),
        memory=number,
        columns=columns | {"back": Column(offset=4096, shape=(rows,), dtype="<u4")},
    )


class FakeServer:
    """Answers what every client asks; `on_sample` and the like are the test's.

    `memories` are found by `fornix.replay.maps.MappedFrames.open`, once `mappable` has patched it.
    """

    def __init__(self, signature=SIGNATURE):
        self.signature = signature
        self.memory = None
        self.memories = {}
        self.on = {}
        self.transport = FakeTransport(self.answer)

    def put(self, memory):
        """Make a memory the table's."""
        self.memory = memory
        self.memories[f"memory {memory.number}"] = memory
        return memory

    def answer(self, request):
        if type(request) in self.on:
            return self.on[type(request)](request)
        if isinstance(request, Hello):
            return Welcome(server="fake", tables={"t": self.signature})
        if isinstance(request, MapTable):
            if self.memory is None:
                return Refused(code="INVALID", message="this server shares no memory")
            return table_map(self.memory.number, self.memory.frames)
        return Done()

    def open(self, found, signature):
        assert signature == self.signature
        return self.memories[found.path]


def rows_of(request):
    """Return how many samples a request asks for; it must be one for transitions."""
    assert isinstance(request, Sample)
    assert isinstance(request.unit, Transition)
    return request.batch_size
