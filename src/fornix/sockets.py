"""Which addresses a local run uses: looked at before anything is started."""

from collections.abc import Callable
from pathlib import Path

import zmq

from fornix.common.addresses import is_ipv6, is_served_ipc
from fornix.common.config import RunConfig
from fornix.common.errors import AddressError

_DEFAULT = RunConfig()
#: Addresses that nobody chose; a run whose default is taken goes elsewhere instead of refusing.
DEFAULTS = (_DEFAULT.replay.address, *_DEFAULT.weights.addresses)
_TAKEN = "it is taken by another program"


def usable_addresses(config: RunConfig, folder: Path, say: Callable[[str], None]) -> RunConfig:
    """Return the configuration with addresses that this machine can serve at now.

    An address with port `*` gets a free port. A default address that is taken gives way to a private
    one in `folder`, which is said aloud: the run works, whatever else is on the machine. Any other
    address was chosen by someone, so it is refused where it is taken.

    Raises:
        AddressError: if a chosen address is taken, or can't be served at here.
    """
    with _Binder() as binder:
        replay = _usable(config.replay.address, folder / "replay", binder, say)
        weights = [
            _usable(address, folder / f"weights-{index}", binder, say)
            for index, address in enumerate(config.weights.addresses)
        ]
    return config.model_copy(
        update={
            "replay": config.replay.model_copy(update={"address": replay}),
            "weights": config.weights.model_copy(update={"addresses": tuple(weights)}),
        }
    )


class _Binder:
    """Binds addresses to see whether that works; holds them, so that two alike are found too."""

    def __enter__(self) -> "_Binder":
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[zmq.Socket[bytes]] = []
        return self

    def __exit__(self, *error: object) -> None:
        for one in self._sockets:
            one.close(linger=0)
        self._context.term()

    def bind(self, address: str) -> str:
        """Return what the address becomes when bound, or raise AddressError that says why not."""
        if is_served_ipc(address):
            raise AddressError(_TAKEN)
        one = self._context.socket(zmq.ROUTER)
        one.ipv6 = is_ipv6(address)
        self._sockets.append(one)
        try:
            one.bind(address)
        except zmq.ZMQError as error:
            raise AddressError(_TAKEN if error.errno == zmq.EADDRINUSE else error.strerror) from None
        return one.get_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _usable(address: str, private: Path, binder: _Binder, say: Callable[[str], None]) -> str:
    try:
        return binder.bind(address)
    except AddressError as error:
        if address not in DEFAULTS:
            raise AddressError(
                f"can't serve at {address}: {error}; stop whatever uses it, or choose another address "
                f"(port * takes a free one)"
            ) from None
        substitute = binder.bind(f"ipc://{private}")
        say(f"{address}: {error}; this run uses {substitute} instead")
        return substitute
