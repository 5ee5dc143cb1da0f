"""What the last server of a chaos run says, beside what is in its file."""

import multiprocessing
import select
from typing import NamedTuple

import numpy as np

from durability.contents import FaultError, stack_of
from durability.shared import TABLE, fork

_READY_S = 30.0
_KEYS = 2_000  # in one request


class End(NamedTuple):
    """What came of it."""

    stacks: int
    faults: list


def look(place, server, window, started):
    """Start a server once more, ask it for all stacks, and stop it.

    Args:
        place: of the run.
        server: to start.
        window: keys whose stacks must be there, and who their rows are.
        started: the last incarnation of each writer.
    """
    server.start()
    while select.select([server], [], [], _READY_S)[0] and not server.take_ready():
        pass  # a word of one that was killed
    if not server.is_ready:
        return End(0, [{"source": "the last server", "kind": "wrong", "what": "it was not ready in time"}])
    here, there = multiprocessing.Pipe()
    fork(_ask, place, window, started, there)
    there.close()
    try:
        stacks, faults = here.recv()
    except EOFError:
        stacks, faults = 0, ["nobody could ask it"]
    status = server.stop()
    if status:
        faults.append(f"it ended with {status}")
    return End(stacks, [{"source": "the last server", "kind": "wrong", "what": what} for what in faults])


def _ask(place, window, started, answer):
    stacks, faults = 0, []
    keys, who = window
    for memory in ("socket", "mapped"):
        try:
            with place.client(place.server, "ending", memory) as client:
                if memory == "mapped":
                    client.memory_path(TABLE)
                for low in range(0, len(keys), _KEYS):
                    part = slice(low, low + _KEYS)
                    found = client.stacks(TABLE, keys[part]).stack
                    if not np.array_equal(found, stack_of(who[part])):
                        raise FaultError(
                            f"stacks of the steps from {keys[low]} on are not what was written"
                        )
                    stacks += len(found)
                faults += _writers_faults(client.info().tables[TABLE]["writers"], started)
        except Exception as error:
            faults.append(f"by {memory}: {type(error).__name__}: {error}")
    answer.send((stacks, faults))


def _writers_faults(writers, started):
    """Return what is wrong with the writers that the server knows."""
    faults = []
    for at, incarnation in started.items():
        found = writers.get(f"writer-{at}", {}).get("incarnation", 0)
        # the last one may have been killed before it could open
        if not incarnation - 12 < found <= incarnation:
            faults.append(f"writer {at} is open as incarnation {found}, and {incarnation} was the last")
    return faults
