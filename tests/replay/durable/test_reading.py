"""A folder that is read: offline, while a server serves from it, and with damage in it."""

import threading

import numpy as np
import pytest

from fornix.common.errors import StorageError, UnknownTableError
from fornix.common.messages import FIRST, LAST
from fornix.common.specs import TableSpec
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.file import RowsFile
from fornix.replay.durable.reading import episodes, rows, tables

from .served import SMALL, Scribe, a_spec, alike, facts, served


def read(path, table="t"):
    """All episodes of a folder by the key of their FIRST row, as a scribe remembers them."""
    signature, found = episodes(path, table)
    told = [episode for episode in found if episode.check(signature) is None]
    return {episode.keys[0]: facts(episode) for episode in told}, told


def test_all_episodes_are_read_as_they_were_written(tmp_path):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(4000))
        scribes = [Scribe(client, name=name, seed=at).write(80, leave=0.03) for at, name in enumerate("ab")]
    found, told = read(tmp_path)
    expected = [one for scribe in scribes for one in scribe.everything()]
    assert len(found) == len(told) == len(expected)
    for written, end in expected:
        assert alike(found[written[0][0]][0], written)
        assert found[written[0][0]][1] == ("truncated" if end == "left" else end)
    assert {episode.writer for episode in told} == {"a", "b"}


def test_a_living_folder_is_read_as_of_one_moment(tmp_path):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(4000))
        scribe = Scribe(client).write(50)
        found, _ = read(tmp_path)
        assert len(found) == len(scribe.everything())
        for written, end in scribe.everything():
            assert alike(found[written[0][0]][0], written)
            assert found[written[0][0]][1] == end


def test_episodes_whose_beginning_is_gone_are_left_out_and_told(tmp_path, caplog):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(64))
        scribe = Scribe(client).write(100)
    found, _ = read(tmp_path)
    oldest = next(iter(rows(tmp_path, "t"))).key[0]
    whole = {one[0][0]: one for one, _ in scribe.everything() if one[0][0] >= oldest}
    assert found.keys() == whole.keys()
    assert all(alike(found[key][0], one) for key, one in whole.items())
    cut = sum(one[0][0] < oldest <= one[-1][0] for one, _ in scribe.everything())
    assert f"{cut} episodes of table 't' are left out: their beginning was overwritten" in caplog.text


def test_what_is_read_while_a_thread_overwrites_it_is_what_was_written(tmp_path):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(256))
        scribe = Scribe(client).write(100)
        done = threading.Event()

        def go_on():
            while not done.is_set():
                scribe.write(1)

        writing = threading.Thread(target=go_on)
        writing.start()
        try:
            read_while = [read(tmp_path)[0] for _ in range(8)]
        finally:
            done.set()
            writing.join()
        written = {one[0][0]: one for one, _ in scribe.everything()}
        for found in read_while:
            for key, (one, _) in found.items():
                assert alike(one, written[key][: len(one)])
        assert any(read_while)


def test_rows_come_in_order_with_their_links(tmp_path):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(1000))
        scribe = Scribe(client).write(60, leave=0.05)
    parts = list(rows(tmp_path, "t", nbytes=2000))
    assert len(parts) > 3
    key = np.concatenate([part.key for part in parts])
    assert (np.diff(key) > 0).all()
    before = {}
    for one, _ in scribe.everything():
        for at, row in enumerate(one):
            before[row[0]] = one[max(0, at - 1)][0], one[0][0], at
    assert before.keys() == set(key.tolist())
    for part in parts:
        told = zip(part.previous.tolist(), part.first.tolist(), part.position.tolist(), strict=True)
        assert [before[key] for key in part.key.tolist()] == list(told)
        assert ((part.step_type == FIRST) == (part.position == 0)).all()
        assert not part.terminated[part.step_type != LAST].any()


def test_a_damaged_row_takes_its_episode_with_it_and_no_other(tmp_path, caplog):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(4000))
        scribe = Scribe(client).write(60)
    victim = scribe.ended[3][0]
    damage(tmp_path, victim[1][0], "action")
    found, _ = read(tmp_path)
    assert found.keys() == {one[0][0] for one, _ in scribe.everything()} - {victim[0][0]}
    assert "1 episodes of table 't' are left out: they are damaged" in caplog.text


def damage(path, key, column):
    """Flip a bit of a row."""
    disk = FolderDisk(path)
    file = RowsFile.open(disk, "rows-0")
    slot = key % file.meta.slots
    array = file.records if column == "records" else file.arrays[column]
    array[slot : slot + 1].view(np.uint8).reshape(-1)[0] ^= 4
    file.close()
    disk.close()


def test_a_table_that_draws_from_another_has_its_rows(tmp_path):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(400))
        like = SMALL.model_copy(update={"n_frames": 1})
        client.create_table("other", TableSpec(signature=like, capacity_steps=100, rows_of="t"))
        Scribe(client).write(20)
    assert read(tmp_path, "other")[0].keys() == read(tmp_path, "t")[0].keys()
    assert episodes(tmp_path, "other")[0].n_frames == 1
    assert tables(tmp_path)["other"].rows_of == "t"


def test_an_empty_table_has_no_episodes(tmp_path):
    with served(tmp_path) as client:
        client.create_table("t", a_spec(64))
        assert read(tmp_path)[1] == []
    assert read(tmp_path)[1] == []


def test_what_is_no_such_folder_or_table_is_refused(tmp_path):
    with pytest.raises(StorageError, match="there is no folder"):
        episodes(tmp_path / "nothing", "t")
    with pytest.raises(StorageError, match=r"has no tables\.json"):
        episodes(tmp_path, "t")
    with served(tmp_path) as client:
        client.create_table("hunt", a_spec(64))
    with pytest.raises(UnknownTableError, match="no table 'hant'; did you mean 'hunt'"):
        episodes(tmp_path, "hant")
