"""A folder is copied while its server serves: the copy opens, is right, and is a beginning."""

import threading
import time

import numpy as np
import pytest

from fornix.commands.replay_snapshot import main
from fornix.common.errors import StorageError
from fornix.common.specs import LimiterSpec, SamplerSpec, TableSpec, Transition
from fornix.replay.durable import snapshot as module
from fornix.replay.durable.reading import episodes, rows
from fornix.replay.durable.snapshot import snapshot
from fornix.replay.durable.verify import verify

from .served import SMALL, Scribe, a_spec, alike, facts, served, written_by_a_process


def take(path, dest):
    copied = snapshot(path, dest, pause=0.0)
    assert verify(dest).lines == []
    return copied


def read(path, table="t"):
    """The episodes of a folder in order of their FIRST row, as a scribe remembers them."""
    return sorted(map(facts, episodes(path, table)[1]), key=lambda one: one[0][0][0])


def without_keys(rows):
    return [(0, *row[1:]) for row in rows]


def oldest_and_newest(path, table="t"):
    keys = np.concatenate([part.key for part in rows(path, table)])
    return keys[0], keys[-1]


def test_a_copy_of_a_living_folder_has_all_that_was_written(tmp_path):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(4000))
        scribe = Scribe(client).write(80, leave=0.03)
        (copied,) = take(tmp_path / "data", tmp_path / "copy")
        assert copied.damaged == 0
        scribe.write(20)
    before, after = read(tmp_path / "data"), read(tmp_path / "copy")
    shift = after[0][0][0][0] - before[0][0][0][0]
    assert shift > 2**36
    for (one, _), (copy, _) in zip(before, after, strict=False):
        assert [row[0] + shift for row in one[: len(copy)]] == [row[0] for row in copy]
        assert alike(without_keys(one[: len(copy)]), without_keys(copy))
    assert len(after) < len(before)


def test_a_copy_goes_on_where_the_server_was(tmp_path):
    sampler, limiter = SamplerSpec(kind="prioritized"), LimiterSpec.ratio(2.0, 500.0, 5)
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(400, sampler=sampler, limiter=limiter))
        once = SamplerSpec(kind="fifo")
        client.create_table("u", TableSpec(signature=SMALL, capacity_steps=50, rows_of="t", sampler=once))
        scribe = Scribe(client).write(30)
        drawn = client.sample("t", 16).result()
        client.update_priorities("t", drawn.key, np.arange(16) + 3.0).result()
        client.sample("u", 7).result()
        client.set_limiter("u", LimiterSpec.at_least(9))
        take(tmp_path / "data", tmp_path / "copy")
        here = client.service._catalog
        with served(tmp_path / "copy") as other:
            there = other.service._catalog
            for name in "tu":
                mine, copy = here[name].table, there[name].table
                assert copy.limiter.counts() == mine.limiter.counts()
                assert copy.spec == mine.spec
                assert copy.created == mine.created
                assert len(copy) == len(mine)
                assert np.array_equal(
                    np.diff(copy.starts(Transition())), np.diff(mine.starts(Transition()))
                )
            mine, copy = here["t"].table, there["t"].table
            slots = np.arange(mine._tail, mine.memory.ring.head) % mine.memory.ring.capacity
            assert (copy._priorities.column[slots] == mine._priorities.column[slots]).all()
            assert copy._priorities.maximum == mine._priorities.maximum
            mine, copy = here["u"].table, there["u"].table
            assert (copy._times._times == mine._times._times).all()
            writer, twin = mine.memory.writers["w"], copy.memory.writers["w"]
            assert twin.sequence == writer.sequence
            assert twin.incarnation == writer.incarnation
            shift = copy.memory.ring.head - mine.memory.ring.head
            assert (twin.newest == writer.newest + shift).all()
            assert copy.memory.number != mine.memory.number
            _assert_goes_on(other, scribe, writer.incarnation)
        assert verify(tmp_path / "copy").lines == []


def _assert_goes_on(other, scribe, incarnation):
    """The next request of a writer brings the same stacks at both."""
    again = other.open_writer("t", "w", scribe.lanes, incarnation=incarnation)
    steps = scribe.steps_on()
    stacks = [writer.observe(steps).result().stack for writer in (scribe.writer, again)]
    assert stacks[0]["eye"].any()
    for name in ("eye", "arm"):
        assert stacks[0][name].tobytes() == stacks[1][name].tobytes()


def test_a_copy_that_is_taken_while_a_thread_writes_is_a_beginning(tmp_path):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(512))
        scribe = Scribe(client).write(50)
        done = threading.Event()

        def go_on():
            while not done.is_set():
                scribe.write(1, leave=0.02)
                time.sleep(0.001)

        writing = threading.Thread(target=go_on)
        writing.start()
        try:
            for at in range(6):
                take(tmp_path / "data", tmp_path / f"copy-{at}")
                time.sleep(0.05)
        finally:
            done.set()
            writing.join()
    first = {one[0][1].tobytes() + one[0][2].tobytes(): one for one, _ in scribe.everything()}
    heads = []
    for at in range(6):
        copy = read(tmp_path / f"copy-{at}")
        assert copy
        for one, _ in copy:
            written = first[one[0][1].tobytes() + one[0][2].tobytes()]
            assert alike(without_keys(written[: len(one)]), without_keys(one))
        low, high = oldest_and_newest(tmp_path / f"copy-{at}")
        assert high - low > 150
        heads.append(
            max(first[one[0][1].tobytes() + one[0][2].tobytes()][len(one) - 1][0] for one, _ in copy)
        )
        with served(tmp_path / f"copy-{at}") as other:
            assert other.service._catalog["t"].table.memory.ring.head > 0
    assert heads == sorted(heads)


def test_copies_of_a_process_that_is_killed_meanwhile_are_right(tmp_path):
    with written_by_a_process(tmp_path / "data", 300):
        for at in range(4):
            take(tmp_path / "data", tmp_path / f"live-{at}")
    take(tmp_path / "data", tmp_path / "after")
    assert [
        alike(a, b) for (a, _), (b, _) in zip(read(tmp_path / "data"), read(tmp_path / "data"), strict=True)
    ]
    before, after = read(tmp_path / "data"), read(tmp_path / "after")
    assert [end for _, end in before] == [end for _, end in after]
    for (one, _), (copy, _) in zip(before, after, strict=True):
        assert alike(without_keys(one), without_keys(copy))


def test_rows_that_are_overwritten_meanwhile_are_left_out(tmp_path, monkeypatch):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(200))
        scribe = Scribe(client).write(100)
        real = module.MemoryReader.ranges

        def in_small_parts(memory):
            for at, numbers in enumerate(real(memory, 1000)):
                if at == 3:
                    scribe.write(20)
                yield numbers

        monkeypatch.setattr(module.MemoryReader, "ranges", in_small_parts)
        (copied,) = take(tmp_path / "data", tmp_path / "copy")
    assert 150 < copied.rows < 290
    monkeypatch.undo()
    low, high = oldest_and_newest(tmp_path / "copy")
    assert high - low < copied.rows


@pytest.mark.parametrize("what", ["reset", "drop"])
def test_a_table_that_changes_meanwhile_is_copied_anew(tmp_path, monkeypatch, what):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(200))
        client.create_table("u", a_spec(200))
        Scribe(client).write(100)
        real, once = module.MemoryReader.ranges, iter([True])

        def disturbed(memory):
            if next(once, False):
                client.reset_table("t") if what == "reset" else client.drop_table("t")
            yield from real(memory)

        monkeypatch.setattr(module.MemoryReader, "ranges", disturbed)
        copied = take(tmp_path / "data", tmp_path / "copy")
    assert [(one.table, one.rows) for one in copied] == ([("t", 0)] if what == "reset" else []) + [("u", 0)]


def test_a_damaged_row_is_a_gap_in_the_copy(tmp_path):
    from .test_reading import damage

    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(400))
        scribe = Scribe(client).write(50)
    damage(tmp_path / "data", scribe.ended[5][0][1][0], "reward")
    (copied,) = snapshot(tmp_path / "data", tmp_path / "copy")
    assert copied.damaged == 1
    assert len(read(tmp_path / "copy")) == len(scribe.everything()) - 1
    with served(tmp_path / "copy") as other:
        memory = other.service._catalog["t"].table.memory
        assert len(memory.broken) == 1
        assert not memory.writers


def test_a_folder_that_is_there_is_refused_and_one_half_made_replaced(tmp_path, capsys):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(64))
        (tmp_path / "copy").mkdir()
        with pytest.raises(StorageError, match="copy is there already; name a folder that is not"):
            snapshot(tmp_path / "data", tmp_path / "copy")
        (tmp_path / "new.partial").mkdir()
        (tmp_path / "new.partial" / "rows-0").write_bytes(b"half")
        assert main([str(tmp_path / "data"), str(tmp_path / "new"), "--pause", "0"]) == 0
    assert "copied 0 rows of table 't'" in capsys.readouterr().out
    assert verify(tmp_path / "new").lines == []
    assert not (tmp_path / "new.partial").exists()


def test_what_has_other_files_is_left_alone(tmp_path):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(64))
    (tmp_path / "copy.partial").mkdir()
    (tmp_path / "copy.partial" / "thesis.tex").write_text("")
    with pytest.raises(StorageError, match=r"holds 'thesis\.tex', which is no part of a snapshot"):
        snapshot(tmp_path / "data", tmp_path / "copy")
