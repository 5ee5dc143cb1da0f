"""From a server's answer to stacks and windows, over the socket or out of a mapped memory.

Rows of a mapped memory may be overwritten between a server's answer and the copy. Such a copy is thrown
away: a stack is asked for again over the socket, and the samples of a batch are drawn anew.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fornix.common import trees
from fornix.common.errors import ProtocolError, UnknownTableError
from fornix.common.messages import MAX_BATCH, Batch, Reply, Request, Sample, StackQuery, Stacks, Welcome
from fornix.common.signature import Signature
from fornix.common.transport import Transport
from fornix.replay import refill
from fornix.replay.batches import drawn
from fornix.replay.gather import Array, Buffers, check_frames, check_oldest, check_places, gather
from fornix.replay.mapped import MappedFrames
from fornix.replay.maps import Maps, MemoryPath
from fornix.replay.pending import Pending, ReplyT, expect, make

#: How often overwritten samples are drawn anew, the last time over the socket.
_TRIES = 4
_NONE_LOST = np.zeros(0, np.intp)

T = TypeVar("T")
Rows = NDArray[np.intp]
Leaves = dict[str, Array]


class Answer(NamedTuple):
    """A batch that was found sound, and where its frames are."""

    request: Sample
    """Whose `batch_size` is that of the batch, which may be a part of what was asked for."""
    batch: Batch
    frames: Mapping[str, Array]
    """[places, *obs] by path."""
    memory: MappedFrames | None
    """That they are in; None where they came with the batch."""

    @property
    def form(self) -> dict[str, object]:
        """What one item of each array is, and how many frames a stack has."""
        return refill.form_of(self.request, self.batch, self.frames)

    def parts(self, batch_size: int) -> Iterator["Answer"]:
        """Yield so many samples at a time, each as an answer of its own."""
        if batch_size == self.request.batch_size:
            yield self
            return
        request = self.request.model_copy(update={"batch_size": batch_size})
        for part in refill.parts_of(self.batch, batch_size, request.importance_exponent):
            yield self._replace(request=request, batch=part)

    def gathered(self, buffers: Buffers) -> tuple[Leaves, Rows]:
        """Return the windows by path, and the rows that were overwritten meanwhile."""
        batch = self.batch
        values = gather(self.frames, batch.index, buffers, "window")
        if self.memory is None or batch.oldest is None:
            return values, _NONE_LOST
        whole = self.memory.intact(batch.oldest)
        return values, _NONE_LOST if whole.all() else np.flatnonzero(~whole)


class Fetch:
    """Completes a client's replies with the frames that they refer to.

    Args:
        transport: to the server.
        maps: the memories that are mapped.
        signature: asks the server for a table's signature.
        welcome: says hello to the server, and returns its answer.
    """

    def __init__(
        self,
        transport: Transport,
        maps: Maps,
        signature: Callable[[str], Signature],
        welcome: Callable[[], Welcome],
    ) -> None:
        self._transport = transport
        self._maps = maps
        self._signature = signature
        self._welcome = welcome
        self._forms: dict[str, Any] = {}

    def offers(self, table: str) -> bool:
        """Whether to ask for places in a table's mapped memory; see `Maps.offers`."""
        return self._maps.offers(table)

    def decided(self, table: str) -> bool:
        """Whether it is known how a table's frames come; see `Maps.decided`."""
        return self._maps.decided(table)

    def path(self, table: str) -> MemoryPath:
        """Return how a table's frames come, as soon as that is decided; see `Maps.path`."""
        return self._maps.path(table)

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

    def life(self, table: str) -> int:
        """Return the life of a table whose rows the server keeps, as `Welcome` tells it; 0 of another."""
        return self._welcome().lives.get(table, 0)

    def asked(self, request: Request) -> Reply:
        """Send a request, wait for its reply and return it, whatever it is."""
        return self.send(request, lambda reply: reply).result()

    def stacks(self, table: str, reply: Stacks) -> Stacks:
        """Return stacks with their frames, in the form that the table's frames have.

        Raises:
            EvictedError: if one was overwritten before it could be gathered.
        """
        if reply.memory:
            if reply.key.ndim != 1 or reply.key.dtype != np.int64:
                raise ProtocolError(
                    f"the server answered with a key of shape {reply.key.shape} and dtype "
                    f"{reply.key.dtype.str}; <i8 [L] was due"
                )
            query = make(StackQuery, table=table, key=reply.key, memory=reply.memory)
            values = self._mapped_stacks(query, self._maps.of(table, reply.memory))
        elif reply.stack is not None:
            values = _sent_stacks(reply)
        else:
            return reply
        return reply.model_copy(update={"stack": self._formed(table, values), "memory": 0})

    def query(self, table: str, key: Array) -> Stacks:
        """Return the stacks of steps: out of the mapped memory without a word to the server, or from it.

        Raises:
            EvictedError: if one is not there.
            InvalidRequestError: as the server refuses the keys.
        """
        query = make(StackQuery, table=table, key=key)
        memory = self._maps.known(table) if self._maps.offers(table) else None
        plain = key.ndim == 1 and key.dtype == np.int64 and 0 < len(key) <= MAX_BATCH
        if memory is None or not plain or not memory.has(key) or not memory.is_served:
            values = self._sent_stacks(query)
        else:
            values = self._mapped_stacks(query, memory)
        return Stacks(key=key, stack=self._formed(table, values))

    def sample(self, request: Sample, buffers: Buffers) -> Pending[Any]:
        """Send a request for a batch, which comes as `Transitions` or `Sequences`, in buffers."""
        request = self.request(request)
        return self.send(request, partial(self._drawn, request, buffers))

    def request(self, request: Sample, **changes: Any) -> Sample:
        """Return a request for a batch, by the way that its frames will come, with some fields changed."""
        return request.model_copy(update={"mapped": self._maps.offers(request.table), **changes})

    def _drawn(self, request: Sample, buffers: Buffers, reply: Reply) -> Any:
        batch = self.expect(Batch, request.table, reply)
        return self.drawn(self.answer(request, batch), buffers)

    def answer(self, request: Sample, batch: Batch) -> Answer:
        """Return a batch as it came, once it is known to be sound, with where its frames are.

        If the memory that it names can't be had any more, another is drawn, which comes over the socket.
        """
        refill.check(batch, request)
        memory = None
        if batch.frame is not None:
            frames = trees.leaves(batch.frame)
            check_frames(frames)
            batch = batch.model_copy(update={"frame": None})
        elif request.mapped:
            memory = self._maps.of(request.table, batch.memory)
            if memory is None:
                return self._refill(request, request.batch_size, mapped=False)
            frames = memory.frames
            check_oldest(batch.oldest, request.batch_size)
        else:
            raise ProtocolError("the server answered with a batch without frames")
        check_places(batch.index, request.batch_size, frames)
        return Answer(request, batch, frames, memory)

    def drawn(self, answer: Answer, buffers: Buffers) -> Any:
        """Return `Transitions` or `Sequences`, their frames in buffers.

        What was overwritten before it could be gathered is drawn anew.
        """
        request, batch = answer.request, answer.batch
        values, lost = answer.gathered(buffers)
        for tries_left in reversed(range(_TRIES)):
            if not len(lost):
                break
            more = self._refill(request, len(lost), mapped=tries_left > 0)
            if more.form != answer.form:
                raise UnknownTableError(
                    f"table {request.table!r} was dropped while a batch was drawn, and another has its "
                    f"name now; ask again"
                )
            part, still = more.gathered(Buffers())
            batch, values = refill.put_all(request, (batch, values), (more.batch, part), lost)
            lost = lost[still]
        return drawn(request, batch, self._formed(request.table, values), buffers)

    def _refill(self, request: Sample, count: int, mapped: bool) -> Answer:
        """Draw samples in place of some that were lost."""
        again = request.model_copy(update={"batch_size": count, "refill": True, "mapped": mapped})
        return self.answer(again, self.sent(again, Batch, again.table).result())

    def _mapped_stacks(self, query: StackQuery, memory: MappedFrames | None) -> Leaves:
        """Return stacks out of a mapped memory, and from the server what can't be had there."""
        if memory is None:
            return self._sent_stacks(query)
        values, whole = memory.stacks(query.key)
        if not whole.all():
            rest = query.model_copy(update={"key": query.key[~whole]})
            for path, array in self._sent_stacks(rest).items():
                values[path][~whole] = array
        return values

    def _sent_stacks(self, query: StackQuery) -> Leaves:
        reply = self.sent(query, Stacks, query.table).result()
        if reply.key.dtype != query.key.dtype or not np.array_equal(reply.key, query.key):
            raise ProtocolError("the server answered with stacks of other keys than those asked for")
        return _sent_stacks(reply)

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


def _sent_stacks(reply: Stacks) -> Leaves:
    """Return the stacks that a reply holds by path, if there is one for each key."""
    values = trees.leaves(reply.stack)
    for array in values.values():
        if not isinstance(array, np.ndarray) or array.ndim < 2 or len(array) != len(reply.key):
            raise ProtocolError(f"the server answered with no array of {len(reply.key)} stacks")
    return values
