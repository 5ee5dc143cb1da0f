"""Programs that tests start: each a process of its own, which is gone with the test."""

import contextlib
import os
import subprocess
import sys

from fornix import guard

_PATIENCE_S = 10.0


@contextlib.contextmanager
def a_program(*arguments, stderr=None):
    """Run Python with these arguments; yield the process, with pipes, and kill it at the end."""
    command = [sys.executable, guard.__file__, str(os.getpid()), sys.executable, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
    with subprocess.Popen(command, **pipes, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait(_PATIENCE_S)


@contextlib.contextmanager
def a_server(address, *flags, stderr=None):
    """Run `fornix replay`; yield the process when it answers, with its `address`."""
    with a_program("-m", "fornix", "replay", "--address", address, *flags, stderr=stderr) as process:
        said = process.stdout.readline()
        assert said.startswith("replay server answers at "), said
        process.address = said.split()[-1]
        yield process
