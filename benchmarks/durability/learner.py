"""The learners of a chaos run: they draw batches of all kinds, and look at every byte of them."""

import os
import time

import numpy as np

from durability.contents import DISCOUNT, LONGEST, check_batch
from durability.shared import PATIENCE_S, QUEUE, SEEN, TABLE
from fornix.common.errors import UnreachableError, WaitTimeoutError
from fornix.common.specs import Episode, Sequence, Transition

_UNITS = (
    (Transition(n_step=3), 256),
    (Transition(n_step=1), 512),
    (Sequence(length=8, overlap=4, burn_in=2), 64),
    (Transition(n_step=5), 256),
    (Episode(max_steps=LONGEST), 32),
)
_PACE_S = 0.01
_AT_A_TIME = 40  # batches of one unit


class Seen:
    """Keys and rows that a learner has been given, for who knows which rows there were."""

    def __init__(self, place, number, incarnation):
        self._files = [
            os.open(place.seen(kind, number, incarnation), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for kind in SEEN
        ]

    def put(self, batch, looked, turn):
        """Put down one unit of a batch, by turns; and all that were cut off with their episodes."""
        at = turn % len(batch.key)
        pairs = np.array([[batch.key[at], *looked.who[at]], [batch.next_key[at], *looked.after[at]]], "<i8")
        cut = np.column_stack([batch.next_key[looked.cut], looked.after[looked.cut]]).astype("<i8")
        for file, rows in zip(self._files, (pairs, cut), strict=True):
            if len(rows):
                os.write(file, rows.tobytes())


def learn(place, number, incarnation, address, memory):
    """Draw and look until killed."""
    seen = Seen(place, number, incarnation)
    rng = np.random.default_rng([place.seed, number, incarnation])
    try:
        with place.client(address, f"learner-{number}", memory) as client:
            while True:
                unit, batch_size = _UNITS[rng.integers(len(_UNITS))]
                table = QUEUE if rng.random() < 0.3 else TABLE
                _draw(place, client, table, unit, batch_size, number, seen, rng)
    except Exception as error:
        place.fault(f"learner {number}, {incarnation}", f"{type(error).__name__}: {error}")
        return 1


def _draw(place, client, table, unit, batch_size, number, seen, rng):
    """Draw some batches of one unit."""
    drawn = 0
    with client.batches(table, batch_size, unit, discount=DISCOUNT, timeout_s=PATIENCE_S) as batches:
        while drawn < _AT_A_TIME:
            try:
                batch = next(batches)
            except (WaitTimeoutError, UnreachableError):
                continue
            looked = check_batch(batch, unit)
            seen.put(batch.batch, looked, drawn)
            if table == QUEUE:
                client.update_priorities(table, batch.key, rng.random(len(batch.key)) + 0.01).forget()
            place.counters.add(f"stacks {number}", looked.stacks)
            place.counters.add(f"batches {number}")
            place.counters.add(f"mapped {number}", bool(batch.batch.memory))
            drawn += 1
            time.sleep(_PACE_S)
