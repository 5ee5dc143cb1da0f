"""From a server's answer to stacks and windows, over the socket or out of a mapped memory.

Rows of a mapped memory may be overwritten between a server's answer and the copy. Such a copy is thrown
away: a stack is asked for again over the socket, and the samples of a batch are drawn anew.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.errors import ProtocolError, UnknownTableError
from fornix.common.messages import Batch, Reply, Request, Sample, StackQuery, Stacks
from fornix.common.signature import Signature
from fornix.common.transport import Transport
from fornix.replay import refill
from fornix.replay.batches import drawn
from fornix.replay.gather import Array, Buffers, check_frames, check_places, gather
from fornix.replay.mapped import MappedFrames
from fornix.replay.maps import Maps
from fornix.replay.pending import Pending, ReplyT, expect, make

#: How often overwritten samples are drawn anew, the last time over the socket.
_TRIES = 4
_NONE_LOST = np.zeros(0, np.intp)

T = TypeVar("T")
Rows = NDArray[np.intp]
Leaves = dict[str, Array]


class Fetch:
    """Completes a client's replies with the frames that they refer to.

    Args:
        transport: to the server.
        maps: the memories that are mapped.
        signature: asks the server for a table's signature.
    """

    def __init__(self, transport: Transport, maps: Maps, signature: Callable[[str], Signature]) -> None:
        self._transport = transport
        self._maps = maps
        self._signature = signature
        self._forms: dict[str, Any] = {}

    def offers(self, table: str) -> bool:
        """Whether to ask for places in a table's mapped memory; see `Maps.offers`."""
        return self._maps.offers(table)

    def send(self, request: Request, finish: Callable[[Reply], T]) -> Pending[T]:
        """Send a request whose reply `finish` makes a result of."""
        return Pending(self._transport, request, finish)

    def expect(self, kind: type[ReplyT], table: str, reply: Reply) -> ReplyT:
        """Return a reply of a kind, or raise what it stands for; a map of a table that is gone goes too."""
        try:
            return expect(kind)(reply)
        except UnknownTableError:
            self._maps.forget(table)
            raise

    def sent(self, request: Request, kind: type[ReplyT], table: str) -> Pending[ReplyT]:
        """Send a request whose reply is of a kind."""
        return self.send(request, partial(self.expect, kind, table))

    def stacks(self, table: str, reply: Stacks) -> Stacks:
        """Return stacks with their frames, in the form that the table's frames have.

        Raises:
            EvictedError: if one was overwritten before it could be gathered.
        """
        if reply.index is not None:
            values = self._gathered_stacks(table, reply, reply.index)
        elif reply.stack is not None:
            values = _sent_stacks(reply)
        else:
            return reply
        update = {"stack": self._formed(table, values), "index": None, "oldest": None}
        return reply.model_copy(update=update)

    def sample(self, request: Sample, buffers: Buffers, **changes: Any) -> Pending[Any]:
        """Send a request for a batch, with some fields changed.

        It comes as `Transitions` or `Sequences`, in buffers.
        """
        request = request.model_copy(update={"mapped": self._maps.offers(request.table), **changes})
        return self.send(request, partial(self._drawn, request, buffers))

    def _drawn(self, request: Sample, buffers: Buffers, reply: Reply) -> Any:
        """Return what was drawn; what was overwritten before it could be gathered is drawn anew."""
        batch = self.expect(Batch, request.table, reply)
        batch, values, lost = self._gathered(request, batch, buffers)
        for tries_left in reversed(range(_TRIES)):
            if not len(lost):
                break
            more, part, still = self._refill(request, len(lost), tries_left > 0, Buffers())
            batch, values = refill.put_all(request, (batch, values), (more, part), lost)
            lost = lost[still]
        if batch.frame is not None:
            batch = batch.model_copy(update={"frame": None})  # so that its memory can go
        return drawn(request, batch, self._formed(request.table, values), buffers)

    def _gathered(self, request: Sample, batch: Batch, buffers: Buffers) -> tuple[Batch, Leaves, Rows]:
        """Return a batch, its windows, and the rows that were overwritten meanwhile."""
        refill.check(batch, request)
        memory, lost = None, _NONE_LOST
        if batch.frame is not None:
            frames = trees.leaves(batch.frame)
            check_frames(frames)
        elif request.mapped:
            memory = self._maps.of(request.table, batch.memory)
            if memory is None:
                return self._refill(request, request.batch_size, False, buffers)
            frames = memory.frames
        else:
            raise ProtocolError("the server answered with a batch without frames")
        check_places(batch.index, request.batch_size, frames)
        values = gather(frames, batch.index, buffers, "window")
        if memory is not None:
            lost = _lost(memory, batch.oldest, request.batch_size)
        return batch, values, lost

    def _refill(
        self, request: Sample, count: int, mapped: bool, buffers: Buffers
    ) -> tuple[Batch, Leaves, Rows]:
        """Draw samples in place of some that were lost; return what `_gathered` does."""
        again = request.model_copy(update={"batch_size": count, "refill": True, "mapped": mapped})
        return self._gathered(again, self.sent(again, Batch, again.table).result(), buffers)

    def _gathered_stacks(self, table: str, reply: Stacks, index: Array) -> Leaves:
        memory = self._maps.of(table, reply.memory)
        if memory is None:
            return self._asked_stacks(table, reply.key)
        check_places(index, len(reply.key), memory.frames)
        values = gather(memory.frames, index, Buffers(), "stack")
        lost = _lost(memory, reply.oldest, len(reply.key))
        if len(lost):
            for path, array in self._asked_stacks(table, reply.key[lost]).items():
                values[path][lost] = array
        return values

    def _asked_stacks(self, table: str, key: Array) -> Leaves:
        """Ask for stacks over the socket, which raises EvictedError if one is gone."""
        query = make(StackQuery, table=table, key=key)
        return _sent_stacks(self.sent(query, Stacks, table).result())

    def _formed(self, table: str, values: Leaves) -> Any:
        """Return arrays by path in the form that the table's frames have."""
        if "" in values:
            return values[""]
        if table not in self._forms or trees.leaves(self._forms[table]).keys() != values.keys():
            self._forms[table] = self._signature(table).frame
        if trees.leaves(self._forms[table]).keys() != values.keys():
            raise ProtocolError(
                f"the server answered with frames of {sorted(values)!r:.200}, which are not those of the "
                f"table's signature"
            )
        return trees.like(self._forms[table], values)


def _lost(memory: MappedFrames, oldest: Array | None, rows: int) -> Rows:
    """Return which rows were overwritten before they were copied."""
    if oldest is None or oldest.shape != (rows,) or oldest.dtype != np.int64:
        raise ProtocolError(f"the server answered without the oldest row of each of {rows} copies, <i8")
    whole = memory.intact(oldest)
    return _NONE_LOST if whole.all() else np.flatnonzero(~whole)


def _sent_stacks(reply: Stacks) -> Leaves:
    """Return the stacks that a reply holds by path, if there is one for each key."""
    values = trees.leaves(reply.stack)
    for array in values.values():
        if not isinstance(array, np.ndarray) or array.ndim < 2 or len(array) != len(reply.key):
            raise ProtocolError(f"the server answered with no array of {len(reply.key)} stacks")
    return values
