"""Files of episodes: what comes back is what was written, or an error."""

import itertools
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.common.errors import EpisodeFileError, InvalidRequestError
from fornix.common.signature import DTYPES, ArraySpec, Signature
from fornix.replay import parquet
from fornix.replay.parquet import read_contents, read_episodes, read_signature, write_episodes

from . import recorded
from .builders import signature
from .recorded import an_episode, facts, signatures

ENDS = ["terminated", "truncated", "open"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "episodes.parquet"


def some(like, *lengths):
    """Return an episode of each length, which end in all ways."""
    ends = itertools.cycle(ENDS)
    return [an_episode(like, rows, next(ends), seed) for seed, rows in enumerate(lengths)]


def written(path, like, *lengths):
    episodes = some(like, *lengths)
    assert write_episodes(path, like, episodes) == len(episodes)
    return episodes


def same(found, expected):
    return [facts(one) for one in found] == [facts(one) for one in expected]


@given(
    signatures,
    st.lists(st.integers(1, 9), max_size=5),
    st.sampled_from([1, 100, 700, parquet.GROUP_BYTES]),
)
@settings(deadline=None, max_examples=60)
def test_what_is_read_is_what_was_written(tmp_path_factory, like, lengths, group_bytes):
    path = tmp_path_factory.mktemp("round") / "trip.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "GROUP_BYTES", group_bytes)
        episodes = written(path, like, *lengths)
        assert same(read_episodes(path), episodes)
    contents = read_contents(path)
    assert contents.signature == read_signature(path) == like
    assert list(contents.signature.frames) == list(like.frames)
    assert (contents.episodes, contents.steps) == (len(lengths), sum(lengths))


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_every_dtype_keeps_its_bits(path, dtype):
    spec = ArraySpec(shape=(2, 3), dtype=dtype)
    like = signature(frame={"a": spec, "b": (spec,)}, action=spec, extras={"x": ArraySpec(dtype=dtype)})
    episodes = written(path, like, 1, 70)
    assert same(read_episodes(path), episodes)
    stored = pq.read_table(path).column("frame.b.0").combine_chunks()
    assert stored.type.value_type == pa.from_numpy_dtype(np.dtype(dtype))
    assert stored.type.list_size == 6


def test_all_nan_stay_apart(path):
    bits = np.arange(2**16, dtype=np.uint16)
    like = signature(frame=ArraySpec.of((), np.float16))
    episode = an_episode(like, 2**16, frame={"": bits.view(np.float16)})
    write_episodes(path, like, [episode])
    (found,) = read_episodes(path)
    assert np.array_equal(found.frame[""].view(np.uint16), bits)


def test_arrays_that_are_views_are_written_as_they_are(path):
    like = signature(frame=ArraySpec.of((3, 2), np.int16), action=ArraySpec.of((2,), np.float32))
    whole = np.arange(240, dtype=np.int16).reshape(2, 3, 40)
    episode = an_episode(like, 20, frame={"": whole.T[::2]}, action=np.zeros((20, 4), np.float32)[:, ::2])
    write_episodes(path, like, [episode])
    (found,) = read_episodes(path)
    assert np.array_equal(found.frame[""], whole.T[::2])
    assert found.frame[""].flags.writeable


def test_other_tools_find_a_step_in_each_row(path):
    episodes = written(path, signature(), 3, 2, 1)
    rows = pq.read_table(path).to_pydict()
    assert rows["episode"] == [0, 0, 0, 1, 1, 2]
    assert rows["step"] == [0, 1, 2, 0, 1, 0]
    assert rows["step_type"] == [0, 1, 2, 0, 2, 0]
    assert rows["terminated"] == [False, False, True, False, False, False]
    assert rows["truncated"] == [False, False, False, False, True, False]
    assert rows["writer"] == ["actor-0"] * 3 + ["actor-1"] * 2 + ["actor-2"]
    assert rows["key"] == [key for one in episodes for key in one.keys]
    assert rows["frame"] == [row.tolist() for one in episodes for row in one.frame[""]]


@pytest.mark.parametrize("end", ENDS)
def test_how_an_episode_ended_comes_back(path, end):
    for rows in (1, 2):
        write_episodes(path, signature(), [an_episode(signature(), rows, end)], overwrite=True)
        (found,) = read_episodes(path)
        assert found.open == (end == "open")
        assert found.terminated == (end == "terminated" and rows > 1)
        assert found.truncated == (not found.open and not found.terminated)


def test_a_file_is_read_group_by_group(path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1000)
    written(path, signature(), *[7] * 100)
    groups = []
    monkeypatch.setattr(parquet, "checksum", lambda rows: groups.append(0) or zlib.crc32(b""))
    with pytest.raises(EpisodeFileError, match="checksum of row group 0"):
        next(read_episodes(path))
    assert len(groups) == 1
    assert pq.ParquetFile(path).num_row_groups > 20


def test_a_file_that_is_there_is_not_replaced_unless_told(path):
    path.write_bytes(b"mine")
    with pytest.raises(EpisodeFileError, match="is there already; name another file"):
        written(path, signature(), 3)
    assert path.read_bytes() == b"mine"
    episodes = some(signature(), 2)
    write_episodes(path, signature(), episodes, overwrite=True)
    assert same(read_episodes(path), episodes)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_file_is_whole_or_not_there(path, error):
    def source():
        yield an_episode(signature(), 3)
        raise error

    with pytest.raises(error):
        write_episodes(path, signature(), source())
    assert list(path.parent.iterdir()) == []


def test_no_room_is_one_sentence_and_leaves_nothing(path):
    code = (
        "import resource, sys\n"
        "from tests_recorded import an_episode\n"
        "from fornix.common.errors import EpisodeFileError\n"
        "from fornix.common.signature import ArraySpec, Signature\n"
        "from fornix.replay.parquet import write_episodes\n"
        "like = Signature(frame=ArraySpec(shape=(1000,), dtype='<i8'), action=ArraySpec(dtype='<i4'),"
        " n_frames=1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: write_episodes(sys.argv[1], like, [an_episode(like, 100)])\n"
        "except EpisodeFileError as error: print(error)\n"
    )
    (path.parent / "tests_recorded.py").write_text(Path(recorded.__file__).read_text())
    command = [sys.executable, "-W", "error", "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=path.parent)
    assert done.stderr == ""
    assert done.stdout.startswith(f"can't write {path}: File too large; make room")
    assert not list(path.parent.glob("*.parquet*")) + list(path.parent.glob(".*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frame": {"": np.zeros((3, 3), np.int32)}}, r"frame has shape \(3, 3\)"),
        ({"frame": {"a": np.zeros((3, 2), np.int32)}}, "the table takes"),
        ({"action": np.zeros(3, np.int64)}, "action has shape"),
        ({"reward": np.zeros(2, np.float32)}, "reward has shape"),
        ({"keys": np.zeros(3, np.int32)}, "keys has shape .* must be .* and <i8"),
        ({"keys": np.zeros(0, np.int64)}, "no rows"),
        ({"policy_version": np.array([0, -1, 2])}, "policy_version holds -1"),
        ({"extras": {"x": np.zeros(3)}}, r"extras are \['x'\]"),
        ({"writer": "a\nb"}, "a writer is named"),
        ({"lane": -1}, "lane is -1"),
        ({"open": True}, "terminated and open"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(path, changes, said):
    with pytest.raises(InvalidRequestError, match=said):
        write_episodes(path, signature(), [an_episode(signature(), 3, **changes)])
    assert not path.exists()


def test_a_missing_file_is_named(path):
    with pytest.raises(EpisodeFileError, match=f"can't read {path}: No such file"):
        read_signature(path)
    with pytest.raises(EpisodeFileError, match=f"can't write {path}/a/b: Not a|can't write .*: No such"):
        written(path / "a" / "b", signature(), 3)


def test_a_file_of_something_else_is_refused(path):
    path.write_text("episode,step\n0,0\n")
    with pytest.raises(EpisodeFileError, match="damaged, or no Parquet file"):
        read_signature(path)
    pq.write_table(pa.table({"episode": [0]}), path)
    with pytest.raises(EpisodeFileError, match=r"no file of episodes .* its format is None"):
        read_signature(path)


def rewritten(path, change, **metadata):
    """Write a file again as another tool would, with changed rows and changed metadata."""
    table, kept = pq.read_table(path), pq.ParquetFile(path).metadata.metadata
    mine = {key: value for key, value in kept.items() if key.startswith(b"fornix")}
    mine |= {f"fornix.{name}".encode(): value for name, value in metadata.items()}
    changed = change(table)
    pq.write_table(changed.replace_schema_metadata({**mine}), path)


@pytest.mark.parametrize(
    ("change", "metadata", "said"),
    [
        (lambda table: table.drop_columns(["lane"]), {}, "column 4 is .*step_type.*; it must be .*lane"),
        (lambda table: table.append_column("z", table.column(0)), {}, "it has 13 columns; it must have 12"),
        (lambda table: table.slice(1), {}, "it has 7 rows of 8"),
        (lambda table: table.take([1, 0, *range(2, 8)]), {}, "checksum of row group 0"),
        (lambda table: table, {"version": b"2"}, "its version is '2'; this release reads version 1"),
        (lambda table: table, {"steps": b"9"}, "the checksum of its footer"),
    ],
)
def test_a_file_that_was_changed_is_refused(path, change, metadata, said):
    written(path, signature(), 5, 3)
    rewritten(path, change, **metadata)
    with pytest.raises(EpisodeFileError, match=said):
        list(read_episodes(path))


def test_a_file_of_larger_groups_than_can_be_is_refused(path, monkeypatch):
    written(path, signature(), 5, 3)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 100)
    with pytest.raises(EpisodeFileError, match="row group 0 has 8 rows; the limit is 1"):
        list(read_episodes(path))


def outcome(path):
    """Return what reading a file ends with: all that it yields, and whether an error came."""
    found = []
    try:
        found.extend(facts(one) for one in read_episodes(path))
        found.append(read_signature(path))
    except EpisodeFileError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return found, True
    return found, False


def test_no_damage_is_taken_for_what_was_written(path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_BYTES", 2000)
    like = signature(extras={"x": ArraySpec.of((2,), np.uint8)})
    episodes = [facts(one) for one in written(path, like, 20, 1, 40)]
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    places = np.unique(np.r_[rng.integers(0, len(whole), 400), np.arange(len(whole) - 60, len(whole))])
    for at in places:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        found, failed = outcome(path)
        assert found == (episodes[: len(found)] if failed else [*episodes, like]), at


def test_no_beginning_of_a_file_is_taken_for_it(path):
    written(path, signature(), 20, 5)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:length])
        assert outcome(path) == ([], True), length


def test_importing_the_package_needs_no_pyarrow_and_its_lack_is_one_sentence():
    code = (
        "import sys\n"
        "sys.modules['pyarrow'] = None\n"
        "import fornix.replay, fornix.replay.importing\n"
        "from fornix.cli import main\n"
        "sys.exit(main(['replay', 'import', 'x.parquet', '--table', 't', '--address', 'ipc:///nowhere']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "fornix: files of episodes need pyarrow; pip install 'fornix[parquet]'\n"


def test_an_array_beyond_what_a_list_can_hold_is_refused(path):
    like = Signature(
        frame=ArraySpec(shape=(2**31,), dtype="|u1"), action=ArraySpec(dtype="|u1"), n_frames=1
    )
    with pytest.raises(InvalidRequestError, match="frame has 2147483648 items; a list in Parquet has"):
        write_episodes(path, like, [])
