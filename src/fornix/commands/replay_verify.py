"""`fornix replay verify`: whether a data folder is whole."""

from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import command_parser

_ABOUT = """\
Read everything that a data folder ('fornix replay --data DIR') holds, while no server has it: every
checksum, the order of the rows, and how episodes and requests hang together. Prints a line for each fault
and ends with 1 if there is any; nothing is changed.
"""
_EXAMPLES = """\
fornix replay verify memory/
fornix replay verify backup/ --lines 1000
"""


def main(arguments: Sequence[str]) -> int:
    """Verify one folder."""
    parser = command_parser("replay verify", _ABOUT, _EXAMPLES, "DIR [--lines N]")
    parser.add_argument("folder", metavar="DIR", type=Path, help="that a replay server has kept")
    parser.add_argument("--lines", metavar="N", type=int, default=100, help="faults told in words (100)")
    options = parser.parse(arguments)
    if options.lines < 0:
        parser.error(f"--lines {options.lines} must be 0 or more")
    return _verify(options.folder, options.lines)


def _verify(folder: Path, lines: int) -> int:
    from fornix.replay.durable.verify import verify

    findings = verify(folder, lines)
    for line in findings.lines:
        print(line)
    if findings.count:
        print(f"{folder} has {findings.count:,} faults in {findings.checked:,} rows")
        return 1
    print(f"{folder} is whole: {findings.checked:,} rows, each as it was written")
    return 0
