"""Random histories of a server, its disk and its writers, each from a seed, and checked.

Writers, clients and service are those of production, in one process, under a clock that the history
turns. Messages are lost, doubled and delayed; the server's process is killed; the power is cut; actors die
and come again under their names. Each frame says of which writer, incarnation, lane, episode and step it
is, so that whatever is found in the memory can be held against what was written there.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from durability.simulated import Host
from fornix.common.errors import EvictedError, FornixError, InvalidRequestError, UnreachableError
from fornix.common.messages import FIRST, LAST, MID, Observe, Refused, Stacks
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, SamplerSpec, Sequence, TableSpec, Transition
from fornix.replay.client import Client
from fornix.replay.durable.records import LEFT
from fornix.replay.steps import Steps

N_FRAMES = 3
SIGNATURE = Signature(
    frame=ArraySpec.of((6,), np.int32),
    action=ArraySpec.of((), np.int32),
    extras={"note": ArraySpec.of((), np.int64)},
    n_frames=N_FRAMES,
)
TABLE = "t"
_TRIES = 400


class Clock:
    """A clock that the history turns."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FaultyTransport:
    """A way to the host's server that loses and doubles messages; like `ZmqTransport` it asks again."""

    def __init__(self, world):
        self._world = world
        self._requests = {}
        self._replies = {}
        self._last = 0

    def send(self, request):
        self._last += 1
        self._requests[self._last] = request
        self._submit(self._last)
        return self._last

    def poll(self, number, timeout_s=0.0):
        return self._replies.pop(number, None)

    def wait(self, number):
        for at in range(_TRIES):
            if at > 20:
                self._world.host.flusher.lets = True
            reply = self.poll(number)
            if reply is not None:
                self._requests.pop(number, None)
                return reply
            self._world.pass_time(0.03)
            if number not in self._replies:
                self._submit(number)
        raise UnreachableError("no answer came in all this time")

    def forget(self, number):
        self._requests.pop(number, None)
        self._replies.pop(number, None)

    def close(self):
        self._requests.clear()

    def _submit(self, number):
        world = self._world
        copies = 0 if world.chance(world.faults) else 1 + world.chance(world.faults)
        for _ in range(copies):
            world.deliver(world.host.service.submit((self, number), self._requests[number]))

    def take(self, number, reply):
        """A reply arrives."""
        if number in self._requests and not self._world.chance(self._world.faults):
            self._replies[number] = reply


@dataclass
class Request:
    """What one request wrote: rows of (lane, episode, step, step type), and lanes that left."""

    rows: list
    left: list


@dataclass
class Incarnation:
    """One life of an actor, and all that it has written."""

    name: int
    number: int
    writer: object
    requests: list = field(default_factory=list)
    acknowledged: int = 0
    durable: int = 0
    position: dict = field(default_factory=dict)
    """(episode, step) of each lane whose episode is open."""
    episodes: Counter = field(default_factory=Counter)
    asleep: set = field(default_factory=set)
    """Lanes whose open episode was overwritten as a server started."""
    found: int | None = None
    """Requests that a server was found to have, when the actor was dead already."""


class World:
    """One history.

    Args:
        seed: of everything in it.
        capacity: steps of the table.
        faults: probability with which each message is lost, and with which it is doubled.
        sampler: of the table.
    """

    def __init__(self, seed, capacity=48, faults=0.05, sampler=None, writers=3, lanes=3):
        self.rng = np.random.default_rng(seed)
        self.clock = Clock()
        self.faults = faults
        self.host = Host(self.clock, seed)
        self.lanes = lanes
        self.counts = Counter()
        self.sampler = sampler or SamplerSpec()
        self.admin = Client(FaultyTransport(self), "admin")
        self.admin.create_table(
            TABLE,
            TableSpec(
                signature=SIGNATURE, capacity_steps=capacity, limiter=LimiterSpec(), sampler=self.sampler
            ),
        )
        self.incarnations = 0
        self.actors = [self._incarnation(name) for name in range(writers)]
        self.dead = deque(maxlen=40)

    # what happens

    def chance(self, probability):
        return bool(self.rng.random() < probability)

    def deliver(self, answers):
        for (transport, number), reply in answers:
            transport.take(number, reply)

    def pass_time(self, seconds):
        self.clock.now += seconds
        self.deliver(self.host.service.expire())

    def write(self, at):
        """An actor writes one request."""
        actor = self.actors[at]
        left = []
        rows = []
        for lane in range(self.lanes):
            if lane in actor.position and self.chance(0.04):
                left.append(lane)
                del actor.position[lane]
            if self.chance(0.15):
                continue
            rows += self._step(actor, lane)
        if not rows and not left:
            return
        steps = steps_of(actor, rows)
        actor.requests.append(Request(rows, left))
        pending = actor.writer.observe(steps, leave=left or None, stacks=False)
        try:
            answer = pending.result()
        except EvictedError:  # a lane has slept too long for so small a ring
            self._give_up(at)
            return
        except InvalidRequestError:
            assert actor.asleep, "refused a step of a lane that is open"
            self._give_up(at)
            return
        actor.acknowledged = len(actor.requests)
        actor.durable = max(actor.durable, answer.durable)
        self.counts["rows"] += len(rows)

    def _give_up(self, at):
        """The actor's last request was refused: it begins anew."""
        self.actors[at].requests.pop()
        self.restart_actor(at)

    def repeat(self, at):
        """An actor's last request comes once more, after it was answered: the answer is the same."""
        actor = self.actors[at]
        if not actor.requests:
            return
        number = len(actor.requests)
        rows = actor.requests[-1].rows
        steps = steps_of(actor, rows)
        request = Observe(
            table=TABLE, writer=str(actor.name), incarnation=actor.number, sequence=number,
            leave=np.array(actor.requests[-1].left, np.int32) if actor.requests[-1].left else None,
            stacks=False, **steps.__dict__,
        )  # fmt: skip
        replies = [reply for _, reply in self.host.service.submit("again", request)]
        assert isinstance(replies[0], (Stacks, Refused)), replies
        self.counts["repeated"] += isinstance(replies[0], Stacks)

    def restart_actor(self, at):
        """An actor dies, and comes again under its name."""
        self.dead.append(self.actors[at])
        self.actors[at] = self._incarnation(self.actors[at].name)
        self.counts["actors killed"] += 1

    def sync(self):
        """Let the time come when the disk is synced, partly perhaps."""
        self.host.flusher.lets = self.chance(0.7)
        self.pass_time(0.11)
        self.host.flusher.step(int(self.rng.integers(0, 3)))
        self.pass_time(0.0)

    def kill(self):
        """Kill the server, and look at what the next one finds."""
        self.host.kill()
        self.counts["kills"] += 1
        self.check_memory(lossy=False)

    def cut_power(self):
        """Cut the power, and look at what the next server finds."""
        self.host.disk.write_back(self.rng, self.rng.random())
        self.host.cut_power()
        self.counts["power cuts"] += 1
        self.check_memory(lossy=True)

    def sample(self, unit=Transition(n_step=2)):  # noqa: B008 frozen
        """Draw a batch, and look at every frame in it."""
        table = self.table
        if not len(table.starts(unit)):
            return
        try:
            batch = self.admin.sample(TABLE, 16, unit, timeout_s=0.1).result()
        except FornixError:
            return
        self.counts["sampled"] += 16
        if isinstance(unit, Transition):
            check_transitions(batch, unit.n_step)
        else:
            check_sequences(batch)

    def step(self):
        """Let anything happen."""
        at = int(self.rng.integers(len(self.actors)))
        actions = [
            (60, lambda: self.write(at)),
            (8, self.sync),
            (5, lambda: self.host.disk.write_back(self.rng, self.rng.random())),
            (6, self.sample),
            (2, lambda: self.sample(Sequence(length=4))),
            (4, lambda: self.repeat(at)),
            (1, lambda: self.restart_actor(at)),
        ]
        weights = np.array([weight for weight, _ in actions], float)
        actions[self.rng.choice(len(actions), p=weights / weights.sum())][1]()

    # what must hold

    @property
    def table(self):
        return self.host.service._catalog[TABLE].table

    def check_memory(self, lossy):
        """Hold the rows that a server has found against what was written."""
        memory = self.table.memory
        assert not len(memory.broken), memory.broken
        ring = memory.ring
        numbers = np.arange(ring.tail, ring.head)
        records = memory.log.columns.file.records[numbers % ring.capacity]
        frames = ring.read("frame", numbers)
        seen = {}
        for number, record, frame in zip(numbers, records, frames, strict=True):
            if record["step_type"] == LEFT:
                continue
            writer, incarnation, lane, episode, step, check = (int(v) for v in frame)
            assert check == checksum(frame), f"row {number} is torn: {frame}"
            assert lane == record["lane"]
            seen.setdefault((writer, incarnation), []).append(
                (lane, episode, step, int(record["step_type"]))
            )
        known = {(actor.name, actor.number): actor for actor in (*self.dead, *self.actors)}
        for key, rows in seen.items():
            if key in known:
                self._check_writer(known[key], rows)
        for actor in self.actors:
            writer = memory.writers.get(str(actor.name))
            there = writer.sequence if writer is not None and writer.incarnation == actor.number else 0
            promised = actor.durable if lossy else actor.acknowledged
            assert promised <= there <= len(actor.requests), (promised, there, len(actor.requests))
            actor.acknowledged = there  # what is lost was not promised; the writer sends it again
            if there:
                self._check_lanes(actor, writer, there)

    def _check_writer(self, actor, rows):
        """The rows found are the last of a beginning of what was written."""
        if actor in self.actors:
            writer = self.table.memory.writers.get(str(actor.name))
            there = writer.sequence if writer is not None and writer.incarnation == actor.number else 0
            due = [row for request in actor.requests[:there] for row in request.rows]
            assert rows == due[len(due) - len(rows) :], f"{rows} is no end of {due}"
            return
        due = [row for request in actor.requests for row in request.rows]
        at = max(i for i, row in enumerate(due) if row == rows[-1])
        assert rows == due[at + 1 - len(rows) : at + 1], f"{rows} is no run of {due}"

    def _check_lanes(self, actor, writer, there):
        is_open = {}
        for request in actor.requests[:there]:
            for lane in request.left:
                is_open.pop(lane, None)
            for lane, episode, step, kind in request.rows:
                is_open[lane] = (episode, step)
                if kind == LAST:
                    del is_open[lane]
        ring = self.table.memory.ring
        frames = ring.read("frame", np.arange(ring.tail, ring.head))
        mine = frames[(frames[:, 0] == actor.name) & (frames[:, 1] == actor.number)]
        for lane in range(self.lanes):
            newest = int(writer.newest[lane])
            if lane not in is_open:
                assert newest < 0, f"lane {lane} of {actor.name} is open, and left or ended"
            elif newest >= ring.tail:
                frame = ring.read("frame", np.array([newest]))[0]
                assert (int(frame[3]), int(frame[4])) == is_open[lane]
            else:  # it slept for a whole ring: its episode can't go on
                assert not (mine[:, 2] == lane).any(), f"lane {lane} of {actor.name} is not open"
                actor.asleep.add(lane)

    def _incarnation(self, name):
        self.incarnations += 1
        client = Client(FaultyTransport(self), f"actor-{name}")
        writer = client.open_writer(TABLE, str(name), self.lanes, self.incarnations)
        return Incarnation(name, self.incarnations, writer)

    def _step(self, actor, lane):
        if lane not in actor.position:
            actor.episodes[lane] += 1
            actor.position[lane] = (actor.episodes[lane], 0)
            return [(lane, actor.episodes[lane], 0, FIRST)]
        episode, step = actor.position[lane]
        kind = LAST if self.chance(0.2) else MID
        if kind == LAST:
            del actor.position[lane]
        else:
            actor.position[lane] = (episode, step + 1)
        return [(lane, episode, step + 1, kind)]


def checksum(frame):
    """Return what the last number of a frame must be."""
    return int(np.dot(frame[:5].astype(np.int64), [7919, 104729, 1299709, 15485863, 32452843]) % 2**31)


def frame_of(actor, lane, episode, step):
    frame = np.array([actor.name, actor.number, lane, episode, step, 0], np.int32)
    frame[5] = checksum(frame)
    return frame


def steps_of(actor, rows):
    """Return rows of (lane, episode, step, step type) as steps of an actor."""
    frames = [frame_of(actor, lane, episode, step) for lane, episode, step, _ in rows]
    step = np.array([row[2] for row in rows], np.int32)
    return Steps(
        lane=np.array([row[0] for row in rows], np.int32),
        step_type=np.array([row[3] for row in rows], np.uint8),
        terminated=np.zeros(len(rows), np.bool_),
        action=step,
        reward=step.astype(np.float32),
        frame=np.array(frames, np.int32).reshape(-1, 6),
        extras={"note": np.array([row[1] for row in rows], np.int64)},
    )


def check_stack(stack):
    """A stack [n_frames, 6] is of one episode, each step after the one before, zeros before the first."""
    newest = stack[-1]
    for back in range(len(stack)):
        frame, step = stack[-1 - back], newest[4] - back
        if step < 0:
            assert not frame.any(), stack
        else:
            assert (frame[:4] == newest[:4]).all(), stack
            assert frame[4] == step, stack
            assert frame[5] == checksum(frame), stack


def check_transitions(batch, n_step):
    """Every transition is of one episode, with the reward and the steps that its frames say."""
    for at in range(len(batch.key)):
        stack, after = batch.stack[at], batch.next_stack[at]
        check_stack(stack)
        check_stack(after)
        assert (stack[-1][:4] == after[-1][:4]).all(), (stack, after)
        steps = int(batch.batch.steps[at])
        assert 1 <= steps <= n_step
        assert after[-1][4] == stack[-1][4] + steps
        assert batch.action[at] == stack[-1][4] + 1
        assert batch.extras["note"][at] == stack[-1][3]


def check_sequences(batch):
    """Every sequence is of one episode."""
    for at in range(len(batch.key)):
        for step in range(int(batch.batch.steps[at])):
            check_stack(batch.stack[at, step])
