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
from types import FrameType, TracebackType
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

    A handler runs between any two bytecodes of the main thread, perhaps inside `Event.wait` with the
    event's lock held, where `Event.set` would wait for itself for ever. So the handler only writes to a
    pipe, and a thread at its other end sets the event.
    """

    def __init__(self, grace_s: float | None = None) -> None:
        self._grace_s = grace_s
        self.event = threading.Event()
        self.number = 0
        self._reader, self._writer = os.pipe()
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
        self._before = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h")  # a live screen hides the cursor
            os._exit(128 + number)
        self.number = number
        os.write(self._writer, b"s")

    def _serve(self) -> None:
        if os.read(self._reader, 1) == b"\0":
            return
        self.event.set()
        if not select.select([self._reader], [], [], self._grace_s)[0]:
            os._exit(self.exit_code)
