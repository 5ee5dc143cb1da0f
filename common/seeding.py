"""One seed for a run, and from it a stream of its own for everybody who draws."""

import zlib

import numpy as np


def seed_for(seed: int, *path: str | int) -> int:
    """Return the seed, in [0, 2^32), of whatever `path` names, such as `("actor", 0, "world")`."""
    words = [zlib.crc32(str(part).encode()) for part in path]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0])
