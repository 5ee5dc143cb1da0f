import gc
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fornix.common.signature import ArraySpec, Signature
from fornix.replay import storage
from fornix.replay.storage import (
    HEADER_COLUMNS,
    AnonymousColumns,
    SharedColumns,
    make_columns,
    nbytes,
    row_nbytes,
)

U1, F4, F8 = np.uint8, np.float32, np.float64
FLAT = Signature(frame=ArraySpec.of((3, 5), U1), action=ArraySpec.of((), np.int64), n_frames=2)
NESTED = Signature(
    frame={
        "image": ArraySpec.of((7, 3), U1),
        "pose": (ArraySpec.of((), F8), ArraySpec.of((2,), F4)),
    },
    action=ArraySpec.of((2,), F4),
    extras={"value": ArraySpec.of((), F4), "state": ArraySpec.of((4,), np.int16)},
    n_frames=1,
)
CAPACITY = 10

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
both_kinds = pytest.mark.parametrize(
    "kind", [AnonymousColumns, pytest.param(SharedColumns, marks=linux_only)]
)


def descriptors():
    return set(os.listdir("/proc/self/fd"))


def marks(path):
    """Return what a memory file says of its floor and its head."""
    with open(path, "rb") as file:
        header = file.read(80)
    return tuple(int.from_bytes(header[at : at + 8], sys.byteorder) for at in (64, 72))


def memory_files_mapped():
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:fornix")


@both_kinds
def test_columns_are_zeros_of_the_shapes_that_the_signature_says(kind):
    columns = kind(NESTED, CAPACITY)
    found = {name: (array.shape, array.dtype.str) for name, array in columns.arrays.items()}
    assert found == {
        **{name: ((10,), dtype) for name, dtype in HEADER_COLUMNS.items()},
        "frame.image": ((11, 7, 3), "|u1"),
        "frame.pose.0": ((11,), "<f8"),
        "frame.pose.1": ((11, 2), "<f4"),
        "action": ((10, 2), "<f4"),
        "reward": ((10,), "<f4"),
        "extras.value": ((10,), "<f4"),
        "extras.state": ((10, 4), "<i2"),
    }
    assert columns.capacity == CAPACITY
    assert not any(array.any() for array in columns.arrays.values())
    columns.close()


@both_kinds
def test_a_frame_of_one_array_is_called_frame(kind):
    columns = kind(FLAT, CAPACITY)
    assert columns.arrays["frame"].shape == (11, 3, 5)
    columns.close()


def test_headers_hold_links_places_and_versions():
    assert HEADER_COLUMNS == {
        "back": "<u4",
        "forward": "<u4",
        "first": "<u4",
        "position": "<u4",
        "terminated": "|b1",
        "policy_version": "<u4",
    }


@both_kinds
def test_columns_do_not_overlap(kind):
    columns = kind(NESTED, CAPACITY)
    for at, array in enumerate(columns.arrays.values()):
        array[...] = at % 2
    for at, array in enumerate(columns.arrays.values()):
        assert (array == at % 2).all()
    columns.close()


@pytest.mark.parametrize("signature", [FLAT, NESTED])
def test_nbytes_is_what_the_arrays_take(signature):
    arrays = AnonymousColumns(signature, CAPACITY).arrays
    assert nbytes(signature, CAPACITY) == sum(array.nbytes for array in arrays.values())
    assert row_nbytes(signature) == nbytes(signature, 8) - nbytes(signature, 7)


def test_anonymous_columns_are_not_shared():
    columns = AnonymousColumns(FLAT, CAPACITY)
    columns.raise_floor(5)
    columns.raise_head(9)
    assert columns.table_map() is None
    columns.close()
    assert not columns.arrays


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_have_anonymous_columns(monkeypatch, platform):
    with monkeypatch.context() as patch:
        patch.setattr(storage.sys, "platform", platform)
        columns = make_columns(FLAT, CAPACITY, share=True)
    assert isinstance(columns, AnonymousColumns)


@linux_only
class TestShared:
    def test_made_if_asked_for(self):
        shared = make_columns(FLAT, CAPACITY, share=True)
        assert isinstance(shared, SharedColumns)
        shared.close()
        assert isinstance(make_columns(FLAT, CAPACITY, share=False), AnonymousColumns)

    def test_a_python_without_memfd_create_asks_the_c_library(self, monkeypatch):
        monkeypatch.delattr(os, "memfd_create")
        columns = make_columns(FLAT, CAPACITY, share=True)
        assert isinstance(columns, SharedColumns)
        with pytest.raises(PermissionError):
            os.truncate(columns.table_map().path, 0)
        columns.close()

    def test_a_refusal_of_the_system_is_logged_and_lived_with(self, monkeypatch, caplog):
        def refuse(name, flags):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "memfd_create", refuse)
        with caplog.at_level(logging.WARNING):
            assert isinstance(make_columns(FLAT, CAPACITY, share=True), AnonymousColumns)
        assert "sent copies" in caplog.text
        assert "Operation not permitted" in caplog.text

    @pytest.mark.parametrize("lacking", ["function", "kernel"])
    def test_without_memory_files_columns_are_anonymous(self, monkeypatch, caplog, lacking):
        class Library:
            if lacking == "kernel":

                def memfd_create(self, name, flags):
                    return -1

        monkeypatch.delattr(os, "memfd_create")
        monkeypatch.setattr(storage.ctypes, "CDLL", lambda name, use_errno: Library())
        monkeypatch.setattr(storage.ctypes, "get_errno", lambda: 38)
        assert isinstance(make_columns(FLAT, CAPACITY, share=True), AnonymousColumns)
        assert ("no memfd_create" if lacking == "function" else os.strerror(38)) in caplog.text

    def test_too_many_rows_are_a_memory_error_and_leak_nothing(self, caplog):
        huge = Signature(frame=ArraySpec.of((2**30,), U1), action=ArraySpec.of((), U1), n_frames=1)
        before = descriptors()
        with pytest.raises(MemoryError):
            make_columns(huge, 2**30, share=True)
        assert descriptors() == before

    def test_the_map_says_where_each_array_lies(self):
        columns = SharedColumns(NESTED, CAPACITY)
        told = columns.table_map()
        assert told.path.startswith(f"/proc/{os.getpid()}/fd/")
        assert told.nbytes == os.stat(told.path).st_size
        assert told.token.dtype == U1
        assert told.token.shape == (16,)
        assert list(told.columns) == ["back", "frame.image", "frame.pose.0", "frame.pose.1"]
        end = storage.HEADER_NBYTES
        with open(told.path, "rb") as file:
            for name, column in told.columns.items():
                array = columns.arrays[name]
                assert (column.shape, column.dtype) == (array.shape, array.dtype.str)
                assert column.offset % storage.HEADER_NBYTES == 0
                assert column.offset >= end
                end = column.offset + array.nbytes
                array[...] = np.arange(array.size, dtype=array.dtype).reshape(array.shape)
                file.seek(column.offset)
                assert file.read(array.nbytes) == array.tobytes()
        assert end <= told.nbytes
        columns.close()

    def test_nothing_else_is_in_the_file(self):
        columns = SharedColumns(NESTED, CAPACITY)
        told = columns.table_map()
        private = set(columns.arrays) - set(told.columns)
        assert private == {
            *(set(HEADER_COLUMNS) - {"back"}),
            "action",
            "reward",
            "extras.value",
            "extras.state",
        }
        before = Path(told.path).read_bytes()
        for name in private:
            columns.arrays[name][...] = 1
        assert Path(told.path).read_bytes() == before
        columns.close()

    def test_the_file_begins_as_the_module_says(self):
        columns = SharedColumns(FLAT, CAPACITY)
        columns.raise_floor(2**40 + 3)
        columns.raise_head(2**41 + 5)
        told = columns.table_map()
        header = Path(told.path).read_bytes()[: storage.HEADER_NBYTES]
        assert header[:8] == b"fornix\x02\x00"
        assert header[8:24] == told.token.tobytes()
        assert int.from_bytes(header[64:72], sys.byteorder) == 2**40 + 3
        assert int.from_bytes(header[72:80], sys.byteorder) == 2**41 + 5
        assert not any(header[24:64] + header[80:])
        columns.close()

    def test_a_new_memory_has_no_rows(self):
        columns = SharedColumns(FLAT, CAPACITY)
        assert marks(columns.table_map().path) == (0, 0)
        columns.close()

    def test_a_memory_that_is_closed_says_that_all_is_gone(self):
        columns = SharedColumns(FLAT, CAPACITY)
        columns.raise_floor(3)
        columns.raise_head(12)
        with open(columns.table_map().path, "rb") as file:
            held = f"/proc/self/fd/{file.fileno()}"
            assert marks(held) == (3, 12)
            columns.close()
            assert marks(held)[0] == 2**63 - 1
            columns.raise_floor(5)  # nor does anything bring it back
            columns.raise_head(14)
            columns.close()
            assert marks(held) == (2**63 - 1, 12)

    def test_two_tables_have_two_tokens(self):
        first, second = SharedColumns(FLAT, CAPACITY), SharedColumns(FLAT, CAPACITY)
        assert first.table_map().token.tobytes() != second.table_map().token.tobytes()
        first.close()
        second.close()

    def test_the_floor_never_sinks(self):
        columns = SharedColumns(FLAT, CAPACITY)
        path = columns.table_map().path
        floors = []
        for number in (-5, 0, 7, 3, 8):
            columns.raise_floor(number)
            floors.append(marks(path)[0])
        assert floors == [0, 0, 7, 7, 8]
        columns.close()

    def test_the_file_keeps_its_size(self):
        columns = SharedColumns(FLAT, CAPACITY)
        told = columns.table_map()
        for size in (0, told.nbytes - 1, told.nbytes + 1):
            with pytest.raises(PermissionError):
                os.truncate(told.path, size)
        columns.close()

    def test_no_child_inherits_the_file(self):
        columns = SharedColumns(FLAT, CAPACITY)
        assert not os.get_inheritable(int(columns.table_map().path.rpartition("/")[2]))
        columns.close()

    def test_memory_is_taken_as_rows_are_written(self):
        capacity = 10_000_000
        columns = SharedColumns(FLAT, capacity)
        path = columns.table_map().path
        assert os.stat(path).st_size > capacity * 15
        assert os.stat(path).st_blocks * 512 < 2**21
        columns.arrays["frame"][: capacity // 2] = 1
        assert os.stat(path).st_blocks * 512 > capacity // 2 * 15
        columns.close()

    def test_close_lets_go_of_descriptor_and_memory(self):
        gc.collect()
        before, mapped = descriptors(), memory_files_mapped()
        columns = SharedColumns(NESTED, CAPACITY)
        assert memory_files_mapped() == mapped + 1
        columns.close()
        columns.close()
        columns.raise_floor(99)
        assert columns.table_map() is None
        assert not columns.arrays
        assert memory_files_mapped() == mapped
        assert descriptors() == before

    def test_an_array_outlives_close(self):
        mapped = memory_files_mapped()
        columns = SharedColumns(FLAT, CAPACITY)
        frames = columns.arrays["frame"]
        columns.close()
        frames[3] = 7
        assert (frames[3] == 7).all()
        assert memory_files_mapped() == mapped + 1
        del frames
        assert memory_files_mapped() == mapped
