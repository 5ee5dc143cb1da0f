"""What tests of several folders share: a server in a thread, an address of its own, and no leaks."""

import contextlib
import tempfile
import threading
import time

import pytest

from fornix.replay.server import ReplayServer
from fornix.replay.service import ReplayService

_PATIENCE_S = 10.0


def wait_until(condition, what, patience_s=_PATIENCE_S):
    """Return as soon as `condition()` holds, or fail after a while."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s in vain: {what}"
        time.sleep(0.005)


@contextlib.contextmanager
def served(address, service=None):
    """Serve a service at an address from a thread of its own."""
    server = ReplayServer(service or ReplayService(time.monotonic, seed=0), address)
    thread = threading.Thread(target=server.serve, name="replay server")
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(_PATIENCE_S)
        assert not thread.is_alive(), "the server goes on after stop()"
        server.close()


@pytest.fixture
def serve():
    """The context manager `serve(address, service)`, which yields the server."""
    return served


@pytest.fixture(name="wait_until")
def _wait_until():
    """The function `wait_until(condition, what)`."""
    return wait_until


@pytest.fixture
def ipc_address():
    """A fresh `ipc://` address, short enough for a socket's path (pytest's own folders are not)."""
    with tempfile.TemporaryDirectory(prefix="fx-", dir="/tmp") as folder:
        yield f"ipc://{folder}/s"


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())

    def left():
        return [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]

    yield
    wait_until(lambda: not left(), f"threads to end: {left()}", 2.0)
