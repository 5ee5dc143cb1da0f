"""What it costs to keep a server's rows in a folder, and how fast they are there again.

Each part is measured in rounds, what is compared in turn; of every figure the median of the rounds is
printed, and between what they lay.

    append    steps/s of 40 lanes with a folder over those without, with a stack for each step and without
    latency   the slowest hundredth of such requests at a steady pace, with a folder over without
    restart   seconds from the start of a killed server on a million rows to the first batch
    snapshot  the slowest hundredth of answers while a snapshot is made, over those before

    python benchmarks/bench_durability.py --only snapshot --json -
"""

import argparse
import json
import sys
import tempfile

from durability.cost import measure_append, measure_latency, measure_restart
from durability.snapshots import measure_snapshot

from fornix.commands.shared import write_json

PARTS = {
    "append": measure_append,
    "latency": measure_latency,
    "restart": measure_restart,
    "snapshot": measure_snapshot,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"parts with commas between them: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of each part")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement in a round")
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="folder on the disk to measure")
    parser.add_argument("--json", help="write the figures to a file, or - for standard output")
    options = parser.parse_args()
    wanted = list(PARTS) if options.only is None else options.only.split(",")
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        parser.error(f"--only {unknown[0]}: known are {', '.join(PARTS)}")
    figures = {name: PARTS[name](options) for name in wanted}
    print(json.dumps(figures, indent=2), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
