"""Starts the processes of a run, carries their output, restarts what dies, and stops them all.

One loop and no threads: `Launcher.step` waits a moment for output, then looks who has died and who is
due to start again. Every process runs under `fornix.guard`, so that none outlives the launcher even
when that is killed. The kernel ties a guarded process to the *thread* that started it: use a launcher
from one thread.
"""

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from fornix.child import Child
from fornix.common.errors import FornixError


class GaveUpError(FornixError):
    """A process died so often that starting it again is no use."""

    code: ClassVar[str] = "GAVE_UP"
    exit_code: ClassVar[int] = 1


@dataclass(frozen=True)
class Role:
    """A process to keep running."""

    name: str
    command: tuple[str, ...]
    """What a person would type, with the program's full path first."""
    restart_command: tuple[str, ...] | None = None
    """What starts it again after a death; the same if not given."""
    finishes: bool = False
    """Whether exit code 0 says that its work is done. All others are to run until they are stopped."""
    stops_last: bool = False
    """Whether it is stopped only when the others have ended, since they need it to end well."""


@dataclass(frozen=True)
class Patience:
    """How deaths are met, and how long an end may take; all in seconds."""

    first_delay_s: float = 0.25
    longest_delay_s: float = 2.0
    deaths: int = 5
    """Deaths of one process within `window_s` after which the launcher gives up."""
    window_s: float = 60.0
    others_s: float = 3.0
    """From the stop until those are stopped too that stop last."""
    stop_s: float = 4.0
    """From the stop until whoever is left is killed."""

    def delay_s(self, deaths: int) -> float:
        """Return how long to wait after the n-th death in the window, twice as long each time."""
        return min(self.first_delay_s * 2.0 ** (deaths - 1), self.longest_delay_s)


@dataclass(frozen=True)
class ProcessState:
    """What the launcher knows of one process."""

    name: str
    pid: int | None
    state: str
    restarts: int


@dataclass
class _Post:
    """A role, and who fills it now."""

    role: Role
    child: Child | None = None
    starts: int = 0
    deaths: deque[float] = field(default_factory=deque)
    due: float | None = 0.0
    """When to start it; None while it runs, has finished or is stopped."""
    finished: bool = False

    def state(self, now: float) -> str:
        if self.child is not None:
            return "runs"
        if self.finished:
            return "finished"
        if self.due is None:
            return "ended"
        return f"restarts in {max(0.0, self.due - now):.1f} s" if self.starts else "starts"


class Launcher:
    """Keeps roles running until those that finish have finished, or it is stopped.

    Args:
        roles: to run.
        on_line: called with a role's name, or "run" for the launcher itself, and a line of output.
        log_dir: where each role's output is appended to `<name>.log`; None for nowhere.
        patience: with deaths and ends.
        environment: variables of the processes; this process's own if not given.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        roles: Sequence[Role],
        on_line: Callable[[str, str], None],
        *,
        log_dir: Path | None = None,
        patience: Patience | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._posts = [_Post(role) for role in roles]
        self._on_line = on_line
        self._log_dir = log_dir
        self._patience = patience or Patience()
        self._environment = dict(os.environ if environment is None else environment)
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._selector.close()

    @property
    def finished(self) -> bool:
        """Whether every role that finishes has done so (False if there is none)."""
        finishing = [post for post in self._posts if post.role.finishes]
        return bool(finishing) and all(post.finished for post in finishing)

    def states(self) -> list[ProcessState]:
        """Return the state of every process."""
        return [
            ProcessState(
                name=post.role.name,
                pid=post.child.pid if post.child else None,
                state=post.state(self._clock()),
                restarts=max(0, post.starts - 1),
            )
            for post in self._posts
        ]

    def step(self, timeout_s: float = 0.1) -> None:
        """Start who is due, carry what is written within `timeout_s`, and look who has died.

        Returns early where something was written.

        Raises:
            GaveUpError: if a process died too often; the others still run.
        """
        for post in self._posts:
            if post.due is not None and self._clock() >= post.due:
                self._start(post)
        self._carry(timeout_s)
        for post in self._posts:
            if post.child is not None and post.child.ended():
                self._meet_end(post, post.child.bury())

    def stop(self) -> None:
        """End every process: SIGTERM, and SIGKILL to whoever is still there after `stop_s`."""
        began = self._clock()
        for post in self._posts:
            post.due = None
        last = [post for post in self._posts if post.role.stops_last]
        first = [post for post in self._posts if not post.role.stops_last]
        self._terminate(first)
        self._await(first, began + self._patience.others_s)
        self._terminate(last)
        self._await(self._posts, began + self._patience.stop_s)
        for post in self._posts:
            if post.child is not None:
                self._on_line("run", f"{post.role.name} did not end in time and is killed")
                post.child.signal(signal.SIGKILL)
                post.child.bury()
                post.child = None

    def _start(self, post: _Post) -> None:
        role = post.role
        command = (post.starts and role.restart_command) or role.command
        post.child = Child(
            command,
            self._environment,
            self._selector,
            lambda line: self._on_line(role.name, line),
            self._log_dir and self._log_dir / f"{role.name}.log",
        )
        post.starts += 1
        post.due = None

    def _carry(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            key.data.read()

    def _meet_end(self, post: _Post, code: int) -> None:
        """Take note of an end, and plan the next start or raise GaveUpError."""
        post.child = None
        if post.role.finishes and code == 0:
            post.finished = True
            return
        now = self._clock()
        post.deaths.append(now)
        while now - post.deaths[0] > self._patience.window_s:
            post.deaths.popleft()
        deaths, cause = len(post.deaths), _cause(code)
        if deaths >= self._patience.deaths:
            raise GaveUpError(
                f"{post.role.name} {cause}, its death number {deaths} within "
                f"{self._patience.window_s:g} s, so the run ends; its last words are above"
                + (f" and in {self._log_dir / post.role.name}.log" if self._log_dir else "")
            )
        delay_s = self._patience.delay_s(deaths)
        post.due = now + delay_s
        self._on_line("run", f"{post.role.name} {cause}; it starts again in {delay_s:g} s")

    def _terminate(self, posts: Sequence[_Post]) -> None:
        """Send SIGTERM, once to each: a second one would cut a process's good end short."""
        for post in posts:
            if post.child is not None:
                post.child.signal(signal.SIGTERM)

    def _await(self, posts: Sequence[_Post], deadline: float) -> None:
        """Carry output until all have ended or the deadline passes."""
        while True:
            for post in posts:
                if post.child is not None and post.child.ended():
                    post.child.bury()
                    post.child = None
            left_s = deadline - self._clock()
            if left_s <= 0 or all(post.child is None for post in posts):
                return
            self._carry(min(left_s, 0.05))


def _cause(code: int) -> str:
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
