"""The replay memory, the service that decides about it, its server and its client.

All that an agent of one's own needs is here, and none of it needs torch.
"""

from fornix.common.errors import FornixError
from fornix.common.messages import FIRST, LAST, MID, LimiterSpec, Stacks, TableSpec
from fornix.common.signature import ArraySpec, Signature
from fornix.replay.client import Client, Pending, Transitions, Writer
from fornix.replay.steps import Steps

__all__ = [
    "FIRST",
    "LAST",
    "MID",
    "ArraySpec",
    "Client",
    "FornixError",
    "LimiterSpec",
    "Pending",
    "Signature",
    "Stacks",
    "Steps",
    "TableSpec",
    "Transitions",
    "Writer",
]
