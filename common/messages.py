"""Every message between a client and the replay server, as frozen types.

The wire form of these is in `fornix.common.wire`; `docs/protocol.md` is the page for people who write
a client in another language. A change here that an older peer can't read raises PROTOCOL_VERSION.
"""

from typing import Annotated, Any, ClassVar

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fornix.common.signature import Signature, TableName

PROTOCOL_VERSION = 1

#: A step's type, as dm_env names them.
FIRST, MID, LAST = 0, 1, 2

MAX_BATCH = 65_536
MAX_LANES = 65_536
MAX_WAIT_S = 3600.0
MAX_METRICS = 32

Array = NDArray[Any]
Label = Annotated[str, Field(min_length=1, max_length=128)]
WriterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:-]{1,128}$")]
Wait = Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Message(BaseModel):
    """A typed message: frozen, strict, without unknown fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )


class Request(Message):
    """A message from a client to the server."""

    type: ClassVar[str]


class Reply(Message):
    """A message from the server to a client."""

    type: ClassVar[str]


class LimiterSpec(Message):
    """How sampling and inserting are tied together; `replay.limiter` says what it does."""

    min_size: int = Field(1, ge=1)
    """Inserts that the table must have seen before the first sample."""
    samples_per_insert: float | None = Field(None, ge=1e-6, le=1e9, allow_inf_nan=False)
    """Transitions drawn for each insert, on average; None leaves both sides free."""
    error_buffer_inserts: float | None = Field(None, ge=1e-3, le=1e9, allow_inf_nan=False)
    """How far either side may run ahead, in inserts; None with a free limiter."""


class TableSpec(Message):
    """Everything that a table is created with."""

    signature: Signature
    capacity_steps: int = Field(ge=2, lt=2**31)
    """Steps in the ring."""
    limiter: LimiterSpec = LimiterSpec()


class Hello(Request):
    """Say who asks, and what it expects of tables that exist. Refused if a signature differs."""

    type = "hello"
    client: Label
    expects: dict[TableName, Signature] = Field(default_factory=dict)


class Welcome(Reply):
    """The server's side of a hello: its version, and the signatures of all its tables."""

    type = "welcome"
    server: str
    tables: dict[TableName, Signature]


class CreateTable(Request):
    """Create a table, or find it there with the same spec. Another spec is refused."""

    type = "create_table"
    table: TableName
    spec: TableSpec


class TableCreated(Reply):
    """`created` is false where the table was there already."""

    type = "table_created"
    created: bool


class OpenWriter(Request):
    """Take a writer's place in a table. Older incarnations are fenced, their episodes closed."""

    type = "open_writer"
    table: TableName
    writer: WriterName
    incarnation: Count
    lanes: int = Field(ge=1, le=MAX_LANES)


class WriterOpened(Reply):
    """`sequence` is the number that the writer's next `observe` must carry."""

    type = "writer_opened"
    sequence: Count


class Observe(Request):
    """Append the new steps of many lanes, and ask for each lane's stack.

    K rows, in order; a lane may stand in one or two of them (an episode's last step, then the next
    one's first).
    """

    type = "observe"
    table: TableName
    writer: WriterName
    incarnation: Count
    sequence: Count
    lane: Array
    """int32 [K], each in [0, lanes)."""
    step_type: Array
    """uint8 [K]: FIRST, MID or LAST."""
    terminated: Array
    """bool [K]; true only on a LAST step from which nothing may be bootstrapped."""
    action: Array
    """[K, *action]: the action that led here; ignored on FIRST."""
    reward: Array
    """[K]: the reward that arrived with the frame; ignored on FIRST."""
    frame: Array
    """[K, *obs]."""
    extras: dict[TableName, Array] = Field(default_factory=dict)
    """[K, *extra] each."""
    policy_version: Count = 0
    """Version of the weights that chose the actions."""
    stacks: bool = True
    """Whether to answer with stacks, or with keys alone."""
    timeout_s: Wait = 10.0
    """How long the server may hold the request back."""


class StackQuery(Request):
    """Ask for the stacks of steps by their keys."""

    type = "stack"
    table: TableName
    key: Array
    """int64 [K]."""


class Stacks(Reply):
    """The newest step of each lane of an `observe`, in order of first appearance; or of each key."""

    type = "stacks"
    key: Array
    """int64 [L]: the step's global sequence number."""
    stack: Array
    """[L, n_frames, *obs], oldest first; [0, n_frames, *obs] where only keys were asked for."""
    held_s: float = 0.0
    """How long the limiter held the request back."""


class Sample(Request):
    """Draw transitions, uniformly with replacement over the sampleable starts."""

    type = "sample"
    table: TableName
    batch_size: int = Field(ge=1, le=MAX_BATCH)
    n_step: int = Field(ge=1, le=64)
    discount: float = Field(ge=0, le=1, allow_inf_nan=False)
    timeout_s: Wait = 10.0
    """How long the server may wait for data."""


class Batch(Reply):
    """B transitions. `fornix.replay.client.Transitions` makes stacks of it."""

    type = "batch"
    key: Array
    """int64 [B]: the step that each transition starts from."""
    next_key: Array
    """int64 [B]: the step that it bootstraps from."""
    probability: Array
    """float64 [B]: with which each was drawn."""
    window: Array
    """[B, n_frames + n_step, *obs]: the stack of `key`, then the frames up to `next_key`; zeros before
    an episode's first frame and after its last."""
    steps: Array
    """int32 [B]: m, the steps between `key` and `next_key`; n_step, or fewer at an episode's end."""
    action: Array
    """[B, *action], taken in `key`."""
    reward: Array
    """float32 [B]: the m-step return, discounted."""
    discount: Array
    """float32 [B]: γ^m, or 0 where the episode terminated."""
    policy_version: Array
    """int64 [B]: version of the weights that chose the action."""
    extras: dict[TableName, Array]
    """[B, *extra] of the steps `key`."""
    held_s: float = 0.0
    """How long the request waited for data."""


class InfoQuery(Request):
    """Ask what the server holds and does."""

    type = "info"


class Info(Reply):
    """The state of the server: plain numbers and words, as `fornix inspect` shows them."""

    type = "info_reply"
    server: dict[str, Any]
    tables: dict[TableName, dict[str, Any]]
    reports: dict[str, dict[str, Any]]


class Report(Request):
    """Tell the server what a process is doing, for whoever watches."""

    type = "report"
    source: WriterName
    doing: str = Field("", max_length=200)
    metrics: dict[Label, float] = Field(default_factory=dict, max_length=MAX_METRICS)


class Done(Reply):
    """The request was carried out."""

    type = "done"


class Refused(Reply):
    """The request was refused and nothing was stored."""

    type = "error"
    code: str
    message: str


REQUESTS = {kind.type: kind for kind in Request.__subclasses__()}
REPLIES = {kind.type: kind for kind in Reply.__subclasses__()}
