"""Every message between a client and the replay server, as frozen types.

The wire form of these is in `fornix.common.wire`; `docs/protocol.md` is the page for people who write
a client in another language. A change here that an older peer can't read raises PROTOCOL_VERSION.
"""

from typing import Annotated, Any, ClassVar

from numpy.typing import NDArray
from pydantic import Field

from fornix.common.signature import Signature, TableName
from fornix.common.specs import Frozen, LimiterSpec, TableSpec, Transition, Unit

PROTOCOL_VERSION = 3

#: A step's type, as dm_env names them.
FIRST, MID, LAST = 0, 1, 2

MAX_BATCH = 65_536
MAX_LANES = 65_536
MAX_WAIT_S = 3600.0
MAX_METRICS = 32

Array = NDArray[Any]
#: The array of a frame; or, where a frame is a dict or tuple of arrays, those arrays by path.
Frames = Array | dict[str, Array]
#: So short that the metrics of all who report fit into one answer.
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:-]{1,64}$")]
Label = Annotated[str, Field(min_length=1, max_length=128)]
WriterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:-]{1,128}$")]
Wait = Annotated[float, Field(ge=0, le=MAX_WAIT_S, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class Request(Frozen):
    """A message from a client to the server."""

    type: ClassVar[str]


class Reply(Frozen):
    """A message from the server to a client."""

    type: ClassVar[str]


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
    lives: dict[TableName, Count] = Field(default_factory=dict)
    """Of tables whose rows are kept on a disk: a number that is another one after a start at which what had
    been acknowledged may have been lost."""


class CreateTable(Request):
    """Create a table, or find it there with the same spec. Another spec is refused."""

    type = "create_table"
    table: TableName
    spec: TableSpec


class TableCreated(Reply):
    """`created` is false where the table was there already."""

    type = "table_created"
    created: bool


class ListTables(Request):
    """Ask for all tables."""

    type = "list_tables"


class Tables(Reply):
    """All tables, and what each was created with; capacity_steps is what became of capacity_bytes."""

    type = "tables"
    tables: dict[TableName, TableSpec]


class ResetTable(Request):
    """Forget all steps of a table, and its writers. Its keys go on counting: none is used twice."""

    type = "reset_table"
    table: TableName


class DropTable(Request):
    """Remove a table. Refused while another draws from its rows."""

    type = "drop_table"
    table: TableName


class SetLimiter(Request):
    """Change a table's limits while it runs."""

    type = "set_limiter"
    table: TableName
    limiter: LimiterSpec


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
    one's first), and in any number of them where no stacks are asked for.
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
    frame: Frames
    """[K, *obs]."""
    extras: dict[TableName, Array] = Field(default_factory=dict)
    """[K, *extra] each."""
    leave: Array | None = None
    """int32 [J]: lanes whose open episodes end, truncated, at their newest step, before the rows come."""
    policy_version: Count = 0
    """Version of the weights that chose the actions."""
    stacks: bool = True
    """Whether to answer with stacks, or with keys alone."""
    mapped: bool = False
    """Whether the client gathers the stacks from the mapped memory itself."""
    timeout_s: Wait = 10.0
    """How long the server may hold the request back."""


class StackQuery(Request):
    """Ask for the stacks of steps by their keys."""

    type = "stack"
    table: TableName
    key: Array
    """int64 [K]."""
    memory: Count = 0
    """The number of the memory that the keys are of: another one has other steps under these keys. 0 for
    whichever the table has now."""


class Stacks(Reply):
    """The newest step of each lane of an `observe`, in order of first appearance; or of each key."""

    type = "stacks"
    key: Array
    """int64 [L]: the step's global sequence number."""
    stack: Any = None
    """[L, n_frames, *obs], oldest first; None where only keys were asked for, or the client has the memory
    mapped. From a `Client`, a dict or tuple of such where a frame is one."""
    memory: Count = 0
    """The number of the mapped memory that the client finds these stacks in; 0 where it need not."""
    durable: Count | None = None
    """Of an `observe`: all requests of the writer up to this number are on the server's disk, so that a
    power cut takes none of them; None for a server that keeps its memory in RAM."""
    held_s: float = 0.0
    """How long the limiter held the request back."""


class Sample(Request):
    """Draw from a table, by its sampler."""

    type = "sample"
    table: TableName
    batch_size: int = Field(ge=1, le=MAX_BATCH)
    unit: Unit = Transition()
    """What is drawn."""
    discount: float = Field(0.99, ge=0, le=1, allow_inf_nan=False)
    """γ."""
    importance_exponent: float = Field(0.0, ge=0, le=8, allow_inf_nan=False)
    """β: importance weights are (N · probability)^-β, over the largest of the batch."""
    mapped: bool = False
    """Whether the client gathers the frames from the mapped memory itself."""
    session: str = Field("", max_length=160)
    """Who samples: a name of the client's, of its own in all the world."""
    lease: Count = 0
    """The number of the lease, counted up from 1 by the session: the samples are charged once `consumed`
    has reached it. 0: they are charged at once."""
    consumed: Count = 0
    """All leases of the session up to this number have been consumed."""
    refill: bool = False
    """In place of samples whose rows were overwritten before they could be gathered: nothing is charged."""
    timeout_s: Wait = 10.0
    """How long the server may wait for data."""


class Batch(Reply):
    """B transitions, sequences or episodes, of at most T steps each.

    An axis T stands below where they are no transitions. `fornix.replay.Transitions` and `Sequences` make
    stacks of it.
    """

    type = "batch"
    key: Array
    """int64 [B]: the step that each starts from."""
    next_key: Array
    """int64 [B]: the step that it ends with, and bootstraps from."""
    probability: Array
    """float64 [B]: with which each was drawn."""
    weight: Array
    """float32 [B]: the importance weight, 1 for the largest of the batch."""
    index: Array
    """int32 [B, W]: the frames of each window, by their place in `frame`, or in the mapped memory. A window
    is the stack of `key`, then the frames up to `next_key`. The last place has the frame of zeros, which
    stands before an episode's first frame and after its last."""
    frame: Frames | None = None
    """[U + 1, *obs]: the frames of the batch, each once, then one of zeros; None for a mapped memory."""
    oldest: Array | None = None
    """For a mapped memory: int64 [B], the oldest row of each window."""
    memory: Count = 0
    """For a mapped memory: its number, as TableMap tells it."""
    steps: Array
    """int32 [B]: m, the steps between `key` and `next_key`."""
    action: Array
    """[B, T, *action], taken in each step."""
    reward: Array
    """float32 [B, T]: the discounted m-step return of a transition; else of each step."""
    discount: Array
    """float32 [B, T]: γ^m of a transition, or 0 where the episode terminated; else of each step."""
    policy_version: Array
    """int64 [B, T]: version of the weights that chose the action."""
    extras: dict[TableName, Array]
    """[B, T, *extra] of the steps that actions were taken in."""
    mask: Array | None = None
    """bool [B, T]: which steps there are; None for transitions."""
    held_s: float = 0.0
    """How long the request waited for data."""


class Consume(Request):
    """Acknowledge all leases of a session up to a number; `release` gives back those beyond it."""

    type = "consume"
    table: TableName
    session: str = Field(min_length=1, max_length=160)
    consumed: Count
    release: bool = False


class UpdatePriorities(Request):
    """Set the priorities of steps. Keys of steps that are gone are ignored, and counted."""

    type = "update_priorities"
    table: TableName
    key: Array
    """int64 [K]; where a key stands twice, the last counts."""
    priority: Array
    """float64 or float32 [K], finite and >= 0; a start of priority 0 is not drawn."""


class PrioritiesUpdated(Reply):
    """How many of the keys were there, and how many were not."""

    type = "priorities_updated"
    applied: Count
    ignored: Count


class MapTable(Request):
    """Ask where a table's rows can be mapped into a process on the same host."""

    type = "map_table"
    table: TableName


class Column(Frozen):
    """Where an array lies in a mapped file."""

    offset: int = Field(ge=0, lt=2**48)
    shape: tuple[int, ...] = Field(min_length=1, max_length=8)
    dtype: str = Field(max_length=3)


class TableMap(Reply):
    """The file that holds a table's rows. `fornix.replay.mapped` opens it."""

    type = "table_map"
    path: str = Field(min_length=1, max_length=4096)
    nbytes: int = Field(ge=1, lt=2**48)
    token: Array
    """uint8 [16], which stands in the file too: so that no other file is taken for it."""
    memory: Count = 0
    """The memory's number, drawn at random; whatever refers to places in it tells it too."""
    own: bool = True
    """Whether the rows are the table's own: it is there, and what it was, as long as its memory is."""
    columns: dict[str, Column]
    """`back`, <u4 [capacity_steps]: how far before each row its predecessor stands, 0 on an episode's first
    row. And every array of a frame, named `frame` or `frame.PATH`, [capacity_steps + 1, *obs]; the last row
    is zero."""


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
    metrics: dict[MetricName, float] = Field(default_factory=dict, max_length=MAX_METRICS)


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
