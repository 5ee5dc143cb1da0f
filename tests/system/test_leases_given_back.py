"""What a learner had fetched and not used when it was killed is given back; what it had used is not.

Run as a program, this is that learner. It draws as many batches as each line of its input says, and tells
what the server then knows of it:

    python test_leases_given_back.py ADDRESS TABLE IN_FLIGHT TIMEOUT_S
"""

import contextlib
import itertools
import json
import sys
import time

import numpy as np
import pytest

from fornix.common.errors import WaitTimeoutError
from fornix.common.messages import FIRST, MID
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.replay.client import Client
from fornix.replay.steps import Steps

BATCH = 4
LEASE_S = 0.5
#: Ten inserts let five batches be drawn, whether they are used or out on lease.
INSERTS, BATCHES = 10, 5
LIMITER = LimiterSpec(
    min_size=INSERTS, samples_per_insert=1.0, min_surplus=-float(BATCHES * BATCH), max_surplus=100.0
)
SIGNATURE = Signature(frame=ArraySpec.of((2,), np.int32), action=ArraySpec.of((), np.int32), n_frames=2)


def learn(address, table, in_flight, timeout_s):
    with Client.connect(address, name="doomed") as client:
        batches = client.batches(table, BATCH, in_flight=int(in_flight), timeout_s=float(timeout_s))
        for line in sys.stdin:
            for _ in range(int(line)):
                asked_at = time.monotonic()
                next(batches)
            print(json.dumps([asked_at, counts(client, table)]), flush=True)


def counts(client, table):
    """Return how many batches are charged, leased and waited for."""
    told = client.info().tables[table]
    return [told["samples"] / BATCH, told["leased"] / BATCH, told["limiter"]["waiting_samples"]]


if __name__ == "__main__":
    learn(*sys.argv[1:])
else:
    from .programs import a_program, a_server

pytestmark = pytest.mark.system

_names = (f"table-{number}" for number in itertools.count())


class Learner:
    """That learner, in a process of its own."""

    def __init__(self, process):
        self._process = process
        self.kill = process.kill

    def draw(self, batches):
        """Let it draw; return when it asked last, and the `counts` after that."""
        self._process.stdin.write(f"{batches}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    with a_server("tcp://127.0.0.1:*", "--replay.lease_s", str(LEASE_S)) as server:
        yield server


@pytest.fixture
def client(server):
    with Client.connect(server.address, name="second") as client:
        yield client


@pytest.fixture
def table(client):
    """A table in which there is enough to draw five batches."""
    name = next(_names)
    client.create_table(name, TableSpec(signature=SIGNATURE, capacity_steps=100, limiter=LIMITER))
    writer = client.open_writer(name, "w", 1)
    for turn in range(1 + INSERTS):
        writer.observe(step(MID if turn else FIRST)).result()
    return name


@pytest.fixture
def a_learner(server, table):
    @contextlib.contextmanager
    def start(in_flight, timeout_s=60.0):
        with a_program(__file__, server.address, table, in_flight, timeout_s) as process:
            yield Learner(process)

    return start


def step(kind):
    return Steps(
        lane=np.zeros(1, np.int32),
        step_type=np.full(1, kind, np.uint8),
        terminated=np.zeros(1, np.bool_),
        action=np.zeros(1, np.int32),
        reward=np.zeros(1, np.float32),
        frame=np.ones((1, 2), np.int32),
    )


def test_a_killed_learner_gives_back_what_it_had_fetched_and_stays_charged_for_what_it_used(
    client, table, a_learner, wait_until
):
    with a_learner(in_flight=4) as learner:
        asked_at, told = learner.draw(2)  # the first counts as used when the second is asked for
        assert told == [1, 4, 0]
        learner.kill()
        wait_until(lambda: counts(client, table)[1] == 0, "the leases to be given back")
        assert time.monotonic() - asked_at >= LEASE_S
    assert counts(client, table) == [1, 0, 0]
    second = client.batches(table, BATCH, in_flight=1, timeout_s=0.0)
    for _ in range(4):
        next(second)
    with pytest.raises(WaitTimeoutError, match="20 transitions have been drawn for 10 inserts"):
        next(second)


def test_another_learner_in_the_line_is_woken_when_the_leases_of_a_killed_one_end(
    client, table, a_learner, wait_until
):
    with a_learner(in_flight=4) as learner:
        asked_at, told = learner.draw(2)
        assert told == [1, 4, 0]
        second = client.sample(table, BATCH, timeout_s=60.0)
        learner.kill()
        assert second.result().batch.held_s > 0
        assert time.monotonic() - asked_at >= LEASE_S
        assert counts(client, table) == [2, 0, 0]


def test_a_learner_killed_in_the_line_keeps_its_leases_as_long_as_it_would_have_waited(
    client, table, a_learner, wait_until
):
    """The server can't tell it from one that waits; so the leases end that much later."""
    timeout_s = 3 * LEASE_S
    with a_learner(in_flight=5, timeout_s=timeout_s) as learner:
        asked_at, told = learner.draw(2)
        assert told == [1, 4, 1]
        learner.kill()
        wait_until(lambda: counts(client, table)[1] == 0, "the leases to be given back")
        assert time.monotonic() - asked_at >= timeout_s
    assert counts(client, table) == [1, 0, 0]


def test_a_learner_that_was_silent_for_too_long_is_charged_after_all_for_what_it_uses(
    client, table, a_learner, wait_until
):
    with a_learner(in_flight=4) as learner:
        learner.draw(2)
        wait_until(lambda: counts(client, table) == [1, 0, 0], "the leases to be given back")
        _, told = learner.draw(3)
        assert told[0] == 4
