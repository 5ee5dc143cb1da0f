"""The live screen and the plain line: pure functions of a run's progress, made of a server's info."""

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fornix.common.messages import Info
from fornix.display import LiveDisplay, PlainDisplay, stamped
from fornix.inspection import inspection
from fornix.launch import ProcessState
from fornix.progress import ProcessRow, Progress
from fornix.screen import clock, plain_line, screen, sparkline
from fornix.tracker import Tracker

FULL = Progress(
    title="hunt",
    elapsed_s=63.4,
    gradient_steps=4200,
    gradient_steps_total=10000,
    gradient_steps_per_s=100,
    agent_steps=131000,
    agent_steps_per_s=3120,
    score_random=255,
    score=430,
    score_greedy=460,
    memory_steps=132000,
    memory_capacity=200000,
    samples_per_insert=7.98,
    samples_per_insert_wanted=8,
    policy_lag=0.6,
    learner_waiting=0.012,
    actor_waiting=0.43,
    actor_held=0.2,
    loss=0.123,
    scores=(250.0, 300.0, 430.0),
    processes=(
        ProcessRow("replay", 1234, "runs", "serves", 0),
        ProcessRow("actor-1", None, "restarts in 0.4 s", "", 3),
    ),
    lines=("14:20:01 run actor-1 died of SIGKILL; it starts again in 0.25 s",),
)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drawn(renderable: Any, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def info(actor: dict[str, float], learner: dict[str, float], age_s: float = 0.5) -> Info:
    table = {
        "signature": {"frame": "uint8 [3]"},
        "capacity_steps": 1000,
        "memory_bytes": 5000,
        "steps": 500,
        "steps_ever": 700,
        "inserts": 600,
        "samples": 1200,
        "leased": 256,
        "rows_of": "wild",
        "sampler": {"kind": "prioritized", "max_times_sampled": 3, "priority_exponent": 0.6},
        "samples_per_insert": 2.0,
        "inserts_per_s": 30.0,
        "samples_per_s": 60.0,
        "episodes": 4,
        "mean_return": None,
        "mean_length": 12.5,
        "limiter": {
            "min_size": 10,
            "samples_per_insert": 8.0,
            "may_insert": False,
            "may_sample": True,
            "waiting_inserts": 2,
            "waiting_samples": 0,
        },
        "writers": {
            "actor-0.0": {"incarnation": 1, "sequence": 9, "lanes": 4, "memory": "mapped", "idle_s": 0.25}
        },
        "readers": {"learner-1f": {"memory": "socket", "idle_s": 1.5}},
    }
    server = {
        "version": "1",
        "pid": 5,
        "uptime_s": 61.0,
        "memory_bytes": 5000,
        "memory_limit_bytes": 2_000_000_000,
        "refused_requests": 1,
    }
    reports = {
        "actor-0": {"age_s": age_s, "doing": "acts", "metrics": actor},
        "learner-0": {"age_s": age_s, "doing": "trains", "metrics": learner},
    }
    return Info(server=server, tables={"hunt": table}, reports=reports)


def test_the_screen_shows_everything_a_person_wants() -> None:
    for width in (80, 120):
        text = drawn(screen(FULL), width)
        for word in (
            *("hunt", "42%", "4,200 of 10,000 gradient steps", "1:03 elapsed", "0:58 left"),
            *("430", "460", "255", "3,120", "131,000", "66% full", "7.98 → 8", "0.6", "1%", "43%", "20%"),
            *("replay", "1234", "serves", "restarts in 0.4 s", "died of SIGKILL", "▁", "█"),
        ):
            assert word in text, (width, word)
        assert max(map(len, text.splitlines())) <= width


def test_the_screen_before_anything_is_known() -> None:
    text = drawn(screen(Progress("hunt")))
    assert "0%" in text
    assert "– left" in text


def test_the_plain_line_is_plain() -> None:
    line = plain_line(FULL)
    assert line.isprintable()
    for word in ("1:03", "4,200/10,000", "score 430 greedy 460 random 255", "memory 66%", "lag 0.6"):
        assert word in line


def test_markup_in_what_processes_say_is_shown_as_it_is() -> None:
    row = ProcessRow("actor-0", 1, "runs", "waits: [bold]x[/nothing]", 0)
    text = drawn(screen(Progress("hunt", processes=(row,), lines=("[red]y[/oops]",))))
    assert "[bold]x[/nothing]" in text
    assert "[red]y[/oops]" in text


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 60))
def test_a_sparkline_has_a_bar_for_each_share_of_the_values(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3]) == "▁▁"


def test_clock() -> None:
    assert [clock(s) for s in (None, 0, 59.6, 3599, 3600)] == ["–", "0:00", "1:00", "59:59", "1:00:00"]


def test_progress_is_made_of_what_the_server_tells() -> None:
    now = Clock()
    tracker = Tracker("hunt", now)
    tracker.score_random = 255.0
    actor = {"score": 300.0, "score_greedy": 310.0, "waiting_share": 0.2, "policy_version": 4.0}
    learner = {"gradient_steps": 10.0, "gradient_steps_total": 20.0, "gradient_steps_per_s": 2.0}
    now.now += 7
    tracker.take(info(actor, learner | {"policy_lag": 2.0}))
    states = [
        ProcessState("replay", 5, "runs", 0),
        ProcessState("actor-0", 6, "runs", 0),
        ProcessState("learner-0", None, "restarts in 0.1 s", 1),
    ]
    progress = tracker.progress(states)
    assert progress.elapsed_s == 7
    assert progress.remaining_s == 5
    assert progress.share_done == 0.5
    assert (progress.score, progress.score_greedy, progress.score_random) == (300, 310, 255)
    assert (progress.memory_steps, progress.agent_steps, progress.policy_lag) == (500, 600, 2)
    assert progress.actor_held is None
    assert [row.doing for row in progress.processes] == ["serves", "acts", ""]


def test_a_silent_process_is_shown_as_silent_and_its_last_figures_stay() -> None:
    tracker = Tracker("hunt")
    tracker.take(info({"score": 300.0}, {}))
    tracker.take(info({"score": 100.0}, {}, age_s=8.0))
    progress = tracker.progress([ProcessState("actor-0", 6, "runs", 0)])
    assert progress.processes[0].doing == "silent for 8 s"
    assert progress.score == 300


def test_a_learner_that_waits_for_its_table_takes_no_figures_away() -> None:
    """It reports what it does, and has no metrics yet."""
    tracker = Tracker("hunt")
    tracker.take(info({}, {"gradient_steps": 10.0, "gradient_steps_total": 20.0}))
    tracker.take(info({}, {}))
    progress = tracker.progress([ProcessState("learner-0", 6, "runs", 1)])
    assert progress.share_done == 0.5
    assert progress.processes[0].doing == "trains"


def test_a_server_seen_from_outside_shows_who_reports() -> None:
    tracker = Tracker("tcp://server:5555")
    tracker.take(None)
    assert tracker.progress(None).processes == ()
    tracker.take(info({}, {}))
    assert [row.role for row in tracker.progress(None).processes] == ["actor-0", "learner-0"]


def test_a_long_run_keeps_the_shape_of_its_score() -> None:
    tracker = Tracker("hunt")
    for score in range(5000):
        tracker.take(info({"score": float(score)}, {}))
    scores = tracker.progress(None).scores
    assert len(scores) <= 2000
    assert scores == tuple(sorted(scores))
    assert scores[0] < 100
    assert scores[-1] == 4999


def test_the_inspection_shows_the_server() -> None:
    text = drawn(inspection("tcp://a:1", info({"score": 300.0}, {})), 140)
    for word in (
        *(
            "tcp://a:1",
            "up 1:01",
            "5.0 kB of 2.0 GB",
            "1 requests refused",
            "uint8 [3]",
            "50%",
            "30 inserts/s",
        ),
        *("no (2 waiting)", "actor-0.0", "0.2 s ago", "score 300", "first at 10 inserts"),
        *("prioritized, priority exponent 0.6, each at most 3 times from the rows of wild", "256 leased"),
        *("mapped", "learner-1f", "socket", "1.5 s ago"),
    ):
        assert word in text, text


def test_plain_lines_come_seldom_and_output_at_once() -> None:
    now, lines = Clock(), list[str]()
    with PlainDisplay(lines.append, now) as display:
        display.say("actor-0", "14:20:01 actor-0 acts")
        display.show(FULL)
        assert lines == ["14:20:01 actor-0 acts"]
        now.now += 6
        display.show(FULL)
        display.show(FULL)
    assert len(lines) == 2
    assert "gradient steps" in lines[1]


def test_the_live_screen_draws_and_leaves_the_last_words_after_an_error() -> None:
    console = Console(width=100, file=io.StringIO(), force_terminal=True)
    display = LiveDisplay(console)
    try:
        with display:
            display.say("actor-0", "its last words")
            display.show(FULL)
            raise RuntimeError
    except RuntimeError:
        pass
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4,200" in text
    assert text.rstrip().endswith("actor-0 its last words")
    assert display.lines[0].endswith("actor-0 its last words")


def test_lines_are_stamped_once_and_cleaned() -> None:
    assert stamped("actor-0", "14:20:01 actor-0 acts") == "14:20:01 actor-0 acts"
    assert stamped("replay", "\x1b[31mbad\x1b[0m\x07").endswith(" replay bad")


def test_a_silent_server_is_said_and_its_rates_are_gone() -> None:
    now = [0.0]
    tracker = Tracker("run", clock=lambda: now[0])
    assert "no answer" not in tracker.progress(None).title
    tracker.take(info({}, {}))
    assert tracker.progress(None).agent_steps_per_s
    now[0] = 15.0
    assert "no answer for 15 s" in tracker.progress(None).title
    assert not tracker.progress(None).agent_steps_per_s
    tracker.take(info({}, {}))
    assert "no answer" not in tracker.progress(None).title
