"""Kill everything at random, and check that nothing is lost.

A real system: a replay server that keeps its rows in a folder, actors and learners, as processes of their
own over sockets and mapped memory; some of them behind a proxy that loses, doubles and delays messages and
cuts connections. All of them are killed and stopped at random, from a seed. Each row says who it is, and
each actor logs what it is about to write and what it was answered. Whenever the server is dead, all rows
that have come are taken out of its file, and held against the logs: what was answered must be there, once,
whole and in order. Learners look at every byte of the batches that they draw. Some actors send each request
many times more, and compare the answers byte for byte.

    python benchmarks/chaos.py
    python benchmarks/chaos.py --server-kills 50 --actor-kills 50 --learner-kills 30 \
        --retries 1000 --stacks 100000 --json -

Ends with 1 if anything is wrong, and prints the seed and the first faults.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import select
import shutil
import signal
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from durability import actors, ending, learner, proxy, sabotage
from durability.audit import Audit
from durability.checker import Part, check
from durability.processes import Process, Server, create_tables, kill
from durability.shared import SEEN, Counters, Place, fork

from fornix.commands.shared import write_json

_STEPS = 32_768
_TELL_S = 60.0
_LOOK_S = 0.1  # how often processes are looked after that nothing is due of
_LOAD_WITHIN_S = 5.0  # how long a server may be there without rows coming
_SERVER_LIFE_S, _ACTOR_LIFE_S, _LEARNER_LIFE_S = 0.15, 3.0, 1.0  # on average
_AIM_S, _AMID_S = 0.02, 0.002
_SUCCESSORS = 12  # of an actor's incarnation, after which no answer comes to it any more
_ACTORS = (("act", "server", "auto"), ("act", "server", "socket"), ("act", "proxy", "auto"),
           ("act", "proxy", "socket"), ("repeat", "server", ""), ("repeat", "proxy", ""))  # fmt: skip
_LEARNERS = (("server", "auto"), ("proxy", "socket"))


class Chaos:
    """One run.

    Args:
        place: of it.
        wanted: how much of each is to be reached, by name.
        damage: what is done to the file once, one of `sabotage.KINDS`; "" for nothing.
        tell: called with a line every minute.
    """

    def __init__(self, place, wanted, damage="", tell=print):
        self._place = place
        self._wanted = wanted
        self._damage = damage
        self._tell = tell
        self._rng = random.Random(place.seed)
        self._server = Server(place)
        self._server_kills = {"under load": 0, "while starting": 0, "idle": 0}
        self._server_stops = 0
        self._state = "starting"
        self._due = 0.0
        self._rows = 0
        self._actors = [self._actor(at, *how) for at, how in enumerate(_ACTORS)]
        self._learners = [self._learner(at, *how) for at, how in enumerate(_LEARNERS)]
        self._proxy = Process("proxy", partial(proxy.forward, place), self._rng, 20.0)

    def _actor(self, at, kind, way, memory):
        address = getattr(self._place, way)
        name = f"{kind} {at} by {way}"
        if kind == "act":
            run = partial(_in_order, actors.act, self._place, at, address, memory)
        else:
            run = partial(_in_order, actors.repeat, self._place, at, address)
        return Process(name, run, self._rng, _ACTOR_LIFE_S, overlaps=True)

    def _learner(self, at, way, memory):
        run = partial(_in_order, learner.learn, self._place, at, getattr(self._place, way), memory)
        return Process(f"learner {at} by {way}", run, self._rng, _LEARNER_LIFE_S)

    @property
    def _others(self):
        return [*self._actors, *self._learners, self._proxy]

    def run(self, seconds):
        """Run until all is reached, or so many seconds are over; return what came of it."""
        began = time.monotonic()
        inbox, outbox = multiprocessing.Pipe()
        checker = fork(check, self._place, outbox)
        outbox.close()
        self._start_server()
        _wait_for(fork(create_tables, self._place, _STEPS), "making the tables")
        self._audit = Audit(self._place.data)
        for process in self._others:
            process.start(time.monotonic())
        told = began
        while time.monotonic() - began < seconds and not self._reached() and not self._place.faults():
            self._step(inbox)
            if time.monotonic() - told > _TELL_S:
                told = time.monotonic()
                self._tell(f"{told - began:.0f} s: {_shown(self._counts())}")
        for process in self._others:
            process.end()
        kill(self._server.pid)
        self._send_part(inbox, back=max(self._started().values()))
        window = self._audit.window(_STEPS)
        end = ending.look(self._place, self._server, window, self._started())
        inbox.send(None)
        inbox.send(self._started())
        summary, faults, first_answers_ns = inbox.recv()
        _wait_for(checker, "the checker")
        return self._outcome(summary, faults + end.faults, first_answers_ns, time.monotonic() - began, end)

    def _started(self):
        return {at: process.incarnation for at, process in enumerate(self._actors)}

    # what happens

    def _step(self, inbox):
        """Wait until something is due, and let it happen."""
        now = time.monotonic()
        due = min([self._due, now + _LOOK_S, *(process.next_due for process in self._others)])
        readable, _, _ = select.select([self._server], [], [], max(0.0, due - now))
        now = time.monotonic()
        if readable and self._server.take_ready():
            self._state = "serving"
            self._due = now + self._rng.expovariate(1 / _SERVER_LIFE_S)
        for process in (self._server, *self._others):
            for what in process.ended():
                self._place.fault(getattr(process, "name", "server"), what)
                return
        if self._due <= now:
            self._happen_to_server(now, inbox)
        for process in self._others:
            process.happen(now)

    def _happen_to_server(self, now, inbox):
        chance = self._rng.random()
        if self._state == "serving" and chance < 0.2:
            os.kill(self._server.pid, signal.SIGSTOP)
            self._server_stops += 1
            self._state = "stopped"
            self._due = now + 0.05 + 0.4 * self._rng.random()
        elif self._state == "stopped" and chance < 0.5:
            os.kill(self._server.pid, signal.SIGCONT)
            self._state = "serving"
            self._due = now + self._rng.expovariate(1 / _SERVER_LIFE_S)
        elif self._state == "serving" and not self._is_under_load(now):
            self._due = now + 0.01
        else:
            self._kill_server(inbox)
            self._start_server()

    def _is_under_load(self, now):
        """Whether rows have come since the server began; after long enough it doesn't matter."""
        waited = now - self._server.started > _LOAD_WITHIN_S
        return waited or self._place.counters.total("written") > self._rows

    def _aim(self):
        """Wait a moment for something to be written: so that many kills come amid a write."""
        total = self._place.counters.total
        before, until = total("intended"), time.monotonic() + _AIM_S
        while total("intended") == before and time.monotonic() < until:
            pass
        until = time.monotonic() + self._rng.random() * _AMID_S
        while time.monotonic() < until:
            pass

    def _kill_server(self, inbox):
        if self._state == "serving":
            self._aim()
        kill(self._server.pid)
        if self._damage and self._server_kills["under load"] > 2:
            done = sabotage.damage(self._place.data, self._damage, self._audit.next)
            self._damage = "" if done else self._damage
        rows = self._send_part(inbox)
        state = "while starting" if self._state == "starting" else "under load" if rows else "idle"
        self._server_kills[state] += 1

    def _start_server(self):
        self._rows = self._place.counters.total("written")
        self._server.start()
        self._place.counters.add("server starts")
        self._state = "starting"
        in_its_start = self._rng.random() < 0.07 and self._server.ready_s
        self._due = time.monotonic() + (0.06 * self._rng.random() if in_its_start else 30.0)

    def _send_part(self, inbox, back=_SUCCESSORS):
        """Have what the server left checked; return how many rows have come."""
        logs = {}
        for writer, process in enumerate(self._actors):
            for incarnation in range(max(1, process.incarnation - back), process.incarnation + 1):
                with contextlib.suppress(FileNotFoundError):
                    path = self._place.log(writer, incarnation)
                    logs[writer, incarnation] = path.stat().st_size
        rows = self._audit.new_rows()
        inbox.send(Part(rows, logs, self._server.started_ns))
        return len(rows.records)

    # what came of it

    def _counts(self):
        total = self._place.counters.total
        return {
            "server kills under load": self._server_kills["under load"],
            "actor kills": sum(process.kills for process in self._actors),
            "learner kills": sum(process.kills for process in self._learners),
            "stacks checked in sampled batches": total("stacks"),
            "forced retries": total("retries"),
        }

    def _reached(self):
        counts = self._counts()
        return all(counts[name] >= wanted for name, wanted in self._wanted.items())

    def _outcome(self, summary, faults, first_answers_ns, seconds, end):
        total = self._place.counters.total
        log = self._place.folder / "server.log"
        errors = [line for line in log.read_text().splitlines() if line.startswith(("ERROR", "Traceback"))]
        faults = faults + [fault for fault in self._place.faults() if fault["source"] != "checker"]
        faults += [{"source": "server", "kind": "wrong", "what": line} for line in errors[:5]]
        by_hand = {
            "… whose first answer was another server's": total("retried later"),
            "server kills while starting": self._server_kills["while starting"],
            "server kills while idle": self._server_kills["idle"],
            "stops of the server": self._server_stops,
            "stops of actors and learners": sum(each.stops for each in self._others),
            "actors beside their successors": sum(each.twins for each in self._actors),
            "requests that a kill cut off": self._audit.cut_off,
            "kills of the proxy": self._proxy.kills,
            "cuts by the proxy": total("cuts"),
            "messages lost, doubled, late": [total("lost"), total("doubled"), total("late")],
            "stacks checked by actors": total("acted"),
            "batches checked": total("batches"),
            "batches out of mapped memory": total("mapped"),
            "stacks checked at the end": end.stacks,
        }
        milliseconds = {
            "restart to ready, ms": [round(1000 * s, 1) for s in _spread(self._server.ready_s[1:])],
            "restart to first answer, ms": [round(ns / 1e6, 1) for ns in _spread(first_answers_ns)],
        }
        return {
            "seed": self._place.seed,
            "seconds": round(seconds, 1),
            **self._counts(),
            **by_hand,
            **summary,
            **milliseconds,
            "reached": self._reached(),
            "faults": faults,
        }


def _in_order(run, place, at, *rest):
    """Call a role with its incarnation, which is told last, in second place."""
    *options, incarnation = rest
    return run(place, at, incarnation, *options)


def _spread(values):
    """Return the median and the largest."""
    return [statistics.median(values), max(values)] if values else []


def _wait_for(pid, what):
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise SystemExit(f"{what} has failed")


def chaos(wanted, seconds, seed, folder, damage, tell):
    """Run in a folder of its own below `folder`; it stays if anything is wrong."""
    root = Path(tempfile.mkdtemp(prefix="fornix-chaos-", dir=folder))
    for name in ("logs", *SEEN):
        (root / name).mkdir()
    names = ["server starts", "cuts", "lost", "doubled", "late"]
    for at in range(len(_ACTORS)):
        names += [f"{name} {at}" for name in ("acted", "written", "intended", "retries", "retried later")]
    for at in range(len(_LEARNERS)):
        names += [f"{name} {at}" for name in ("stacks", "batches", "mapped")]
    outcome = Chaos(Place(root, seed, Counters(names)), wanted, damage, tell).run(seconds)
    if outcome["faults"]:
        outcome["folder"] = str(root)
    else:
        shutil.rmtree(root)
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--server-kills", type=int, default=2_000, help="of the server, while it is written to"
    )
    parser.add_argument("--actor-kills", type=int, default=1_000)
    parser.add_argument("--learner-kills", type=int, default=1_000)
    parser.add_argument("--retries", type=int, default=100_000, help="requests sent again on purpose")
    parser.add_argument("--stacks", type=int, default=10_000_000, help="to check in sampled batches")
    parser.add_argument("--seconds", type=float, default=3_600, help="to give up after")
    parser.add_argument("--seed", type=int, default=None, help="of what happens (default: a new one)")
    parser.add_argument("--folder", default=None, help="to work in (default: the one for temporary files)")
    parser.add_argument(
        "--sabotage",
        choices=sabotage.KINDS,
        default="",
        help="damage the file once, to see that it is noticed",
    )
    parser.add_argument("--json", default=None, help="write the counts to a file, or - for stdout")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(2**31)
    out = sys.stderr if given.json == "-" else sys.stdout
    tell = partial(print, file=out, flush=True)
    tell(f"seed {seed}")
    wanted = {
        "server kills under load": given.server_kills,
        "actor kills": given.actor_kills,
        "learner kills": given.learner_kills,
        "stacks checked in sampled batches": given.stacks,
        "forced retries": given.retries,
    }
    try:
        outcome: dict[str, Any] = chaos(wanted, given.seconds, seed, given.folder, given.sabotage, tell)
    except (BrokenPipeError, EOFError):
        raise SystemExit(f"seed {seed}: the checker has ended by itself, and says above why") from None
    for name, value in outcome.items():
        if name != "faults":
            tell(f"{name:<44} {_shown(value):>24}")
    for fault in outcome["faults"][:10]:
        tell(f"seed {seed}: {fault['source']}: {fault['what']}")
    if given.json:
        write_json(given.json, outcome)
    if outcome["faults"] or not outcome["reached"]:
        raise SystemExit(1)


def _shown(value):
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main()
