"""The replay memory, the service that decides about it, its server and its client.

All that an agent of one's own needs is here, and none of it needs torch.
"""

from fornix.common.errors import FornixError
from fornix.common.messages import FIRST, LAST, MID, Stacks
from fornix.common.signature import ArraySpec, Signature
from fornix.common.specs import Episode, LimiterSpec, SamplerSpec, Sequence, TableSpec, Transition
from fornix.replay.batches import Sequences, Transitions
from fornix.replay.client import Client
from fornix.replay.lane_stacks import LaneStacks
from fornix.replay.pending import Pending
from fornix.replay.prefetch import Prefetch
from fornix.replay.steps import Steps
from fornix.replay.vector_writer import VectorWriter
from fornix.replay.writer import Writer

__all__ = [
    "FIRST",
    "LAST",
    "MID",
    "ArraySpec",
    "Client",
    "Episode",
    "FornixError",
    "LaneStacks",
    "LimiterSpec",
    "Pending",
    "Prefetch",
    "SamplerSpec",
    "Sequence",
    "Sequences",
    "Signature",
    "Stacks",
    "Steps",
    "TableSpec",
    "Transition",
    "Transitions",
    "VectorWriter",
    "Writer",
]
