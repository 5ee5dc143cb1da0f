"""Where a trainer's batches come from: asked for ahead by a thread, or one at a time in one process."""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

import torch

from fornix.common.config import LearnerConfig
from fornix.common.errors import FornixError, UnknownTableError, UnreachableError, WaitTimeoutError
from fornix.common.signature import Signature
from fornix.learner.update import Batch
from fornix.replay.client import Client, Pending, Transitions

_LOG = logging.getLogger(__name__)
_IN_FLIGHT = 2
_GIVE_UP_AFTER_S = 2.0  # then the learner says so, and asks again
_SAY_PERIOD_S = 5.0


def to_batch(transitions: Transitions) -> Batch:
    """Return transitions as tensors; stacks that are views stay views."""
    batch = transitions.batch
    return Batch(
        stack=torch.from_numpy(transitions.stack),
        action=torch.from_numpy(batch.action).long(),
        reward=torch.from_numpy(batch.reward),
        discount=torch.from_numpy(batch.discount),
        next_stack=torch.from_numpy(transitions.next_stack),
    )


class BatchSource(Protocol):
    """Hands out batches of one table."""

    def get(self, timeout_s: float) -> Batch | None:
        """Return the next batch, or None if none has come in time."""

    def close(self) -> None:
        """Let go of all resources."""

    @property
    def doing(self) -> str:
        """What the source waits for, if it does."""


class LocalBatches:
    """Asks for one batch at a time, without a thread; for one process."""

    def __init__(self, client: Client, table: str, config: LearnerConfig) -> None:
        self._client = client
        self._request = _Request(client, table, config)
        self._pending: Pending[Transitions] | None = None
        self.doing = ""

    def get(self, timeout_s: float) -> Batch | None:
        """Return the next batch if the memory can give one now, whatever the time-out."""
        if self._pending is None:
            self._pending = self._request.send()
        if not self._pending.done():
            return None
        transitions = self._pending.result()
        self._pending = None
        return to_batch(transitions)

    def close(self) -> None:
        """Nothing to let go of."""


class PrefetchedBatches:
    """Keeps two requests in flight and two batches ready, from a thread with a socket of its own.

    Args:
        address: of the replay server.
        table: to draw from.
        signature: of the table; one that is created anew must have it too.
        config: of the learner.
        seen: called with each batch before it is trained on.
    """

    def __init__(
        self,
        address: str,
        table: str,
        signature: Signature,
        config: LearnerConfig,
        seen: Callable[[Transitions], None] | None = None,
    ) -> None:
        self._address = address
        self._seen = seen
        self._asked = (table, config)
        self._expects = {table: signature}
        self._said, self._said_waiting = -math.inf, False
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(_IN_FLIGHT)
        self._stop = threading.Event()
        self.doing = ""
        self._thread = threading.Thread(target=self._serve, name=f"prefetch-{table}", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> Batch | None:
        """Return the next batch, or None if none has come in time.

        Raises:
            SignatureError: if the table was created anew with another signature.
            Exception: that ended the thread, such as a FornixError that refuses the request.
        """
        try:
            batch = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(batch, Exception):
            raise batch
        return batch

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._stop.set()

    def close(self) -> None:
        """End the thread, within a few seconds."""
        self.stop()
        self._thread.join()

    def _serve(self) -> None:
        try:
            with Client.connect(self._address, name="learner", give_up_after_s=_GIVE_UP_AFTER_S) as client:
                self._prefetch(client, _Request(client, *self._asked))
        except Exception as error:  # or the learner would wait for ever, and not know why
            self._put(error)

    def _prefetch(self, client: Client, request: "_Request") -> None:
        flying = [request.send() for _ in range(_IN_FLIGHT)]
        lost = False  # the table, which may be another one when it is there again
        while not self._stop.is_set():
            pending = flying.pop(0)
            try:
                if lost:
                    client.hello(self._expects)
                    lost = False
                transitions = pending.result()
            except (WaitTimeoutError, UnknownTableError, UnreachableError) as error:
                lost = lost or not isinstance(error, WaitTimeoutError)
                self._wait(error)
                if isinstance(error, UnknownTableError):
                    self._stop.wait(0.2)
                pending.send_again()
                flying.append(pending)
            else:
                self._go_on()
                flying.append(request.send())
                if self._seen is not None:
                    self._seen(transitions)
                self._put(to_batch(transitions))

    def _wait(self, error: FornixError) -> None:
        """Say what it waits for; in the log too, but not often."""
        self.doing = f"waits: {error}"
        if time.monotonic() - self._said > _SAY_PERIOD_S:
            self._said, self._said_waiting = time.monotonic(), True
            _LOG.log(logging.INFO if isinstance(error, WaitTimeoutError) else logging.WARNING, "%s", error)

    def _go_on(self) -> None:
        self.doing = ""
        if self._said_waiting:
            self._said_waiting = False
            _LOG.info("goes on with table %r", self._asked[0])

    def _put(self, item: Batch | Exception) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.5)
                return


class _Request:
    """The request for a batch that a learner's configuration asks for."""

    def __init__(self, client: Client, table: str, config: LearnerConfig) -> None:
        self._client = client
        self._table = table
        self._config = config

    def send(self) -> Pending[Transitions]:
        return self._client.sample(
            self._table,
            self._config.batch_size,
            n_step=self._config.n_step,
            discount=self._config.discount,
            timeout_s=0.5,
        )
