"""A writer: appends steps to a table, exactly once and in order.

A server that keeps its rows on a disk says with each answer what the disk has. Until then the writer
keeps a copy of what it wrote: a server that comes back from a power cut without it is sent it again.
"""

from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fornix.common import trees
from fornix.common.errors import (
    InvalidRequestError,
    SequenceError,
    ServerError,
    UnknownWriterError,
    WaitTimeoutError,
)
from fornix.common.messages import (
    Observe,
    OpenWriter,
    Refused,
    Reply,
    Stacks,
    WriterOpened,
)
from fornix.common.signature import Signature
from fornix.replay.fetch import Fetch
from fornix.replay.pending import Pending, make
from fornix.replay.steps import Steps, lane_numbers

#: Refusals after which a write may still be applied: it is to be sent again.
_UNDECIDED = (WaitTimeoutError.code, ServerError.code)
#: Refusals that a server gives which has lost what came before.
_LOST = (SequenceError.code, UnknownWriterError.code)


class _Kept(NamedTuple):
    """A request that may have to be sent again, with copies of its arrays: the caller may change those."""

    sequence: int
    request: Observe
    arrays: dict[str, Any]

    @classmethod
    def of(cls, request: Observe) -> "_Kept":
        frame, leave = request.frame, request.leave
        arrays = {
            "lane": request.lane.copy(),
            "step_type": request.step_type.copy(),
            "terminated": request.terminated.copy(),
            "action": request.action.copy(),
            "reward": request.reward.copy(),
            "frame": frame.copy() if isinstance(frame, np.ndarray) else trees.mapped(frame, np.copy),
            "extras": {name: array.copy() for name, array in request.extras.items()},
            "leave": None if leave is None else leave.copy(),
        }
        return cls(request.sequence, request, arrays)

    def asked_again(self) -> Observe:
        """Return the request, which nobody needs the stacks of any more."""
        return self.request.model_copy(update=self.arrays | {"stacks": False, "mapped": False})


class Writer:
    """Appends the steps of some lanes to one table, each request exactly once and in order.

    Made by `Client.open_writer`. One request may be in flight at a time: `unanswered`.
    """

    def __init__(
        self,
        fetch: Fetch,
        table: str,
        signature: Signature,
        name: str,
        incarnation: int,
        lanes: int,
        sequence: int,
        life: int = 0,
    ) -> None:
        self._fetch = fetch
        self._life = life
        self._table = table
        self.signature = signature
        self.name = name
        self.incarnation = incarnation
        self.lanes = lanes
        self._next = sequence
        self._unanswered: tuple[Observe, Pending[Stacks]] | None = None
        self._kept: deque[_Kept] = deque()  # answered, and perhaps not on the server's disk yet

    def observe(
        self,
        steps: Steps,
        *,
        leave: ArrayLike | None = None,
        policy_version: int = 0,
        stacks: bool = True,
        timeout_s: float = 10.0,
    ) -> Pending[Stacks]:
        """Append steps, and ask for the stack of each lane in them.

        Steps that the server refuses as invalid have no place in the order: the next ones take it.
        Those that timed out do, and nothing else is sent before them: call `unanswered.send_again()`,
        and take the result again. The arrays must not change before the answer has come: they are
        sent, and perhaps sent again, from where they lie.

        Args:
            steps: to append.
            leave: int [J], of any width: lanes whose open episodes end, truncated, at their newest step,
                before the steps are appended.
            policy_version: version of the weights that chose the actions.
            stacks: whether to answer with stacks, or with keys alone.
            timeout_s: how long the server may hold the request back.

        Raises:
            InvalidRequestError: if the steps don't fit the table's signature, `leave` holds no lanes, or
                those before have no answer yet; nothing is sent.
        """
        self.require_answered()
        steps.check(self.signature)
        request = make(
            Observe,
            table=self._table,
            writer=self.name,
            incarnation=self.incarnation,
            sequence=self._next,
            leave=None if leave is None else lane_numbers("leave", leave),
            policy_version=policy_version,
            stacks=stacks,
            mapped=stacks and self._fetch.offers(self._table),
            timeout_s=timeout_s,
            **steps.__dict__ | {"frame": trees.bare(trees.leaves(steps.frame))},
        )
        pending = self._fetch.send(request, lambda reply: self._finish(request, reply))
        self._unanswered = request, pending
        return pending

    @property
    def unanswered(self) -> Pending[Stacks] | None:
        """The request that has no answer yet; None once its result was taken, or the server refused it.

        After an error that leaves open whether it was applied, such as WaitTimeoutError or
        UnreachableError, it is still there: send it again, and take its result.
        """
        return None if self._unanswered is None else self._unanswered[1]

    @property
    def sequence(self) -> int:
        """Number of the next request: one more once the one before has been applied."""
        return self._next

    def require_answered(self) -> None:
        """Raise InvalidRequestError if a request is in flight, or is to be sent again."""
        if self._unanswered is not None:
            raise InvalidRequestError(
                f"request {self._unanswered[0].sequence} of writer {self.name!r} has no answer yet, and "
                f"one may be in flight; take unanswered.result() first, or call unanswered.send_again() "
                f"and then take it if that has failed"
            )

    def grow(self, lanes: int) -> None:
        """Have `lanes` lanes altogether; waits for the server.

        Raises:
            InvalidRequestError: if it has more, a request has no answer yet, or the table is too small
                for so many.
            UnknownWriterError: if the server has forgotten the writer.
        """
        self.require_answered()
        request = make(
            OpenWriter, table=self._table, writer=self.name, incarnation=self.incarnation, lanes=lanes
        )
        due = self._fetch.sent(request, WriterOpened, self._table).result().sequence
        life = self._fetch.life(self._table) if due != self._next else self._life
        if life != self._life and not isinstance(self._send_missing(due, self._next), Refused):
            self._life, due = life, self._next
        if due != self._next:
            raise UnknownWriterError(
                f"the server waits for request {due} of writer {self.name!r}, and {self._next} would be "
                f"next: it has forgotten what came before; open the writer anew"
            )
        self.lanes = lanes

    def stacks(self, keys: NDArray[np.int64]) -> Stacks:
        """Return the stacks of steps of the table by their keys, or raise EvictedError; waits for them."""
        return self._fetch.query(self._table, keys)

    @property
    def kept(self) -> int:
        """How many requests it keeps, since the server's disk may not have them yet."""
        return len(self._kept)

    def _finish(self, request: Observe, reply: Reply) -> Stacks:
        if isinstance(reply, Refused) and reply.code in _LOST:
            reply = self._caught_up(request, reply)
        if isinstance(reply, Stacks):
            self._next = max(self._next, request.sequence + 1)
            self._keep(request, reply.durable)
        decided = not (isinstance(reply, Refused) and reply.code in _UNDECIDED)
        if decided and self._unanswered is not None and self._unanswered[0] is request:
            self._unanswered = None
        return self._fetch.stacks(self._table, self._fetch.expect(Stacks, self._table, reply))

    def _keep(self, request: Observe, durable: int | None) -> None:
        """Keep a request that was answered until the server's disk has it."""
        if durable is None:
            self._kept.clear()
            return
        if request.sequence > durable and (not self._kept or self._kept[-1].sequence < request.sequence):
            self._kept.append(_Kept.of(request))
        while self._kept and self._kept[0].sequence <= durable:
            self._kept.popleft()

    def _caught_up(self, request: Observe, refused: Refused) -> Reply:
        """Send a server what it has lost, then `request` again; return the answer to that.

        The refusal stands where nothing was lost: where the server has forgotten the writer, or was told to
        forget its rows. It stands too if more was lost than is kept.
        """
        life = self._fetch.life(self._table)
        if life in (0, self._life):
            return refused
        opening = make(
            OpenWriter, table=self._table, writer=self.name, incarnation=self.incarnation, lanes=self.lanes
        )
        reply = self._fetch.asked(opening)
        if not isinstance(reply, WriterOpened):
            return reply
        lacking = self._send_missing(reply.sequence, request.sequence)
        if lacking is not None:
            return lacking if isinstance(lacking, Refused) and lacking.code not in _LOST else refused
        self._life = life
        return self._fetch.asked(request)

    def _send_missing(self, due: int, before: int) -> Reply | None:
        """Send the requests from number `due` to one before `before` again; return what stops that."""
        again = [kept for kept in self._kept if kept.sequence >= due]
        if [kept.sequence for kept in again] != list(range(due, before)):
            return Refused(code=SequenceError.code, message="more was lost than is kept")
        for kept in again:
            reply = self._fetch.asked(kept.asked_again())
            if not isinstance(reply, Stacks):
                return reply
        return None
