"""The learners of a chaos run: they draw batches of all kinds, and look at every byte of them."""

import os
import time

import numpy as np

from durability.contents import DISCOUNT, LONGEST, check_batch
from durability.shared import PATIENCE_S, QUEUE, TABLE
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


def learn(place, number, incarnation, address, memory):
    """Draw and look until killed."""
    path = place.folder / "cuts" / f"{number}-{incarnation}"
    cuts = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    rng = np.random.default_rng([place.seed, number, incarnation])
    try:
        with place.client(address, f"learner-{number}", memory) as client:
            while True:
                unit, batch_size = _UNITS[rng.integers(len(_UNITS))]
                table = QUEUE if rng.random() < 0.3 else TABLE
                _draw(place, client, table, unit, batch_size, number, cuts, rng)
    except Exception as error:
        place.fault(f"learner {number}, {incarnation}", f"{type(error).__name__}: {error}")
        return 1


def _draw(place, client, table, unit, batch_size, number, cuts, rng):
    """Draw some batches of one unit."""
    drawn = 0
    with client.batches(table, batch_size, unit, discount=DISCOUNT, timeout_s=PATIENCE_S) as batches:
        while drawn < _AT_A_TIME:
            try:
                batch = next(batches)
            except (WaitTimeoutError, UnreachableError):
                continue
            stacks, cut = check_batch(batch)
            if len(cut):
                os.write(cuts, cut.astype("<i8").tobytes())
            if table == QUEUE:
                client.update_priorities(table, batch.key, rng.random(len(batch.key)) + 0.01).forget()
            place.counters.add(f"stacks {number}", stacks)
            place.counters.add(f"batches {number}")
            place.counters.add(f"mapped {number}", bool(batch.batch.memory))
            drawn += 1
            time.sleep(_PACE_S)
