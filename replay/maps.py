"""The memories of a server that a client has mapped, one for each table.

A memory has a number, drawn at random when the server makes it, and whatever names places in a memory
tells its number too. So frames are never gathered from the memory of a server that is gone, or of a
table that was dropped, with the places of another: where the numbers differ, the map is opened anew.
"""

import logging
from typing import Literal, NamedTuple, get_args

from fornix.common.errors import (
    ConfigurationError,
    FornixError,
    UnknownTableError,
    UnreachableError,
    WaitTimeoutError,
)
from fornix.common.messages import Hello, MapTable, TableMap, Welcome
from fornix.common.transport import Transport
from fornix.replay.mapped import MappedFrames
from fornix.replay.pending import Pending, expect, make

_LOG = logging.getLogger(__name__)

#: How a client comes by frames: `mapped` from the server's memory on the same host, `socket` in replies,
#: `auto` mapped where that can be done.
MemoryChoice = Literal["auto", "mapped", "socket"]
MemoryPath = Literal["mapped", "socket"]

#: Errors that say nothing of whether a table's memory can be mapped.
_UNDECIDED = (UnknownTableError, UnreachableError, WaitTimeoutError)


class _Map(NamedTuple):
    number: int
    frames: MappedFrames
    own: bool


class _Asked(NamedTuple):
    table_map: Pending[TableMap]
    welcome: Pending[Welcome]

    def done(self) -> bool:
        return self.table_map.done() and self.welcome.done()


class Maps:
    """Opens maps as they are asked for; in the background where the choice is `auto`.

    Args:
        transport: to the server.
        choice: between mapped memory and the socket.
        client: its name, for the server.
    """

    def __init__(self, transport: Transport, choice: MemoryChoice, client: str) -> None:
        if choice not in get_args(MemoryChoice):
            raise ConfigurationError(
                f"memory is {choice!r}; it must be one of {', '.join(get_args(MemoryChoice))}"
            )
        self._transport = transport
        self._choice = choice
        self._client = client
        self._asked: dict[str, _Asked] = {}
        self._open: dict[str, _Map] = {}
        self._refused: set[str] = set()

    def decided(self, table: str) -> bool:
        """Whether it is known how a table's frames come; if not, it is seen to without waiting."""
        self.offers(table)
        return self._decided(table)

    def offers(self, table: str) -> bool:
        """Whether a table's memory is mapped, so that places in it can be asked for.

        If not, it is seen to, once, without waiting: the next requests go over the socket meanwhile.

        Raises:
            FornixError: the reason, where the choice is `mapped` and it can't be done.
        """
        if self._decided(table):
            return table in self._open
        asked = self._ask(table)
        if self._choice == "mapped":
            self._settle(table)
        elif asked.done():
            self._settle_quietly(table)
        return table in self._open

    def path(self, table: str) -> MemoryPath:
        """Return how a table's frames come, as soon as that is decided; raises as `offers` does."""
        if not self._decided(table):
            self._ask(table)
            self._settle(table)
        return "mapped" if table in self._open else "socket"

    def of(self, table: str, number: int) -> MappedFrames | None:
        """Return the memory with this number, None if it can't be had; opens the table's anew for it.

        Raises:
            UnknownTableError, UnreachableError: if it can't be asked for.
        """
        known = self._open.get(table)
        if known is None or known.number != number:
            known = self._open_anew(table)
        return known.frames if known is not None and known.number == number else None

    def known(self, table: str) -> MappedFrames | None:
        """Return the memory of a table that is mapped now, if all that the table has is in it.

        One that draws from the rows of another may be dropped, and be another, without its memory changing.
        """
        known = self._open.get(table)
        return known.frames if known is not None and known.own else None

    def forget(self, table: str) -> None:
        """Let go of a table's memory; whether the next one can be mapped is open."""
        self._asked.pop(table, None)
        self._refused.discard(table)
        known = self._open.pop(table, None)
        if known is not None:
            known.frames.close()

    def close(self) -> None:
        """Let go of all memories."""
        self._asked.clear()
        self._refused.clear()
        for table in list(self._open):
            self.forget(table)

    def _decided(self, table: str) -> bool:
        return self._choice == "socket" or table in self._open or table in self._refused

    def _ask(self, table: str) -> _Asked:
        if table not in self._asked:
            table_map = Pending(self._transport, make(MapTable, table=table), expect(TableMap))
            welcome = Pending(self._transport, make(Hello, client=self._client), expect(Welcome))
            self._asked[table] = _Asked(table_map, welcome)
        return self._asked[table]

    def _settle(self, table: str) -> None:
        """Open a map, or decide that it can't be; raises what doesn't decide it, or all if `mapped`."""
        asked = self._asked.pop(table)
        try:
            table_map, tables = asked.table_map.result(), asked.welcome.result().tables
            if table not in tables:
                raise UnknownTableError(f"table {table!r} was dropped just now; ask again")
            self._open[table] = _Map(
                table_map.memory, MappedFrames.open(table_map, tables[table]), table_map.own
            )
        except FornixError as error:
            asked.welcome.forget()
            if self._choice == "mapped" or isinstance(error, _UNDECIDED):
                raise
            self._refused.add(table)
            _LOG.debug("the frames of table %r come over the socket: %s", table, error)

    def _settle_quietly(self, table: str) -> None:
        try:
            self._settle(table)
        except FornixError as error:
            _LOG.debug("whether table %r can be mapped is open: %s", table, error)

    def _open_anew(self, table: str) -> _Map | None:
        self.forget(table)
        self._ask(table)
        try:
            self._settle(table)
        except _UNDECIDED:
            raise
        except FornixError as error:
            _LOG.debug("table %r can't be mapped any more: %s", table, error)
        return self._open.get(table)
