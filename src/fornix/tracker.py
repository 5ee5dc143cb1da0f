"""Follows a run while it goes, from one info of its server to the next."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from fornix.common.messages import Info
from fornix.launch import ProcessState
from fornix.progress import Progress, measures, rows, rows_of_reports

_SCORES_KEPT = 2000
_SILENT_S = 3.0
#: What says nothing any more once the server is silent.
_OF_THE_MOMENT = frozenset(
    (
        "agent_steps_per_s",
        "gradient_steps_per_s",
        "learner_waiting",
        "actor_waiting",
        "actor_held",
        "policy_lag",
    )
)


class Tracker:
    """Follows a run: remembers how its score went, and makes each new Progress.

    Args:
        title: of the screen.
        clock: seconds, monotonic.
    """

    def __init__(self, title: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._scores: list[float] = []
        self._measured: dict[str, Any] = {}
        self._info: Info | None = None
        self._told = clock()
        self.title = title
        self.score_random: float | None = None

    def take(self, info: Info | None) -> None:
        """Take what the server has told, if it has."""
        if info is None:
            return
        self._info = info
        self._told = self._clock()
        self._measured |= {name: value for name, value in measures(info).items() if value is not None}
        if self._measured.get("score") is not None:
            self._scores.append(self._measured["score"])
        if len(self._scores) > _SCORES_KEPT:
            self._scores = self._scores[::2]

    def progress(self, states: Sequence[ProcessState] | None, lines: tuple[str, ...] = ()) -> Progress:
        """Return the state now; processes are the launcher's, or without one those that report."""
        reporting = rows_of_reports(self._info) if self._info else ()
        silent_s = self._clock() - self._told
        silent = self._info is not None and silent_s > _SILENT_S
        measured = {n: v for n, v in self._measured.items() if not (silent and n in _OF_THE_MOMENT)}
        return Progress(
            title=self.title + (f" · no answer for {silent_s:.0f} s" if silent else ""),
            elapsed_s=self._clock() - self._began,
            score_random=self.score_random,
            scores=tuple(self._scores),
            processes=reporting if states is None else rows(states, self._info),
            lines=lines,
            **measured,
        )
