"""Episodes of a file into a table, through a writer like any other."""

from collections.abc import Callable
from pathlib import Path

from fornix.common.signature import Signature
from fornix.common.specs import TableSpec
from fornix.replay.client import Client
from fornix.replay.import_feed import Feed, side_by_side
from fornix.replay.parquet import read_contents, read_episodes
from fornix.replay.ring import held_at_least

#: Called with the rows that have been written so far, and with those of the whole file.
Progress = Callable[[int, int], None]

_MAX_LANES = 64
_LANE_SHARE = 64  # of the table's stacks: where lanes get too many, other writers are forgotten


def import_episodes(
    client: Client,
    table: str,
    path: Path | str,
    spec: TableSpec | None = None,
    *,
    on_progress: Progress | None = None,
    writer_name: str = "import",
    timeout_s: float = 60.0,
) -> int:
    """Write all episodes of a file to a table, and return how many they are.

    The file is read twice: a damaged one changes nothing. Episodes that were open are truncated at their
    last row. Rows get new keys. Where the server refuses a request, those before it stay.

    Args:
        client: of the server.
        table: to write to; it is created if it isn't there.
        path: of a file that `fornix.replay.parquet.write_episodes` has made.
        spec: of the table; if not given, the table that is there, or else one with the file's signature
            that holds all its rows, with a uniform sampler and a free limiter.
        on_progress: called after each request.
        writer_name: of the writer; one of the same name is replaced.
        timeout_s: how long the table's limiter may hold a request back.

    Raises:
        EpisodeFileError: if the file can't be read, or is damaged.
        SignatureError: if the table holds other arrays, or is there with another spec than that given.
        WaitTimeoutError: if the table's limiter holds a request back for too long.
    """
    contents = read_contents(path)
    count = sum(1 for _ in read_episodes(path))
    capacity = _open_table(client, table, spec, contents.signature, contents.steps)
    lanes = max(1, min(_MAX_LANES, capacity // (_LANE_SHARE * (contents.signature.n_frames + 1))))
    feed = Feed(client.open_writer(table, writer_name, lanes), capacity, timeout_s)
    for batch in side_by_side(read_episodes(path), feed):
        for _ in feed.write(batch):
            if on_progress is not None:
                on_progress(feed.written, contents.steps)
    feed.close()
    return count


def default_spec(signature: Signature, steps: int) -> TableSpec:
    """Return the spec of a table that holds so many steps at once."""
    capacity = max(steps, signature.n_frames + 1)
    while held_at_least(capacity) < steps:
        capacity += steps - held_at_least(capacity)
    return TableSpec(signature=signature, capacity_steps=capacity)


def _open_table(
    client: Client, table: str, spec: TableSpec | None, signature: Signature, steps: int
) -> int:
    """Have a table that takes the file's episodes; return its capacity in steps."""
    tables = client.list_tables()
    if spec is not None or table not in tables:
        client.create_table(table, spec or default_spec(signature, steps))
        tables = client.list_tables()
    held = tables[table]
    # how many frames a stack has is the table's own affair
    wanted = signature.model_copy(update={"n_frames": held.signature.n_frames})
    held.signature.require_equal(table, wanted)
    return held.steps
