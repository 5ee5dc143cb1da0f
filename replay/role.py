"""The replay server process: serves until it is told to stop."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fornix.common.errors import AddressError, StorageError
from fornix.replay.durable.disk import FolderDisk
from fornix.replay.durable.flusher import ThreadFlusher
from fornix.replay.durable.folder import Folder
from fornix.replay.server import ReplayServer
from fornix.replay.service import ReplayService

_LOG = logging.getLogger(__name__)


def serve(
    address: str,
    *,
    seed: int | None = None,
    memory_bytes: int | None = None,
    version: str = "",
    lease_s: float = 30.0,
    data: Path | None = None,
    on_ready: Callable[[ReplayServer], None] = lambda server: None,
) -> None:
    """Serve a memory of its own at `address`.

    Args:
        address: to bind, `tcp://` or `ipc://`.
        seed: of the draws.
        memory_bytes: limit on all tables together.
        version: that a welcome tells.
        lease_s: how long a silent session keeps the batches that it has fetched and not consumed.
        data: folder in which it keeps its rows, and finds them again; without one they are in memory
            only.
        on_ready: called once clients can connect, with the server, whose `stop` ends this.

    Raises:
        AddressError: if the address can't be bound.
        StorageError: if the folder can't be used, or its disk doesn't take what is written.
    """
    try:
        folder = None if data is None else Folder(FolderDisk(data), ThreadFlusher(), time.monotonic)
        service = ReplayService(
            time.monotonic,
            seed=seed,
            memory_bytes=memory_bytes,
            version=version,
            share=True,
            lease_s=lease_s,
            first_key=time.time_ns,  # no server gives keys as fast as this goes on
            folder=folder,
        )
    except StorageError as error:
        raise StorageError(f"{data}: {error}") from None
    try:
        server = ReplayServer(service, address)
    except AddressError:
        service.close()
        raise
    try:
        on_ready(server)
        if data is None:
            _LOG.info("keeps the memory in RAM only: it is gone when this process ends")
        else:
            _LOG.info("keeps its rows in %s", data)
        server.serve()
    except BaseException:
        service.close(failed=True)
        raise
    else:
        service.close()
    finally:
        server.close()
