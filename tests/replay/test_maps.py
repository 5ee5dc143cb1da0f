"""When a client maps a table's memory, and when it goes over the socket."""

import logging

import numpy as np
import pytest

from fornix.common.errors import (
    ConfigurationError,
    InvalidRequestError,
    UnknownTableError,
    UnreachableError,
)
from fornix.common.messages import Hello, MapTable, Refused, Sample, Welcome
from fornix.replay.client import Client
from fornix.replay.mapped import UnmappableError

from .fakes import FakeMemory, FakeServer, batch, ramp


@pytest.fixture
def server(monkeypatch):
    """A server that can be mapped, but shares nothing yet; it answers samples in the way asked for."""
    server = FakeServer()
    monkeypatch.setattr("fornix.replay.maps.MappedFrames.open", server.open)

    def sample(request):
        oldest = np.zeros(1, np.int64)
        if request.mapped:
            return batch([[0, 1, 2]], oldest=oldest, memory=server.memory.number)
        return batch([[0, 1, 2]], frame=ramp(4))

    server.on[Sample] = sample
    return server


def share(server, number=1):
    return server.put(FakeMemory(number, {"": ramp(5)}))


def paths(server):
    """Return for each sample whether it asked for places."""
    return [request.mapped for request in server.transport.requests(Sample)]


def test_auto_maps_in_the_background(server):
    """The first request doesn't wait for the answer."""
    memory = share(server)
    there = []
    found = server.answer(MapTable(table="t"))
    server.on[MapTable] = lambda request: found if there else None
    client = Client(server.transport, memory="auto")
    for _ in range(2):
        client.sample("t", 1).result()
    there.append(True)
    for _ in range(3):
        client.sample("t", 1).result()
    assert paths(server) == [False, False, True, True, True]
    assert memory.asked == 3
    assert len(server.transport.requests(MapTable)) == len(server.transport.requests(Hello)) == 1
    assert client.memory_path("t") == "mapped"
    client.close()
    assert memory.closed


def test_auto_goes_over_the_socket_where_nothing_is_shared_and_says_why_once(server, caplog):
    client = Client(server.transport, memory="auto")
    with caplog.at_level(logging.DEBUG, "fornix.replay.maps"):
        for _ in range(3):
            client.sample("t", 1).result()
        assert client.memory_path("t") == "socket"
    assert paths(server) == [False] * 3
    assert len(server.transport.requests(MapTable)) == 1
    assert [r.getMessage() for r in caplog.records] == [
        "the frames of table 't' come over the socket: this server shares no memory"
    ]


def test_auto_goes_over_the_socket_where_the_memory_is_out_of_reach(server, monkeypatch):
    def out_of_reach(found, signature):
        raise UnmappableError("another host")

    share(server)
    monkeypatch.setattr("fornix.replay.maps.MappedFrames.open", out_of_reach)
    client = Client(server.transport, memory="auto")
    client.sample("t", 1).result()
    assert client.memory_path("t") == "socket"
    assert paths(server) == [False]
    with pytest.raises(UnmappableError, match="another host"):
        Client(server.transport, memory="mapped").sample("t", 1)
    assert paths(server) == [False]


def test_a_table_that_is_not_there_yet_decides_nothing(server):
    server.on[MapTable] = lambda request: Refused(code="UNKNOWN_TABLE", message="there is no table 't'")
    client = Client(server.transport, memory="auto")
    client.sample("t", 1).result()
    with pytest.raises(UnknownTableError):
        client.memory_path("t")
    share(server)
    del server.on[MapTable]
    client.sample("t", 1).result()
    assert paths(server) == [False, True]


def test_a_table_dropped_between_two_answers_decides_nothing(server):
    share(server)
    server.on[Hello] = lambda request: Welcome(server="fake", tables={})
    client = Client(server.transport, memory="auto")
    with pytest.raises(UnknownTableError, match="dropped just now"):
        client.memory_path("t")
    del server.on[Hello]
    assert client.memory_path("t") == "mapped"


def test_a_server_that_does_not_answer_decides_nothing(server):
    share(server)
    client = Client(server.transport, memory="auto")
    server.transport.unreachable = True
    with pytest.raises(UnreachableError):
        client.memory_path("t")
    pending = client.sample("t", 1)
    server.transport.unreachable = False
    pending.result()
    client.sample("t", 1).result()
    assert paths(server) == [False, True]


def test_mapped_raises_the_reason(server):
    client = Client(server.transport, memory="mapped")
    for attempt in (client.sample, client.memory_path):
        with pytest.raises(InvalidRequestError, match="shares no memory"):
            attempt("t", *[1] * (attempt == client.sample))
    with pytest.raises(InvalidRequestError, match="shares no memory"):
        client.stacks("t", np.zeros(1, np.int64))
    share(server)
    client.sample("t", 1).result()
    assert paths(server) == [True]


def test_socket_never_asks(server):
    share(server)
    client = Client(server.transport, memory="socket")
    client.sample("t", 1).result()
    assert client.memory_path("t") == "socket"
    assert paths(server) == [False]
    assert not server.transport.requests(MapTable)


def test_in_one_process_nothing_is_mapped(server):
    share(server)
    assert Client(server.transport).memory_path("t") == "socket"


def several(server):
    """Let a server answer a request for several transitions in the way asked for."""

    def sample(request):
        rows = request.batch_size
        if request.mapped:
            return batch([[0, 1, 2]] * rows, oldest=np.zeros(rows, np.int64), memory=server.memory.number)
        return batch([[0, 1, 2]] * rows, frame=ramp(4))

    server.on[Sample] = sample


def test_auto_waits_for_the_map_before_it_asks_for_several_batches_at_once(server):
    share(server)
    several(server)
    with Client(server.transport, memory="auto") as client:
        next(client.batches("t", 2, per_request=3))
    assert paths(server) == [True, True]


def test_who_only_looks_whether_several_batches_are_ready_does_not_wait_for_the_map(server):
    share(server)
    several(server)
    there, found = [], server.answer(MapTable(table="t"))
    server.on[MapTable] = lambda request: found if there else None
    batches = Client(server.transport, memory="auto").batches("t", 2, per_request=3)
    for _ in range(2):
        assert not batches.ready()
    assert paths(server) == []
    there.append(True)
    assert batches.ready()
    assert paths(server) == [True, True]


def test_a_way_that_there_is_not_is_refused_with_those_that_there_are(ipc_address):
    with pytest.raises(ConfigurationError, match="'maped'; it must be one of auto, mapped, socket"):
        Client.connect(ipc_address, memory="maped")
