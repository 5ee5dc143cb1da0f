"""Where a trainer's batches come from: asked for ahead by a thread, or one at a time in one process."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol

import torch

from fornix.common.config import LearnerConfig
from fornix.common.errors import UnknownTableError, UnreachableError, WaitTimeoutError
from fornix.learner.update import Batch
from fornix.replay.client import Client, Pending, Transitions

_LOG = logging.getLogger(__name__)
_IN_FLIGHT = 2
_GIVE_UP_AFTER_S = 2.0  # then the learner says so, and asks again


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
        config: of the learner.
        seen: called with each batch before it is trained on.
    """

    def __init__(
        self,
        address: str,
        table: str,
        config: LearnerConfig,
        seen: Callable[[Transitions], None] | None = None,
    ) -> None:
        self._address = address
        self._seen = seen
        self._asked = (table, config)
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(_IN_FLIGHT)
        self._stop = threading.Event()
        self.doing = ""
        self._thread = threading.Thread(target=self._serve, name=f"prefetch-{table}", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> Batch | None:
        """Return the next batch, or None if none has come in time.

        Raises:
            Exception: that ended the thread, such as a FornixError that refuses the request.
        """
        try:
            batch = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(batch, Exception):
            raise batch
        return batch

    def close(self) -> None:
        """End the thread, within a few seconds."""
        self._stop.set()
        self._thread.join()

    def _serve(self) -> None:
        try:
            with Client.connect(self._address, name="learner", give_up_after_s=_GIVE_UP_AFTER_S) as client:
                self._prefetch(_Request(client, *self._asked))
        except Exception as error:  # or the learner would wait for ever, and not know why
            self._put(error)

    def _prefetch(self, request: "_Request") -> None:
        flying = [request.send() for _ in range(_IN_FLIGHT)]
        while not self._stop.is_set():
            pending = flying.pop(0)
            try:
                transitions = pending.result()
            except (WaitTimeoutError, UnknownTableError, UnreachableError) as error:
                self.doing = f"waits: {error}"
                _LOG.log(
                    logging.INFO if isinstance(error, WaitTimeoutError) else logging.WARNING, "%s", error
                )
                if isinstance(error, UnknownTableError):
                    self._stop.wait(0.2)
                pending.send_again()
                flying.append(pending)
            else:
                self.doing = ""
                flying.append(request.send())
                if self._seen is not None:
                    self._seen(transitions)
                self._put(to_batch(transitions))

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
