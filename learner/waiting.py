"""What a learner waits for before it can train: the server, and in it the table that actors create."""

import logging
import math
import threading
import time

from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError, UnreachableError
from fornix.common.signature import Signature
from fornix.replay.client import Client

_LOG = logging.getLogger(__name__)
_LOOK_PERIOD_S = 0.1
_REPORT_PERIOD_S = 1.0
_SAY_PERIOD_S = 5.0
_GIVE_UP_AFTER_S = 2.0  # then the learner says so, and asks again


def wait_for_table(config: RunConfig, policy: str, source: str, stop: threading.Event) -> Signature | None:
    """Return the signature of a table as soon as an actor has created it; None if told to stop.

    Args:
        config: of the run.
        policy: whose table it is.
        source: under which name to report what it waits for.
        stop: set by whoever wants it to end.

    Raises:
        ConfigurationError: if its stacks are not those that this learner is configured for.
    """
    with Client.connect(config.replay.address, name="learner", give_up_after_s=_GIVE_UP_AFTER_S) as client:
        waiting = _Waiting(client, source, f"waits for table {policy!r}, which the first actor creates")
        while not stop.is_set():
            try:
                signature = client.hello().tables.get(policy)
            except UnreachableError as error:
                _LOG.warning("waits for the replay server: %s", error)
                continue
            if signature is not None:
                _check_n_frames(config, policy, signature)
                return signature
            waiting.say()
            stop.wait(_LOOK_PERIOD_S)
    return None


class _Waiting:
    """Says what a process waits for: in its report at once, in its log if it lasts."""

    def __init__(self, client: Client, source: str, doing: str) -> None:
        self._client = client
        self._source = source
        self._doing = doing
        self._reported = -math.inf
        self._said = time.monotonic()

    def say(self) -> None:
        now = time.monotonic()
        if now - self._reported >= _REPORT_PERIOD_S:
            self._reported = now
            self._client.report(self._source, self._doing, {}).forget()
        if now - self._said >= _SAY_PERIOD_S:
            self._said = now
            _LOG.info("%s", self._doing)


def _check_n_frames(config: RunConfig, policy: str, signature: Signature) -> None:
    if signature.n_frames != config.replay.n_frames:
        raise ConfigurationError(
            f"replay.n_frames = {config.replay.n_frames} and table {policy!r} has n_frames = "
            f"{signature.n_frames}; give actors and learner the same configuration"
        )
