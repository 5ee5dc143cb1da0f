"""What several commands share: parsers, logging, signals, JSON out."""

import argparse
import json
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fornix.common.errors import ConfigurationError
from fornix.common.settings import FlagParser

CONFIG_HELP = """\
Configuration: each key above can stand in FILE (YAML, by section), in an environment variable
(FORNIX_LEARNER__BATCH_SIZE=128) or in a flag (--learner.batch_size 128). A flag beats a variable, a
variable beats FILE, FILE beats the default. A wrong key, type or range is refused with one sentence.
"""


def command_parser(name: str, about: str, examples: str, usage: str) -> FlagParser:
    """Return a parser whose `--help` teaches a command."""
    indented = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    return FlagParser(
        prog=f"fornix {name}",
        usage=f"fornix {name} {usage}",
        description=f"{about.strip()}\n\nexamples:\n{indented}",
    )


def add_config_file(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add the positional FILE."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        nargs=None if required else "?",
        help="configuration in YAML" + ("" if required else " (without it: the defaults)"),
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument(
        "--json", metavar="FILE|-", help="write the same as JSON to FILE, or to standard output with -"
    )


def write_json(target: str, values: Mapping[str, Any]) -> None:
    """Write JSON to a file, or to standard output for `-`; or raise ConfigurationError."""
    text = json.dumps(values, indent=2, default=str) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--json {target}: {error.strerror}; name a file to write") from None


def log_as(role: str) -> None:
    """Let this process log plain lines `HH:MM:SS role message` to standard error."""
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s {role} %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )


class StopSignals:
    """Sets an event at the first SIGINT, SIGTERM or SIGHUP, and ends the process hard at the second.

    Args:
        grace_s: from the first signal until the process is ended hard; None for as long as it takes.

    Python runs its handlers in the main thread, and only between two bytecodes: one that waits in a
    library's C code, for messages say, may never get there. So the interpreter is asked to write the
    number of each signal to a pipe as it comes (`signal.set_wakeup_fd`), and a thread at its other end
    does the rest.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        self._grace_s = grace_s
        self.event = threading.Event()
        self.number = 0
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # as set_wakeup_fd wants it
        self._wakeup_before = -1
        self._thread = threading.Thread(target=self._serve, name="stop-signals", daemon=True)
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """0 without a signal; 130 after Ctrl-C, 143 after SIGTERM, as a shell counts."""
        return 128 + self.number if self.number else 0

    def __enter__(self) -> Self:
        self._thread.start()
        caught = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup wants it
            caught.append(signal.SIGHUP)
        self._wakeup_before = signal.set_wakeup_fd(self._writer)
        self._before = {number: signal.getsignal(number) for number in caught}
        for number in caught:
            signal.signal(number, lambda *_: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _serve(self) -> None:
        while (number := os.read(self._reader, 1)[0]) != 0:
            if number in self._before:
                self._take(number)
            if self.number and not select.select([self._reader], [], [], self._grace_s)[0]:
                _end_hard(self.exit_code)

    def _take(self, number: int) -> None:
        if self.number:
            _end_hard(128 + number)
        self.number = number
        self.event.set()


def _end_hard(code: int) -> None:
    if sys.stdout.isatty():
        os.write(sys.stdout.fileno(), b"\x1b[?25h")  # a live screen hides the cursor
    os._exit(code)
