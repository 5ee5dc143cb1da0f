"""Clients on the server's host, over real sockets: who maps its memory, who doesn't, and what they see."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fornix.common.errors import EvictedError, InvalidRequestError, UnknownWriterError
from fornix.common.specs import Sequence, TableSpec, Transition
from fornix.common.transport import ZmqTransport
from fornix.replay.client import Client
from fornix.replay.service import ReplayService

from .known_steps import LANES, SIGNATURE, TABLE, Lanes, check, stack_of
from .programs import a_server

pytestmark = pytest.mark.system

SPEC = TableSpec(signature=SIGNATURE, capacity_steps=2000)
RUN = """\
environment: {{agents: 2, max_turns: 10}}
network: {{width: 16}}
replay: {{min_size: 50, address: {address}}}
weights: {{addresses: ["{address}-weights"]}}
actor: {{processes: 1, copies: 4}}
learner: {{batch_size: 16, gradient_steps: 1000000}}
"""


class Writing:
    """A writer of known steps through a client, which sees to it that the stacks it is handed are right."""

    def __init__(self, client, number, name="writer"):
        client.create_table(TABLE, SPEC)
        self.lanes = Lanes(number)
        self.writer = client.open_writer(TABLE, name, LANES)

    def write(self, turns):
        """Write so many steps of every lane; return the keys of the last ones."""
        for _ in range(turns):
            answer = self.writer.observe(self.lanes.steps()).result()
            assert np.array_equal(answer.stack, stack_of(self.lanes.who))
            self.newest = answer.key, self.lanes.who.copy()
            self.lanes.go_on()
        return self


def draw(client, **options):
    """Draw a batch, and return the numbers of those who wrote it."""
    drawn = client.sample(TABLE, 64, Transition(n_step=3), discount=1.0, **options).result()
    return writers_of(drawn)


def writers_of(drawn):
    """Return the numbers of those who wrote a batch, in which nothing may be wrong."""
    check(drawn)
    return set(drawn.extras["who"][:, 0].tolist())


def look_up(client, writing):
    """Ask for the newest stacks of a writer by their keys."""
    keys, who = writing.newest
    assert np.array_equal(client.stacks(TABLE, keys).stack, stack_of(who))


def mapped_files():
    """Return how many memory files this process has mapped."""
    return sum("/memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())


def inspect(address, *flags):
    """Return what `fornix inspect` says."""
    command = [sys.executable, "-m", "fornix", "inspect", address, *flags]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=30, env=os.environ | {"COLUMNS": "200"}
    ).stdout


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_auto_maps_the_memory_of_a_server_on_the_same_host(scheme, ipc_address, wait_until):
    address = ipc_address if scheme == "ipc" else "tcp://127.0.0.1:*"
    with a_server(address) as server, Client.connect(server.address) as client:
        before = mapped_files()
        writing = Writing(client, number=1)
        # by itself, while it writes
        wait_until(
            lambda: (
                writing.write(1) and client.info().tables[TABLE]["writers"]["writer"]["memory"] == "mapped"
            ),
            "the writer to map the memory",
        )
        assert client.memory_path(TABLE) == "mapped"
        assert mapped_files() > before
        writing.write(30)
        assert draw(client) == {1}
        look_up(client, writing)
        with pytest.raises(EvictedError):
            client.stacks(TABLE, writing.newest[0] + LANES)  # of steps that are still to come
        look_up(client, writing.write(1))


def test_socket_maps_nothing_and_mapped_lets_go_when_it_is_closed(ipc_address):
    before = mapped_files()
    with a_server(ipc_address):
        for memory, number in (("socket", 1), ("mapped", 2)):
            with Client.connect(ipc_address, memory=memory) as client:
                writing = Writing(client, number, name=memory).write(30)
                assert draw(client) <= {1, 2}
                look_up(client, writing)
                assert client.memory_path(TABLE) == memory
                assert (mapped_files() > before) == (memory == "mapped")
            assert mapped_files() == before


def test_mapped_says_in_a_sentence_why_it_can_not_be_done(serve, ipc_address):
    """A server that shares nothing; over the socket all goes on."""
    with (
        serve(ipc_address, ReplayService(time.monotonic, seed=0, share=False)),
        Client.connect(ipc_address, memory="mapped") as client,
        Client.connect(ipc_address, memory="auto") as other,
    ):
        writing = Writing(other, number=1).write(20)
        mine = Writing(client, number=2, name="mine")
        steps = mine.lanes.steps()
        before = other.info().tables[TABLE]["steps_ever"]
        for attempt in (
            lambda: client.memory_path(TABLE),
            lambda: client.sample(TABLE, 4),
            lambda: client.sample(TABLE, 4, Sequence(length=2)),
            lambda: client.stacks(TABLE, writing.newest[0]),
            lambda: next(client.batches(TABLE, 4)),
            lambda: mine.writer.observe(steps),
        ):
            with pytest.raises(InvalidRequestError) as raised:
                attempt()
            assert str(raised.value) == (
                f"the memory of table {TABLE!r} can't be mapped: this server shares none; use the socket"
            )
        assert other.info().tables[TABLE]["steps_ever"] == before
        # what was refused has no place in the order, and without stacks nothing has to be mapped
        assert len(mine.writer.observe(steps, stacks=False).result().key) == LANES
        assert other.memory_path(TABLE) == "socket"
        assert draw(other) <= {1, 2}
        look_up(other, writing)


IN_A_CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
ASKS = """\
import sys
from fornix.common.errors import FornixError
from fornix.replay.client import Client

for memory in ("auto", "mapped"):
    with Client.connect(sys.argv[1], memory=memory) as client:
        try:
            print(client.memory_path(sys.argv[2]))
        except FornixError as error:
            print(error)
"""


def _has_containers():
    return shutil.which(IN_A_CONTAINER[0]) and not subprocess.run([*IN_A_CONTAINER, "true"]).returncode


@pytest.mark.skipif(not _has_containers(), reason="this machine lets nobody make process-id namespaces")
def test_from_another_container_the_memory_is_out_of_reach(ipc_address):
    with a_server(ipc_address), Client.connect(ipc_address, memory="mapped") as client:
        Writing(client, number=1).write(1)
        command = [*IN_A_CONTAINER, sys.executable, "-c", ASKS, ipc_address, TABLE]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    auto, mapped = said.splitlines()
    assert auto == "socket"
    assert re.fullmatch(
        r"/proc/\d+/fd/\d+ can't be opened \(.*\): the server runs on .* container.*", mapped
    )


def test_inspect_shows_by_which_way_frames_come_to_each_writer_and_reader(ipc_address):
    ways = {"auto": "mapped", "mapped": "mapped", "socket": "socket"}
    with a_server(ipc_address), contextlib.ExitStack() as stack:
        for number, memory in enumerate(ways):
            client = stack.enter_context(Client.connect(ipc_address, name=f"{memory}-reads", memory=memory))
            Writing(client, number, name=f"{memory}-writes")
            assert client.memory_path(TABLE) == ways[memory]
            Writing(client, number, name=f"{memory}-writes").write(20)
            batches = stack.enter_context(
                client.batches(TABLE, 4, Transition(n_step=3), discount=1.0, in_flight=1)
            )
            check(next(batches))
        text = inspect(ipc_address)
        table = json.loads(inspect(ipc_address, "--json", "-"))["tables"][TABLE]
        for who in ("writers", "readers"):
            assert len(table[who]) == len(ways)
            for name, told in table[who].items():
                way = ways[name.partition("-")[0]]
                assert told["memory"] == way
                assert re.search(rf"^ *{name} .* {way} .* s ago", text, re.MULTILINE), text


@pytest.mark.parametrize("memory", ["mapped", "socket"])
def test_a_run_takes_the_way_that_it_is_told_to(memory, ipc_address, tmp_path, wait_until):
    file = tmp_path / "run.yaml"
    file.write_text(RUN.format(address=ipc_address))
    command = [sys.executable, "-m", "fornix", "run", file, "--replay.memory", memory, "--runs", tmp_path]
    with (
        (tmp_path / "said").open("w+") as said,
        subprocess.Popen(command, stdout=said, stderr=said) as process,
        Client.connect(ipc_address, give_up_after_s=30.0) as client,
    ):
        try:

            def trains():
                reports = client.info().reports
                return process.poll() is not None or (
                    reports.get("learner-0", {"metrics": {}})["metrics"].get("gradient_steps", 0) > 0
                )

            wait_until(trains, "gradient steps", 40.0)
            table = json.loads(inspect(ipc_address, "--json", "-"))["tables"]["shared"]
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(15)
        said.seek(0)
        assert process.returncode == 130, said.read()
    assert table["writers"].keys() == {"actor-0.0", "actor-0.1"}
    assert len(table["readers"]) == 1
    assert {one["memory"] for who in ("writers", "readers") for one in table[who].values()} == {memory}


def test_a_client_never_gathers_from_the_memory_of_a_killed_server_what_a_new_one_means(
    ipc_address, wait_until
):
    """Each of four clients has the old memory mapped, and each meets the new server in another way."""
    with contextlib.ExitStack() as stack:
        samples, looks_up, fetches, writes = (
            stack.enter_context(Client(ZmqTransport(ipc_address, retry_after_s=0.3), memory="mapped"))
            for _ in range(4)
        )
        with a_server(ipc_address) as server:
            old = Writing(writes, number=1).write(30)
            batches = stack.enter_context(
                fetches.batches(TABLE, 16, Transition(n_step=3), discount=1.0, timeout_s=0.5)
            )
            assert writers_of(next(batches)) == draw(samples) == {1}
            look_up(looks_up, old)
            wait_until(batches.ready, "the next batch")
            common = {"batch_size": 16, "unit": Transition(n_step=3), "discount": 1.0, "timeout_s": 0.5}
            answered = [samples.sample(TABLE, **common) for _ in range(2)]
            wait_until(lambda: all(one.done() for one in answered), "two answers")
            server.send_signal(signal.SIGSTOP)
            asked = samples.sample(TABLE, **common)
            unwritten = old.writer.observe(old.lanes.steps(), timeout_s=0.5)
            server.kill()
            server.wait(10)
        with a_server(ipc_address), Client.connect(ipc_address, memory="socket") as other:
            new = Writing(other, number=2, name="new").write(30)
            # in the same slots, of other contents, under keys that no server gave before
            assert (new.newest[0] > old.newest[0]).all()
            look_up(looks_up, new)
            assert writers_of(answered[0].result()) == {1}  # the old memory is still there, as it was
            assert writers_of(asked.result()) == {2}
            assert writers_of(answered[1].result()) == {2}  # and now it isn't: drawn anew
            assert draw(samples) == {2}
            look_up(samples, new)
            with pytest.raises(UnknownWriterError):
                unwritten.result()
            again = Writing(writes, number=3, name="again").write(30)
            look_up(writes, again)
            drawn = [writers_of(next(batches)) for _ in range(8)]
            assert all(of == {1} or of <= {2, 3} for of in drawn)  # no batch is of both
            of_old = [1 in of for of in drawn]
            assert of_old[0]
            assert not of_old[-1]
            assert of_old == sorted(of_old, reverse=True)
            ways = itertools.chain(
                *(other.info().tables[TABLE][who].items() for who in ("writers", "readers"))
            )
            assert {name.partition("-")[0]: way["memory"] for name, way in ways} == {
                "new": "socket",
                "again": "mapped",
                "client": "mapped",
            }
            batches.close()


@pytest.mark.parametrize("what", ["created anew", "reset"])
def test_a_client_never_gathers_from_the_memory_of_a_table_that_is_gone(what, ipc_address):
    with (
        a_server(ipc_address),
        Client.connect(ipc_address, memory="mapped") as looks_up,
        Client.connect(ipc_address, memory="mapped") as samples,
        Client.connect(ipc_address, memory="socket") as other,
    ):
        old = Writing(other, number=1).write(30)
        look_up(looks_up, old)
        assert draw(samples) == {1}
        if what == "reset":
            other.reset_table(TABLE)
        else:
            other.drop_table(TABLE)
        new = Writing(other, number=2).write(30)
        assert (new.newest[0] > old.newest[0]).all()
        look_up(looks_up, new)
        assert draw(samples) == {2}
        if what == "reset":
            with pytest.raises(EvictedError):
                look_up(looks_up, old)
