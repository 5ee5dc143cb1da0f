"""ZeroMQ addresses, checked where they come in."""

import re

from fornix.common.errors import AddressError

_TCP = re.compile(r"^tcp://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.*-]+):(\d{1,5}|\*)$")
_IPC = re.compile(r"^ipc://.+$")
_IPC_PATH_BYTES = 107


def check_address(address: str) -> str:
    """Return `address` if it is a `tcp://host:port` or `ipc://path` address, or raise AddressError."""
    tcp = _TCP.match(address)
    if tcp and (tcp[2] == "*" or int(tcp[2]) < 2**16):
        return address
    if _IPC.match(address):
        if len(address.removeprefix("ipc://").encode()) <= _IPC_PATH_BYTES:
            return address
        raise AddressError(
            f"{address!r} is longer than the {_IPC_PATH_BYTES} bytes that a socket's path may have; "
            f"choose a shorter path"
        )
    raise AddressError(
        f"{address!r} is no address; it must be tcp://HOST:PORT with a port below 65536, or ipc://PATH"
    )
