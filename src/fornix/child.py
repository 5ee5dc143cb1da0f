"""One process that a launcher runs: started under the guard, its output carried line by line."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fornix import guard

_READ_BYTES = 65_536
_LONGEST_LINE_BYTES = 4096


class Child:
    """A running command and what it writes.

    It has a session of its own, so that Ctrl-C in a terminal reaches its launcher alone.

    Args:
        command: to run, with the program's full path first.
        environment: its variables.
        selector: that tells when it has written something; the key's data is this child.
        on_line: called with each line of its output.
        log: file that its output is appended to, if any.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        selector: selectors.BaseSelector,
        on_line: Callable[[str], None],
        log: Path | None,
    ) -> None:
        self._selector = selector
        self._on_line = on_line
        self._log = log
        self._partial = b""
        self._reader, writer = os.pipe()
        os.set_blocking(self._reader, False)
        try:
            self._popen = subprocess.Popen(  # noqa: S603 the commands are our own
                [sys.executable, "-I", "-S", str(guard.__file__), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
                env=environment,
            )
        finally:
            os.close(writer)
        self._listening = True
        selector.register(self._reader, selectors.EVENT_READ, self)

    @property
    def pid(self) -> int:
        """Its process id, which is its process group's too."""
        return self._popen.pid

    def ended(self) -> bool:
        """Look whether it has ended."""
        return self._popen.poll() is not None

    def bury(self) -> int:
        """Wait for its end, carry its last words, and return its exit code (-n: died of signal n)."""
        code = self._popen.wait()
        while self.read():
            pass
        self._close()
        return code

    def signal(self, number: int) -> None:
        """Send a signal to it and all that it has started, unless it has ended."""
        if self._popen.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
            os.killpg(self.pid, signal.SIGCONT)  # one that is stopped could not end

    def read(self) -> bool:
        """Carry what it has written; return whether there was anything."""
        if not self._listening:
            return False
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        self._write_log(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _LONGEST_LINE_BYTES:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            self._on_line(line.decode(errors="replace").rstrip())
        return True

    def _write_log(self, data: bytes) -> None:
        if self._log is not None:
            # a full disk must not end the run
            with contextlib.suppress(OSError), self._log.open("ab") as log:
                log.write(data)

    def _close(self) -> None:
        if not self._listening:
            return
        self._listening = False
        self._selector.unregister(self._reader)
        os.close(self._reader)
        if self._partial:
            self._on_line(self._partial.decode(errors="replace").rstrip())
            self._partial = b""
