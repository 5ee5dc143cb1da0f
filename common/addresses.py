"""ZeroMQ addresses, checked where they come in."""

import re
import socket

from fornix.common.errors import AddressError

_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.*-]+):(\d{1,5}|\*)")
_IPC = re.compile(r"ipc://.+")
_IPC_PATH_BYTES = 107


def check_address(address: str) -> str:
    """Return `address` if it is a `tcp://host:port` or `ipc://path` address, or raise AddressError."""
    tcp = _TCP.fullmatch(address)
    if tcp and (tcp[2] == "*" or int(tcp[2]) < 2**16):
        return address
    if _IPC.fullmatch(address):
        if len(address.removeprefix("ipc://").encode()) <= _IPC_PATH_BYTES:
            return address
        raise AddressError(
            f"{address!r} is longer than the {_IPC_PATH_BYTES} bytes that a socket's path may have; "
            f"choose a shorter path"
        )
    raise AddressError(
        f"{address!r} is no address; it must be tcp://HOST:PORT with a port below 65536, or ipc://PATH"
    )


def is_ipv6(address: str) -> bool:
    """Return whether a socket needs ZMQ_IPV6 for this address, `tcp://[HOST]:PORT`."""
    return address.startswith("tcp://[")


def is_served_ipc(address: str) -> bool:
    """Return whether someone listens at an `ipc://` address, which ZeroMQ would take over in silence."""
    path = address.removeprefix("ipc://")
    if path == address:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect("\0" + path[1:] if path.startswith("@") else path)
        except BlockingIOError:  # too many wait in line already
            return True
        except OSError:
            return False
    return True
