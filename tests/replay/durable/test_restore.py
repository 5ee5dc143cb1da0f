"""A folder is made anew under other capacities, samplers and limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fornix.commands.replay_restore import main
from fornix.common.errors import ConfigurationError, InvalidRequestError, StorageError, UnknownTableError
from fornix.common.specs import LimiterSpec, SamplerSpec, TableSpec, Transition
from fornix.replay.durable.changes import Changes
from fornix.replay.durable.restore import restore
from fornix.replay.durable.verify import verify

from .served import SMALL, Scribe, a_spec, served

LEFT = 3


def table_of(client, name="t"):
    return client.service._catalog[name].table


def stacks(client, count):
    """The stacks of the newest rows that can be asked for, but for marks that a lane left."""
    ring = table_of(client).memory.ring
    numbers = np.arange(ring.head - count, ring.head)
    records = table_of(client).memory.log.columns.file.records[numbers % ring.capacity]
    return client.stacks("t", numbers[records["step_type"] != LEFT]).stack


def made_of(path, dest, *options):
    assert main([str(path), str(dest), *options]) == 0
    assert verify(dest).lines == []
    return dest


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder whose ring has wrapped, with priorities and counts; and its newest stacks."""
    path = tmp_path_factory.mktemp("original") / "data"
    with served(path) as client:
        sampler, limiter = SamplerSpec(kind="prioritized"), LimiterSpec.ratio(2.0, 5000.0, 5)
        client.create_table("t", a_spec(200, sampler=sampler, limiter=limiter))
        Scribe(client).write(100, leave=0.03)
        drawn = client.sample("t", 32).result()
        client.update_priorities("t", drawn.key, np.arange(32) + 2.0).result()
        client.sample("t", 32).result()
        newest = stacks(client, 150)
        priorities = table_of(client)._priorities
        rows = np.arange(table_of(client).memory.ring.head - 150, table_of(client).memory.ring.head)
        facts = priorities.column[rows % priorities.slots].copy(), priorities.maximum
        counts = table_of(client).limiter.counts()
    return path, newest, facts, counts


def alike(ours, theirs):
    for name in ("eye", "arm"):
        count = min(len(ours[name]), len(theirs[name]))
        assert count > 0
        assert ours[name][-count:].tobytes() == theirs[name][-count:].tobytes()


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(20, 700))
def test_the_newest_rows_are_the_same_whatever_the_capacity(original, tmp_path_factory, steps):
    path, newest, (powers, maximum), counts = original
    data = made_of(path, tmp_path_factory.mktemp("restored") / "data", "--capacity-steps", str(steps))
    with served(data) as client:
        table = table_of(client)
        ring = table.memory.ring
        assert table.memory.steps == table.spec.steps == steps
        kept = min(150, len(table) - 40 if len(table) < 150 else 150)
        if kept > 0:
            alike(newest, stacks(client, kept))
        rows = np.arange(ring.head - min(150, len(table)), ring.head)
        assert (table._priorities.column[rows % ring.capacity] == powers[-len(rows) :]).all()
        assert table._priorities.maximum == maximum
        assert table.limiter.counts() == counts
        assert table.memory.steps_ever > 350
        Scribe(client, name="new", seed=5).write(30)
        if counts.inserts > 5:
            client.sample("t", 8).result()
    assert verify(data).lines == []


def test_a_writer_goes_on_with_its_lanes(tmp_path):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(200))
        scribe = Scribe(client).write(60)
        incarnation = table_of(client).memory.writers["w"].incarnation
    with served(made_of(tmp_path / "data", tmp_path / "less", "--capacity-steps", "70")) as less:
        writer = less.open_writer("t", "w", 4, incarnation=incarnation)
        steps = scribe.steps_on()
        small = writer.observe(steps).result().stack
    with served(tmp_path / "data") as client:
        again = client.open_writer("t", "w", 4, incarnation=incarnation)
        alike(again.observe(steps).result().stack, small)


def test_a_queue_keeps_what_is_left_to_draw(tmp_path):
    with served(tmp_path / "data") as client:
        client.create_table(
            "t", a_spec(200, sampler=SamplerSpec(kind="fifo"), limiter=LimiterSpec.queue(100))
        )
        Scribe(client).write(20, end=0.0)
        client.sample("t", 30).result()
        starts = table_of(client).starts(Transition())
        left, surplus = len(starts), table_of(client).limiter.surplus
        assert surplus == left - 1
    same = made_of(tmp_path / "data", tmp_path / "same")
    with served(same) as client:
        assert table_of(client).limiter.surplus == surplus
        assert len(table_of(client).starts(Transition())) == left
    options = ("--capacity-steps", "24", "--limiter.max_surplus", "15")
    with served(made_of(tmp_path / "data", tmp_path / "less", *options)) as client:
        table = table_of(client)
        assert table.limiter.surplus == len(table.starts(Transition())) - 1 < left - 1
        assert table.created.limiter.max_surplus == 15


def test_each_start_is_drawn_as_often_as_another_sampler_lets_it(tmp_path):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(200))
        Scribe(client).write(20, end=0.0)
        client.sample("t", 30).result()
    options = ["--sampler", "fifo", "--limiter.samples_per_insert", "1", "--limiter.min_surplus", "-1"]
    data = made_of(tmp_path / "data", tmp_path / "queue", *options, "--limiter.max_surplus", "99")
    with served(data) as client:
        table = table_of(client)
        left = len(table.starts(Transition()))
        assert table.limiter.surplus == left - 1
        client.sample("t", left).result()
        assert table.limiter.surplus == -1


def test_priorities_go_on_under_another_exponent_and_go_with_another_sampler(original, tmp_path):
    path, _, (powers, maximum), _ = original
    data = made_of(path, tmp_path / "data", "--sampler.priority_exponent", "1.2")
    with served(data) as client:
        table = table_of(client)
        rows = np.arange(table.memory.ring.head - 150, table.memory.ring.head) % table.memory.ring.capacity
        np.testing.assert_allclose(table._priorities.column[rows], powers**2, rtol=1e-12)
        assert table._priorities.maximum == maximum
    with served(made_of(path, tmp_path / "uniform", "--sampler", "uniform")) as client:
        assert table_of(client)._priorities is None
        client.sample("t", 8).result()


def test_limits_are_laid_over_those_that_hold_and_the_surplus_goes_on(original, tmp_path):
    path, _, _, counts = original
    data = made_of(path, tmp_path / "data", "--limiter.samples_per_insert", "4")
    with served(path) as client:
        table = table_of(client)
        before = table.limiter.surplus
        table.limiter.change(table.limiter.spec.model_copy(update={"samples_per_insert": 4.0}))
        expected = table.limiter.counts()
    with served(data) as client:
        limiter = table_of(client).limiter
        assert limiter.surplus == before
        assert limiter.counts() == expected
        assert limiter.spec.error_buffer_inserts == 5000
        assert limiter.consumed == counts.consumed


def test_one_table_alone_is_changed(tmp_path):
    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(200))
        client.create_table("u", a_spec(300))
        client.create_table("v", TableSpec(signature=SMALL, capacity_steps=100, rows_of="t"))
        Scribe(client).write(20)
    data = made_of(tmp_path / "data", tmp_path / "new", "--table", "t", "--capacity-steps", "400")
    with served(data) as client:
        assert {name: spec.steps for name, spec in client.list_tables().items()} == {
            "t": 400,
            "u": 300,
            "v": 100,
        }
        client.sample("v", 4).result()
    with pytest.raises(
        StorageError, match="table 'v' draws 100 steps of the rows of 't', which would have 75"
    ):
        restore(tmp_path / "data", tmp_path / "less", Changes(capacity_steps=50), "t")


def test_damage_stays_a_gap(tmp_path):
    from .test_reading import damage

    with served(tmp_path / "data") as client:
        client.create_table("t", a_spec(400))
        scribe = Scribe(client).write(50)
    damage(tmp_path / "data", scribe.ended[5][0][1][0], "reward")
    (restored,) = restore(tmp_path / "data", tmp_path / "new", Changes())
    assert restored.left_out == 1
    with served(tmp_path / "new") as client:
        assert len(table_of(client).memory.broken) == 1


def test_what_does_not_fit_is_refused_and_leaves_nothing(original, tmp_path):
    path, dest = original[0], tmp_path / "new"
    for changes, kind, told in (
        (Changes(capacity_steps=1), StorageError, "capacity_steps 1 must be from 2"),
        (Changes(capacity_steps=15), StorageError, "writer 'w' of table 't' has 4 lanes, which need 16"),
        (Changes(limiter={"min_size": 10_000}), InvalidRequestError, "min_size 10000 is more than the 200"),
        (Changes(limiter={"min_size": -1}), StorageError, "min_size = -1"),
        (Changes(sampler={"kind": "best"}), StorageError, "kind = 'best'"),
    ):
        with pytest.raises(kind, match=told):
            restore(path, dest, changes)
    with pytest.raises(UnknownTableError, match="no table 'x'"):
        restore(path, dest, Changes(), "x")
    with pytest.raises(ConfigurationError, match=r"--limiter.min_size 'few' must be a number, or none"):
        main([str(path), str(dest), "--limiter.min_size", "few"])
    assert list(tmp_path.iterdir()) == []
    with served(path), pytest.raises(StorageError, match="is kept by a replay server"):
        restore(path, dest, Changes())
