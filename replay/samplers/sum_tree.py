"""A tree of sums over a column of non-negative numbers, to draw from it in proportion.

The tree of Schaul et al. 2016 (appendix B.2.1) is binary. Here each node has 16 children, which lie in
one row of memory: a million slots take three levels instead of twenty, and each level of a whole batch
is a handful of numpy calls. (Measured: 8 and 32 children are slower for large trees.)
"""

import numpy as np
from numpy.typing import NDArray

from fornix.replay.samplers.base import Numbers

Floats = NDArray[np.float64]

FANOUT = 16
#: A level of so few nodes is searched as a whole.
_TOP_NODES = 4096


def padded_column(slots: int) -> Floats:
    """Return a column of zeros, float64 [>= slots], that a SumTree can stand on."""
    return np.zeros(_padded(slots))


def _padded(count: int) -> int:
    return -(-count // FANOUT) * FANOUT


class SumTree:
    """The sums over those slots of a column that have been added to the tree.

    The leaves are not kept: they are the column itself, where a slot is in the tree, and 0 elsewhere. So
    several trees can stand on one column, for 1.6 bytes a slot each. Whoever changes the column calls
    `update` of each tree before it is used again.

    A parent is always computed from its children anew, so no rounding error outlives the numbers that it
    came from, and a parent is 0 exactly if all its children are.
    """

    def __init__(self, column: Floats) -> None:
        """Stand on a column of `padded_column`, whose sum has to stay finite."""
        self._leaves = column.reshape(-1, FANOUT)
        self._inside = np.zeros(self._leaves.shape, np.bool_)
        self._levels = [np.zeros(len(self._leaves))]
        while len(self._levels[-1]) > _TOP_NODES:
            self._levels[-1] = padded_column(len(self._levels[-1]))
            self._levels.append(np.zeros(len(self._levels[-1]) // FANOUT))
        self._edges: Floats | None = None

    def add(self, slots: Numbers) -> None:
        """Put slots in."""
        self._inside.reshape(-1)[slots] = True
        self.update(slots)

    def remove(self, slots: Numbers) -> None:
        """Take slots out."""
        self._inside.reshape(-1)[slots] = False
        self.update(slots)

    def contains(self, slots: Numbers) -> NDArray[np.bool_]:
        """Return which of `slots` are in it."""
        inside: NDArray[np.bool_] = self._inside.reshape(-1)[slots]
        return inside

    def update(self, slots: Numbers) -> None:
        """Take over the column's values at `slots`, int64 [K], in any order and with duplicates."""
        nodes = _without_runs(slots // FANOUT)
        self._levels[0][nodes] = self._leaf_rows(nodes).sum(axis=1)
        for below, above in zip(self._levels, self._levels[1:], strict=False):
            nodes = _without_runs(nodes // FANOUT)
            above[nodes] = _rows(below, nodes).sum(axis=1)
        self._edges = None

    def __getitem__(self, slots: Numbers) -> Floats:
        """Return the leaves at `slots`."""
        leaves: Floats = self._leaves.reshape(-1)[slots] * self._inside.reshape(-1)[slots]
        return leaves

    @property
    def total(self) -> float:
        """The sum of all leaves; 0 exactly if all of them are."""
        return float(self._top_edges()[-1])

    def find(self, prefix: Floats) -> Numbers:
        """Return for each prefix the first slot up to which, itself included, the leaves sum to more.

        A slot's share of the prefixes is its leaf's share of the total; one with leaf 0 is never found,
        however the sums are rounded.

        Args:
            prefix: float64 [K], in [0, total); the total must not be 0.
        """
        edges = self._top_edges()
        rest = np.minimum(prefix, np.nextafter(edges[-1], 0))
        nodes = np.searchsorted(edges, rest, side="right") - 1
        rest = rest - edges[nodes]
        for level in self._levels[-2::-1]:
            nodes, rest = _descend(nodes, _rows(level, nodes), rest)
        return _descend(nodes, self._leaf_rows(nodes), rest)[0]

    def positive(self, at_most: int) -> Numbers:
        """Return up to `at_most` slots whose leaves aren't 0, all if there are no more."""
        nodes = np.flatnonzero(self._levels[-1])[:at_most]
        for level in self._levels[-2::-1]:
            nodes = _positive_children(nodes, _rows(level, nodes), at_most)
        return _positive_children(nodes, self._leaf_rows(nodes), at_most)

    def _leaf_rows(self, nodes: Numbers) -> Floats:
        """Return the leaves below nodes of the lowest level, [K, FANOUT]."""
        rows = self._leaves.take(nodes, axis=0)
        rows *= self._inside.take(nodes, axis=0)
        return rows

    def _top_edges(self) -> Floats:
        """Return where the nodes of the top level begin and end, [nodes + 1]."""
        if self._edges is None:
            self._edges = np.zeros(len(self._levels[-1]) + 1)
            np.cumsum(self._levels[-1], out=self._edges[1:])
        return self._edges


def _rows(level: Floats, nodes: Numbers) -> Floats:
    """Return a copy of a level's values below nodes of the level above, [K, FANOUT]."""
    return level.reshape(-1, FANOUT).take(nodes, axis=0)


def _without_runs(nodes: Numbers) -> Numbers:
    """Return `nodes` without repetitions in a row: computing a node twice is waste, but no error."""
    fresh = np.ones(len(nodes), np.bool_)
    np.not_equal(nodes[1:], nodes[:-1], out=fresh[1:])
    return nodes[fresh]


def _descend(nodes: Numbers, children: Floats, rest: Floats) -> tuple[Numbers, Floats]:
    """Go from each node to the child in which the rest of its prefix lies.

    The child is the first at which the running sum, rounded as it is, exceeds the rest. A child of 0
    doesn't raise that sum, so it is never the first. There always is one, since the rest is kept below
    the last sum, and that is positive: only nodes with a positive child are ever descended to.
    """
    sums = np.cumsum(children, axis=1, out=children)
    rest = np.minimum(rest, np.nextafter(sums[:, -1], 0))
    child = (sums > rest[:, None]).argmax(axis=1)
    before = sums[np.arange(len(child)), child - 1]
    return nodes * FANOUT + child, rest - np.where(child > 0, before, 0.0)


def _positive_children(nodes: Numbers, children: Floats, at_most: int) -> Numbers:
    found = np.flatnonzero(children)[:at_most]
    return nodes[found // FANOUT] * FANOUT + found % FANOUT
