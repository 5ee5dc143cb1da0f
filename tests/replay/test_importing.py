"""Episodes of a file, imported into a real service, and drawn from it again."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fornix.cli import main
from fornix.common import trees
from fornix.common.errors import (
    EpisodeFileError,
    InvalidRequestError,
    SignatureError,
    WaitTimeoutError,
)
from fornix.common.messages import Observe
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import Episode as EpisodeUnit
from fornix.common.specs import LimiterSpec, TableSpec, Transition
from fornix.replay.client import Client
from fornix.replay.importing import default_spec, import_episodes
from fornix.replay.local import LocalTransport
from fornix.replay.parquet import read_episodes, write_episodes
from fornix.replay.ring import held_at_least
from fornix.replay.service import ReplayService

from .builders import signature
from .desk import Desk, a_client
from .recorded import an_episode, facts

EYE, ARM = ArraySpec.of((2, 2), np.uint8), ArraySpec.of((), np.float32)
RICH = Signature(
    frame={"eye": EYE, "arms": (ARM, ArraySpec.of((3,), np.bool_))},
    action=ArraySpec.of((2,), np.float64),
    reward=ArraySpec.of((), np.float64),
    extras={"logp": ARM, "memory": ArraySpec.of((2,), np.int16)},
    n_frames=2,
)
ENDS = ["terminated", "truncated", "open"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "episodes.parquet"


def a_file(path, like, *lengths, **changes):
    """Write episodes of these lengths that end in all ways; return those that can be told apart."""
    episodes = [an_episode(like, rows, ENDS[at % 3], seed=at, **changes) for at, rows in enumerate(lengths)]
    write_episodes(path, like, episodes)
    return episodes


def drawn(client, table, draws=400):
    """Return the episodes that are drawn: by the bytes of their first action, every array."""
    batch = client.sample(table, draws, EpisodeUnit(max_steps=100), discount=0.5).result()
    found = {}
    for at in range(draws):
        steps = int(batch.mask[at].sum())
        found[batch.action[at, 0].tobytes()] = (batch, at, steps)
    return found


def check_drawn(client, table, episodes):
    """Compare what is drawn of a table with the episodes that it must hold, byte for byte."""
    found = drawn(client, table)
    whole = {one.action[1].tobytes(): one for one in episodes if one.rows > 1}
    assert found.keys() == whole.keys()
    for name, one in whole.items():
        batch, at, steps = found[name]
        assert steps == one.rows - 1
        assert batch.action[at, :steps].tobytes() == one.action[1:].tobytes()
        assert np.array_equal(batch.reward[at, :steps], one.reward[1:].astype(np.float32))
        assert np.array_equal(batch.batch.policy_version[at, :steps], one.policy_version[1:])
        assert batch.discount[at, :steps].tolist() == [0.5] * (steps - 1) + [0.0 if one.terminated else 0.5]
        for path, array in trees.leaves(batch.frame).items():
            assert array[at, : steps + 1].tobytes() == one.frame[path].tobytes()
        for extra, array in one.extras.items():
            assert batch.extras[extra][at, :steps].tobytes() == array[:-1].tobytes()


def a_big_table(like, capacity=20_000, **fields):
    return TableSpec(signature=like, capacity_steps=capacity, **fields)


@pytest.mark.parametrize("spec", [None, a_big_table(RICH)], ids=["one lane", "many lanes"])
def test_what_is_drawn_is_what_the_file_holds(path, spec):
    desk = Desk()
    client, transport = a_client(desk)
    episodes = a_file(path, RICH, 5, 9, 1, 2, 30, 1, 1, 7, 12, 3)
    assert import_episodes(client, "demo", path, spec) == 10
    check_drawn(client, "demo", episodes)
    assert desk.table("demo")["steps_ever"] == sum(one.rows for one in episodes)
    if spec is not None:
        versions = len({version for one in episodes for version in one.policy_version})
        assert sum(isinstance(sent, Observe) for sent in transport.sent) <= versions + 1


def test_the_same_file_comes_twice_as_two_runs_of_episodes(path):
    client, _ = a_client(Desk())
    episodes = a_file(path, RICH, 5, 9, 4)
    for _ in range(2):
        import_episodes(client, "demo", path, a_big_table(RICH))
    check_drawn(client, "demo", episodes)
    keys = client.sample("demo", 400, EpisodeUnit()).result().key
    assert len(np.unique(keys)) == 6


@pytest.mark.parametrize("rows", [1, 2, 255, 256, 1000, 5000])
def test_a_table_that_is_made_holds_the_whole_file(path, rows):
    spec = default_spec(signature(), rows)
    assert held_at_least(spec.steps) >= rows
    assert spec.steps <= max(1.02 * rows, 4)
    desk = Desk()
    client, _ = a_client(desk)
    a_file(path, signature(), *[rows // 3] * (rows > 2) * 3, 1, versions=None)
    import_episodes(client, "t", path)
    assert desk.table("t")["steps"] == desk.table("t")["steps_ever"]


def test_episodes_larger_than_the_table_leave_their_newest_rows(path):
    desk = Desk()
    client, _ = a_client(desk)
    a_file(path, signature(), 300, 7, 500)
    import_episodes(client, "t", path, TableSpec(signature=signature(), capacity_steps=20))
    assert desk.table("t")["steps_ever"] == 807
    assert desk.table("t")["steps"] == 20


def test_open_episodes_end_where_they_were_left(path):
    desk = Desk()
    client, _ = a_client(desk)
    write_episodes(path, signature(), [an_episode(signature(), 4, "open", seed=at) for at in range(3)])
    import_episodes(client, "t", path, a_big_table(signature()))
    batch = client.sample("t", 50, EpisodeUnit(), discount=0.5).result()
    assert batch.mask.sum(axis=1).tolist() == [3] * 50
    assert (batch.discount[:, :3] == 0.5).all()
    # nothing goes on there: the lanes have left
    assert client.sample("t", 50, Transition(n_step=5)).result().batch.steps.max() == 3


def test_a_table_that_is_there_is_written_to(path):
    client, _ = a_client(Desk())
    a_file(path, signature(), 5)
    limiter = LimiterSpec.at_least(3)
    client.create_table("t", TableSpec(signature=signature(7), capacity_steps=50, limiter=limiter))
    assert import_episodes(client, "t", path) == 1  # frames in a stack are the table's own affair
    assert client.sample("t", 4).result().stack.shape == (4, 7, 2)
    client.create_table("u", TableSpec(signature=RICH, capacity_steps=50))
    with pytest.raises(SignatureError, match="table 'u' has another signature: action: the table holds"):
        import_episodes(client, "u", path)
    with pytest.raises(SignatureError):
        import_episodes(client, "t", path, TableSpec(signature=signature(), capacity_steps=50))


def test_a_damaged_file_changes_nothing(path):
    desk = Desk()
    client, _ = a_client(desk)
    a_file(path, signature(), 5, 50)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 64
    path.write_bytes(damaged)
    with pytest.raises(EpisodeFileError, match="is damaged"):
        import_episodes(client, "t", path)
    assert desk.info().tables == {}


def test_a_limiter_that_holds_the_import_back_is_named(path):
    client, _ = a_client(Desk())
    a_file(path, signature(), 5, 50, 6, 90)
    spec = a_big_table(signature(), 100, limiter=LimiterSpec.ratio(1.0, 10.0))
    with pytest.raises(WaitTimeoutError):
        import_episodes(client, "t", path, spec)


def test_a_reward_that_no_table_takes_is_refused(path):
    client, _ = a_client(Desk())
    rewards = np.array([0, np.nan, 0], np.float32)
    write_episodes(path, signature(), [an_episode(signature(), 3, reward=rewards)])
    with pytest.raises(InvalidRequestError, match="rewards must be finite"):
        import_episodes(client, "t", path)


def test_a_file_without_episodes_makes_a_table(path):
    client, _ = a_client(Desk())
    write_episodes(path, signature(), [])
    assert import_episodes(client, "t", path) == 0
    assert client.signature("t") == signature()


def test_progress_is_told_after_each_request(path):
    client, transport = a_client(Desk())
    a_file(path, signature(), 5, 50, 6)
    said = []
    import_episodes(client, "t", path, on_progress=lambda done, total: said.append((done, total)))
    assert said[-1] == (61, 61)
    assert said == sorted(set(said))
    assert len(said) + 1 >= sum(isinstance(sent, Observe) for sent in transport.sent)


def test_a_large_import_is_cut_into_requests(path):
    like = signature(frame=ArraySpec.of((100_000,), np.uint8))
    client, transport = a_client(Desk())
    write_episodes(path, like, [an_episode(like, 200, versions=[0] * 200)])
    import_episodes(client, "t", path)
    rows = [len(sent.lane) for sent in transport.sent if isinstance(sent, Observe)]
    assert sum(rows) == 200
    assert max(rows) <= 83


def test_the_command_imports_a_file(path, serve, ipc_address, capsys):
    episodes = a_file(path, RICH, 5, 9, 4)
    service = ReplayService(time.monotonic, seed=0)
    with serve(ipc_address, service):
        command = ["replay", "import", str(path), "--table", "demo", "--address", ipc_address]
        assert main(command) == 0
        said = capsys.readouterr().out
        assert said == f"imported 3 episodes of 18 steps into table 'demo' at {ipc_address}\n"
    check_drawn(Client(LocalTransport(service)), "demo", episodes)


def test_the_command_names_what_is_wrong(path, capsys):
    assert main(["replay", "import", str(path), "--table", "t", "--address", "ipc:///nowhere"]) == 2
    assert f"can't read {path}: No such file" in capsys.readouterr().err
    assert main(["replay", "import", str(path)]) == 2
    assert "--table" in capsys.readouterr().err
    assert main(["replay", "import", str(path), "--table", "t", "--address", "here"]) == 2
    assert "'here' is no address" in capsys.readouterr().err


@pytest.mark.parametrize("tool", ["import", "export"])
def test_the_tools_of_the_command_teach(tool, capsys):
    with pytest.raises(SystemExit):
        main(["replay", "--help"])
    assert f"fornix replay {tool} " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["replay", tool, "--help"])
    text = capsys.readouterr().out
    assert f"usage: fornix replay {tool} " in text
    assert f"  fornix replay {tool} " in text.split("examples:")[1]


def test_the_command_exports_what_a_folder_holds(path, capsys, monkeypatch):
    episodes = [an_episode(RICH, 5), an_episode(RICH, 2, "open")]
    asked = []

    def reading(folder, table):
        asked.append((folder, table))
        return RICH, iter(episodes)

    module = SimpleNamespace(episodes=reading)
    monkeypatch.setitem(sys.modules, "fornix.replay.durable.reading", module)
    command = ["replay", "export", "memory", str(path), "--table", "demo"]
    assert main(command) == 0
    assert asked == [(Path("memory"), "demo")]
    said = capsys.readouterr().out
    assert said == f"exported 2 episodes of 7 steps of table 'demo' to {path}\n"
    assert [facts(one) for one in read_episodes(path)] == [facts(one) for one in episodes]
    assert main(command) == 2
    assert "is there already; name another file, or give --overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
