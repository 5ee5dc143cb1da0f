"""How soon actors have the newest weights: a late joiner, and one that was stopped for a while.

A late joiner connects over loopback to a learner's publisher, in a process of its own, that has published
before and doesn't publish meanwhile, not even on its beat: what comes is what the subscription brought.
Counted from before the socket is made until the weights are there, unpacked.

The stopped actor is one of a real run's. It gets SIGSTOP, and SIGCONT when the time is over; counted from
then until it reports a policy version as new as the newest that was published before then. Actors report
once a second, so up to a second of it is the report's.

    python benchmarks/bench_weights.py --json -
"""

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fornix.actor.environments import make_environment
from fornix.actor.process import make_network
from fornix.commands.shared import write_json
from fornix.common.config import RunConfig
from fornix.common.errors import UnreachableError
from fornix.common.settings import dump_run_config, resolve
from fornix.common.weights import WeightsPublisher, WeightsSubscriber
from fornix.launch import Launcher
from fornix.replay import Client
from fornix.roles import roles_of

CONTEXT = multiprocessing.get_context("spawn")
PATIENCE_S = 120.0
POLICY = "shared"
VERSION = 7


def publish_once(config: RunConfig, pipe: Connection) -> None:
    """Publish weights of the configuration's network, tell where and how large, and stay until told."""
    environment = make_environment(config.environment, 1, 0)
    weights = make_network(config, environment.spec, 0).state_dict()
    with closing(WeightsPublisher("tcp://127.0.0.1:*", beat_s=1e6)) as publisher:
        publisher.publish(POLICY, VERSION, weights)
        pipe.send((publisher.address, sum(tensor.nbytes for tensor in weights.values())))
        pipe.recv()


def measure_joins(config: RunConfig, joins: int) -> dict[str, Any]:
    """Return how long each of `joins` late joiners waited for the current weights."""
    ours, theirs = CONTEXT.Pipe()
    process = CONTEXT.Process(target=publish_once, args=(config, theirs))
    process.start()
    try:
        address, size = ours.recv()
        milliseconds = [1000 * join(address) for _ in range(joins)]
        ours.send("enough")
        process.join(10)
    finally:
        process.kill()
    return {
        "joins": joins,
        "weights_bytes": size,
        "milliseconds_median": round(statistics.median(milliseconds), 2),
        "milliseconds_max": round(max(milliseconds), 2),
    }


def join(address: str) -> float:
    """Return the seconds until a new subscriber has the current weights."""
    began = time.perf_counter()
    with closing(WeightsSubscriber([address], POLICY)) as subscriber:
        found = subscriber.wait(PATIENCE_S)
        seconds = time.perf_counter() - began
    if found is None or found.version != VERSION:
        raise SystemExit(f"a late joiner got {found} instead of version {VERSION}")
    return seconds


@contextmanager
def running(config: RunConfig, folder: Path) -> Iterator[Launcher]:
    """Start all processes of a run, as `fornix run` does; end them after."""
    file = folder / "config.yaml"
    dump_run_config(config, file)
    roles = roles_of(file, folder, config, resume=False, changes=())
    with Launcher(roles, lambda role, line: None, log_dir=folder / "logs") as launcher:
        yield launcher


def wait(launcher: Launcher, condition: Callable[[], bool], what: str) -> None:
    """Let a run go on until `condition` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {PATIENCE_S:g} s in vain for {what}")
        launcher.step(0.01)


class Observer:
    """Looks at a run from outside."""

    def __init__(self, config: RunConfig, client: Client, subscriber: WeightsSubscriber) -> None:
        self._config = config
        self._client = client
        self._subscriber = subscriber
        self._published = 0

    def published(self) -> int:
        """Return the newest version that was published."""
        found = self._subscriber.newest()
        self._published = found.version if found else self._published
        return self._published

    def reported(self, actor: int) -> float:
        """Return the version that an actor says it acts by."""
        try:
            report = self._client.info().reports.get(f"actor-{actor}", {"metrics": {}})
        except UnreachableError:
            return 0.0
        return float(report["metrics"].get("policy_version", 0))

    def all_act(self) -> bool:
        """Whether every actor acts by published weights."""
        return all(self.reported(actor) > 0 for actor in range(self._config.actor.processes))


def measure_stop(config: RunConfig, stopped_s: float) -> dict[str, Any]:
    """Stop an actor for a while, and return how soon after it was on the newest weights."""
    with tempfile.TemporaryDirectory(prefix="fornix-") as name:
        folder = Path(name)
        config = at_addresses(config, folder)
        address = config.replay.address
        with (
            running(config, folder) as launcher,
            Client.connect(address, name="benchmark", give_up_after_s=1.0) as client,
            closing(WeightsSubscriber(config.weights.addresses, POLICY)) as subscriber,
        ):
            return stop_and_go_on(launcher, Observer(config, client, subscriber), stopped_s)


def stop_and_go_on(launcher: Launcher, observer: Observer, stopped_s: float) -> dict[str, Any]:
    wait(launcher, observer.all_act, "actors that act by published weights")
    pid = next(state.pid for state in launcher.states() if state.name == "actor-0")
    if pid is None:
        raise SystemExit("actor-0 has died")
    before = observer.published()
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + stopped_s
    wait(launcher, lambda: observer.published() >= 0 and time.monotonic() > until, "the time")
    newest = observer.published()
    os.kill(pid, signal.SIGCONT)
    began = time.monotonic()
    wait(launcher, lambda: observer.reported(0) >= newest, "the newest weights")
    seconds = time.monotonic() - began
    return {
        "stopped_seconds": stopped_s,
        "versions_missed": newest - before,
        "seconds_until_it_reports_the_newest_version": round(seconds, 2),
    }


def at_addresses(config: RunConfig, folder: Path) -> RunConfig:
    """Return the configuration with private addresses, and more gradient steps than there is time for."""
    values = config.model_dump()
    values["replay"]["address"] = f"ipc://{folder}/replay"
    values["weights"]["addresses"] = (f"ipc://{folder}/weights",)
    values["learner"]["gradient_steps"] = 10_000_000
    return RunConfig.model_validate(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/treasurehunt.yaml"))
    parser.add_argument("--joins", type=int, default=50, help="late joiners")
    parser.add_argument("--stop-s", type=float, default=10, help="seconds that the actor is stopped")
    parser.add_argument("--json", help="write the figures to a file, or - for standard output")
    given = parser.parse_args()
    config = resolve(given.config, {})
    figures = {
        "late_joiner": measure_joins(config, given.joins),
        "stopped_actor": measure_stop(config, given.stop_s),
    }
    print(describe(figures), file=sys.stderr if given.json == "-" else sys.stdout)
    if given.json:
        write_json(given.json, figures)


def describe(figures: dict[str, Any]) -> str:
    late, stopped = figures["late_joiner"], figures["stopped_actor"]
    return (
        f"a late joiner holds the current weights ({late['weights_bytes']:,} bytes) after "
        f"{late['milliseconds_median']} ms (median of {late['joins']}; the slowest took "
        f"{late['milliseconds_max']} ms)\n"
        f"an actor that was stopped for {stopped['stopped_seconds']:g} s, and missed "
        f"{stopped['versions_missed']} versions, reports the newest after "
        f"{stopped['seconds_until_it_reports_the_newest_version']} s"
    )


if __name__ == "__main__":
    main()
