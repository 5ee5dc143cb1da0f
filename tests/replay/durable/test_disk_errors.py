"""A disk that doesn't take what is written ends the server, which says so."""

import subprocess
import sys

import numpy as np
import pytest

from fornix.common.errors import DiskError
from fornix.common.messages import CreateTable, ResetTable, SetLimiter
from fornix.common.specs import LimiterSpec
from fornix.common.transport import ZmqTransport
from fornix.replay.client import Client

from ..builders import F, M, sample, spec
from .machine import Machine

REASON = "Input/output error"


@pytest.fixture
def machine():
    machine = Machine().table().writer()
    machine.write((0, F, 0))
    machine.sync()
    return machine


def look_often(machine):
    for _ in range(3):
        machine.pass_time(1.0)


def write_often(machine, told):
    for at in range(5):
        machine.clock.now += 1.0
        told.append(machine.write((0, M, at)).durable)


def test_an_error_of_the_disk_ends_the_service_at_the_next_look_at_it(machine):
    machine.disk.fails = True
    with pytest.raises(DiskError, match=f"{REASON}; .*look at the disk, then start the server again"):
        write_often(machine, [])
    with pytest.raises(DiskError, match=REASON):  # and it stays so
        machine.pass_time(1.0)
    with pytest.raises(DiskError, match=REASON):
        machine.send(sample(1))


def test_an_error_is_told_of_while_nobody_asks_for_anything(machine):
    machine.flusher.lets = False
    machine.write((0, M, 1))
    machine.disk.fails = machine.flusher.lets = True
    with pytest.raises(DiskError, match=REASON):
        look_often(machine)


@pytest.mark.parametrize(
    "request_",
    [
        CreateTable(table="u", spec=spec()),
        SetLimiter(table="t", limiter=LimiterSpec(min_size=3)),
        ResetTable(table="t"),
    ],
    ids=lambda request: request.type,
)
def test_a_request_that_waits_for_the_disk_is_not_answered_but_ends_the_service(machine, request_):
    machine.write((0, M, 1))
    machine.disk.fails = True
    with pytest.raises(DiskError, match=REASON):
        machine.send(request_)
    assert not machine.answers


def test_no_answer_says_of_rows_that_the_disk_has_them_that_it_has_not(machine):
    machine.disk.fails = True
    told = []
    with pytest.raises(DiskError):
        write_often(machine, told)
    assert set(told) <= {1}


def test_what_the_disk_had_is_there_after_an_error(machine):
    machine.disk.fails = True
    machine.flusher.lets = False
    machine.write((0, M, 1))
    machine.flusher.lets = True
    with pytest.raises(DiskError):
        look_often(machine)
    machine.disk.fails = False
    machine.host.cut_power()
    memory = machine.memory
    assert memory.ring.read("frame", np.array([memory.ring.tail]))[0, 0] == 1
    assert memory.writers["w"].sequence >= 1


SERVES = """\
import errno, os, pathlib, sys
from fornix.replay.role import serve

def fail(descriptor):
    if sys.argv[3] in os.listdir(sys.argv[1]):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return fdatasync(descriptor)

fdatasync, os.fdatasync = os.fdatasync, fail
serve(sys.argv[2], data=pathlib.Path(sys.argv[1]), on_ready=lambda server: print("ready", flush=True))
"""


@pytest.mark.system
def test_a_server_whose_disk_fails_ends_with_the_reason_on_its_standard_error(tmp_path, ipc_address):
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, tmp_path, ipc_address, "fail-now"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            with Client(ZmqTransport(ipc_address)) as client:
                client.create_table("t", spec())
                client.open_writer("t", "w", 1)
                (tmp_path / "fail-now").touch()
                client.open_writer("t", "v", 1)  # something to sync
                _, said = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode not in (0, None)
    assert REASON in said
    assert "look at the disk" in said
