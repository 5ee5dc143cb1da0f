"""The launcher, with tiny roles: restarts, back-off, giving up, and that nobody is left."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fornix.launch import GaveUpError, Launcher, Patience, Role

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
QUICK = Patience(first_delay_s=0.05, longest_delay_s=0.1, others_s=0.4, stop_s=0.8)


class Output:
    """What the roles and the launcher have said."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def __call__(self, role: str, line: str) -> None:
        self.lines.append((role, line))

    def of(self, role: str) -> list[str]:
        return [line for who, line in self.lines if who == role]


@pytest.fixture
def output() -> Output:
    return Output()


def role(name: str, code: str, **options: object) -> Role:
    return Role(name, (sys.executable, "-S", "-c", code), **options)  # type: ignore[arg-type]


def step_until(launcher: Launcher, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, launcher.states()
        launcher.step(0.02)


def pids(launcher: Launcher) -> list[int]:
    return [state.pid for state in launcher.states() if state.pid is not None]


def test_output_is_carried_by_role_and_into_files(output: Output, tmp_path: Path) -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.stdout.write('cut short')"
    with Launcher([role("a", code, finishes=True)], output, log_dir=tmp_path / "logs") as launcher:
        step_until(launcher, lambda: launcher.finished)
    assert sorted(output.of("a")) == ["cut short", "one", "two"]
    assert "two\n" in (tmp_path / "logs" / "a.log").read_text()


def test_it_is_finished_when_all_that_finish_have(output: Output) -> None:
    roles = [role("learner", "pass", finishes=True), role("actor", SLEEP)]
    with Launcher(roles, output) as launcher:
        step_until(launcher, lambda: launcher.finished)
        assert {state.name: state.state for state in launcher.states()} == {
            "learner": "finished",
            "actor": "runs",
        }


def test_one_that_dies_is_back_within_three_seconds(output: Output) -> None:
    with Launcher([role("actor", SLEEP)], output) as launcher:
        step_until(launcher, lambda: output.of("actor") == ["up"])
        [pid] = pids(launcher)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        step_until(launcher, lambda: output.of("actor") == ["up", "up"])
        assert time.monotonic() - killed < 3
        assert pids(launcher) != [pid]
        assert launcher.states()[0].restarts == 1
    assert output.of("run") == ["actor died of SIGKILL; it starts again in 0.25 s"]


def test_the_restart_may_be_another_command(output: Output) -> None:
    again = (sys.executable, "-S", "-c", "print('resumed')")
    with Launcher([role("learner", "1/0", restart_command=again, finishes=True)], output) as launcher:
        step_until(launcher, lambda: launcher.finished)
    assert output.of("learner")[-1] == "resumed"


def test_exit_code_0_is_a_death_for_one_that_is_to_run_on(output: Output) -> None:
    with Launcher([role("actor", "pass")], output, patience=QUICK) as launcher:
        step_until(launcher, lambda: launcher.states()[0].restarts >= 1)
        assert not launcher.finished
    assert "ended with exit code 0" in output.of("run")[0]


def test_the_delay_doubles_up_to_a_limit() -> None:
    patience = Patience(first_delay_s=0.25, longest_delay_s=2.0)
    assert [patience.delay_s(n) for n in range(1, 6)] == [0.25, 0.5, 1.0, 2.0, 2.0]


def test_it_gives_up_loudly(output: Output) -> None:
    roles = [role("actor", "print('why'); raise SystemExit(2)"), role("other", SLEEP)]
    with Launcher(roles, output, patience=QUICK) as launcher:
        with pytest.raises(GaveUpError, match="actor ended with exit code 2, its death number 5"):
            step_until(launcher, lambda: False)
        others = pids(launcher)
    assert len(output.of("actor")) == 5
    assert not any(psutil.pid_exists(pid) for pid in others)


def test_each_death_is_answered_within_three_seconds_until_it_gives_up(output: Output) -> None:
    """By the delays that a run has."""
    seen: list[int] = []
    with Launcher([role("actor", SLEEP), role("other", SLEEP)], output) as launcher:

        def another() -> bool:
            return output.of("actor") == ["up"] * (len(seen) + 1)

        for _ in range(Patience().deaths - 1):
            step_until(launcher, another)
            seen.append(pids(launcher)[0])
            os.kill(seen[-1], signal.SIGKILL)
            killed = time.monotonic()
            step_until(launcher, another)
            assert time.monotonic() - killed < 3
        os.kill(pids(launcher)[0], signal.SIGKILL)
        with pytest.raises(GaveUpError, match="actor died of SIGKILL, its death number 5 within 60 s"):
            step_until(launcher, lambda: False)
    assert len(set(seen)) == len(seen)


def test_old_deaths_are_forgiven(output: Output) -> None:
    patience = Patience(first_delay_s=0.01, longest_delay_s=0.01, deaths=2, window_s=0.0)
    with Launcher([role("actor", "pass")], output, patience=patience) as launcher:
        step_until(launcher, lambda: launcher.states()[0].restarts >= 3)


def test_everyone_gets_sigterm_and_ends(output: Output) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: (print('saved'), sys.exit(143)));"
        "print('up', flush=True); time.sleep(60)"
    )
    with Launcher([role("learner", code, finishes=True)], output) as launcher:
        step_until(launcher, lambda: output.of("learner") == ["up"])
        began = time.monotonic()
    assert time.monotonic() - began < 2
    assert output.of("learner") == ["up", "saved"]


def test_whoever_does_not_end_is_killed_in_time(output: Output) -> None:
    roles = [role("a", STUBBORN), role("b", SLEEP)]
    with Launcher(roles, output) as launcher:
        step_until(launcher, lambda: len(output.lines) == 2)
        os.kill(pids(launcher)[1], signal.SIGSTOP)
        left = pids(launcher)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert not any(psutil.pid_exists(pid) for pid in left)
    assert output.of("run") == ["a did not end in time and is killed"]


def test_some_stop_last(output: Output) -> None:
    code = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (time.sleep({}), print('ended'), sys.exit()))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    roles = [role("server", code.format(0), stops_last=True), role("client", code.format(0.2))]
    with Launcher(roles, output) as launcher:
        step_until(launcher, lambda: len(output.lines) == 2)
    assert [who for who, line in output.lines if line == "ended"] == ["client", "server"]


def test_nobody_outlives_a_launcher_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "from fornix.launch import Launcher, Role\n"
        f"codes = {{'a': {SLEEP!r}, 'b': {STUBBORN!r}}}\n"
        "roles = [Role(n, (sys.executable, '-S', '-c', c)) for n, c in codes.items()]\n"
        "lines = []\n"
        "launcher = Launcher(roles, lambda role, line: lines.append(line))\n"
        "while len(lines) < 2: launcher.step()\n"
        "print(*[state.pid for state in launcher.states()], flush=True)\n"
        "while True: launcher.step()\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        left = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(left) == 2
        os.kill(left[0], signal.SIGSTOP)  # one that is stopped would never look for its parent
        parent.kill()
    deadline = time.monotonic() + 3
    while any(_lives(pid) for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
