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
    n_frames=1,
)
FLAT = Signature(frame=ArraySpec.of((9, 4), np.uint16), action=ArraySpec.of((), np.int32), n_frames=4)
CAPACITY = 512
SPIN_ROWS = 16
PATIENCE_S = 30.0


def fill(columns, signature, first, count):
    """Write rows whose every item is the row's number, as a ring does."""
    columns.raise_floor(first + count - columns.capacity)
    numbers = np.arange(first, first + count)
    for path, spec in signature.frames.items():
        values = numbers.reshape(count, *(1 for _ in spec.shape)).astype(spec.dtype)
        columns.arrays[frame_name(path)][numbers % columns.capacity] = values


def _serve():
    """Share rows; do what the lines of stdin say."""
    columns = SharedColumns(NESTED, CAPACITY)
    told = columns.table_map()
    frame = {path: column.__dict__ for path, column in told.frame.items()}
    print(json.dumps([told.path, told.nbytes, told.token.tobytes().hex(), frame]), flush=True)
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
        path, nbytes, token, frame = json.loads(self.process.stdout.readline())
        self.map = TableMap(
            path=path,
            nbytes=nbytes,
            token=np.frombuffer(bytes.fromhex(token), np.uint8),
            frame={
                name: Column(**column | {"shape": tuple(column["shape"])}) for name, column in frame.items()
            },
        )

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def do(self, line):
        self.tell(line)
        assert self.process.stdout.readline() == "done\n"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
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
    fill(made, FLAT, 0, 14)
    yield made
    made.close()


@pytest.fixture
def told(columns):
    return columns.table_map()


def changed(told, **fields):
    """Return a map with other fields, unchecked: a hostile server's message may say anything."""
    return TableMap.model_construct(**told.__dict__ | fields)


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
        mapped.close()

    def test_its_memory_is_only_read(self, other):
        mapped = MappedFrames.open(other.map, NESTED)
        for array in mapped.frames.values():
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        with pytest.raises(ValueError, match="WRITEABLE"):
            mapped._floor.flags.writeable = True
        maps = Path("/proc/self/maps").read_text().splitlines()
        inode = os.stat(other.map.path).st_ino
        assert [line.split()[1] for line in maps if line.split()[4] == str(inode)] == ["r--s"]
        mapped.close()

    def test_rows_outlive_it(self, other):
        other.do("write 0 100")
        mapped = MappedFrames.open(other.map, NESTED)
        other.kill()
        assert (mapped.frames["image"][:100] == np.arange(100)[:, None]).all()
        assert not mapped.frames["pose.0"][100:].any()
        assert mapped.intact(np.array([0])).all()
        assert "can't be opened" in refusal(other.map, NESTED)
        mapped.close()

    def test_rows_outlive_its_close(self, other):
        other.do("write 0 100")
        mapped = MappedFrames.open(other.map, NESTED)
        other.do("close")
        assert (mapped.frames["image"][:100] == np.arange(100)[:, None]).all()
        assert "can't be opened" in refusal(other.map, NESTED)
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

    def test_files_that_may_shrink(self, told, tmp_path):
        content = Path(told.path).read_bytes()
        (tmp_path / "file").write_bytes(content)
        with open(tmp_path / "file", "rb") as on_disk, memory_file(content) as in_memory:
            for descriptor in (on_disk.fileno(), in_memory):
                path = f"/proc/{os.getpid()}/fd/{descriptor}"
                assert "not sealed" in refusal(changed(told, path=path))

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
        assert "frame is mapped with rows of (9, 4) '<u2'" in refusal(told, signature)

    def test_other_arrays_than_the_signature_has(self, told):
        assert "a frame has the arrays ['image', 'pose.0', 'pose.1']" in refusal(told, NESTED)
        assert "maps []" in refusal(changed(told, frame={}))

    def test_arrays_of_different_lengths(self):
        columns = SharedColumns(NESTED, 10)
        told = columns.table_map()
        frame = told.frame | {
            "pose.1": Column(offset=told.frame["pose.1"].offset, shape=(10,), dtype="<f8")
        }
        assert "[10, 11] rows" in refusal(changed(told, frame=frame), NESTED)
        columns.close()

    def test_nothing_is_left_open(self, told):
        gc.collect()
        before = descriptors()
        column = told.frame[""]
        for change in (
            {"path": "/proc/1/fd/999999999"},
            {"nbytes": 1},
            {"frame": {}},
            {"token": np.zeros(16, np.uint8)},
            {"frame": {"": Column(offset=0, shape=column.shape, dtype=column.dtype)}},
        ):
            refusal(changed(told, **change))
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


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frame=st.dictionaries(st.sampled_from(["", "", "", "image", "pose.0"]), _COLUMNS, max_size=2))
def test_no_column_reaches_outside_the_file(columns, frame):
    told = columns.table_map()
    try:
        mapped = MappedFrames.open(changed(told, frame=frame), FLAT)
    except UnmappableError:
        return
    content = Path(told.path).read_bytes()
    column, array = frame[""], mapped.frames[""]
    assert HEADER_NBYTES <= column.offset <= len(content) - array.nbytes
    assert array.tobytes() == content[column.offset : column.offset + array.nbytes]
    assert (array.shape[1:], array.dtype.str) == ((9, 4), "<u2")
    mapped.close()


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
    mapped.close()
    mapped.close()
    assert not mapped.frames
    assert not mapped.intact(np.array([4, 2**62])).any()
    assert (held[4] == 4).all()
    assert mappings() == before + 1
    del held
    assert mappings() == before


def test_a_floor_beyond_int64_leaves_nothing_intact():
    hostile = SharedColumns(FLAT, 10)
    mapped = MappedFrames.open(hostile.table_map(), FLAT)
    hostile.raise_floor(2**64 - 1)
    assert mapped.floor == 2**63 - 1
    assert not mapped.intact(np.array([0, 2**62])).any()
    mapped.close()
    hostile.close()


if __name__ == "__main__":
    _serve()
