"""Environments that keep a log of what truly happened, and a transport that keeps what was written."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from fornix.common import trees
from fornix.common.messages import FIRST, LAST, MID, Observe, Refused
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import TableSpec
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.vector_writer import VectorWriter

from .builders import Clock

N_FRAMES = 3
MODES = {mode.name.lower(): mode for mode in AutoresetMode}

#: How an observation of the numbers (env, episode, step) looks: its space, and how it is made.
FORMS = {
    "box": (Box(0, 2**30, (3,), np.int32), lambda where: np.array(where, np.int32)),
    "cast": (Box(0, 2**30, (3,), np.float32), lambda where: np.array(where, np.float64)),
    "discrete": (Discrete(1_000_000), lambda where: where[0] * 10_000 + where[1] * 100 + where[2]),
    "dict": (
        Dict({"env": Discrete(100), "time": Box(0, 2**30, (2,), np.int64)}),
        lambda where: {"env": where[0], "time": np.array(where[1:])},
    ),
    "tuple": (
        Tuple((Box(0, 1000, (1,), np.int16), Dict({"a": Tuple((Box(0, 2**30, (2, 1), np.float32),))}))),
        lambda where: (
            np.array(where[:1], np.int16),
            {"a": (np.array(where[1:], np.float32).reshape(2, 1),)},
        ),
    ),
}
ACTIONS = {"discrete": Discrete(7), "box": Box(-1, 1, (2,), np.float32)}


class LoggingEnv(gymnasium.Env):
    """Episodes of 1 to 5 steps that terminate, are truncated, or both; `log` has what happened."""

    def __init__(self, number, form="box", action="discrete"):
        self.observation_space, self._make = FORMS[form]
        self.action_space = ACTIONS[action]
        self.number = number
        self.episode, self.at = -1, 0
        self.log = []
        self._rng = np.random.default_rng(number)

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        self.at = 0
        self._length = int(self._rng.integers(1, 6))
        self._ending = [(True, False), (False, True), (True, True)][int(self._rng.integers(3))]
        self.log.append((FIRST, False, None, 0.0, self._seen()))
        return self._make(self._seen()), {}

    def step(self, action):
        self.at += 1
        assert self.at <= self._length, "stepped beyond the end"
        over = self.at == self._length
        terminated, truncated = self._ending if over else (False, False)
        reward = 100.0 * self.number + 10 * self.episode + self.at + float(np.sum(action)) / 8
        self.log.append((LAST if over else MID, terminated, np.copy(action), reward, self._seen()))
        return self._make(self._seen()), reward, terminated, truncated, {}

    def frame(self, where):
        """Return an observation as arrays by path, as a vector of environments has it."""
        spaces = trees.leaves(_bare(self.observation_space))
        made = trees.leaves(self._make(where))
        return {path: np.asarray(made[path], space.dtype) for path, space in spaces.items()}

    def _seen(self):
        return (self.number, self.episode, self.at)


def _bare(space):
    if isinstance(space, Dict):
        return {name: _bare(inner) for name, inner in space.items()}
    if isinstance(space, Tuple):
        return tuple(_bare(inner) for inner in space)
    return space


def make_envs(mode, copies=4, form="box", action="discrete", **options):
    return SyncVectorEnv(
        [lambda number=number: LoggingEnv(number, form, action) for number in range(copies)],
        autoreset_mode=MODES[mode],
        **options,
    )


class Written(LocalTransport):
    """Keeps every row that is written, by lane; can refuse the next writes as a server would."""

    def __init__(self, service):
        super().__init__(service)
        self.rows = {}
        self.requests = []
        self.refuse = []

    def send(self, request):
        if not isinstance(request, Observe):
            return super().send(request)
        self.requests.append(request)
        if self.refuse:
            self._last_number += 1
            self._awaited.add(self._last_number)
            error = self.refuse.pop(0)
            self._replies[self._last_number] = Refused(code=error.code, message="as the test wants it")
            return self._last_number
        number = super().send(request)
        if not isinstance(self._replies.get(number), Refused):
            self._keep(request)
        return number

    def _keep(self, request):
        for lane in [] if request.leave is None else request.leave.tolist():
            self.rows[lane].append("left")
        frames = trees.leaves(request.frame)
        for at, lane in enumerate(request.lane.tolist()):
            frame = {path: array[at].copy() for path, array in frames.items()}
            row = (request.step_type[at], request.terminated[at], request.action[at].copy())
            self.rows.setdefault(lane, []).append((*row, request.reward[at], frame))


def spec_of(space):
    if isinstance(space, Dict):
        return {name: spec_of(inner) for name, inner in space.items()}
    if isinstance(space, Tuple):
        return tuple(spec_of(inner) for inner in space)
    return ArraySpec.of(space.shape, space.dtype)


def open_table(lanes=4, form="box", action="discrete", capacity=2000, extras=None, limiter=None):
    """Return a client of a service of its own, with its transport and a writer."""
    transport = Written(ReplayService(Clock(), seed=0))
    client = Client(transport)
    space = ACTIONS[action]
    n_values = int(space.n) if isinstance(space, Discrete) else None
    signature = Signature(
        frame=spec_of(FORMS[form][0]),
        action=ArraySpec.of(space.shape, space.dtype, n_values),
        extras=extras or {},
        n_frames=N_FRAMES,
    )
    client.create_table("t", TableSpec(signature=signature, capacity_steps=capacity))
    return client, transport, client.open_writer("t", "w", lanes)


class Lane:
    """What must have been written of one environment, told from its log."""

    def __init__(self, env):
        self.env = env
        self.rows = []
        self.joined, self.open, self.shown, self.at_once = True, False, False, False
        self._seen = len(env.log)

    def catch_up(self):
        """Take in what has happened since."""
        for row in self.env.log[self._seen :] if self.joined else []:
            if row[0] == FIRST or (self.at_once and row[0] == MID):
                self.rows += ["left"] if self.open else []
                self.rows.append((FIRST, False, None, 0.0, row[4]))
                self.open, self.at_once = True, False
            elif self.open:
                self.rows.append(row)
                self.open = row[0] != LAST
            self.shown |= self.open
        self._seen = len(self.env.log)

    def leave(self):
        self.rows += ["left"] if self.open else []
        self.joined = self.open = self.shown = self.at_once = False

    def join(self, at_once=False):
        self.joined, self.at_once = True, at_once

    @property
    def stack(self):
        """The stack that the policy must see now, by path."""
        begin = max(at for at, row in enumerate(self.rows) if row[0] == FIRST)
        frames = [self.env.frame(row[4]) for row in self.rows[begin:][-N_FRAMES:]]
        zeros = {path: np.zeros_like(array) for path, array in frames[0].items()}
        frames = [zeros] * (N_FRAMES - len(frames)) + frames
        return {path: np.stack([frame[path] for frame in frames]) for path in zeros}

    def check_rows(self, written):
        """The rows are what happened, to the bit."""
        assert len(written) == len(self.rows)
        for row, true in zip(written, self.rows, strict=True):
            assert (row == "left") == (true == "left")
            if row != "left":
                self._check_row(row, true)

    def _check_row(self, row, true):
        assert (row[0], row[1]) == true[:2]
        assert row[3] == np.float32(true[3])
        if row[0] != FIRST:
            np.testing.assert_array_equal(row[2], true[2])
        for path, array in self.env.frame(true[4]).items():
            assert row[4][path].dtype == array.dtype
            np.testing.assert_array_equal(row[4][path], array)


class Run:
    """A policy at random, in a vector of environments that is written."""

    def __init__(
        self, mode, copies=4, form="box", action="discrete", *, first=False, lanes=None, **options
    ):
        self.mode, self.first = mode, first
        self.envs = make_envs(mode, copies, form, action)
        self.width = copies if lanes is None else lanes
        self.client, self.transport, self.writer = open_table(self.width, form, action, **options)
        self.rows = VectorWriter(self.writer, MODES[mode])
        self.envs.action_space.seed(0)
        self.lanes = [Lane(env) for env in self.envs.envs[: self.width]]

    def begin(self, **options):
        observation, _ = self.envs.reset(seed=0)
        return self.answered(self.rows.reset(self.cut(observation), **options))

    def act(self):
        """Step the environments, and return what `VectorWriter.step` is given."""
        action = self.envs.action_space.sample()
        *given, info = self.envs.step(action)
        self.over = given[2] | given[3]
        self.done = self.over[: self.width]
        names = [name for name in ("final_obs", "_final_obs") if name in info]
        info = info | {name: info[name][: self.width] for name in names}
        return [*self.cut((action, *given)), info]

    def reset_done(self):
        """Reset where the caller has to; return the observations, and where."""
        observation, _ = self.envs.reset(options={"reset_mask": self.over.copy()})
        return self.cut((observation, self.over))

    def step(self, **options):
        """One step; and where the caller has to reset, that too."""
        given = self.act()
        resets = self.mode == "disabled" and self.over.any()
        if resets and self.first:
            options["first"], _ = self.reset_done()
        answer = self.answered(self.rows.step(*given, **options))
        if resets and not self.first:
            observation, mask = self.reset_done()
            answer = self.answered(self.rows.reset(observation, mask))
        return answer

    def answered(self, pending):
        """Return the result, which has the true stack of each lane that is written, and of no other."""
        answer = pending.result()
        for lane in self.lanes:
            lane.catch_up()
        shown = [number for number, lane in enumerate(self.lanes) if lane.shown]
        assert answer.lane.tolist() == shown
        assert answer.key.shape == (len(shown),)
        if answer.stack is not None:
            by_key = trees.leaves(self.client.stacks("t", answer.key).stack)
            for path, stacks in trees.leaves(answer.stack).items():
                np.testing.assert_array_equal(stacks, by_key[path])
                for at, lane in enumerate(shown):
                    np.testing.assert_array_equal(stacks[at], self.lanes[lane].stack[path])
        return answer

    def leave(self, *numbers):
        self.rows.leave(numbers)
        for number in numbers:
            self.lanes[number].leave()

    def join(self, *numbers, at_once=False):
        self.rows.join(numbers, at_once=at_once)
        self.width = max(self.width, *(number + 1 for number in numbers))
        self.lanes += [Lane(env) for env in self.envs.envs[len(self.lanes) : self.width]]
        for number in numbers:
            self.lanes[number].join(at_once)

    def cut(self, arrays):
        """Return the rows of the lanes that the writer has."""
        return trees.mapped(arrays, lambda array: array[: self.width])

    def check(self):
        """What was written is what happened."""
        for number, lane in enumerate(self.lanes):
            lane.check_rows(self.transport.rows.get(number, []))
