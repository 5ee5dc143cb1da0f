"""Treasure hunt: agents in a walled gridworld collect what grows on the floor.

A turn: every empty inner cell grows a treasure with `spawn_prob`, its kind drawn evenly; all agents
observe; their moves are resolved one after another. An episode is `max_turns` turns and then
truncated; the next begins with an empty world and the agents on random distinct cells.

All copies live in one flat array of cells. Each world is padded with `radius` cells of wall on
every side, so each window lies inside the array and one gather reads all windows of all copies.
"""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fornix.actor.environments import (
    EnvironmentSpec,
    VectorStep,
    check_action,
    check_mask,
    check_running,
    check_sizes,
)
from fornix.common.config import TreasureHuntConfig
from fornix.common.errors import InvalidRequestError

EMPTY, WALL, FIRST_TREASURE = 0, 1, 2
"""Kinds of cell. Treasures follow in the order of their configuration, and `agent` is the last."""

ACTIONS = ("up", "down", "left", "right")
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""What each action adds to an agent's (row, column)."""


class TreasureHunt:
    """Copies of the treasure-hunt world, stepped together: a `VectorEnvironment`.

    A frame is uint8 `[side * side * kinds]` with `side = 2 * radius + 1`: for each cell of the
    agent's window, row by row, the one-hot of its kind. The agent itself is in the middle and reads
    `agent`; what is outside the world reads `wall`.

    Args:
        config: The world's size, agents, treasures and rules.
        copies: Worlds to step together, at least 1.
        seed: Source of all randomness, at least 0. The copies share one generator.

    Attributes:
        kinds: The kinds of cell, in the order of the one-hot.
    """

    def __init__(self, config: TreasureHuntConfig, copies: int, seed: int) -> None:
        check_sizes(copies, seed)
        self.config = config
        self.copies = copies
        self.kinds = ("empty", "wall", *config.treasures, "agent")
        side = 2 * config.radius + 1
        self.spec = EnvironmentSpec(
            frame_shape=(side * side * len(self.kinds),),
            frame_dtype=np.dtype(np.uint8),
            n_actions=len(ACTIONS),
            agents=tuple(f"agent_{index}" for index in range(config.agents)),
        )
        self._rng = np.random.default_rng(seed)
        self._agent_kind = len(self.kinds) - 1
        self._reward = np.array([0, -1, *config.treasures.values(), 0], np.float32)
        self._one_hot = np.eye(len(self.kinds), dtype=np.uint8)
        self._build_cells()
        self._begun = np.zeros(copies, np.bool_)
        self._over = np.ones(copies, np.bool_)
        self._turn = np.zeros(copies, np.int64)

    def _build_cells(self) -> None:
        """Lay out the cells of all copies, walls around empty floors, and their flat indices."""
        height, width, pad = self.config.height, self.config.width, self.config.radius
        shape = (self.copies, height + 2 * pad, width + 2 * pad)
        cells = np.full(shape, WALL, np.min_scalar_type(len(self.kinds)))
        self._world = cells[:, pad : pad + height, pad : pad + width]
        self._inner = self._world[:, 1:-1, 1:-1]
        self._inner[:] = EMPTY
        self._cells = cells.reshape(-1)  # a view: what moves here, moves in _world and _inner too
        index = np.arange(cells.size).reshape(shape)
        self._inner_index = index[0, pad + 1 : pad + height - 1, pad + 1 : pad + width - 1].ravel()
        self._copy_index = index[:, 0, 0]
        self._stride = np.array([row * shape[2] + column for row, column in MOVES])
        span = np.arange(-pad, pad + 1)
        self._window = (span[:, None] * shape[2] + span).ravel()
        self._place = np.zeros((self.copies, self.config.agents), np.int64)

    def reset(self, mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Begin new episodes where `mask` is true; see `VectorEnvironment.reset`."""
        check_mask(mask, self._begun)
        self._begun |= mask
        self._over &= ~mask
        self._turn[mask] = 0
        self._inner[mask] = EMPTY
        self._put_agents(np.flatnonzero(mask))
        self._grow(mask)
        return self._observe()

    def step(self, action: NDArray[np.int64]) -> VectorStep:
        """Move every agent, then begin the next turn; see `VectorEnvironment.step`."""
        check_action(action, self.copies, self.spec)
        check_running(self._over)
        reward = np.empty(self._place.shape, np.float32)
        for agent in range(self.config.agents):
            reward[:, agent] = self._move(agent, action[:, agent])
        self._turn += 1
        self._over = self._turn == self.config.max_turns
        self._grow(np.ones(self.copies, np.bool_))
        return VectorStep(self._observe(), reward, np.zeros_like(self._over), self._over.copy())

    def close(self) -> None:
        """Do nothing: a world holds memory only."""

    def cells(self) -> NDArray[Any]:
        """Return a copy of the kinds of all cells: unsigned `[copies, height, width]`."""
        return self._world.copy()

    def positions(self) -> NDArray[np.int64]:
        """Return the row and column of every agent: `[copies, agents, 2]`."""
        padded_width = self.config.width + 2 * self.config.radius
        cell = self._place - self._copy_index[:, None]
        return np.stack(np.divmod(cell, padded_width), axis=-1) - self.config.radius

    def render(self, copy: int = 0, px: int = 24, *, windows: bool = False) -> NDArray[np.uint8]:
        """Draw one copy.

        Args:
            copy: Which one.
            px: Side of a cell in pixels, at least 4.
            windows: Whether to shade what each agent sees in its colour.

        Returns:
            RGB `[height * px, width * px, 3]`.

        Raises:
            InvalidRequestError: There is no such copy, or `px` is too small.
        """
        if not 0 <= copy < self.copies or px < 4:
            raise InvalidRequestError(
                f"render got copy {copy} at {px} pixels a cell; copies run from 0 to "
                f"{self.copies - 1}, and a cell needs 4 pixels"
            )
        # A copy that never began has no agents yet.
        places = self.positions()[copy] if self._begun[copy] else np.zeros((0, 2), np.int64)
        return draw(self._world[copy], places, px, self.config.radius if windows else None)

    def _put_agents(self, copies: NDArray[np.intp]) -> None:
        """Put the agents of `copies`, whose floors are empty, on random distinct inner cells."""
        drawn = distinct(self._rng, len(copies), self.config.agents, self._inner_index.size)
        self._place[copies] = self._copy_index[copies, None] + self._inner_index[drawn]
        self._cells[self._place[copies]] = self._agent_kind

    def _move(self, agent: int, action: NDArray[np.int64]) -> NDArray[np.float32]:
        """Move one agent in every copy by `action` `[copies]`; return its rewards `[copies]`."""
        here = self._place[:, agent]
        there = here + self._stride[action]
        found = self._cells[there]
        blocked = (found == WALL) | (found == self._agent_kind)
        place = np.where(blocked, here, there)
        self._cells[here] = EMPTY
        self._cells[place] = self._agent_kind
        self._place[:, agent] = place
        reward: NDArray[np.float32] = self._reward[found]
        return reward

    def _grow(self, mask: NDArray[np.bool_]) -> None:
        """Grow treasures on empty inner cells of the copies where `mask` is true."""
        grows = self._rng.random(self._inner.shape, np.float32) < self.config.spawn_prob
        grows &= self._inner == EMPTY
        grows &= mask[:, None, None]
        count = np.count_nonzero(grows)
        self._inner[grows] = self._rng.integers(FIRST_TREASURE, self._agent_kind, count)

    def _observe(self) -> NDArray[np.uint8]:
        """Return every agent's frame: `[copies, agents, side * side * kinds]`, a fresh array."""
        windows = self._cells[self._place[:, :, None] + self._window]
        frames = self._one_hot.take(windows, axis=0)
        return frames.reshape(self.copies, self.config.agents, -1)


def distinct(rng: np.random.Generator, rows: int, count: int, limit: int) -> NDArray[np.int64]:
    """Draw `count` distinct integers below `limit` for each row: int64 `[rows, count]`.

    Every ordered choice is equally likely: Floyd's sampling (Bentley and Floyd 1987) draws the set
    of each row, and a shuffle its order. `count` must not exceed `limit`.
    """
    drawn = np.full((rows, count), -1, np.int64)
    for index, last in enumerate(range(limit - count, limit)):
        candidate = rng.integers(0, last, rows, endpoint=True)
        taken = (drawn == candidate[:, None]).any(axis=1)
        drawn[:, index] = np.where(taken, last, candidate)
    return rng.permuted(drawn, axis=1)


FLOOR, GRID, WALL_FACE, WALL_EDGE = (247, 244, 237), (234, 229, 218), (66, 73, 91), (52, 58, 73)
TREASURES = ((240, 173, 36), (38, 166, 138), (222, 72, 98), (80, 124, 226), (158, 96, 206))
INK, WHITE = (38, 42, 54), (255, 255, 255)


def draw(
    world: NDArray[Any], places: NDArray[np.int64], px: int, radius: int | None = None
) -> NDArray[np.uint8]:
    """Draw a world: RGB `[height * px, width * px, 3]`.

    Args:
        world: Kinds `[height, width]`.
        places: Row and column of each agent, `[agents, 2]`.
        px: Side of a cell in pixels.
        radius: Shade the window of this radius around each agent in its colour; None: no window.
    """
    tiles = np.empty((*world.shape, px, px, 3))
    tiles[:], tiles[:, :, 1:, 1:] = GRID, FLOOR
    tiles[world == WALL], tiles[world == WALL, 1:, 1:] = WALL_EDGE, WALL_FACE
    colours = [_agent_colour(index) for index in range(len(places))]
    if radius is not None:
        for (row, column), colour in zip(places, colours, strict=True):
            rows, columns = (slice(max(at - radius, 0), at + radius + 1) for at in (row, column))
            tiles[rows, columns] += 0.12 * (colour - tiles[rows, columns])
    things = world.copy()
    things[tuple(places.T)] = EMPTY
    for row, column in np.argwhere(things >= FIRST_TREASURE):
        _draw_treasure(tiles[row, column], int(things[row, column]) - FIRST_TREASURE)
    for (row, column), colour in zip(places, colours, strict=True):
        _draw_agent(tiles[row, column], colour)
    return tiles.swapaxes(1, 2).reshape(world.shape[0] * px, -1, 3).round().astype(np.uint8)


def _agent_colour(index: int) -> NDArray[np.float64]:
    """Return an agent's colour: hues a golden angle apart, so that any two differ."""
    return 255 * np.array(colorsys.hsv_to_rgb((0.58 + index * 0.618034) % 1, 0.68, 0.84))


def _draw_agent(tile: NDArray[np.float64], colour: NDArray[np.float64]) -> None:
    """Draw a disc with a dark rim and two eyes on a tile `[px, px, 3]`."""
    x, y = _plane(len(tile))
    _blend(tile, np.hypot(x, y) - 0.40, 0.72 * colour)
    _blend(tile, np.hypot(x, y) - 0.34, colour)
    _blend(tile, np.hypot(np.abs(x) - 0.13, y + 0.06) - 0.085, np.array(WHITE))
    _blend(tile, np.hypot(np.abs(x) - 0.13, y + 0.04) - 0.045, np.array(INK))


def _draw_treasure(tile: NDArray[np.float64], kind: int) -> None:
    """Draw a diamond, lit from above, on a tile `[px, px, 3]`; `kind` picks its colour."""
    x, y = _plane(len(tile))
    colour = np.array(TREASURES[kind % len(TREASURES)], np.float64)
    body = np.abs(x) * 1.25 + np.abs(y) - 0.36
    _blend(tile, body, 0.80 * colour)
    _blend(tile, np.maximum(body, y), colour)
    _blend(tile, np.maximum(np.abs(x) * 2.6 + np.abs(y) - 0.36, y), colour + 0.45 * (255 - colour))


def _plane(px: int) -> NDArray[np.float64]:
    """Return x and y of a tile's pixels, `[2, px, px]`, from -0.5 to 0.5 with y downwards."""
    return (np.mgrid[:px, :px][::-1] + 0.5) / px - 0.5


def _blend(tile: NDArray[np.float64], distance: NDArray[np.float64], colour: NDArray[Any]) -> None:
    """Paint `colour` where `distance` (in tile sides) is below 0, its edge one pixel soft."""
    coverage = np.clip(0.5 - distance * len(tile), 0, 1)[..., None]
    tile += coverage * (colour - tile)
