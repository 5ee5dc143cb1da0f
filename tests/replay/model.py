"""What a table must do, said as plainly as can be: lists of episodes, and no ring.

Every row that ever came is kept; a row counts as gone once `capacity` newer ones have come.
"""

from dataclasses import dataclass, field

import numpy as np

from fornix.common.messages import FIRST, LAST

from .builders import frame


@dataclass
class Episode:
    rows: list["Row"] = field(default_factory=list)
    ended: bool = False


@dataclass(eq=False)
class Row:
    number: int
    value: int
    terminated: bool
    policy_version: int
    episode: Episode
    place: int
    """Its index in the episode."""


@dataclass
class Lanes:
    incarnation: int
    open: list[Episode | None]
    sequence: int = 0


class Model:
    """A table in plain words; rows are (lane, (step type, terminated), value), as in `builders`."""

    def __init__(self, capacity, n_frames):
        self.capacity = capacity
        self.n_frames = n_frames
        self.rows: list[Row] = []
        self.writers: dict[str, Lanes] = {}

    @property
    def tail(self):
        return self.tail_after(0)

    def tail_after(self, more):
        return max(0, len(self.rows) + more - self.capacity)

    def open_writer(self, name, incarnation, lanes):
        for episode in self.writers[name].open if name in self.writers else ():
            if episode is not None:
                episode.ended = True
        self.writers[name] = Lanes(incarnation, [None] * lanes)

    def would_lose_a_stack(self, name, rows):
        """Whether some new row's stack reaches a row that is gone once all rows have come."""
        tail = self.tail_after(len(rows))
        episodes = [
            [row.number for row in episode.rows] if episode is not None else []
            for episode in self.writers[name].open
        ]
        for number, (lane, (kind, _), _) in enumerate(rows, len(self.rows)):
            if kind == FIRST:
                episodes[lane] = []
            episodes[lane].append(number)
            if min(episodes[lane][-self.n_frames :]) < tail:
                return True
        return False

    def observe(self, name, rows):
        """Take the rows, and return the newest row of each lane, in order of appearance.

        The policy version of them all is the number of the first of them.
        """
        version = len(self.rows)
        writer = self.writers[name]
        writer.sequence += 1
        newest = {}
        for lane, (kind, terminated), value in rows:
            if kind == FIRST:
                writer.open[lane] = Episode()
            episode = writer.open[lane]
            row = Row(len(self.rows), value, terminated, version, episode, len(episode.rows))
            episode.rows.append(row)
            self.rows.append(row)
            newest[lane] = row
            if kind == LAST:
                episode.ended = True
                writer.open[lane] = None
        return list(newest.values())

    def stack_rows(self, row):
        return row.episode.rows[max(0, row.place + 1 - self.n_frames) : row.place + 1]

    def is_whole(self, row):
        return all(one.number >= self.tail for one in self.stack_rows(row))

    def stack(self, row):
        there = [frame(one.value) for one in self.stack_rows(row)]
        return np.stack([np.zeros(2, np.int32)] * (self.n_frames - len(there)) + there)

    def end(self, row, n_step):
        """Return the row that a transition from `row` bootstraps from; `row` itself if it has none."""
        following = row.episode.rows[row.place : row.place + 1 + n_step]
        if len(following) == 1 + n_step or row.episode.ended:
            return following[-1]
        return row

    def starts(self, n_step):
        return [
            row.number
            for row in self.rows[self.tail :]
            if self.is_whole(row) and self.end(row, n_step) is not row
        ]

    def transition(self, number, n_step, discount):
        """Return everything that a batch says of the transition from a row."""
        row = self.rows[number]
        end = self.end(row, n_step)
        after = row.episode.rows[row.place + 1 : end.place + 1]
        steps = len(after)
        return {
            "stack": self.stack(row).tolist(),
            "next_stack": self.stack(end).tolist(),
            "next_key": end.number,
            "steps": steps,
            "action": after[0].value,
            "reward": sum(discount**at * 10.0 * one.value for at, one in enumerate(after)),
            "discount": 0.0 if end.terminated else discount**steps,
            "policy_version": after[0].policy_version,
            "probability": 1.0 / len(self.starts(n_step)),
        }
