"""The frames of another process; run as a program, this file is that other process (`_serve`)."""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fornix.common.messages import Column, TableMap
from fornix.common.signature import ArraySpec, Signature, frame_name
from fornix.replay.mapped import MappedFrames, UnmappableError
from fornix.replay.storage import HEADER_NBYTES, SharedColumns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")

NESTED = Signature(
    frame={
        "image": ArraySpec.of((512,), np.uint32),
        "pose": (ArraySpec.of((5, 3), np.int64), ArraySpec.of((), np.float64)),
    },
    action=ArraySpec.of((), np.int32),
    n_frames=3,
)
FLAT = Signature(frame=ArraySpec.of((9, 4), np.uint16), action=ArraySpec.of((), np.int32), n_frames=4)
CAPACITY = 512
SPIN_ROWS = 16
PATIENCE_S = 30.0
GONE = 2**63 - 1

#: Rows come lane by lane, and every lane's episodes have so many of them.
LANES, EPISODE = 3, 5


def position(numbers):
    """Return how many rows of its episode come before each."""
    return numbers // LANES % EPISODE


def fill(columns, signature, first, count):
    """Write rows whose every item is the row's number, as a ring does."""
    columns.raise_floor(first + count - columns.capacity)
    numbers = np.arange(first, first + count)
    for path, spec in signature.frames.items():
        values = numbers.reshape(count, *(1 for _ in spec.shape)).astype(spec.dtype)
        columns.arrays[frame_name(path)][numbers % columns.capacity] = values
    columns.arrays["back"][numbers % columns.capacity] = np.where(position(numbers) == 0, 0, LANES)
    columns.raise_head(first + count)


def rows_of(keys, n_frames):
    """Return the rows of each stack, [len(keys), n_frames]: 0, which is a row of zeros, for padding."""
    back = np.arange(n_frames)[::-1]
    return np.where(back <= position(keys)[:, None], keys[:, None] - LANES * back, 0)


def are_right(stacks, signature, keys):
    """Return of each stack whether all of its arrays are, to the last byte."""
    rows = rows_of(keys, signature.n_frames)
    right = np.ones(len(keys), np.bool_)
    for path, spec in signature.frames.items():
        found = stacks[path]
        assert (found.shape, found.dtype.str) == ((*rows.shape, *spec.shape), spec.dtype)
        wanted = rows.reshape(*rows.shape, *(1 for _ in spec.shape)).astype(spec.dtype)
        right &= (found == wanted).reshape(len(keys), -1).all(axis=1)
    return right


def _serve():
    """Share rows; do what the lines of stdin say."""
    columns = SharedColumns(NESTED, CAPACITY)
    told = columns.table_map()
    layout = {name: column.__dict__ for name, column in told.columns.items()}
    print(json.dumps([told.path, told.nbytes, told.token.tobytes().hex(), layout]), flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "write":
            fill(columns, NESTED, *map(int, numbers))
        elif command == "close":
            columns.close()
        elif command == "spin":
            head, deadline = 0, time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                fill(columns, NESTED, head, SPIN_ROWS)
                head += SPIN_ROWS
        print("done", flush=True)


class Other:
    """Another process that shares rows of NESTED."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        path, nbytes, token, layout = json.loads(self.process.stdout.readline())
        self.map = TableMap(
            path=path,
            nbytes=nbytes,
            token=np.frombuffer(bytes.fromhex(token), np.uint8),
            columns={
                name: Column(**column | {"shape": tuple(column["shape"])})
                for name, column in layout.items()
            },
        )

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def do(self, line):
        self.tell(line)
        assert self.process.stdout.readline() == "done\n"

    def kill(self, reap=True):
        """End it as the OOM killer would; without `reap` it stays as a zombie."""
        self.process.send_signal(signal.SIGKILL)
        if reap:
            self.process.wait()


@pytest.fixture
def other():
    process = Other()
    yield process
    process.kill()
    process.process.stdin.close()
    process.process.stdout.close()


@pytest.fixture(scope="module")
def columns():
    made = SharedColumns(FLAT, 10)
    fill(made, FLAT, 0, 8)
    fill(made, FLAT, 8, 6)
    yield made
    made.close()


@pytest.fixture
def told(columns):
    return columns.table_map()


def changed(told, **fields):
    """Return a map with other fields, unchecked: a hostile server's message may say anything."""
    return TableMap.model_construct(**told.__dict__ | fields)


def without(told, name):
    """Return a map's columns but for one."""
    return {other: column for other, column in told.columns.items() if other != name}


def replaced(told, name, **fields):
    """Return a map of which one column is said to be another, unchecked as well."""
    column = Column.model_construct(**told.columns[name].__dict__ | fields)
    return changed(told, columns=told.columns | {name: column})


def served_if_opened(told):
    """Return whether a map counts as served; it may be refused as well."""
    try:
        mapped = MappedFrames.open(told, FLAT)
    except UnmappableError:
        return False
    served = mapped.is_served
    mapped.close()
    return served


def refusal(told, signature=FLAT):
    with pytest.raises(UnmappableError) as error:
        MappedFrames.open(told, signature)
    return str(error.value)


def descriptors():
    return set(os.listdir("/proc/self/fd"))


class TestAnotherProcess:
    def test_its_rows_and_its_floor_are_seen(self, other):
        mapped = MappedFrames.open(other.map, NESTED)
        assert mapped.capacity == CAPACITY
        assert {path: array.shape for path, array in mapped.frames.items()} == {
            "image": (513, 512),
            "pose.0": (513, 5, 3),
            "pose.1": (513,),
        }
        assert mapped.floor == 0
        assert mapped.is_served
        assert not mapped.has(np.array([0]))
        for first, floor in ((0, 0), (300, 88), (600, 388)):
            other.do(f"write {first} 300")
            numbers = np.arange(floor, first + 300)
            for array in mapped.frames.values():
                rows = array[numbers % CAPACITY].reshape(len(numbers), -1)
                assert (rows == numbers[:, None]).all()
                assert not array[CAPACITY].any()
            assert mapped.floor == floor
            oldest = np.array([floor - 1, floor, floor + 1, -1, 2**62])
            assert mapped.intact(oldest).tolist() == [False, True, True, False, True]
            assert mapped.has(numbers)
            assert not any(mapped.has(np.array([5, key])) for key in (floor - 1, first + 300, -1, 2**62))
        mapped.close()

    def test_its_stacks_are_seen(self, other):
        mapped = MappedFrames.open(other.map, NESTED)
        for first, floor in ((0, 0), (300, 88), (600, 388)):
            other.do(f"write {first} 300")
            keys = np.arange(max(0, floor - 40), first + 300)
            stacks, whole = mapped.stacks(keys)
            reach = np.minimum(position(keys), NESTED.n_frames - 1)
            assert whole.tolist() == (keys - LANES * reach >= floor).tolist()
            assert are_right(stacks, NESTED, keys)[whole].all()
        mapped.close()

    def test_its_memory_is_only_read(self, other):
        mapped = MappedFrames.open(other.map, NESTED)
        for array in mapped.frames.values():
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            mapped._marks.flags.writeable = True
        maps = Path("/proc/self/maps").read_text().splitlines()
        inode = os.stat(other.map.path).st_ino
        assert [line.split()[1] for line in maps if line.split()[4] == str(inode)] == ["r--s"]
        mapped.close()

    def test_rows_outlive_it(self, other):
        other.do("write 0 100")
        mapped = MappedFrames.open(other.map, NESTED)
        assert mapped.is_served
        other.kill()
        assert (mapped.frames["image"][:100] == np.arange(100)[:, None]).all()
        assert not mapped.frames["pose.0"][100:].any()
        assert mapped.intact(np.array([0])).all()
        assert mapped.has(np.arange(100))  # but:
        assert not mapped.is_served
        assert "can't be opened" in refusal(other.map, NESTED)
        mapped.close()

    def test_rows_outlive_its_close(self, other):
        other.do("write 0 100")
        mapped = MappedFrames.open(other.map, NESTED)
        assert mapped.has(np.arange(100))
        other.do("close")
        assert (mapped.frames["image"][:100] == np.arange(100)[:, None]).all()
        assert mapped.floor == GONE
        assert not mapped.has(np.array([99]))
        assert not mapped.intact(np.array([99, 2**62])).any()
        assert not mapped.stacks(np.arange(100))[1].any()
        assert mapped.is_served
        assert "can't be opened" in refusal(other.map, NESTED)
        mapped.close()

    def test_it_counts_as_dead_before_anyone_has_taken_note_of_its_death(self, other):
        mapped = MappedFrames.open(other.map, NESTED)
        other.kill(reap=False)
        deadline = time.monotonic() + PATIENCE_S
        while mapped.is_served:
            assert time.monotonic() < deadline
        assert other.process.returncode is None
        mapped.close()
        assert not mapped.is_served

    def test_no_stack_that_counts_as_whole_is_torn(self, other):
        """Stacks are made while their rows, and the way from row to row, are overwritten."""
        mapped = MappedFrames.open(other.map, NESTED)
        other.tell("spin")
        random = np.random.default_rng(0)
        made = torn = newest = 0
        deadline = time.monotonic() + PATIENCE_S
        while made < 100_000 or torn < 1000 or newest < 1000:
            assert time.monotonic() < deadline, (made, torn, newest)
            floor, head = (int(mark) for mark in mapped._marks)
            if floor == 0:
                continue
            keys = random.integers(floor, head, 64)
            # many are about to be overwritten, their predecessors perhaps already; some are quite new
            keys[:24] = floor + random.integers(0, 4 * SPIN_ROWS, 24)
            keys[24:32] = head - 1 - random.integers(0, SPIN_ROWS, 8)
            has = mapped.has(keys)
            stacks, whole = mapped.stacks(keys)
            right = are_right(stacks, NESTED, keys)
            assert right[whole].all()
            assert not whole.all() or has
            made += np.count_nonzero(whole)
            newest += np.count_nonzero(whole[24:32])
            torn += np.count_nonzero(~right)
        mapped.close()

    def test_no_copy_that_counts_as_intact_is_torn(self, other):
        """Rows are gathered while they are overwritten; those that are intact afterwards are whole."""
        mapped = MappedFrames.open(other.map, NESTED)
        other.tell("spin")
        random = np.random.default_rng(0)
        copies = {
            path: np.empty((64, *array.shape[1:]), array.dtype) for path, array in mapped.frames.items()
        }
        whole = overwritten = 0
        deadline = time.monotonic() + PATIENCE_S
        while whole < 100_000 or overwritten < 1000:
            assert time.monotonic() < deadline, (whole, overwritten)
            floor = mapped.floor
            if floor == 0:  # the first lap: not all rows are there
                continue
            # the newest SPIN_ROWS may be in the making; half of the draws are about to be overwritten
            numbers = floor + random.integers(0, CAPACITY - SPIN_ROWS, 64)
            numbers[:32] = floor + random.integers(0, 4 * SPIN_ROWS, 32)
            for path, array in mapped.frames.items():
                np.take(array, numbers % CAPACITY, axis=0, out=copies[path], mode="clip")
            intact = mapped.intact(numbers)
            right = np.ones(64, np.bool_)
            for copy in copies.values():
                right &= (copy.reshape(64, -1) == numbers[:, None]).all(axis=1)
            assert right[intact].all()
            whole += np.count_nonzero(intact)
            overwritten += np.count_nonzero(~right)
        mapped.close()


class TestRefusals:
    def test_an_honest_map_is_not_refused(self, told):
        before = descriptors()
        mapped = MappedFrames.open(told, FLAT)
        assert mapped.floor == 4
        assert (mapped.frames[""][4:10] == np.arange(4, 10)[:, None, None]).all()
        mapped.close()
        gc.collect()
        assert descriptors() == before

    @pytest.mark.parametrize(
        "path",
        [
            "/dev/zero",
            "/proc/self/fd/0",
            "/proc/1/fd/../../../dev/zero",
            "/proc/1/fd/1\n",
            "/proc/1/fd/٣",
            "/proc/1/fd/1\0",
            "",
            "x" * 5000,
        ],
    )
    def test_paths_of_anything_else(self, told, path):
        assert "no /proc/PID/fd/NUMBER" in refusal(changed(told, path=path))

    def test_processes_and_files_that_are_not_there(self, told):
        assert "another host" in refusal(changed(told, path="/proc/4294967295/fd/3"))
        assert "another host" in refusal(changed(told, path=f"/proc/{os.getpid()}/fd/999999999"))

    def test_files_that_may_not_be_opened(self, told, monkeypatch):
        def refuse(path, flags):
            raise PermissionError(13, "Permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            why = refusal(told)
        assert "Permission denied" in why
        assert "another user" in why

    @pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
    def test_what_is_no_regular_file(self, told, kind):
        with contextlib.ExitStack() as stack:
            if kind == "pipe":
                reader, writer = os.pipe()
                stack.callback(os.close, reader)
                descriptor = writer
            elif kind == "socket":
                descriptor = socket.socket().detach()
            else:
                descriptor = os.open("/tmp" if kind == "folder" else "/dev/zero", os.O_RDONLY)
            stack.callback(os.close, descriptor)
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            assert "no regular file" in refusal(changed(told, path=path))

    def test_files_in_memory_that_may_shrink(self, told):
        with memory_file(Path(told.path).read_bytes()) as descriptor:
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            assert "not sealed" in refusal(changed(told, path=path))

    def test_files_on_a_disk_that_others_may_shrink(self, told, tmp_path, monkeypatch):
        (tmp_path / "file").write_bytes(Path(told.path).read_bytes())
        with open(tmp_path / "file", "rb") as file:
            path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
            MappedFrames.open(changed(told, path=path), FLAT).close()
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
            assert "nor this user's own" in refusal(changed(told, path=path))

    @pytest.mark.parametrize("at", [0, 6, 7, 8, 23])
    def test_files_of_another_kind_version_or_server(self, told, at):
        content = bytearray(Path(told.path).read_bytes())
        content[at] ^= 1
        with memory_file(content, seal=True) as descriptor:
            why = refusal(changed(told, path=f"/proc/{os.getpid()}/fd/{descriptor}"))
        assert ("token differs" if at >= 8 else "begins with") in why

    @pytest.mark.parametrize("size", [1, 24, 71, HEADER_NBYTES - 1])
    def test_files_smaller_than_their_header(self, told, size):
        content = Path(told.path).read_bytes()[:size]
        with memory_file(content, seal=True) as descriptor:
            path = f"/proc/{os.getpid()}/fd/{descriptor}"
            assert "the header takes" in refusal(changed(told, path=path, nbytes=size))

    @pytest.mark.parametrize("by", [-HEADER_NBYTES, -1, 1, HEADER_NBYTES, 2**47])
    def test_another_size(self, told, by):
        assert f"the file has {told.nbytes} bytes" in refusal(changed(told, nbytes=told.nbytes + by))

    @pytest.mark.parametrize(
        "token", [np.zeros(16, np.uint8), np.zeros(0, np.uint8), np.zeros((4, 4), np.uint8)]
    )
    def test_another_token(self, told, token):
        assert "token differs" in refusal(changed(told, token=token))
        assert "token differs" in refusal(changed(told, token=told.token.view(np.int8)))

    @pytest.mark.parametrize(
        "frame",
        [ArraySpec.of((9, 4), np.int16), ArraySpec.of((4, 9), np.uint16), ArraySpec.of((), np.uint16)],
    )
    def test_a_signature_that_is_not_the_table_s(self, told, frame):
        signature = Signature(frame=frame, action=FLAT.action, n_frames=4)
        assert "frame is mapped as (11, 9, 4) '<u2'" in refusal(told, signature)

    def test_other_arrays_than_the_signature_has(self, told):
        why = refusal(told, NESTED)
        assert "maps ['back', 'frame'] of 10 rows" in why
        assert "due are ['back', 'frame.image', 'frame.pose.0', 'frame.pose.1']" in why
        assert "maps []" in refusal(changed(told, columns={}))
        assert "maps ['frame'] of 0 rows" in refusal(changed(told, columns=without(told, "back")))
        assert "maps ['back'] of 10 rows" in refusal(changed(told, columns=without(told, "frame")))
        more = told.columns | {"forward": told.columns["back"]}
        assert "maps ['back', 'forward', 'frame']" in refusal(changed(told, columns=more))
        assert "maps ['', 'back']" in refusal(
            changed(told, columns=without(told, "frame") | {"": told.columns["frame"]})
        )

    @pytest.mark.parametrize("rows", [0, -1, 1, 9, 11, 2**31, 2**48, 2**64])
    def test_another_number_of_predecessors_than_of_frames(self, told, rows):
        why = refusal(replaced(told, "back", shape=(rows,)))
        if rows <= 0:
            assert f"maps ['back', 'frame'] of {rows} rows" in why
        elif rows <= 11:
            assert f"the table holds {rows + 1} rows" in why
        else:
            assert "and end by" in why

    @pytest.mark.parametrize("change", [{"shape": (10, 1)}, {"dtype": "<i4"}, {"dtype": "<u8"}], ids=str)
    def test_predecessors_of_another_form(self, told, change):
        assert "back is mapped as" in refusal(replaced(told, "back", **change))

    @pytest.mark.parametrize("rows", [0, 1, 9, 10, 12, 2**60])
    def test_another_number_of_frames_than_of_rows(self, told, rows):
        refused = refusal(replaced(told, "frame", shape=(rows, 9, 4)))
        assert "frame is mapped as" in refused
        assert "the table holds 11 rows" in refused

    def test_arrays_of_different_lengths(self):
        columns = SharedColumns(NESTED, 10)
        assert "frame.pose.1 is mapped as (10,)" in refusal(
            replaced(columns.table_map(), "frame.pose.1", shape=(10,)), NESTED
        )
        columns.close()

    @pytest.mark.parametrize("name", ["back", "frame"])
    @pytest.mark.parametrize(
        "offset", [-HEADER_NBYTES, 0, 8, 64, 72, HEADER_NBYTES - 1, HEADER_NBYTES + 1, HEADER_NBYTES + 64]
    )
    def test_arrays_that_lie_over_the_header_or_on_no_page(self, told, name, offset):
        why = refusal(replaced(told, name, offset=offset))
        assert f"{name} is said to lie in bytes {offset} to" in why

    @pytest.mark.parametrize("name", ["back", "frame"])
    @pytest.mark.parametrize("beyond", [0, 1, 2**20, 2**47])
    def test_arrays_that_end_behind_the_file(self, told, name, beyond):
        assert "and end by" in refusal(replaced(told, name, offset=told.nbytes + beyond * HEADER_NBYTES))

    def test_a_process_that_can_not_be_watched(self, told, monkeypatch):
        """Nobody would know whether its rows still are what the server would say."""

        def refuse(pid, flags=0):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "pidfd_open", refuse)
        assert not served_if_opened(told)

    def test_a_python_that_can_not_watch_processes(self, told, monkeypatch):
        monkeypatch.delattr(os, "pidfd_open")
        assert not served_if_opened(told)

    def test_nothing_is_left_open(self, told):
        gc.collect()
        before = descriptors()
        for change in (
            {"path": "/proc/1/fd/999999999"},
            {"nbytes": 1},
            {"columns": {}},
            {"token": np.zeros(16, np.uint8)},
        ):
            refusal(changed(told, **change))
        refusal(replaced(told, "frame", offset=0))
        gc.collect()
        assert descriptors() == before


@contextlib.contextmanager
def memory_file(content, seal=False):
    """A memory file, perhaps sealed against shrinking, as its descriptor."""
    import fcntl

    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    try:
        os.write(descriptor, content)
        if seal:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        yield descriptor
    finally:
        os.close(descriptor)


_NUMBERS = st.sampled_from([-1, 0, 1, 4, 9, 10, 11, 12, 2**31, 2**47, 2**63, 2**64]) | st.integers()
_OFFSETS = st.sampled_from(
    [0, 1, 8, 24, 64, *(HEADER_NBYTES * n + by for n in (1, 2) for by in (-1, 0, 1, 2))]
)
_SHAPES = st.sampled_from([(11, 9, 4), (10, 9, 4), (12, 9, 4), (2**60, 9, 4), (11, 4, 9), (11,), (1, 9, 4)])
_COLUMNS = st.builds(
    lambda **fields: Column.model_construct(**fields),
    offset=_OFFSETS | _NUMBERS,
    shape=_SHAPES | st.lists(_NUMBERS, min_size=1, max_size=8).map(tuple),
    dtype=st.sampled_from(["<u2", "<u2", "<u2", "|u1", ">u2", "|O", "O", "V9", "<f8", "", "2u1"])
    | st.text(max_size=3),
)


_HONEST = {
    "back": Column(offset=HEADER_NBYTES, shape=(10,), dtype="<u4"),
    "frame": Column(offset=2 * HEADER_NBYTES, shape=(11, 9, 4), dtype="<u2"),
}
_KEYS = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-20, 40), max_size=8).map(
    lambda keys: np.array(keys, np.int64)
)


def test_what_counts_as_honest_below_is_honest(told):
    assert told.columns == _HONEST


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.fixed_dictionaries(
        {}, optional={name: st.just(column) | _COLUMNS for name, column in _HONEST.items()}
    ),
    more=st.dictionaries(st.sampled_from(["", "first", "frame.0"]), _COLUMNS, max_size=1),
    keys=_KEYS,
)
def test_no_column_reaches_outside_the_file(columns, said, more, keys):
    told = columns.table_map()
    try:
        mapped = MappedFrames.open(changed(told, columns=said | more), FLAT)
    except UnmappableError:
        return
    content = Path(told.path).read_bytes()
    assert not more
    column, array = said["frame"], mapped.frames[""]
    assert (array.shape, array.dtype.str) == ((len(array), 9, 4), "<u2")
    assert said["back"].shape == (mapped.capacity,) == (len(array) - 1,)
    for each, nbytes in ((column, array.nbytes), (said["back"], 4 * mapped.capacity)):
        assert HEADER_NBYTES <= each.offset <= len(content) - nbytes
    assert array.tobytes() == content[column.offset : column.offset + array.nbytes]
    assert mapped.stacks(keys)[0][""].shape == (len(keys), 4, 9, 4)
    mapped.close()


@settings(max_examples=200, deadline=None)
@given(
    back=st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 12), min_size=10, max_size=10),
    floor=st.integers(0, 2**64 - 1) | st.integers(0, 20),
    head=st.integers(0, 2**64 - 1) | st.integers(0, 40),
    keys=_KEYS,
)
def test_whatever_a_server_writes_all_frames_are_of_its_file(back, floor, head, keys):
    hostile = SharedColumns(FLAT, 10)
    fill(hostile, FLAT, 0, 10)
    hostile.arrays["back"][:] = back
    hostile._marks.begin_at(floor, head)
    mapped = MappedFrames.open(hostile.table_map(), FLAT)
    assert mapped.has(keys) == all(floor <= key < head for key in keys.tolist())
    stacks, whole = mapped.stacks(keys)
    assert stacks[""].shape == (len(keys), 4, 9, 4)
    assert (stacks[""] == stacks[""][..., :1, :1]).all()
    assert stacks[""].max(initial=0) < 10
    assert not whole[(keys >= 0) & (keys < min(floor, GONE))].any()
    mapped.close()
    hostile.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.none()
    | st.text(max_size=30)
    | st.from_regex(r"/proc/[0-9]{1,3}/fd/[0-9]{1,3}", fullmatch=True),
    nbytes=st.none() | _NUMBERS,
    token=st.none() | st.binary(max_size=32).map(lambda raw: np.frombuffer(raw, np.uint8)),
)
def test_only_the_file_itself_is_mapped(columns, path, nbytes, token):
    told = columns.table_map()
    fields = {"path": path, "nbytes": nbytes, "token": token}
    fields = {name: value for name, value in fields.items() if value is not None}
    lie = changed(told, **fields)
    try:
        MappedFrames.open(lie, FLAT).close()
    except UnmappableError:
        return
    assert (lie.path, lie.nbytes, lie.token.tobytes()) == (told.path, told.nbytes, told.token.tobytes())


def test_close_lets_go_of_the_mapping(told):
    inode = str(os.stat(told.path).st_ino)

    def mappings():
        gc.collect()
        lines = Path("/proc/self/maps").read_text().splitlines()
        return sum(line.split()[4] == inode for line in lines)

    before = mappings()
    mapped = MappedFrames.open(told, FLAT)
    held = mapped.frames[""]
    assert mapped.intact(np.array([4])).all()
    assert mapped.has(np.array([4, 13]))
    assert mapped.is_served
    mapped.close()
    mapped.close()
    assert not mapped.frames
    assert not mapped.intact(np.array([4, 2**62])).any()
    assert not mapped.has(np.array([4]))
    assert not mapped.has(np.array([GONE]))
    assert not mapped.is_served
    assert (held[4] == 4).all()
    assert mappings() == before + 1
    del held
    assert mappings() == before


def test_a_floor_beyond_int64_leaves_nothing_intact():
    hostile = SharedColumns(FLAT, 10)
    mapped = MappedFrames.open(hostile.table_map(), FLAT)
    hostile.raise_floor(2**64 - 1)
    assert mapped.floor == GONE
    assert not mapped.intact(np.array([0, 2**62])).any()
    assert not mapped.has(np.array([0, 2**62]))
    mapped.close()
    hostile.close()


def test_what_is_no_row_has_no_stack(told):
    """Not even of zeros."""
    mapped = MappedFrames.open(told, FLAT)
    _, whole = mapped.stacks(np.array([13, -1, -2, -(2**63)]))
    assert whole.tolist() == [True, False, False, False]
    mapped.close()


def test_a_map_that_nobody_closed_leaves_nothing_open(told):
    gc.collect()
    before = descriptors()
    mapped = MappedFrames.open(told, FLAT)
    del mapped
    gc.collect()
    assert descriptors() == before


if __name__ == "__main__":
    _serve()
