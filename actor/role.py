"""The actor process: acts until it is told to stop, and says what it is doing."""

import itertools
import logging
import threading
from collections.abc import Callable

import torch

from fornix.actor.process import Actor
from fornix.actor.reporting import Reporter
from fornix.actor.vector import VectorActor
from fornix.common.config import RunConfig
from fornix.common.errors import (
    EvictedError,
    SequenceError,
    UnknownTableError,
    UnknownWriterError,
    UnreachableError,
    WaitTimeoutError,
)
from fornix.common.messages import Stacks
from fornix.common.weights import WeightsSubscriber
from fornix.replay.client import Client

_LOG = logging.getLogger(__name__)
_GIVE_UP_AFTER_S = 2.0  # then the actor says so, and asks again


def act(
    config: RunConfig,
    index: int,
    stop: threading.Event,
    seen: Callable[[Stacks], None] | None = None,
) -> None:
    """Act until `stop` is set, whatever becomes of the server and the learner.

    Args:
        config: of the run.
        index: of this actor, from 0.
        stop: set by whoever wants it to end.
        seen: called with each answer's keys and stacks, before they are acted on.
    """
    torch.set_num_threads(1)
    with Client.connect(
        config.replay.address,
        name=f"actor-{index}",
        memory=config.replay.memory,
        give_up_after_s=_GIVE_UP_AFTER_S,
    ) as client:
        actor = Actor(
            config,
            index,
            client,
            lambda policy: WeightsSubscriber(config.weights.addresses, policy),
            seen=seen,
        )
        try:
            _ActorLoop(actor, client, f"actor-{index}").run(stop)
        finally:
            actor.close()


class _ActorLoop:
    """Advances an actor's halves in turn, reports, and begins anew where its episodes are lost."""

    def __init__(self, actor: Actor, client: Client, source: str) -> None:
        self._actor = actor
        self._client = client
        self._reporter = Reporter(actor, client, source)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self._actor.begin()
                _LOG.info("acts in %d copies", sum(v.copies for v in self._actor.vectors))
                self._take_turns(stop)
            except (UnknownTableError, UnknownWriterError, SequenceError, EvictedError) as error:
                _LOG.warning("begins anew, since its open episodes are lost: %s", error)
            except UnreachableError as error:
                _LOG.warning("waits for the replay server: %s", error)

    def _take_turns(self, stop: threading.Event) -> None:
        for vector in itertools.cycle(self._actor.vectors):
            if stop.is_set():
                return
            self._advance(vector)

    def _advance(self, vector: VectorActor) -> None:
        try:
            vector.advance()
            self._reporter.report("acts")
        except WaitTimeoutError as error:
            self._reporter.report(f"waits: {error}")
        except UnreachableError as error:
            _LOG.warning("waits for the replay server: %s", error)
