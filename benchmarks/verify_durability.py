"""Cuts the power under the production code many thousand times, and flips bits in its files.

    python benchmarks/verify_durability.py --power-cuts 20000 --kills 10000 --flips 10000

Everything comes from the seed, which is printed: the same seed gives the same histories.
"""

import argparse
import json
import logging
import sys
import time
from collections import Counter

from durability.flips import Flips
from durability.histories import World

from fornix.common.specs import SamplerSpec

_SAMPLERS = (
    SamplerSpec(),
    SamplerSpec(kind="prioritized"),
    SamplerSpec(kind="fifo", max_times_sampled=1),
)
_STEPS = 150
_FLIPS_OF_ONE = 250


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--power-cuts", type=int, default=2000, help="power cuts in all")
    parser.add_argument("--kills", type=int, default=1000, help="deaths of the server's process in all")
    parser.add_argument("--flips", type=int, default=1000, help="bits to flip, one at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--json", help="file to put the counts in")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    counts = histories(options) + flips(options)
    counts["seconds"] = round(time.monotonic() - began)
    for name, count in counts.items():
        print(f"{name:22} {count:>12,}")
    print("durable rows lost, doubled, reordered or torn; wrong stacks: 0")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(counts, file)


def histories(options):
    counts, seed = Counter(), options.seed
    while counts["power cuts"] < options.power_cuts or counts["kills"] < options.kills:
        try:
            counts += history(seed)
        except BaseException:
            print(f"FAILED: the history of seed {seed}", file=sys.stderr)
            raise
        seed += 1
    counts["histories"] = seed - options.seed
    return counts


def history(seed):
    """Run one history to its end, and return what happened."""
    world = World(seed, faults=0.05 if seed % 2 else 0.0, sampler=_SAMPLERS[seed % len(_SAMPLERS)])
    for _ in range(_STEPS):
        world.step()
        what = world.rng.random()
        if what < 0.05:
            world.kill()
        elif what < 0.12:
            world.cut_power()
    return world.counts


def flips(options):
    counts, seed = Counter(), options.seed
    while counts["flips"] < options.flips:
        try:
            damaged = Flips(seed)
            for _ in range(min(_FLIPS_OF_ONE, options.flips - counts["flips"])):
                damaged.flip()
        except BaseException:
            print(f"FAILED: the flips of seed {seed}", file=sys.stderr)
            raise
        counts += damaged.counts
        seed += 1
    return counts


if __name__ == "__main__":
    main()
