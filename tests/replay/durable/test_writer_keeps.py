"""A writer keeps what the server's disk lacks, and sends it again to one that has lost it."""

import numpy as np
import pytest

from fornix.common.errors import InvalidRequestError, UnknownWriterError
from fornix.common.messages import Observe
from fornix.replay.client import Client
from fornix.replay.local import LocalTransport
from fornix.replay.service import ReplayService
from fornix.replay.steps import Steps
from fornix.replay.vector_writer import VectorWriter

from ..builders import Clock, signature, spec
from .machine import Machine

LIKE = signature(3)


def steps(value, first=False, lane=0):
    frame = np.full((1, 2), value, np.int32)
    if first:
        return Steps.first(LIKE, [lane], frame)
    return Steps.after_actions(
        [lane], np.array([value], np.int32), np.zeros(1, np.float32), frame, [False], [False]
    )


class Power:
    """A machine whose disk takes nothing until it is told to, with a client and a writer."""

    def __init__(self, lanes=1):
        self.machine = Machine().table()
        self.machine.sync()
        self.client = self.machine.client()
        self.writer = self.client.open_writer("t", "w", lanes)
        self.machine.sync()
        self.machine.flusher.lets = False

    def write(self, *values):
        for value in values:
            self.answer = self.writer.observe(steps(value, first=value == 0)).result()

    def cut(self):
        """Cut the power: only what was synced is there."""
        disk = self.machine.disk
        disk.files = {name: file.after_power_cut() for name, file in disk.files.items()}
        disk.boot = f"boot-{int(disk.boot.split('-')[1]) + 1}"
        self.machine.host.start()

    def sync(self):
        self.machine.sync()
        self.machine.flusher.lets = False

    def rows(self):
        ring = self.machine.memory.ring
        return ring.read("frame", np.arange(ring.tail, ring.head))[:, 0].tolist()


@pytest.fixture
def power():
    return Power()


def test_requests_are_kept_until_an_answer_says_that_the_disk_has_them(power):
    power.write(0, 1, 2)
    assert power.writer.kept == 3
    power.sync()
    assert power.writer.kept == 3  # nobody has told it yet
    power.write(3)
    assert power.answer.durable == 3
    assert power.writer.kept == 1
    power.sync()
    power.write(4, 5)
    assert power.writer.kept == 2


def test_what_a_power_cut_took_is_sent_again_in_order_before_the_next(power):
    power.write(0, 1)
    power.sync()
    power.write(2, 3, 4)
    power.cut()
    assert power.rows() == [0, 1]
    power.write(5)
    assert power.rows() == [0, 1, 2, 3, 4, 5]
    assert power.answer.stack[0, :, 0].tolist() == [3, 4, 5]
    assert power.writer.sequence == 7
    power.sync()
    power.write(6)
    assert power.writer.kept == 1


def test_a_writer_of_which_nothing_was_left_begins_again_by_itself(power):
    power = Power()
    power.writer = power.client.open_writer("t", "new", 1)
    power.write(0, 1, 2)
    power.cut()
    assert power.rows() == []
    power.write(3)
    assert power.rows() == [0, 1, 2, 3]


@pytest.mark.parametrize("cuts", [2, 5])
def test_the_power_may_go_again_before_anything_was_synced(power, cuts):
    power.write(0)
    for at in range(cuts):
        power.write(10 * at + 1, 10 * at + 2)
        power.cut()
    power.write(99)
    assert power.rows() == [0, *(10 * at + one for at in range(cuts) for one in (1, 2)), 99]


def test_the_power_may_go_while_the_answer_is_on_its_way(power):
    power.write(0, 1)
    pending = power.writer.observe(steps(2))  # applied, and its answer not taken
    power.cut()
    assert power.rows() == []
    pending.send_again()
    pending.result()
    assert power.rows() == [0, 1, 2]


def test_a_process_that_dies_loses_nothing_and_nothing_is_sent_again(power):
    power.write(0, 1)
    sent = []
    submit = ReplayService.submit
    power.machine.host.kill()
    service = power.machine.service
    service.submit = lambda ticket, request: (sent.append(request), submit(service, ticket, request))[1]
    power.write(2)
    assert [type(request) for request in sent] == [Observe]
    assert power.rows() == [0, 1, 2]


def test_the_arrays_are_the_callers_again_once_there_is_an_answer(power):
    frame, lane = np.zeros((1, 2), np.int32), np.zeros(1, np.int32)
    power.writer.observe(Steps.first(LIKE, lane, frame)).result()
    action, reward = np.zeros(1, np.int32), np.zeros(1, np.float32)
    for value in (1, 2, 3):
        frame[:], action[:], reward[:] = value, value, value
        power.writer.observe(Steps.after_actions(lane, action, reward, frame, [False], [False])).result()
    frame[:], action[:], reward[:] = 77, 77, 77
    power.cut()
    power.write(4)
    assert power.rows() == [0, 1, 2, 3, 4]
    ring = power.machine.memory.ring
    rows = np.arange(ring.tail, ring.head - 1)
    assert ring.read("action", rows).tolist() == [0, 1, 2, 3]
    assert ring.read("reward", rows).tolist() == [0, 1, 2, 3]


def test_lanes_that_left_leave_again():
    power = Power(lanes=2)
    writer = power.writer
    writer.observe(steps(0, first=True)).result()
    writer.observe(steps(100, first=True, lane=1)).result()
    writer.observe(steps(1), leave=[1]).result()
    power.cut()
    writer.observe(steps(200, first=True, lane=1)).result()
    ring = power.machine.memory.ring
    assert (power.machine.memory.writers["w"].newest >= ring.tail).all()
    assert [row for row in power.rows() if row] == [100, 1, 200]
    with pytest.raises(InvalidRequestError, match="got FIRST while its episode is open"):
        writer.observe(steps(0, first=True)).result()


def test_lanes_that_were_added_are_added_again():
    power = Power()
    power.write(0)
    power.writer.grow(2)
    power.writer.observe(steps(50, first=True, lane=1)).result()
    power.cut()
    power.writer.observe(steps(51, lane=1)).result()
    assert power.rows() == [0, 50, 51]


def test_a_writer_whose_place_was_taken_sends_nothing_again(power):
    power.write(0, 1)
    other = power.client.open_writer("t", "w", 1)
    assert other.incarnation > power.writer.incarnation
    with pytest.raises(Exception, match="has been replaced"):
        power.write(2)
    power.cut()
    power.machine.writer("w", incarnation=other.incarnation + 1)
    with pytest.raises(Exception, match="has been replaced"):
        power.write(2)
    assert power.rows() == []


def test_a_server_that_has_lost_more_than_is_kept_is_refused_what_comes():
    power = Power()
    power.write(0, 1)
    power.sync()
    power.write(2, 3)  # and now 0 and 1 are not kept any more
    power.machine.disk.files.clear()
    power.machine.disk.small.clear()
    power.machine.host.start()
    power.machine.table()
    with pytest.raises(UnknownWriterError):
        power.write(4)
    assert power.rows() == []


def test_a_server_that_keeps_its_rows_in_memory_has_nothing_kept_for_it():
    service = ReplayService(Clock(), seed=0)
    client = Client(LocalTransport(service))
    client.create_table("t", spec())
    writer = client.open_writer("t", "w", 1)
    for value in range(4):
        answer = writer.observe(steps(value, first=value == 0)).result()
        assert answer.durable is None
        assert writer.kept == 0
    client.reset_table("t")
    with pytest.raises(UnknownWriterError):
        writer.observe(steps(5)).result()
    assert client.info().tables["t"]["steps"] == 0


@pytest.mark.parametrize("autoreset", ["next_step", "same_step", "disabled"])
def test_a_vector_writer_goes_on_over_a_power_cut(autoreset):
    power = Power(lanes=2)
    rows = VectorWriter(power.writer, autoreset)

    def seen(value):
        return np.array([[value, 0], [value + 100, 0]], np.int32)

    def step(value):
        none = np.zeros(2, np.bool_)
        action, reward = np.array([value, value], np.int32), np.full(2, value, np.float32)
        return rows.step(action, seen(value), reward, none, none).result().stack

    rows.reset(seen(0)).result()
    step(1)
    power.sync()
    step(2)
    step(3)
    rows.leave([1])
    step(4)
    power.cut()
    stacks = step(5)
    assert stacks[0, :, 0].tolist() == [3, 4, 5]
    live = [row for row in power.rows() if row]
    assert live == [100, 1, 101, 2, 102, 3, 103, 4, 5]
