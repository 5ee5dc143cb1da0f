"""Where a trainer's batches come from: asked for ahead by a thread, or one at a time in one process."""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from fornix.common.config import LearnerConfig
from fornix.common.errors import FornixError, UnknownTableError, UnreachableError, WaitTimeoutError
from fornix.common.signature import Signature
from fornix.common.specs import Transition
from fornix.learner.transfer import Transfer
from fornix.learner.update import Batch
from fornix.replay.batches import Transitions
from fornix.replay.client import Client
from fornix.replay.gather import Allocate
from fornix.replay.maps import MemoryChoice
from fornix.replay.prefetch import Prefetch

_LOG = logging.getLogger(__name__)
_IN_FLIGHT = 2
_READY = 2
_GIVE_UP_AFTER_S = 2.0  # then the learner says so, and asks again
_SAY_PERIOD_S = 5.0


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
    """Asks for one batch at a time, without a thread; for one process.

    A batch stays as it is until the next one is got.
    """

    def __init__(self, client: Client, table: str, config: LearnerConfig) -> None:
        self._batches = _batches(client, table, config, in_flight=1, leased=False)
        self._transfer = Transfer("cpu")
        self.doing = ""

    def get(self, timeout_s: float) -> Batch | None:
        """Return the next batch if the memory can give one now, whatever the time-out."""
        return self._transfer(next(self._batches)) if self._batches.ready() else None

    def close(self) -> None:
        """Let go of the request in flight."""
        self._batches.close()


class PrefetchedBatches:
    """Keeps two requests in flight and two batches ready, from a thread with a socket of its own.

    A batch stays as it is until the next one is asked for. Then it counts as consumed, and its memory is
    used again; those that wait for the trainer are leased, and given back if this process dies. There are
    four such pieces of memory: for the batch that is trained on, the two that are ready, and one that is
    being filled.

    Args:
        address: of the replay server.
        table: to draw from.
        signature: of the table; one that is created anew must have it too.
        config: of the learner.
        seen: called with each batch before it is trained on, which it must not keep.
        device: that the batches are for.
        memory: how frames come; see `Client.connect`.
    """

    def __init__(
        self,
        address: str,
        table: str,
        signature: Signature,
        config: LearnerConfig,
        seen: Callable[[Transitions], None] | None = None,
        device: torch.device | str = "cpu",
        memory: MemoryChoice = "auto",
    ) -> None:
        self._address = address
        self._memory = memory
        self._seen = seen
        self._asked = (table, config)
        self._expects = {table: signature}
        self._transfer = Transfer(device)
        self._said, self._said_waiting = -math.inf, False
        self._ready: queue.Queue[Batch | Exception] = queue.Queue(_READY)
        self._got = self._consumed = 0  # written by the trainer's thread, until there is no more to get
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
        self._consumed = self._got
        try:
            batch = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(batch, Exception):
            raise batch
        self._got += 1
        return batch

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it."""
        self._stop.set()

    def close(self) -> None:
        """End the thread, within a few seconds; batches that were not got are given back."""
        self.stop()
        self._thread.join()

    def _serve(self) -> None:
        try:
            with Client.connect(
                self._address, name="learner", memory=self._memory, give_up_after_s=_GIVE_UP_AFTER_S
            ) as client:
                # of those handed out: one that the trainer has, all that are ready, and the newest
                batches = _batches(
                    client,
                    *self._asked,
                    in_flight=_IN_FLIGHT,
                    keep=_READY + 2,
                    consumed=lambda: self._consumed,
                    allocate=self._transfer.allocate,
                )
                try:
                    self._prefetch(client, batches)
                finally:
                    self._consumed = self._got  # the last one too: whoever got it trains on it
                    batches.close()
        except Exception as error:  # or the learner would wait for ever, and not know why
            self._put(error)

    def _prefetch(self, client: Client, batches: Prefetch[Transitions]) -> None:
        lost = False  # the table, which may be another one when it is there again
        while not self._stop.is_set():
            try:
                if lost:
                    client.hello(self._expects)
                    lost = False
                transitions = next(batches)
            except (WaitTimeoutError, UnknownTableError, UnreachableError) as error:
                lost = lost or not isinstance(error, WaitTimeoutError)
                self._wait(error)
                if isinstance(error, UnknownTableError):
                    self._stop.wait(0.2)
            else:
                self._go_on()
                if self._seen is not None:
                    self._seen(transitions)
                self._put(self._transfer(transitions))

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


def _batches(
    client: Client,
    table: str,
    config: LearnerConfig,
    *,
    in_flight: int,
    keep: int = 1,
    leased: bool = True,
    consumed: Callable[[], int] | None = None,
    allocate: Allocate = np.empty,
) -> Prefetch[Transitions]:
    """Return the batches that a learner's configuration asks for."""
    return client.batches(
        table,
        config.batch_size,
        Transition(n_step=config.n_step),
        discount=config.discount,
        timeout_s=0.5,
        in_flight=in_flight,
        keep=keep,
        leased=leased,
        consumed=consumed,
        allocate=allocate,
    )
