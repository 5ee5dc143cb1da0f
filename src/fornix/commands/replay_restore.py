"""`fornix replay restore`: a data folder made anew, with other capacities, samplers or limits."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fornix.commands.shared import command_parser
from fornix.common.errors import ConfigurationError
from fornix.common.specs import LimiterSpec, SamplerSpec

_ABOUT = """\
Make a new data folder of a snapshot, or of any folder that no server has, in which tables have another
capacity, sampler or limiter. Fewer steps keep the newest rows. Priorities, and what the limiters have
counted, go on where they fit. DATA is there whole or not at all, and 'fornix replay --data DATA' serves it.
"""
_EXAMPLES = """\
fornix replay restore backup-monday memory/
fornix replay restore backup-monday memory/ --table hunt --capacity-steps 2000000
fornix replay restore backup-monday memory/ --sampler uniform --limiter.samples_per_insert none \\
    --limiter.error_buffer_inserts none
"""
_KINDS = ("uniform", "prioritized", "fifo", "lifo", "epoch")
_LIMITER = tuple(LimiterSpec.model_fields)
_SAMPLER = tuple(name for name in SamplerSpec.model_fields if name != "kind")


def main(arguments: Sequence[str]) -> int:
    """Restore one folder."""
    parser = command_parser(
        "replay restore",
        _ABOUT,
        _EXAMPLES,
        "DIR DATA [--table T] [--capacity-steps N] [--sampler KIND] [--sampler.KEY V] [--limiter.KEY V]",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a snapshot, or what a server has kept")
    parser.add_argument("data", metavar="DATA", type=Path, help="the folder to make")
    parser.add_argument("--table", metavar="T", help="to change (without it: all)")
    parser.add_argument("--capacity-steps", metavar="N", type=int, help="steps that it has from now on")
    parser.add_argument("--sampler", metavar="KIND", choices=_KINDS, help=" | ".join(_KINDS))
    for section, names in (("sampler", _SAMPLER), ("limiter", _LIMITER)):
        for name in names:
            parser.add_argument(f"--{section}.{name}", metavar="V", help="a number, or none")
    options = parser.parse(arguments)
    return _restore(options)


def _restore(options: argparse.Namespace) -> int:
    from fornix.replay.durable.changes import Changes
    from fornix.replay.durable.restore import restore

    sampler = _given(options, "sampler", _SAMPLER)
    if options.sampler is not None:
        sampler["kind"] = options.sampler
    changes = Changes(options.capacity_steps, sampler, _given(options, "limiter", _LIMITER))
    for each in restore(options.folder, options.data, changes, options.table):
        left_out = f"; {each.left_out:,} are left out" if each.left_out else ""
        print(f"restored {each.rows:,} rows of table {each.table!r}{left_out}")
    print(f"{options.folder} is restored to {options.data}")
    return 0


def _given(options: argparse.Namespace, section: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields that flags give, or raise ConfigurationError for what is no number."""
    given = {name: vars(options)[f"{section}.{name}"] for name in names}
    return {name: _number(f"--{section}.{name}", text) for name, text in given.items() if text is not None}


def _number(flag: str, text: str) -> int | float | None:
    if text == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ConfigurationError(f"{flag} {text!r} must be a number, or none")
