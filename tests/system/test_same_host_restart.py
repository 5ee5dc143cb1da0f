"""Clients on the host of a server that keeps its rows: it is killed and started again, and they go on."""

import contextlib

import numpy as np
import pytest

from fornix.common.errors import EvictedError
from fornix.common.specs import TableSpec, Transition
from fornix.common.transport import ZmqTransport
from fornix.replay.client import Client

from .known_steps import LANES, SIGNATURE, TABLE, Lanes, check, stack_of
from .programs import a_server

pytestmark = pytest.mark.system


@pytest.mark.parametrize("memory", ["mapped", "socket"])
def test_clients_of_a_killed_server_go_on_by_the_same_keys(memory, ipc_address, tmp_path):
    with contextlib.ExitStack() as stack:
        writes, reads = (
            stack.enter_context(Client(ZmqTransport(ipc_address, retry_after_s=0.3), memory=memory))
            for _ in range(2)
        )
        lanes, written = Lanes(1), []
        pending = None

        def write(turns):
            for _ in range(turns):
                answer = writer.observe(lanes.steps()).result()
                assert np.array_equal(answer.stack, stack_of(lanes.who))
                written.append((answer.key, lanes.who.copy()))
                lanes.go_on()

        for turn in range(3):
            with a_server(ipc_address, "--data", tmp_path / "rows") as server:
                if turn == 0:
                    writes.create_table(TABLE, TableSpec(signature=SIGNATURE, capacity_steps=2000))
                    writer = writes.open_writer(TABLE, "writer", LANES)
                if pending is not None:  # it was asked of the server that is dead
                    answer = pending.result()
                    assert np.array_equal(answer.stack, stack_of(lanes.who))
                    assert (answer.key > written[-1][0]).all()
                    written.append((answer.key, lanes.who.copy()))
                    lanes.go_on()
                    for key, who in written:
                        assert np.array_equal(reads.stacks(TABLE, key).stack, stack_of(who))
                    check(reads.sample(TABLE, 64, Transition(n_step=3), discount=1.0).result())
                write(20)
                check(reads.sample(TABLE, 64, Transition(n_step=3), discount=1.0).result())
                assert {client.memory_path(TABLE) for client in (reads, writes)} == {memory}
                with pytest.raises(EvictedError):
                    reads.stacks(TABLE, written[-1][0] + LANES)
                assert reads.info().tables[TABLE]["steps_ever"] == len(written) * LANES
                server.kill()
                server.wait(10)
                pending = writer.observe(lanes.steps())
        pending.forget()
