"""All tables of a server, by name: created, listed, reset and dropped, within the server's memory."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from fornix.common.errors import InvalidRequestError, SignatureError, StorageError, UnknownTableError
from fornix.common.messages import Refused
from fornix.common.specs import LimiterSpec, TableSpec
from fornix.common.validation import nearest
from fornix.replay.checks import check_table
from fornix.replay.memory import Memory
from fornix.replay.place import Place
from fornix.replay.storage import make_columns
from fornix.replay.table import Table, steps_in, table_nbytes

if TYPE_CHECKING:
    from fornix.replay.durable.folder import Folder

MAX_TABLES = 128


class Catalog:
    """The tables, and how much memory they take.

    Args:
        memory_bytes: limit on all tables together.
        seed: of the draws.
        share: whether clients on this host may map the memory.
        lease_s: how long a silent session keeps its leases.
        clock: seconds, monotonic.
        refuse: makes the reply that stands for an error.
        first_key: returns a number above all keys that another server may have given.
        folder: that keeps the tables; without one they are in memory only.
    """

    def __init__(
        self,
        memory_bytes: int,
        seed: int | None,
        share: bool,
        lease_s: float,
        clock: Callable[[], float],
        refuse: Callable[[Exception], Refused],
        first_key: Callable[[], int],
        folder: "Folder | None" = None,
    ) -> None:
        self.memory_bytes = memory_bytes
        self._clock = clock
        self._refuse = refuse
        self._share = share
        self._lease_s = lease_s
        self._seeds = np.random.SeedSequence(seed)
        self._made = 0
        self._first_key = first_key
        self._above = 0  # all keys of memories that are gone
        self._places: dict[str, Place] = {}
        self.folder = folder
        if folder is not None:
            self._recover(folder)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, name: str) -> Place:
        """Return a place, or raise UnknownTableError."""
        try:
            return self._places[name]
        except KeyError:
            known = ", ".join(sorted(self._places)) or "none yet"
            raise UnknownTableError(
                f"there is no table {name!r}{nearest(name, self._places)}; tables: {known}; create it first"
            ) from None

    def get(self, name: str | None) -> Place | None:
        """Return a place if there is one of this name."""
        return None if name is None else self._places.get(name)

    def specs(self) -> dict[str, TableSpec]:
        """Return what every table is now."""
        return {name: place.table.spec for name, place in self._places.items()}

    def lives(self) -> dict[str, int]:
        """Return the lives of all memories that are kept, by the table that has the rows."""
        places = ((name, place.table) for name, place in self._places.items())
        return {
            name: table.memory.log.life
            for name, table in places
            if table.memory.log is not None and table.spec.rows_of is None
        }

    def writable(self, name: str) -> Place:
        """Return the place of a table that has rows of its own, or raise InvalidRequestError."""
        place = self[name]
        source = place.table.spec.rows_of
        if source is not None:
            raise InvalidRequestError(
                f"table {name!r} draws from the rows of {source!r}, and has none of its own; name "
                f"{source!r} instead"
            )
        return place

    def create(self, name: str, spec: TableSpec) -> bool:
        """Create a table, and return whether it is new.

        Raises:
            SignatureError: if it is there with another spec.
            InvalidRequestError: if it doesn't fit, or could never be drawn from.
        """
        spec = _resolved(spec)
        if name in self._places:
            _require_same(name, self._places[name].table.created, spec)
            return False
        check_table(spec)
        self._require_room(name, spec)
        try:
            memory = self._memory(name, spec)
            try:
                self._add(name, spec, memory)
            except BaseException:
                if spec.rows_of is None and self.folder is None:
                    memory.ring.columns.close()
                raise
            if self.folder is not None:
                self.folder.put(name, spec, spec)
        except BaseException:
            if self.folder is not None:
                self._abandon(self.folder, name)
            raise
        return True

    def change_limits(self, name: str, limiter: LimiterSpec) -> None:
        """Put other limits in place of a table's, or raise InvalidRequestError."""
        table = self[name].table
        before = table.spec.limiter
        table.change_limits(limiter)
        table.note()
        if self.folder is None:
            return
        try:
            self.folder.put(name, table.created, table.spec)
        except StorageError:
            table.change_limits(before)
            raise

    def reset(self, name: str) -> Place:
        """Forget all steps of a table that has rows of its own, and return its place."""
        place = self.writable(name)
        place.table.memory.reset()
        for each in place.group:
            each.table.reset()
            each.table.note()
        if self.folder is not None:
            self.folder.sync_now()
        return place

    def drop(self, name: str) -> None:
        """Remove a table; refused while others draw from its rows."""
        place = self[name]
        others = [other.name for other in place.group if other is not place]
        if place.table.spec.rows_of is None and others:
            raise InvalidRequestError(
                f"{', '.join(others)} draw from the rows of table {name!r}; drop them first"
            )
        if self.folder is not None:
            self.folder.drop(name)  # first: if the disk has no room to say so, nothing has changed
        place.close(self.folder is None)
        if place.table.spec.rows_of is None:
            self._above = max(self._above, place.table.memory.ring.head)
        del self._places[name]

    def close(self, failed: bool = False) -> None:
        """Let go of everything; if something has `failed`, without a word to the disk."""
        for place in list(self):
            place.table.note()
            place.close(self.folder is None)
        self._places.clear()
        if self.folder is not None:
            self.folder.abandon_all() if failed else self.folder.close()

    def memory_used(self) -> int:
        """Return the bytes that all tables take."""
        return sum(place.table.nbytes for place in self)

    def _memory(self, name: str, spec: TableSpec) -> Memory:
        """Return the memory for a new table."""
        if spec.rows_of is None:
            first = max(self._first_key(), self._above)
            slots = self._slots(spec)
            first += -first % slots
            if self.folder is not None:
                return self.folder.make_memory(name, spec, max(first, slots))
            return Memory(spec.signature, make_columns(spec.signature, slots, share=self._share), first)
        memory = self.writable(spec.rows_of).table.memory
        alike = spec.signature.model_copy(update={"n_frames": memory.signature.n_frames})
        memory.signature.require_equal(spec.rows_of, alike)
        if spec.signature.n_frames > memory.signature.n_frames or spec.steps > memory.ring.capacity:
            raise InvalidRequestError(
                f"table {name!r} asks for n_frames {spec.signature.n_frames} and {spec.steps} steps of the "
                f"rows of {spec.rows_of!r}, which has n_frames {memory.signature.n_frames} and "
                f"{memory.ring.capacity} steps; ask for no more than it has"
            )
        return memory

    def _slots(self, spec: TableSpec) -> int:
        """Return how many rows the memory of a table has."""
        if spec.rows_of is not None:
            return self[spec.rows_of].table.memory.ring.capacity
        return spec.steps if self.folder is None else self.folder.slots(spec.steps)

    def _add(self, name: str, spec: TableSpec, memory: Memory, recover: TableSpec | None = None) -> None:
        """Make a table, or go on with one as its file keeps it, with the limits that it has there."""
        # by place, so that a table that is refused here leaves the draws of later ones alone
        seed = np.random.SeedSequence(self._seeds.entropy, spawn_key=(self._made,))
        draws = None
        if self.folder is not None:
            make = self.folder.make_draws if recover is None else self.folder.recover_draws
            draws = make(name, spec, memory)
        rng = np.random.default_rng(seed)
        table = Table(spec, memory, rng, self._lease_s, draws, recover)
        group = [] if spec.rows_of is None else self[spec.rows_of].group
        self._places[name] = Place(name, table, group, self._clock, self._refuse)
        self._made += 1

    def _abandon(self, folder: "Folder", name: str) -> None:
        """Let go of a table that could not be put down."""
        place = self._places.pop(name, None)
        if place is not None:
            place.close(with_memory=False)
            self._made -= 1
        folder.abandon(name)

    def _recover(self, folder: "Folder") -> None:
        """Go on with all tables that the folder keeps."""
        now = self._clock()
        for name, entry in folder.tables.items():
            source = entry.spec.rows_of
            memory = folder.recover_memory(name, now) if source is None else self[source].table.memory
            self._add(name, entry.spec, memory, entry.limited)
        folder.sync_now()

    def _require_room(self, name: str, spec: TableSpec) -> None:
        if len(self) >= MAX_TABLES:
            raise InvalidRequestError(
                f"the server has {MAX_TABLES} tables, and that is the limit; drop one, or start "
                f"another server"
            )
        slots = self._slots(spec)
        wanted, left = table_nbytes(spec, slots), self.memory_bytes - self.memory_used()
        if wanted > left:
            fewer = f"lower capacity_steps to {max(0, left * spec.steps // wanted):,}"
            raise InvalidRequestError(
                f"table {name!r} would take {wanted:,} bytes, and {left:,} of {self.memory_bytes:,} are "
                f"left; {fewer if spec.rows_of is None else 'drop a table'}, or start the server with more "
                f"memory"
            )


def _resolved(spec: TableSpec) -> TableSpec:
    """Return a spec with its capacity in steps."""
    if spec.capacity_bytes is None:
        return spec
    available = spec.capacity_bytes
    steps = steps_in(spec, available)
    if not 2 <= steps < 2**31:
        raise InvalidRequestError(
            f"capacity_bytes {available:,} makes {steps:,} steps of {spec.signature.step_nbytes:,} bytes "
            f"and what belongs to them; a table has 2 to {2**31 - 1:,}"
        )
    return spec.model_copy(update={"capacity_steps": steps, "capacity_bytes": None})


def _require_same(name: str, known: TableSpec, wanted: TableSpec) -> None:
    known.signature.require_equal(name, wanted.signature)
    if known != wanted:
        parts = [
            f"{part}: the table has {getattr(known, part)!r}, asked for is {getattr(wanted, part)!r}"
            for part in ("capacity_steps", "limiter", "sampler", "rows_of")
            if getattr(known, part) != getattr(wanted, part)
        ]
        raise SignatureError(
            f"table {name!r} was created otherwise: {'; '.join(parts)}; ask for the same, or use another "
            f"table name"
        )
