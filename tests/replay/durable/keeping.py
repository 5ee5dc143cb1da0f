"""The model of a memory and its tables, beside a service that keeps them on a disk and is killed."""

import numpy as np
from durability.simulated import Host

from fornix.common.specs import TableSpec
from fornix.replay.durable.log import guard_of
from fornix.replay.samplers.times import TimesSampled
from fornix.replay.stacking import NONE

from ..both import UNITS, Both
from ..builders import Clock, signature
from ..model import Model, Played, Row, TableModel, tail_after


class KeptModel(Model):
    """A memory in a file has more rows than its table has steps, and rows that say that lanes left."""

    def __init__(self, steps, like):
        super().__init__(steps, like)
        self.slots = steps + guard_of(steps)
        self.rows = [None] * self.slots  # the first key
        self.tail = self.slots
        self._before = 0

    def tail_after(self, more):
        return tail_after(self.tail, self.head, self.slots, self._before + more)

    def would_lose_a_stack(self, name, rows, leave=()):
        self._before = self._left(name, rows, leave)
        try:
            return super().would_lose_a_stack(name, rows, leave)
        finally:
            self._before = 0

    def is_whole(self, row, n_frames=None):
        return row.value is not None and super().is_whole(row, n_frames)

    def observe(self, name, rows, leave=()):
        version, left = self.head, self._left(name, rows, leave)
        self.leave(name, leave)
        for table in self.tables:
            table.tail = tail_after(table.tail, self.head, table.capacity, left)
        self.tail = self.tail_after(left)
        for _ in range(left):
            row = Row(self.head, None, False, 0, Played(), 0)
            row.episode.rows.append(row)
            self.rows.append(row)
            for table in self.tables:
                table.begin(row)
        self._look()
        newest = super().observe(name, rows)
        for row in self.rows[version + left :]:
            row.policy_version = version
        return newest

    def fall_asleep(self):
        """Close the episodes of which no row is there any more: no server finds them again."""
        for writer in self.writers.values():
            for lane, episode in enumerate(writer.open):
                if episode is not None and episode.rows[-1].number < self.tail:
                    writer.open[lane] = None

    def _left(self, name, rows, leave):
        lanes = {lane for lane in leave if self.writers[name].open[lane] is not None}
        return max(len(lanes), not rows)


class KeptBoth(Both):
    """What `Both` does to a memory, done to one on a simulated disk; `restart` compares what is kept."""

    def __init__(self, capacity, n_frames, sampler, like, seed):
        self.host = Host(Clock(), seed)
        self.host._keys = 0
        self._names = ["t"]
        self._made = 0
        self._begins = {}
        spec = TableSpec(signature=signature(n_frames, **like), capacity_steps=capacity, sampler=sampler)
        self._catalog.create("t", spec)
        self.model = KeptModel(capacity, signature(n_frames, **like))
        self.tables = [(self._catalog["t"].table, TableModel(self.model, capacity, n_frames, sampler))]
        self._requests = {}
        self._incarnation = self._values = 0

    @property
    def memory(self):
        return self._catalog["t"].table.memory

    @property
    def _catalog(self):
        return self.host.service._catalog

    def add_table(self, capacity, n_frames, sampler, seed):
        n_frames = min(n_frames, self.model.n_frames)
        capacity = max(n_frames + 1, capacity)
        self._made += 1
        name = f"t{self._made}"
        like = self.memory.signature.model_copy(update={"n_frames": n_frames})
        self._catalog.create(
            name, TableSpec(signature=like, capacity_steps=capacity, sampler=sampler, rows_of="t")
        )
        self._names.append(name)
        self.tables.append((self._catalog[name].table, TableModel(self.model, capacity, n_frames, sampler)))

    def drop_table(self):
        _, model = self.tables.pop()
        self._catalog.drop(self._names.pop())
        self.model.tables.remove(model)

    def reset(self):
        self._catalog.reset("t")
        self.model.reset()
        self._requests.clear()

    def write(self, name, plan, stacks=True, leave=None):
        writer = self.model.writers[name]
        begin = self.memory.ring.head
        written = super().write(name, plan, stacks, leave)
        if written:
            self._begins[name, writer.incarnation, writer.sequence] = begin
        self.note()
        return written

    def note(self):
        """Put down what has been counted, as the service does after each request."""
        for table, _ in self.tables:
            table.note()

    def sync(self):
        self._catalog.folder.sync_now()

    def restart(self, way):
        """Let the server end (`kill` or `close`), and compare what the next finds with what was there."""
        self.note()
        self._take_one_with_a_lost_row_away()
        before = [self._facts(table) for table, _ in self.tables]
        writers = self._writers()
        if way == "close":
            self.host.service.close()
            self.host.start()
        else:
            self.host.kill()
        self.tables = [
            (self._catalog[name].table, model)
            for name, (_, model) in zip(self._names, self.tables, strict=True)
        ]
        self.model.fall_asleep()
        assert self._writers() == writers, (self._writers(), writers)
        for (table, _), facts in zip(self.tables, before, strict=True):
            found = self._facts(table)
            assert found == facts, {
                name: (found[name], facts[name]) for name in facts if found[name] != facts[name]
            }
        for _, model in self.tables:
            model.units.clear()
            for unit in UNITS:
                model.use(unit)  # as they have been compared

    def _most_lanes(self):
        return max(1, min(super()._most_lanes(), self.model.capacity // 3))  # or idle writers are forgotten

    def _fitting(self, name, plan, stacks, leave):
        log = self.memory.log
        rows = super()._fitting(name, plan, stacks, leave)[: max(0, log.guard - len(set(leave)))]
        if not log.has_room(self.memory.ring.head, len(rows) + len(leave) + 1):
            self.sync()
        return rows

    def _take_one_with_a_lost_row_away(self):
        """A request that has lost a row to the tail can't be answered by the next server."""
        for name, applied in self._requests.items():
            kept = [
                one
                for one in applied
                if self._begins[name, one[0].incarnation, one[0].sequence] >= self.memory.ring.tail
            ]
            self._requests[name] = kept

    def _has_steps(self):
        return any(row.value is not None for row in self.model.rows[self.model.tail :])

    def _writers(self):
        tail = self.memory.ring.tail
        found = {}
        for name, writer in self.memory.writers.items():
            awake = writer.newest >= tail
            found[name] = (
                writer.incarnation,
                writer.sequence,
                np.where(awake, writer.newest, NONE).tolist(),
                np.where(awake & (writer.first >= tail), writer.first, NONE).tolist(),
                writer.position[awake].tolist(),
                writer.returns[awake].astype(np.float32).tolist(),
                writer.at,
                writer.opening,
            )
        return found

    def _facts(self, table):
        """Return all that a table's next server must know, in plain Python."""
        rows = np.arange(table._tail, self.memory.ring.head)
        counts = table.limiter.counts()
        found = {
            "counts": counts._replace(consumed=counts.consumed + counts.leased, leased=0),
            "specs": (table.spec, table.created),
            "rows": (self.memory.ring.tail, self.memory.ring.head, len(table)),
            "episodes": self.memory.episodes,
            "policy version": self.memory.newest_policy_version if self._has_steps() else None,
            "starts": [table.starts(unit).tolist() for unit in UNITS],
        }
        if table._priorities is not None:
            found["maximum"] = table._priorities.maximum
            found["powers"] = table._priorities.column[rows % self.memory.ring.capacity].tolist()
        times: TimesSampled = table._times
        if times.limit is not None:
            found["left"] = times.left(rows).tolist()
        return found
