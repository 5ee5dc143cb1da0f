"""What an actor tells the server about itself, for whoever watches."""

import logging
import time

import numpy as np

from fornix.actor.process import Actor
from fornix.common.errors import FornixError
from fornix.replay.client import Client

_LOG = logging.getLogger(__name__)
PERIOD_S = 1.0


class Reporter:
    """Tells the server once a second what an actor is doing."""

    def __init__(self, actor: Actor, client: Client, source: str) -> None:
        self._actor = actor
        self._client = client
        self._source = source
        self._then = time.monotonic()
        self._before = np.zeros(3)

    def report(self, doing: str) -> None:
        """Tell what the actor is doing and how fast, if a second has passed since it last did."""
        now = time.monotonic()
        if now - self._then < PERIOD_S:
            return
        totals = np.sum([(v.agent_steps, v.waited_s, v.held_s) for v in self._actor.vectors], axis=0)
        if totals[0] < self._before[0]:  # the actor has begun anew since
            self._before = np.zeros(3)
        steps, waited_s, held_s = (totals - self._before) / (now - self._then)
        self._then, self._before = now, totals
        metrics = {
            "agent_steps": float(totals[0]),
            "agent_steps_per_s": float(steps),
            "waiting_share": float(waited_s),
            "limiter_share": float(held_s),
            "policy_version": float(max(policy.version for policy in self._actor.policies)),
        }
        for name, scores in (
            ("score", [score for v in self._actor.vectors for score in v.scores]),
            ("score_greedy", [score for v in self._actor.vectors for score in v.greedy_scores]),
        ):
            if scores:
                metrics[name] = float(np.mean(scores))
        try:
            self._client.report(self._source, doing[:200], metrics).forget()
        except FornixError as error:
            _LOG.debug("could not report: %s", error)
