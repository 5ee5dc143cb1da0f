"""`fornix replay export`: a table of a data folder as a file of episodes."""

from collections.abc import Sequence
from pathlib import Path

from fornix.commands.shared import command_parser

_ABOUT = """\
Write all episodes of a table in a data folder ('fornix replay --data DIR') to a Parquet file, one row a
step, which any data tool reads and 'fornix replay import' writes to a table again. The file is there
whole or not at all.
"""
_EXAMPLES = """\
fornix replay export memory/ demonstrations.parquet --table hunt
fornix replay export memory/ demonstrations.parquet --table hunt --overwrite
"""


def main(arguments: Sequence[str]) -> int:
    """Export one table."""
    parser = command_parser("replay export", _ABOUT, _EXAMPLES, "DIR FILE --table T [--overwrite]")
    parser.add_argument("folder", metavar="DIR", type=Path, help="that a replay server keeps")
    parser.add_argument("file", metavar="FILE", type=Path, help="to write")
    parser.add_argument("--table", metavar="T", required=True, help="to export")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it is there")
    options = parser.parse(arguments)
    return _export(options.folder, options.table, options.file, options.overwrite)


def _export(folder: Path, table: str, file: Path, overwrite: bool) -> int:
    from fornix.replay.durable.reading import episodes
    from fornix.replay.parquet import read_contents, write_episodes

    signature, found = episodes(folder, table)
    count = write_episodes(file, signature, found, overwrite=overwrite)
    steps = read_contents(file).steps
    print(f"exported {count} episodes of {steps} steps of table {table!r} to {file}")
    return 0
