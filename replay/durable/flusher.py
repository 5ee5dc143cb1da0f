"""Syncs files in the background: no request ever waits for a disk."""

import threading
from collections.abc import Sequence
from typing import Protocol

from fornix.common.errors import DiskError
from fornix.replay.durable.disk import File


class Flusher(Protocol):
    """Syncs some files at a time."""

    def begin(self, files: Sequence[File]) -> None:
        """Begin to sync files; the ones before must be done."""

    def done(self) -> bool:
        """Whether all that was begun is done.

        Raises:
            DiskError: if the disk didn't take it. What it has then is unknown, so nothing may go on.
        """

    def close(self) -> None:
        """Wait for what was begun, and end."""


class ThreadFlusher:
    """A thread that waits for the disk."""

    def __init__(self) -> None:
        self._files: Sequence[File] = ()
        self._wanted = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._error: OSError | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
        self._thread.start()

    def begin(self, files: Sequence[File]) -> None:
        """Begin to sync files."""
        self._files = files
        self._idle.clear()
        self._wanted.set()

    def done(self) -> bool:
        """Whether all that was begun is done."""
        if not self._idle.is_set():
            return False
        if self._error is not None:
            raise DiskError.of(self._error)
        return True

    def close(self) -> None:
        """Wait for what was begun, and end the thread."""
        self._idle.wait()
        self._ended = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._ended:
                return
            try:
                for file in self._files:
                    file.sync()
            except OSError as error:
                self._error = error
            self._idle.set()
