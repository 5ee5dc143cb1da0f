"""Which rows make an episode: found in one pass over the records of a memory, oldest first.

Only the numbers of the rows of open episodes are kept.
"""

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from fornix.common.messages import FIRST, LAST
from fornix.replay.durable.reader import MemoryReader
from fornix.replay.durable.records import LEFT, NO_LANE
from fornix.replay.stacking import Numbers

_Lane = tuple[int, int, int]  # a writer's cell and opening, and its lane
_FIELDS = ("writer", "opening", "lane", "step_type", "back")


class Assembled(NamedTuple):
    """The rows of an episode from its FIRST on, int64 [T + 1] from base, and whether it still goes on."""

    numbers: Numbers
    open: bool


class Assembler:
    """Finds the episodes of a memory.

    Args:
        memory: to read.

    Attributes:
        overwritten: episodes that were passed over since their beginning is not there any more.
        damaged: those that were passed over since one of their rows, or their end, may be damaged.
    """

    def __init__(self, memory: MemoryReader) -> None:
        self.overwritten = 0
        self.damaged = 0
        self._memory = memory
        self._known: dict[_Lane, array[int] | None] = {}  # None: of an episode that is passed over
        self._hole = -1  # the newest row that is damaged

    def episodes(self) -> Iterator[Assembled]:
        """Yield the episodes: as they ended, then those that are open."""
        for numbers in self._memory.ranges():
            records, whole = self._memory.records(numbers)
            there = numbers >= self._memory.floor()
            if (there & ~whole).any():
                self._hole = int(numbers[there & ~whole][-1])
            kept = there & whole
            columns = [records[name][kept].tolist() for name in _FIELDS]
            for number, *fields in zip(numbers[kept].tolist(), *columns, strict=True):
                found = self._take(number, *fields)
                if found is not None:
                    yield found
        yield from self._rest()

    def _take(
        self, number: int, writer: int, opening: int, lane: int, step_type: int, back: int
    ) -> Assembled | None:
        """Take in a row; return the episode that it ends."""
        if lane == NO_LANE:
            return None
        where = writer, opening, lane
        if step_type == FIRST:
            if self._known.get(where):  # its end is not there
                self.damaged += 1
            self._known[where] = array("q", [number])
            return None
        if step_type == LEFT:
            return self._ended(where)
        self._go_on(where, number, number - back)
        return self._ended(where) if step_type == LAST else None

    def _go_on(self, where: _Lane, number: int, previous: int) -> None:
        rows = self._known.get(where)
        if rows is not None and rows[-1] == previous:
            rows.append(number)
        elif rows is not None:
            self.damaged += 1
            self._known[where] = None
        elif where not in self._known:
            self._known[where] = None
            if previous < self._memory.floor():
                self.overwritten += 1
            else:
                self.damaged += 1

    def _ended(self, where: _Lane) -> Assembled | None:
        rows = self._known.pop(where, None)
        return None if rows is None else Assembled(np.array(rows, np.int64), False)

    def _rest(self) -> Iterator[Assembled]:
        openings = self._memory.cut.openings()
        for (writer, opening, _), rows in self._known.items():
            if rows is not None and rows[-1] < self._hole:
                self.damaged += 1  # it may have ended there
            elif rows is not None:
                yield Assembled(np.array(rows, np.int64), openings.get(writer) == opening)
        self._known.clear()
