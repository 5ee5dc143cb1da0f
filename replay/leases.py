"""Leases: batches that a learner has fetched and not consumed yet.

A session's leases are numbered upwards, and acknowledged in order: "all up to number n are consumed". A
lease ends as it is consumed, and its samples are charged; or it is given back, as its session says so or
has been silent for too long. One that was given back for silence and is acknowledged after all is
charged then: the learner did consume it.

Time is passed in, and never goes back. Sessions are kept in the order in which they were last heard of,
so that nothing here looks at more of them than it changes.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from fornix.common.errors import InvalidRequestError
from fornix.replay.limiter import Limiter

MAX_SESSIONS = 1024
MAX_LEASES = 4096


@dataclass
class _Session:
    """The leases of one learner: the samples of each, by its number."""

    last_seen: float
    consumed: int = 0
    outstanding: dict[int, int] = field(default_factory=dict)
    given_back: dict[int, int] = field(default_factory=dict)


class Leases:
    """The leases of a table, kept in step with its limiter.

    Args:
        limiter: of the table.
        lifetime_s: how long a session may be silent before its leases are given back.
    """

    def __init__(self, limiter: Limiter, lifetime_s: float) -> None:
        self._limiter = limiter
        self._lifetime_s = lifetime_s
        #: All that are known, and of these the ones with outstanding leases; silent longest first.
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._holding: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        """Return how many sessions are known."""
        return len(self._sessions)

    def check(self, session: str, lease: int) -> None:
        """Raise InvalidRequestError if `grant` would refuse this lease."""
        known = self._sessions.get(session)
        if known is None:
            return
        if lease <= known.consumed:
            raise InvalidRequestError(
                f"lease {lease} of session {session!r} can't be granted: it has acknowledged all up to "
                f"{known.consumed}; number leases upwards, from {known.consumed + 1} on"
            )
        if len(known.outstanding) >= MAX_LEASES and lease not in known.outstanding:
            raise InvalidRequestError(
                f"session {session!r} has {len(known.outstanding)} leases that it has not consumed yet, "
                f"and that is the limit; acknowledge those that it has, or fetch less ahead"
            )

    def grant(self, session: str, lease: int, samples: int, now: float) -> None:
        """Lease samples to a session; the same lease again takes the place of what it was.

        Where there are too many sessions, the one silent longest is forgotten: its outstanding leases are
        given back, and are not known if they are acknowledged later.

        Raises:
            InvalidRequestError: if the session has acknowledged this number, or holds too many leases.
        """
        self.check(session, lease)
        if session not in self._sessions:
            if len(self._sessions) >= MAX_SESSIONS:
                self.release(next(iter(self._sessions)))
            self._sessions[session] = _Session(now)
        known = self._sessions[session]
        self._limiter.give_back(known.outstanding.pop(lease, 0))
        self._limiter.lease(samples)
        known.outstanding[lease] = samples
        known.given_back.pop(lease, None)
        if len(known.outstanding) + len(known.given_back) > MAX_LEASES:
            del known.given_back[next(iter(known.given_back))]
        self._holding[session] = known
        self.touch(session, now)

    def take_back(self, session: str, lease: int) -> None:
        """Give back one lease, which is asked for again: what it was granted for has not arrived.

        If it is acknowledged after all, it is charged then.
        """
        known = self._sessions.get(session)
        if known is None or lease not in known.outstanding:
            return
        samples = known.given_back[lease] = known.outstanding.pop(lease)
        self._limiter.give_back(samples)
        if not known.outstanding:
            self._holding.pop(session, None)

    def consume(self, session: str, up_to: int, now: float) -> int:
        """Charge all leases of a session up to a number; return how many samples that are.

        Leases that were never granted, or are charged already, count for nothing.
        """
        known = self._sessions.get(session)
        if known is None:
            return 0
        leased = _take(known, known.outstanding, up_to)
        late = _take(known, known.given_back, up_to)
        self._limiter.give_back(leased)
        self._limiter.charge(leased + late)
        if not known.outstanding:
            self._holding.pop(session, None)
        self.touch(session, now)
        return leased + late

    def release(self, session: str) -> bool:
        """Forget a session and give back its outstanding leases; return whether there were any."""
        known = self._sessions.pop(session, None)
        return known is not None and len(self._give_back(session, known)) > 0

    def touch(self, session: str, now: float) -> None:
        """Note that a session has been heard of; one without leases needs no note."""
        known = self._sessions.get(session)
        if known is None:
            return
        known.last_seen = now
        self._sessions.move_to_end(session)
        if known.outstanding:
            self._holding.move_to_end(session)

    def expire(self, now: float) -> bool:
        """Give back the leases of all sessions that have been silent too long; return if there were any.

        What they held is remembered for a late acknowledgement, as far as MAX_LEASES goes.
        """
        anything = False
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            session, known = next(iter(self._holding.items()))
            known.given_back.update(self._give_back(session, known))
            anything = True
        return anything

    def next_deadline(self) -> float | None:
        """Return when `expire` has something to do next, if nobody is heard of until then."""
        if not self._holding:
            return None
        return next(iter(self._holding.values())).last_seen + self._lifetime_s

    def _give_back(self, session: str, known: _Session) -> dict[int, int]:
        """Give back all outstanding leases of a session, and return them."""
        self._holding.pop(session, None)
        held, known.outstanding = known.outstanding, {}
        self._limiter.give_back(sum(held.values()))
        return held


def _take(session: _Session, leases: dict[int, int], up_to: int) -> int:
    """Take out leases up to a number, which are consumed; return their samples."""
    taken = [lease for lease in leases if lease <= up_to]
    session.consumed = max(session.consumed, *taken, 0)
    return sum(leases.pop(lease) for lease in taken)
