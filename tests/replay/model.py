"""What a memory and its tables must do, said as plainly as can be: lists of episodes, and no ring.

Every row that ever came is kept. A row counts as gone once it lies below the tail, and what can be
drawn is looked for anew, among all rows, whenever something has happened.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import pytest

from fornix.common.messages import FIRST, LAST
from fornix.common.specs import Sequence, Transition

from .builders import actions_of, extras_of, frames_of

UNITS_KEPT = 4


def tail_after(tail, head, capacity, more):
    """Return the tail once `more` rows have come; from 256 rows on it moves in blocks, and ahead."""
    block = min(capacity // 256, 4096)
    needed = head + more - capacity + block
    return max(tail, math.ceil(needed / block) * block if block else needed)


@dataclass
class Played:
    """An episode, as far as it has come."""

    rows: list["Row"] = field(default_factory=list)
    ended: bool = False


@dataclass(eq=False)
class Row:
    number: int
    value: int
    terminated: bool
    policy_version: int
    episode: Played
    place: int
    """Its index in the episode."""

    def before(self, count):
        """Return the last `count` rows up to this one; fewer if the episode began later."""
        return self.episode.rows[max(0, self.place + 1 - count) : self.place + 1]

    def last_of(self, unit):
        """Return the last row of the unit that starts here; None if it is no start, or not yet."""
        rows, ended = self.episode.rows, self.episode.ended
        if isinstance(unit, Transition):
            span = unit.n_step
        elif isinstance(unit, Sequence):
            span = unit.length
            if self.place % (unit.length - unit.overlap):
                return None
            if ended and self.place > 0 and self.place + unit.overlap >= len(rows) - 1:
                return None
        else:
            span = unit.max_steps
            if self.place > 0 or not ended or len(rows) - 1 > span:
                return None
        if self.place + span < len(rows):
            return rows[self.place + span]
        return rows[-1] if ended and rows[-1] is not self else None


@dataclass
class Lanes:
    incarnation: int
    open: list[Played | None]
    sequence: int = 0


class Model:
    """A memory in plain words; rows are (lane, (step type, terminated), value), as in `builders`."""

    def __init__(self, capacity, like):
        self.capacity = capacity
        self.like = like
        self.n_frames = like.n_frames
        self.rows: list[Row] = []
        self.tail = 0
        self.writers: dict[str, Lanes] = {}
        self.tables: list[TableModel] = []

    @property
    def head(self):
        return len(self.rows)

    def tail_after(self, more):
        return tail_after(self.tail, self.head, self.capacity, more)

    def open_writer(self, name, incarnation, lanes):
        known = self.writers.get(name)
        if known is not None:
            self.leave(name, range(len(known.open)))
        self.writers[name] = Lanes(incarnation, [None] * lanes)

    def grow(self, name, lanes):
        open_lanes = self.writers[name].open
        open_lanes += [None] * (lanes - len(open_lanes))

    def leave(self, name, lanes):
        lanes_open = self.writers[name].open
        for lane in lanes:
            if lanes_open[lane] is not None:
                lanes_open[lane].ended = True
                lanes_open[lane] = None
        self._look()

    def would_lose_a_stack(self, name, rows, leave=()):
        """Whether some new row's stack reaches a row that is gone once all rows have come."""
        tail = self.tail_after(len(rows))
        episodes = [
            [row.number for row in episode.rows] if episode is not None and lane not in leave else []
            for lane, episode in enumerate(self.writers[name].open)
        ]
        for number, (lane, (kind, _), _) in enumerate(rows, self.head):
            if kind == FIRST:
                episodes[lane] = []
            episodes[lane].append(number)
            if min(episodes[lane][-self.n_frames :]) < tail:
                return True
        return False

    def observe(self, name, rows, leave=()):
        """Take the rows, and return the newest row of each lane, in order of appearance.

        The policy version of them all is the number of the first of them.
        """
        version = self.head
        writer = self.writers[name]
        writer.sequence += 1
        self.leave(name, leave)
        for table in self.tables:
            table.tail = tail_after(table.tail, self.head, table.capacity, len(rows))
        self.tail = self.tail_after(len(rows))
        self._look()
        newest = {}
        for lane, (kind, terminated), value in rows:
            if kind == FIRST:
                writer.open[lane] = Played()
            episode = writer.open[lane]
            row = Row(self.head, value, terminated, version, episode, len(episode.rows))
            episode.rows.append(row)
            self.rows.append(row)
            newest[lane] = row
            if kind == LAST:
                episode.ended = True
                writer.open[lane] = None
            for table in self.tables:
                table.begin(row)
                table.inserts += row.place > 0
        self._look()
        return list(newest.values())

    def reset(self):
        self.tail = self.head
        self.writers.clear()
        for table in self.tables:
            table.forget()

    def is_whole(self, row, n_frames=None):
        return row.before(n_frames or self.n_frames)[0].number >= self.tail

    def stack(self, row, n_frames=None):
        """Return the frames of a row's stack by path, [n_frames, *obs] each."""
        n_frames = n_frames or self.n_frames
        there = row.before(n_frames)
        return frames_of(self.like, [None] * (n_frames - len(there)) + [one.value for one in there])

    def _look(self):
        for table in self.tables:
            table.look()


class TableModel:
    """What may be drawn of a memory, one row after the other."""

    def __init__(self, memory, capacity, n_frames, sampler):
        self.memory = memory
        self.capacity = capacity
        self.n_frames = n_frames
        self.sampler = sampler
        self.tail = tail_after(memory.tail, memory.head, capacity, 0)
        memory.tables.append(self)
        self._begin()

    def _begin(self):
        self.units: OrderedDict[object, StartsModel] = OrderedDict()
        self.inserts = self.samples = 0
        self.times, self.priority, self.largest = {}, {}, 1.0
        for row in self.memory.rows[self.tail :]:
            self.begin(row)

    def forget(self):
        self.tail = self.memory.tail
        self._begin()

    def begin(self, row):
        """Take notice of a row."""
        self.times[row.number] = 0
        self.priority[row.number] = self.largest

    @property
    def oldest(self):
        """The oldest row that is there."""
        return max(self.tail, self.memory.tail)

    def is_there(self, number):
        return self.oldest <= number < self.memory.head

    def sampleable(self, unit):
        """Return {start: the last row of its unit} for all that may be drawn, if they aren't used up."""
        found = {}
        for row in self.memory.rows[self.oldest :]:
            last = row.last_of(unit)
            if last is not None and self.memory.is_whole(row, self.n_frames):
                found[row.number] = last.number
        return found

    def use(self, unit):
        """Return the starts of a unit; those of the four that were used last are kept."""
        if unit not in self.units:
            if len(self.units) == UNITS_KEPT:
                self.units.popitem(last=False)
            self.units[unit] = StartsModel(self, unit)
        self.units.move_to_end(unit)
        return self.units[unit]

    def look(self):
        for starts in self.units.values():
            starts.look()

    def uses(self, number):
        limit = self.sampler.uses
        return np.inf if limit is None else limit - self.times[number]

    def update(self, numbers, values):
        """Set priorities one after the other; return how many were those of rows that are there."""
        there = [number for number in numbers if self.is_there(number)]
        for number, value in zip(numbers, values, strict=True):
            if self.is_there(number):
                self.priority[number] = value
                self.largest = max(self.largest, value)
        return len(there)

    def weight(self, number):
        """Return p^α of a row."""
        priority, alpha = self.priority[number], self.sampler.priority_exponent
        return priority**alpha if priority else 0.0


class StartsModel:
    """The starts of one unit that a sampler holds, in the order in which they were completed."""

    def __init__(self, table, unit):
        self.table = table
        self.unit = unit
        self.order: list[int] = []
        #: Those that are left in the epoch.
        self.left: set[int] = set()
        self.look()

    def look(self):
        """Let go of what is no start any more, and take in what has become one."""
        present = self.table.sampleable(self.unit)
        self._remove({start for start in self.order if start not in present or not self.table.uses(start)})
        held = set(self.order)
        new = [(last, start) for start, last in present.items() if start not in held]
        new = [start for _, start in sorted(new) if self.table.uses(start)]
        self.order += new
        self.left |= set(new)

    def _remove(self, gone):
        if gone:
            self.order = [start for start in self.order if start not in gone]
        self.left -= gone
        if self.order and not self.left:
            self.left = set(self.order)

    def weight(self, start):
        kind = self.table.sampler.kind
        if kind == "prioritized":
            return self.table.weight(start)
        return float(start in self.left) if kind == "epoch" else 1.0

    def can_draw(self, count):
        kind = self.table.sampler.kind
        if kind in ("fifo", "lifo"):
            return len(self.order) >= count
        drawable = [start for start in self.order if kind == "epoch" or self.weight(start) > 0]
        return sum(map(self.table.uses, drawable)) >= max(1, count)

    def check_draw(self, numbers, probability):
        """Assert that these may be drawn, with this probability each, and do the same."""
        kind = self.table.sampler.kind
        in_order = {"fifo": self.order, "lifo": self.order[::-1]}.get(kind)
        if in_order is not None:
            assert numbers == in_order[: len(numbers)]
            assert set(probability) == {1.0}
        for number, chance in zip(numbers, probability, strict=True):
            assert number in self.order
            if in_order is None:
                wanted = self.weight(number) / sum(map(self.weight, self.order))
                assert chance == pytest.approx(wanted)
            self.table.times[number] += 1
            self.left.discard(number)
            self._remove({number} if not self.table.uses(number) else set())
        self.table.samples += len(numbers)
        self.table.look()

    def oldest(self, number):
        """Return the oldest row of the stack of a row."""
        return self.table.memory.rows[number].before(self.table.n_frames)[0].number

    def steps(self, number):
        """Return how many steps the unit has that starts at a row."""
        row = self.table.memory.rows[number]
        return row.last_of(self.unit).place - row.place

    def drawn(self, number, discount, steps):
        """Return everything that a batch says of the unit that starts at a row.

        Args:
            number: of the row.
            discount: γ.
            steps: T, that arrays of steps have.
        """
        memory, like = self.table.memory, self.table.memory.like
        row = memory.rows[number]
        last = row.last_of(self.unit)
        after = row.episode.rows[row.place + 1 : last.place + 1]
        acted_in = row.episode.rows[row.place : last.place]
        missing = [None] * (steps - len(after))
        stack = [one.value for one in row.before(self.table.n_frames)]
        padding = [None] * (self.table.n_frames - len(stack))
        rewards = [10.0 * one.value for one in after]
        found = {
            "key": number,
            "next_key": last.number,
            "steps": len(after),
            "window": frames_of(like, [*padding, *stack, *(one.value for one in after), *missing]),
        }
        if isinstance(self.unit, Transition):
            return found | {
                "action": actions_of(like, [after[0].value])[0],
                "reward": sum(discount**at * reward for at, reward in enumerate(rewards)),
                "discount": 0.0 if last.terminated else discount ** len(after),
                "policy_version": after[0].policy_version,
                "extras": {name: array[0] for name, array in extras_of(like, [row.value]).items()},
                "mask": None,
            }
        discounts = [0.0 if one.terminated else discount for one in after]
        return found | {
            "action": actions_of(like, [one.value for one in after] + missing),
            "reward": rewards + [0.0] * len(missing),
            "discount": discounts + [0.0] * len(missing),
            "policy_version": [one.policy_version for one in after] + [0] * len(missing),
            "extras": extras_of(like, [one.value for one in acted_in] + missing),
            "mask": [True] * len(after) + [False] * len(missing),
        }
