"""Requests that nobody waits for any more: they leave nothing behind.

What a transport keeps of a request shows nowhere but in its memory, which a test can't see; so these
look at its `_flights`, which are private.
"""

import gc
import time

import numpy as np
import pytest

from fornix.common.errors import InvalidRequestError, UnknownTableError
from fornix.common.messages import InfoQuery
from fornix.common.specs import SamplerSpec
from fornix.common.transport import ZmqTransport
from fornix.replay.client import Client
from fornix.replay.pending import Pending
from fornix.replay.service import ReplayService

from .builders import spec
from .desk import steps

_SEVERAL = 50


@pytest.fixture
def transport(ipc_address, serve):
    """A transport to a server that shares its memory."""
    service = ReplayService(time.monotonic, seed=0, share=True)
    with serve(ipc_address, service):
        made = ZmqTransport(ipc_address)
        yield made
        made.close()
    service.close()


def test_what_nobody_keeps_is_carried_out_and_forgotten(transport):
    client = Client(transport)
    client.create_table("t", spec(sampler=SamplerSpec(kind="prioritized")))
    key = client.open_writer("t", "w", 1).observe(steps(np.ones((1, 2)))).result().key
    for _ in range(_SEVERAL):
        client.update_priorities("t", key, np.ones(1))
        client.report("me", "this", {})
    assert not transport._flights
    assert list(client.info().reports) == ["me"]  # asked after all of them
    assert not transport._flights


@pytest.mark.parametrize("memory", ["auto", "mapped", "socket"])
@pytest.mark.parametrize("per_request", [1, 3])
def test_iterators_over_a_table_that_is_not_there_leave_nothing_behind(transport, memory, per_request):
    client = Client(transport, memory=memory)
    for _ in range(_SEVERAL):
        with (
            client.batches("missing", 2, per_request=per_request) as batches,
            pytest.raises(UnknownTableError),
        ):
            next(batches)
    gc.collect()  # errors are in cycles with the frames that they were raised in
    assert len(transport._flights) <= 2  # whether it can be mapped may be asked once
    client.close()
    assert not transport._flights


@pytest.mark.parametrize("memory", ["auto", "socket"])
def test_what_is_only_looked_at_leaves_nothing_behind(transport, memory, wait_until):
    client = Client(transport, memory=memory)
    for _ in range(_SEVERAL):
        with client.batches("missing", 2) as batches:
            wait_until(batches.ready, "the refusal")
    gc.collect()  # errors are in cycles with the frames that they were raised in
    assert len(transport._flights) <= 2  # whether it can be mapped may be asked once
    client.close()
    assert not transport._flights


def test_one_that_was_forgotten_says_so_until_it_is_sent_again(transport):
    pending = Pending(transport, InfoQuery(), lambda reply: reply)
    pending.forget()
    assert not transport._flights
    assert pending.done()
    with pytest.raises(InvalidRequestError, match="forgotten"):
        pending.result()
    pending.send_again()
    assert pending.result() is pending.result()
