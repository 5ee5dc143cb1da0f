"""A server finds its tables as they were, and a folder that can't be one is refused."""

import json
import time

import numpy as np
import pytest
from durability.simulated import StepFlusher
from google_crc32c import value as crc32c

from fornix.common.errors import StorageError
from fornix.common.messages import (
    CreateTable,
    DropTable,
    ListTables,
    ResetTable,
    SetLimiter,
    StackQuery,
    Stacks,
    TableCreated,
    UpdatePriorities,
)
from fornix.common.signature import ArraySpec
from fornix.common.specs import Episode, LimiterSpec, SamplerSpec, Transition
from fornix.replay.durable import disk as disks
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.flusher import ThreadFlusher
from fornix.replay.durable.folder import TABLES, Folder
from fornix.replay.service import ReplayService

from ..builders import END, Clock, F, M, a_stack, observe, sample, signature, spec
from .machine import Machine

PRIORITIZED = SamplerSpec(kind="prioritized", priority_exponent=0.6)
QUEUE = SamplerSpec(kind="fifo")
ends = pytest.mark.parametrize("ends", ["kill", "restart"])


def end(machine, how):
    machine.host.kill() if how == "kill" else machine.restart()


def play(machine, steps=20):
    """Write an episode after the other, of four steps each."""
    return [int(machine.write((0, (F, M, M, END)[at % 4], at)).key[0]) for at in range(steps)]


# --- as it was ---


@ends
def test_tables_are_as_they_were(ends):
    machine = Machine().table(limiter=LimiterSpec(min_size=5)).writer()
    machine.table("few", capacity=10, n_frames=2, rows_of="t", sampler=SamplerSpec(kind="lifo"))
    machine.table("queue", capacity=50, n_frames=3, rows_of="t", sampler=QUEUE)
    machine.table("other", capacity=7, sampler=PRIORITIZED)
    machine.table("gone", capacity=9)
    play(machine)
    machine.ask(SetLimiter(table="few", limiter=LimiterSpec(min_size=3)))
    machine.ask(DropTable(table="gone"))
    before = machine.ask(ListTables())
    starts = {name: machine.inside(name).starts(Transition(n_step=2)).tolist() for name in before.tables}
    files = machine.disk.names()
    for _ in range(2):
        end(machine, ends)
        assert machine.ask(ListTables()) == before
        assert list(machine.ask(ListTables()).tables) == list(before.tables)
        for name in before.tables:
            assert machine.inside(name).starts(Transition(n_step=2)).tolist() == starts[name]
        assert machine.disk.names() == files
    created = CreateTable(table="few", spec=machine.inside("few").created)
    assert machine.ask(created) == TableCreated(created=False)  # by the limits that it was created with
    assert "t" in machine.refusal(DropTable(table="t"))
    for name in ("few", "queue", "t", "other"):
        machine.ask(DropTable(table=name))
    machine.host.kill()
    assert machine.ask(ListTables()).tables == {}
    assert machine.disk.names() == [TABLES]


@ends
def test_the_limiter_counts_on_and_what_was_leased_counts_as_consumed(ends):
    limiter = LimiterSpec(min_size=2, samples_per_insert=2.0, error_buffer_inserts=50.0)
    machine = Machine().table(limiter=limiter).writer()
    play(machine, 12)
    machine.ask(sample(5))
    machine.ask(sample(7, session="s", lease=1))
    before = machine.inside().limiter.counts()
    assert (before.inserts, before.consumed, before.leased) == (9, 5, 7)
    end(machine, ends)
    after = machine.inside().limiter.counts()
    assert after == before._replace(consumed=12, leased=0)
    machine.write((0, F, 50))
    machine.write((0, M, 51))
    machine.ask(SetLimiter(table="t", limiter=limiter.model_copy(update={"samples_per_insert": 4.0})))
    before = machine.inside().limiter
    end(machine, ends)
    assert machine.inside().limiter.counts() == before.counts()
    assert machine.inside().limiter.surplus == before.surplus


@ends
def test_inserts_are_counted_whose_rows_are_long_gone(ends):
    machine = Machine().table(capacity=8, n_frames=1).writer()
    for at in range(100):
        machine.write((0, M if at else F, at))
        machine.sync()
        if at % 30 == 29:
            end(machine, ends)
            assert machine.inside().limiter.inserts == at


@ends
def test_a_reset_is_not_undone(ends):
    machine = Machine().table(sampler=PRIORITIZED).writer()
    keys = play(machine)
    machine.ask(sample(3))
    end(machine, ends)
    machine.ask(ResetTable(table="t"))
    for _ in range(2):
        end(machine, ends)
        assert len(machine.inside()) == 0
        assert machine.inside().limiter.counts()[:4] == (0, 0, 0, 0)
        assert machine.memory.episodes == 0
        assert machine.memory.writers == {}
    machine.writer(incarnation=2)
    assert machine.write((0, F, 0), incarnation=2).key.tolist() == [keys[-1] + 1]


@ends
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_priorities_are_exactly_as_they_were(ends, alpha):
    sampler = SamplerSpec(kind="prioritized", priority_exponent=alpha)
    machine = Machine().table(sampler=sampler).writer()
    keys = np.array(play(machine))
    changed = np.array([0.0, 1e-9, 0.3, 7.0, 2.0])
    machine.ask(UpdatePriorities(table="t", key=keys[:5], priority=changed))

    def powers():
        return machine.inside()._priorities.column[keys % machine.memory.ring.capacity].tolist()

    before = powers()
    end(machine, ends)
    assert powers() == before
    [key] = machine.write((0, F, 99)).key.tolist()  # gets the largest that there was
    assert machine.inside()._priorities.column[key % machine.memory.ring.capacity] == 7.0**alpha


@ends
def test_rows_that_a_table_met_when_it_was_made_keep_their_priority(ends):
    machine = Machine().table().writer()
    keys = np.array(play(machine))
    machine.table("u", rows_of="t", sampler=PRIORITIZED)
    machine.ask(UpdatePriorities(table="u", key=keys[-1:], priority=np.array([9.0])))
    end(machine, ends)
    powers = machine.inside("u")._priorities.column[keys % machine.memory.ring.capacity]
    assert powers.tolist() == [1.0] * (len(keys) - 1) + [9.0**0.6]


@ends
@pytest.mark.parametrize("kind", ["uniform", "prioritized", "fifo", "lifo", "epoch"])
def test_nothing_is_drawn_more_often_than_it_may_be(ends, kind):
    machine = Machine().table(sampler=SamplerSpec(kind=kind, max_times_sampled=3)).writer()
    play(machine)
    starts = machine.inside().starts(Transition())
    drawn = {int(key): 0 for key in starts}
    for at in range(3 * len(starts)):
        for key in machine.ask(sample(1)).key.tolist():
            drawn[key] += 1
        if at % 5 == 0:
            end(machine, ends)
    assert set(drawn.values()) == {3}
    ticket = machine.send(sample(1, timeout_s=0.1))
    assert ticket not in machine.answers  # nothing is left


@ends
def test_open_episodes_and_their_stacks_go_on(ends):
    machine = Machine().table().writer(lanes=3)
    machine.write((0, F, 0), (1, F, 10), (2, F, 20))
    machine.write((0, M, 1), (1, M, 11), leave=np.array([2], np.int32))
    end(machine, ends)
    answer = machine.write((0, M, 2), (1, END, 12), (2, F, 30))
    assert np.array_equal(answer.stack, [a_stack(0, 1, 2), a_stack(10, 11, 12), a_stack(None, None, 30)])
    end(machine, ends)
    machine.write((0, END, 3))
    batch = machine.ask(sample(64, unit=Episode(max_steps=10)))
    found = {int(reward[:steps].sum()) for reward, steps in zip(batch.reward, batch.steps, strict=True)}
    assert found == {10 + 20 + 30, 110 + 120}


@ends
def test_a_request_is_applied_once_whenever_it_comes_again(ends):
    machine = Machine().table().writer(lanes=2)
    answer = machine.write((1, F, 0), (0, F, 1))
    request, head = machine.request, machine.memory.ring.head
    end(machine, ends)
    again = machine.ask(request)
    assert np.array_equal(again.key, answer.key)
    assert np.array_equal(again.stack, answer.stack)
    assert machine.memory.ring.head == head


@ends
def test_episodes_are_counted_on(ends):
    machine = Machine().table(capacity=8, n_frames=1).writer()
    for turn in range(5):
        for _ in range(4):
            machine.write((0, F, 0))
            machine.write((0, END, 1))
            machine.sync()
        machine.write((0, F, 0))
        machine.write((0, END, 1))
        end(machine, ends)
        assert machine.memory.episodes == 5 * (turn + 1)


@ends
def test_keys_count_on_and_never_come_again(ends):
    machine = Machine().table().writer()
    keys = play(machine, 8)
    end(machine, ends)
    machine.write((0, F, 0))
    more = [int(machine.write((0, M, at)).key[0]) for at in range(3)]
    assert more == list(range(keys[-1] + 2, keys[-1] + 5))
    machine.host.cut_power()  # those that were lost perhaps are given to no other row
    machine.writer()
    kept = machine.memory.ring.head
    assert kept > more[-1]
    machine.writer(incarnation=9)
    assert machine.write((0, F, 0), incarnation=9).key.tolist() == [kept]
    answer = machine.ask(StackQuery(table="t", key=np.array(more[-1:])))
    assert not isinstance(answer, Stacks)


@ends
def test_writers_come_and_go_by_the_thousand(ends):
    """More than have a place: those idle longest lose theirs, also for the next server."""
    machine = Machine().table(capacity=6000, n_frames=1)
    for at in range(1100):
        machine.writer(f"w{at}")
        machine.write((0, F, at), writer=f"w{at}")
        machine.clock.now += 0.001
    names = set(machine.memory.writers)
    assert len(names) == 1024
    end(machine, ends)
    assert set(machine.memory.writers) == names
    for at in (76, 1099):
        assert machine.write((0, M, 5000 + at), writer=f"w{at}").stack[0, -1, 0] == 5001 + at
    machine.writer("another")
    machine.write((0, F, 1), writer="another")
    end(machine, ends)
    assert len(machine.memory.writers) == 1024


@ends
def test_lanes_that_a_writer_got_later_are_there(ends):
    machine = Machine().table().writer(lanes=1)
    machine.write((0, F, 0))
    machine.writer(lanes=3)
    end(machine, ends)
    assert machine.write((0, M, 1), (2, F, 7)).key.shape == (2,)
    end(machine, ends)
    assert np.array_equal(machine.write((2, M, 8)).stack[0], a_stack(None, 7, 8))


NESTED = {
    "frame": {
        "board": ArraySpec.of((2, 1), np.int32),
        "rest": (ArraySpec.of((), np.float64), {"x": ArraySpec.of((3,), np.float32)}),
    },
    "extras": {"logits": ArraySpec.of((2,), np.float32), "seen": ArraySpec.of((), np.int64)},
    "action": ArraySpec.of((2,), np.float32),
}


@ends
def test_nested_frames_and_extras_are_as_they_were(ends):
    machine = Machine().table(n_frames=1, **NESTED).writer()
    like = signature(1, **NESTED)
    keys = []
    for at in range(6):
        answer = machine.ask(observe(at + 1, [(0, M if at else F, at)], like=like))
        keys += answer.key.tolist()

    def drawn():
        stacks = machine.ask(StackQuery(table="t", key=np.array(keys))).stack
        batch = machine.ask(sample(512))
        return stacks, {
            int(key): (batch.action[at].tolist(), {n: a[at].tolist() for n, a in batch.extras.items()})
            for at, key in enumerate(batch.key)
        }

    before, rows = drawn()
    end(machine, ends)
    after, again = drawn()
    assert rows == again
    assert before.keys() == after.keys()
    for path in before:
        assert np.array_equal(before[path], after[path])


def test_priorities_of_rows_that_were_lost_are_no_others():
    machine = Machine(seed=3).table(sampler=PRIORITIZED).writer()
    machine.write((0, F, 0))
    machine.sync()
    machine.flusher.lets = False
    keys = [int(machine.write((0, M, at)).key[0]) for at in range(3)]
    machine.ask(UpdatePriorities(table="t", key=np.array(keys), priority=np.array([9.0] * 3)))
    draws = machine.disk.files["draws-0"]
    draws.sync()  # the priorities are on the disk, and the rows are not
    machine.disk.files = {name: file.after_power_cut() for name, file in machine.disk.files.items()}
    machine.disk.boot = "boot-7"
    machine.host.start()
    assert len(machine.inside()) == 1
    assert np.count_nonzero(machine.inside()._draws._entries["mark"]) == 1


# --- what can't be done ---


@pytest.mark.parametrize("which", ["rows", "draws", TABLES])
def test_a_table_for_which_there_is_no_room_is_refused_and_nothing_is_left_of_it(which, monkeypatch):
    machine = Machine().table().writer()
    before, files = machine.ask(ListTables()), machine.disk.names()

    def full(*_):
        raise StorageError("no room")

    if which == "rows":
        machine.disk.room = 10
    elif which == TABLES:
        machine.disk.write_whole = full
    else:
        create = machine.disk.create
        machine.disk.create = lambda name, nbytes: full() if "draws" in name else create(name, nbytes)
    for options in ({}, {"rows_of": "t"}):
        if options and which == "rows":
            continue
        reply = machine.refusal(CreateTable(table="u", spec=spec(50, **options)), StorageError)
        assert "room" in reply
        assert machine.ask(ListTables()) == before
        assert machine.disk.names() == files
    assert isinstance(machine.write((0, F, 0)), Stacks)
    machine.disk.room = None
    for name in ("write_whole", "create"):
        machine.disk.__dict__.pop(name, None)
    machine.table("u").table("v", rows_of="t")
    machine.host.kill()
    assert list(machine.ask(ListTables()).tables) == ["t", "u", "v"]


def test_a_table_that_could_not_be_dropped_is_there_still():
    machine = Machine().table().writer()

    def full(*_):
        raise StorageError("no room")

    machine.disk.write_whole = full
    machine.refusal(DropTable(table="t"), StorageError)
    assert isinstance(machine.write((0, F, 0)), Stacks)
    del machine.disk.write_whole
    machine.host.kill()
    assert len(machine.inside()) == 1
    machine.ask(DropTable(table="t"))
    assert machine.ask(ListTables()).tables == {}


def test_one_who_waits_for_the_disk_goes_on_once_another_request_has_waited_for_it():
    machine = Machine().table(capacity=8, n_frames=1).writer().table("u")
    machine.flusher.lets = False
    like, number = signature(1), 1
    while (
        asked := machine.send(observe(number, [(0, M if number > 1 else F, 0)], like=like))
    ) in machine.answers:
        number += 1
    assert number < 10
    machine.flusher.lets = True
    machine.ask(SetLimiter(table="u", limiter=LimiterSpec(min_size=3)))
    assert isinstance(machine.answers[asked], Stacks)


def test_rows_and_lanes_that_leave_with_them_are_refused_before_anything_is_done():
    machine = Machine().table(capacity=12, n_frames=3).writer(lanes=3)
    machine.write((0, F, 0), (1, F, 1), (2, F, 2))
    machine.write((0, M, 3))
    machine.write((0, M, 4))
    memory = machine.memory
    while not memory.ring.tail_after(1) <= _needed(memory) < memory.ring.tail_after(3):
        machine.write((1, M, 5), (2, M, 6))
        machine.sync()
    head = memory.ring.head
    refused = machine.write((0, M, 9), leave=np.array([1, 2], np.int32))
    assert refused.code == "EVICTED"
    assert memory.ring.head == head
    assert isinstance(machine.write((1, M, 7), (2, M, 8)), Stacks)  # under the same number


def _needed(memory):
    """The oldest row that the next stack of lane 0 has."""
    newest = memory.writers["w"].newest[:1]
    return int(memory.ring.before(newest, memory.ring.tail)[0])


# --- a real folder ---


def a_folder(path):
    return Folder(FolderDisk(path), ThreadFlusher(), Clock())


def a_service(path):
    return ReplayService(Clock(), seed=0, folder=a_folder(path))


@pytest.fixture
def kept(tmp_path):
    """A folder that a server has kept a table in."""
    service = a_service(tmp_path / "a" / "b")
    list(service.submit(1, CreateTable(table="t", spec=spec())))
    service.close()
    return tmp_path / "a" / "b"


def contents(path):
    return {one.name: one.read_bytes() for one in path.iterdir()}


def test_a_second_server_is_refused_until_the_first_has_ended(kept):
    service = a_service(kept)
    with pytest.raises(StorageError, match="kept by another replay server"):
        FolderDisk(kept)
    service.close()
    a_service(kept).close()


def test_files_that_belong_to_no_table_are_removed(kept):
    for name in ("rows-7", "draws-9"):
        (kept / name).write_bytes(b"what is left of a table")
    (kept / "notes").write_text("mine")
    a_service(kept).close()
    assert sorted(contents(kept)) == ["draws-0", "lock", "notes", "rows-0", TABLES]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]\n00000000", b"\xff\xfe\n12345678", b"x" * 100])
def test_a_damaged_list_of_tables_is_refused_and_nothing_is_touched(kept, damage):
    (kept / TABLES).write_bytes(damage)
    before = contents(kept)
    with pytest.raises(StorageError, match=rf"{TABLES} is damaged: .*restore"):
        Folder(FolderDisk(kept), StepFlusher(), Clock())
    assert contents(kept) == before


@pytest.mark.parametrize("at", [0, 40, -3])
def test_a_flipped_bit_in_the_list_of_tables_is_refused(kept, at):
    data = bytearray((kept / TABLES).read_bytes())
    data[at] ^= 1
    (kept / TABLES).write_bytes(data)
    with pytest.raises(StorageError, match=f"{TABLES} is damaged"):
        Folder(FolderDisk(kept), StepFlusher(), Clock())


def test_a_folder_of_another_format_is_refused_with_both_versions(kept):
    text, _, _ = (kept / TABLES).read_bytes().rpartition(b"\n")
    told = json.loads(text) | {"format": 7, "something": "new"}
    text = json.dumps(told).encode()
    (kept / TABLES).write_bytes(text + b"\n%08x" % crc32c(text))
    with pytest.raises(StorageError, match="format 7, and this fornix reads 1"):
        Folder(FolderDisk(kept), StepFlusher(), Clock())


@pytest.mark.parametrize("name", ["rows-0", "draws-0"])
@pytest.mark.parametrize("how", ["cut", "gone", "other"])
def test_a_file_that_is_not_what_it_was_is_refused(kept, name, how):
    path = kept / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-4096] or b"x")
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(StorageError):
        a_service(kept)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="can't be used"):
        FolderDisk(tmp_path / "file")


def test_a_disk_without_room_is_refused_with_both_numbers_and_leaves_no_file(tmp_path, monkeypatch):
    def full(descriptor, offset, nbytes):
        raise OSError(28, "No space left on device")

    service = a_service(tmp_path)
    monkeypatch.setattr(disks.os, "posix_fallocate", full)
    [(_, reply)] = service.submit(1, CreateTable(table="t", spec=spec()))
    assert reply.code == "STORAGE"
    assert "has room for" in reply.message
    assert "are to be set aside" in reply.message
    assert sorted(contents(tmp_path)) == ["lock", "tables.json"]
    monkeypatch.undo()
    [(_, reply)] = service.submit(2, CreateTable(table="t", spec=spec()))
    assert reply == TableCreated(created=True)
    service.close()


def test_a_folder_without_its_list_of_tables_is_left_as_it_is(tmp_path):
    names = ["rows-0", "draws-1", "rows-2024.csv", "draws-x"]
    for name in names:
        (tmp_path / name).write_bytes(b"theirs")
    with pytest.raises(StorageError, match=r"tables\.json, which says what it is, is not"):
        Folder(FolderDisk(tmp_path), ThreadFlusher(), time.monotonic)
    assert all((tmp_path / name).read_bytes() == b"theirs" for name in names)
    for name in names[:2]:
        (tmp_path / name).unlink()
    folder = Folder(FolderDisk(tmp_path), ThreadFlusher(), time.monotonic)
    folder.close()
    assert all((tmp_path / name).read_bytes() == b"theirs" for name in names[2:])
