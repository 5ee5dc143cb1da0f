"""A folder is verified: one that is right has no faults, and each kind of damage is found."""

import re
import time

import numpy as np
import pytest
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.commands.replay_verify import main
from fornix.common.errors import StorageError
from fornix.common.specs import LimiterSpec, SamplerSpec, TableSpec
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.file import CELL_NBYTES, RowsFile, State
from fornix.replay.durable.folder import TABLES
from fornix.replay.durable.records import record_checks
from fornix.replay.durable.snapshot import snapshot
from fornix.replay.durable.verify import verify

from .served import SMALL, Scribe, a_spec, served, written_by_a_process


@pytest.fixture
def path(tmp_path):
    """A folder of two tables, closed, whose ring has wrapped and whose lanes left now and then."""
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(200))
        drawn_once = SamplerSpec(kind="prioritized", max_times_sampled=3)
        client.create_table(
            "u", TableSpec(signature=SMALL, capacity_steps=100, rows_of="t", sampler=drawn_once)
        )
        Scribe(client, name="a").write(100, leave=0.03)
        Scribe(client, name="b", lanes=2).write(30, leave=0.2)
        client.sample("u", 4).result()
    return tmp_path / "data"


def await_rows(path, rows):
    """Wait until a process has written so many rows to table 't'."""
    disk = FolderDisk(path, writable=False)
    file = RowsFile.open(disk, "rows-0", writable=False)
    head, until = int(file.marks[1]), time.monotonic() + 30
    while int(file.marks[1]) < head + rows:
        assert time.monotonic() < until, "nothing is written"
        time.sleep(0.01)
    file.close()


class Opened:
    """The file of table 't', to be damaged."""

    def __init__(self, path):
        self.disk = FolderDisk(path)
        self.file = RowsFile.open(self.disk, "rows-0")
        numbers = self.file.records["number"].astype(np.int64)
        self.newest = int(numbers.max())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.disk.close()

    def row(self, kinds, newest_but=0):
        """The slot of a row of one of these step types, so many before the newest."""
        records = self.file.records
        numbers = np.where(np.isin(records["step_type"], kinds), records["number"].astype(np.int64), -1)
        return int(np.argsort(numbers)[-1 - newest_but])

    def change(self, slot, **fields):
        """Change fields of a record, with a checksum that fits."""
        for name, value in fields.items():
            self.file.records[name][slot] = value
        self.file.records["check"][slot] = record_checks(self.file.records[[slot]])[0]


def faults(path):
    return verify(path).lines


def test_what_was_closed_is_whole(path, capsys):
    assert faults(path) == []
    assert main([str(path)]) == 0
    assert re.search(r"data is whole: \d+ rows", capsys.readouterr().out)


def test_an_empty_table_and_an_empty_folder_are_whole(tmp_path):
    with pytest.raises(StorageError, match=r"has no tables\.json"):
        verify(tmp_path)
    with served(tmp_path) as client:
        assert client.list_tables() == {}
    assert faults(tmp_path) == []
    with served(tmp_path) as client:
        client.create_table("t", a_spec(64))
    assert faults(tmp_path) == []


def test_it_is_whole_after_another_start_and_after_a_reset(path):
    with served(path) as client:
        Scribe(client, name="a").write(10)
    assert faults(path) == []
    with served(path) as client:
        client.reset_table("t")
        Scribe(client, name="c").write(10, leave=0.2)
    assert faults(path) == []


def test_what_a_killed_server_leaves_is_whole(tmp_path):
    for at in range(3):
        with written_by_a_process(tmp_path, 300):
            await_rows(tmp_path, 100 + 150 * at)  # the last time the ring has turned
        assert faults(tmp_path) == []


def test_a_folder_that_a_server_has_is_refused(tmp_path):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(64))
        with pytest.raises(StorageError, match="is kept by a replay server; stop it, or take a snapshot"):
            verify(tmp_path)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 150), st.integers(0, 63), st.integers(0, 7))
def test_any_bit_of_any_record_is_found(one_folder, but, byte, bit):
    with Opened(one_folder) as opened:
        slot = (opened.newest - but) % opened.file.meta.slots
        opened.file.records[slot : slot + 1].view(np.uint8)[byte] ^= 1 << bit
    assert len(faults(one_folder)) >= 1
    with Opened(one_folder) as opened:
        opened.file.records[slot : slot + 1].view(np.uint8)[byte] ^= 1 << bit
    assert faults(one_folder) == []


@pytest.fixture(scope="module")
def one_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data")
    with served(path) as client:
        client.create_table("t", a_spec(200))
        Scribe(client, name="a").write(100, leave=0.03)
    return path


@pytest.mark.parametrize("column", ["frame.eye", "frame.arm", "action", "reward", "extras.logp"])
def test_a_bit_of_the_payload_is_found(path, column):
    with Opened(path) as opened:
        slot = opened.row([0, 1], 5)
        opened.file.arrays[column][slot : slot + 1].view(np.uint8).reshape(-1)[-1] ^= 1
    (line,) = faults(path)
    assert re.fullmatch(r"table 't', row \d+: the checksum of its payload is wrong", line)


def test_a_bit_of_a_record_is_told_as_such(path):
    with Opened(path) as opened:
        opened.file.records["reward" if False else "returned"][opened.row([1], 7)] += 1
    assert any("the checksum of its record is wrong" in line for line in faults(path))


@pytest.mark.parametrize("copies", [[0], [0, 1, 2, 3]])
def test_cells_are_checked(path, copies):
    with Opened(path) as opened:
        begin = opened.file.places.writers + 4 * CELL_NBYTES * opened.file.used_writers()[0]
        for at in copies:
            opened.file.file.buffer[begin + at * CELL_NBYTES + 30] ^= 1
    assert any("cell of writer" in line and "damaged copies" in line for line in faults(path))


def test_the_state_and_watermarks_are_checked(path):
    for at in (512 + 5, 1024 + 9, 2048 + 40, 2048 + CELL_NBYTES + 40):
        with Opened(path) as opened:
            opened.file.file.buffer[at] ^= 1
        told = "the state has 1 damaged copies" if at > 2000 else "1 watermarks are damaged"
        assert any(told in line for line in faults(path))
        with Opened(path) as opened:
            opened.file.file.buffer[at] ^= 1
    assert faults(path) == []


def test_what_a_limiter_has_counted_is_checked(path):
    data = bytearray((path / "draws-1").read_bytes())
    data[2048 + 30] ^= 1
    (path / "draws-1").write_bytes(data)
    (line,) = faults(path)
    assert line == "table 'u': what its limiter has counted has 1 damaged copies"


def test_damage_where_a_file_says_what_it_is_is_told(path):
    with Opened(path) as opened:
        opened.file.file.buffer[4096 + 20] ^= 1
    assert "damaged where it says what it holds" in faults(path)[0]


def test_the_list_of_tables_is_checked(path):
    data = (path / TABLES).read_bytes()
    (path / TABLES).write_bytes(data.replace(b'"t"', b'"x"'))
    assert faults(path) == [f"{TABLES}: its checksum is wrong: which tables there are is not known"]


def test_another_format_is_refused(path):
    text = (path / TABLES).read_bytes().rpartition(b"\n")[0].replace(b'"format":1', b'"format":2')
    (path / TABLES).write_bytes(text + b"\n%08x" % crc32c(text))
    with pytest.raises(StorageError, match="has format 2, and this fornix reads 1"):
        verify(path)


def test_a_file_that_is_not_there_is_told(path):
    (path / "draws-1").unlink()
    (line,) = faults(path)
    assert line.startswith("table 'u': ")
    assert "draws-1 can't be used: No such file" in line


def test_a_gap_and_a_row_in_the_place_of_another_are_told(path):
    with Opened(path) as opened:
        records, slot = opened.file.records, opened.row([1], 9)
        records[(slot + 1) % len(records)] = records[slot]
    lines = faults(path)
    assert any("is missing: the numbers have a gap" in line for line in lines)
    assert any("stands in the place of another row: it is there twice" in line for line in lines)


def test_rows_that_were_lost_at_the_end_are_told(path):
    with Opened(path) as opened:
        opened.file.records[opened.newest % opened.file.meta.slots] = np.zeros(1, opened.file.records.dtype)
    assert faults(path)


FIRST, MID, LAST = [0], [1], [2]


@pytest.mark.parametrize(
    ("kinds", "fields", "told"),
    [
        (MID, {"lane": 1000}, "leads back to a row of another writer or lane"),
        (MID, {"step_type": 9}, "is neither FIRST, MID, LAST nor"),
        (MID, {"step_type": 0}, "begins no episode, and its step type says that it does"),
        (FIRST, {"step_type": 1}, "goes on with no episode"),
        (MID, {"terminated": 1}, "is terminated, and not LAST"),
        (MID, {"step_type": 2}, "has ended"),
        (LAST, {"step_type": 1}, "is still open"),
        (MID, {"position": 10_000}, "is not one step after the row before in its lane"),
        (MID, {"first": 90}, "has another FIRST row than the row before in its lane"),
        (MID, {"back": 1}, "leads back to another row"),
        (MID, {"index": 77}, "its request is not complete"),
        (MID, {"count": 77}, "its request is not complete"),
        (MID, {"sequence": 1}, "its request is not complete"),
    ],
)
def test_each_wrong_link_is_told(path, kinds, fields, told):
    with Opened(path) as opened:
        for but in range(8, 30):  # of a lane that goes on, and has rows before
            slot = opened.row(kinds, but)
            if opened.file.records["lane"][slot] == 1 and opened.file.records["back"][slot] != 1:
                break
        opened.change(slot, **fields)
    assert any(told in line for line in faults(path)), faults(path)


def test_a_request_number_that_does_not_go_up_is_told(path):
    with Opened(path) as opened:
        newest = opened.newest % opened.file.meta.slots
        record = opened.file.records[newest].copy()
        same = opened.file.records["sequence"] == record["sequence"]
        same &= opened.file.records["opening"] == record["opening"]
        for slot in np.flatnonzero(same):
            opened.change(slot, sequence=1)
    assert any(
        "the number of its request is not above that of the one before" in one for one in faults(path)
    )


def test_faults_are_bounded_and_counted(path, capsys):
    with Opened(path) as opened:
        opened.file.arrays["action"][:] += 1
    assert main([str(path), "--lines", "3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert re.search(r"has [\d,]+ faults in [\d,]+ rows", lines[-1])


def test_a_queue_is_whole(tmp_path):
    with served(tmp_path) as client:
        client.create_table(
            "q", a_spec(100, sampler=SamplerSpec(kind="fifo"), limiter=LimiterSpec.queue(50))
        )
        Scribe(client, table="q").write(5)
        client.sample("q", 3).result()
    assert faults(tmp_path) == []


def test_what_a_power_cut_has_left_behind_the_head_is_no_fault(tmp_path):
    with written_by_a_process(tmp_path, 300):
        await_rows(tmp_path, 500)
    with Opened(tmp_path) as opened:
        file, newest = opened.file, opened.newest
        state = State.of(file.state.copies()[0].record)
        file.state.write(state._replace(boot="another").packed(), newest)
        watermark = file.watermark()
        lost = np.arange(watermark, newest + 1) % file.meta.slots
        assert len(lost), "the disk had everything"
        for slot in lost[::3]:
            file.arrays["action"][slot] += 1
    assert faults(tmp_path) == []
    (copied,) = snapshot(tmp_path, tmp_path / "copy")
    assert copied.damaged == 0
    assert faults(tmp_path / "copy") == []
    with served(tmp_path) as client, served(tmp_path / "copy") as copy:
        ours, theirs = (each.service._catalog["t"].table.memory for each in (client, copy))
        assert len(ours.ring) == len(theirs.ring) > 0
        assert ours.writers.keys() == theirs.writers.keys()
