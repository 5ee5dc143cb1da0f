"""Shows a run while it goes: one live screen in a terminal, plain lines anywhere else."""

import contextlib
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live

from fornix.progress import Progress
from fornix.screen import plain_line, screen

_FRAMES_PER_S = 4.0
_LINE_PERIOD_S = 5.0
_LINES_SHOWN = 6
_LINES_KEPT = 30
_STAMPED = re.compile(r"^\d\d:\d\d:\d\d ")
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


class Display(Protocol):
    """Where a run is shown."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""

    def say(self, role: str, line: str) -> None:
        """Take a line of a process's output."""

    def show(self, progress: Progress) -> None:
        """Take the newest state; to be called often."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines, for the screen."""


def make_display() -> Display:
    """Return a live screen if standard output is a terminal, else plain lines."""
    # not console.is_terminal: FORCE_COLOR, usual in CI, makes that true of a pipe
    return LiveDisplay(Console()) if sys.stdout.isatty() else PlainDisplay()


class PlainDisplay:
    """Prints each line of output, and the progress every few seconds.

    Args:
        write: takes a line.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        write: Callable[[str], None] = lambda line: print(line, flush=True),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._clock = clock
        self._shown = clock()
        self.lines: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to end."""

    def say(self, role: str, line: str) -> None:
        """Print a line of a process's output, with its role."""
        self._print(stamped(role, line))

    def show(self, progress: Progress) -> None:
        """Print the state, unless that was done just before."""
        if self._clock() - self._shown >= _LINE_PERIOD_S:
            self._shown = self._clock()
            self._print(f"{time.strftime('%H:%M:%S')} run {plain_line(progress)}")

    def _print(self, line: str) -> None:
        # a run goes on when nobody listens any more; its logs are in files
        with contextlib.suppress(BrokenPipeError):
            self._write(line)


class LiveDisplay:
    """One live screen; the last lines of output stay below it when a run ends in an error.

    Args:
        console: a terminal.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._drawn = -1.0
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._kept: deque[str] = deque(maxlen=_LINES_KEPT)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        if error is not None:
            self._console.print("\n".join(self._kept), markup=False, highlight=False)

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines, for the screen."""
        return tuple(self._kept)[-_LINES_SHOWN:]

    def say(self, role: str, line: str) -> None:
        """Keep a line of a process's output."""
        self._kept.append(stamped(role, line))

    def show(self, progress: Progress) -> None:
        """Draw the state, unless that was done just before."""
        if self._clock() - self._drawn >= 1 / _FRAMES_PER_S:
            self._drawn = self._clock()
            self._live.update(screen(progress), refresh=True)


def stamped(role: str, line: str) -> str:
    """Return a line of output as `HH:MM:SS role message`, without control characters."""
    clean = _CONTROL.sub("", line)
    return clean if _STAMPED.match(clean) else f"{time.strftime('%H:%M:%S')} {role} {clean}"
