"""The configuration of a run: data with units in its names, checked once and frozen.

`RunConfig` is what a YAML file holds. Every command reads the same file and takes its own part.
Reading it from file, flags and environment is `fornix.common.settings`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fornix.common.addresses import check_address
from fornix.common.errors import AddressError


def _address(address: str) -> str:
    try:
        return check_address(address)
    except AddressError as error:
        raise ValueError(str(error)) from None


def _folder(value: Any) -> Any:
    """Return the word `null`, which is what a flag or a variable can say, as None."""
    if value is None or value == "null":
        return None
    if not isinstance(value, str | Path) or not str(value).strip() or "\0" in str(value):
        raise ValueError("names no folder; give a path, or null for a memory that is not kept")
    return value


Address = Annotated[str, AfterValidator(_address)]
Folder = Annotated[Path | None, BeforeValidator(_folder)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Section(BaseModel):
    """A part of the configuration: immutable, and without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items():
            value = values.get(name) if isinstance(values, dict) else None
            if isinstance(value, bool) and field.annotation in (int, float):
                raise ValueError(f"{name} = {str(value).lower()}: a number is needed")
        return values


class TreasureHuntConfig(Section):
    """The treasure-hunt gridworld: agents collect what grows on the floor."""

    kind: Literal["treasurehunt"] = "treasurehunt"
    """Which environment: `treasurehunt`, our own, or `gymnasium`, one of Gymnasium's by its id."""
    height: int = Field(10, ge=3, le=1000)
    """Rows of the world, the walls on its border included."""
    width: int = Field(10, ge=3, le=1000)
    """Columns of the world, the walls on its border included."""
    agents: int = Field(5, ge=1, le=1000)
    """Agents that move in one world."""
    treasures: dict[Name, float] = Field({"gem": 10.0}, min_length=1)
    """Reward of each kind of treasure, by its name."""
    spawn_prob: float = Field(0.02, ge=0, le=1)
    """Probability that an empty inner cell grows a treasure, each turn."""
    max_turns: int = Field(50, ge=1)
    """Turns in an episode, which then ends truncated."""
    radius: int = Field(2, ge=1, le=100)
    """An agent sees the (2·radius+1)² cells around it."""

    @model_validator(mode="after")
    def _agents_fit(self) -> "TreasureHuntConfig":
        inner = (self.height - 2) * (self.width - 2)
        if self.agents > inner:
            raise ValueError(
                f"{self.agents} agents don't fit on the {inner} inner cells of a "
                f"{self.height}x{self.width} world; lower agents or enlarge the world"
            )
        return self


class GymnasiumConfig(Section):
    """Any single-agent Gymnasium environment with discrete actions, by its id."""

    kind: Literal["gymnasium"] = "gymnasium"
    """Which environment: `treasurehunt`, our own, or `gymnasium`, one of Gymnasium's by its id."""
    id: str = Field("CartPole-v1", min_length=1, max_length=200)
    """The id under which Gymnasium knows the environment."""


# the last member's defaults are those that the flags' help shows
EnvironmentConfig = Annotated[GymnasiumConfig | TreasureHuntConfig, Field(discriminator="kind")]


class NetworkConfig(Section):
    """The implicit quantile network (Dabney et al. 2018)."""

    width: int = Field(128, ge=1, le=8192)
    """Units in each hidden layer; a dueling network's last has this many for each stream."""
    layers: int = Field(2, ge=1, le=8)
    """Hidden layers between the frame stack and the quantile embedding, the streams' included."""
    cosines: int = Field(64, ge=1, le=1024)
    """Cosine features that embed a quantile fraction."""
    dueling: bool = True
    """Separate streams for state value and advantages (Wang et al. 2016)."""
    noisy: bool = True
    """Factorised Gaussian noise in the layer after the embedding (Fortunato et al. 2018)."""
    noisy_sigma: float = Field(0.5, gt=0, le=10)
    """The paper's σ₀: the noise that this layer starts with."""


class PolicyConfig(Section):
    """How agents share what they learn."""

    sharing: Literal["shared", "per_agent"] = "shared"
    """`shared`: one table and one policy for all agents. `per_agent`: one of each for every agent."""


class ReplayConfig(Section):
    """The memory: what it holds, and how data and training are tied together."""

    address: Address = "tcp://127.0.0.1:5555"
    """Where the replay server answers, and where actors and learners ask."""
    n_frames: int = Field(5, ge=1, le=64)
    """Frames in a stack."""
    capacity_steps: int = Field(200_000, ge=2)
    """Steps that a table remembers before it overwrites the oldest."""
    min_size: int = Field(2_000, ge=1)
    """Agent steps that must have been written before the first sample is drawn."""
    samples_per_insert: float = Field(6.0, ge=1e-6, le=1e9)
    """How often each agent step is drawn on average; the limiter holds back whoever runs ahead."""
    error_buffer_inserts: float = Field(2_000, ge=1e-3, le=1e9)
    """How far either side may run ahead of that ratio, in agent steps."""
    memory: Literal["auto", "mapped", "socket"] = "auto"
    """How frames reach actors and learners: `mapped`, from the server's memory on the same host; `socket`,
    as copies; `auto`, mapped where that is possible."""
    lease_s: float = Field(30.0, gt=0, le=86_400)
    """How long a learner may be silent before the batches that it fetched and didn't use are given back."""
    data: Folder = None
    """The folder in which the replay server keeps its rows; without one (null) they are in memory only.
    `fornix run` gives it one in the run's folder."""

    @model_validator(mode="after")
    def _can_open(self) -> "ReplayConfig":
        if self.min_size > self.capacity_steps:
            raise ValueError(
                f"replay.min_size {self.min_size} is more than replay.capacity_steps "
                f"{self.capacity_steps}, so no sample could ever be drawn; lower min_size or raise "
                f"capacity_steps"
            )
        return self


class ActorConfig(Section):
    """The processes that act."""

    processes: int = Field(2, ge=1, le=1024)
    """Actor processes that `fornix run` starts."""
    copies: int = Field(16, ge=2, le=65_536)
    """Copies of the environment in one actor process, stepped as two half-vectors in turn."""
    epsilon: float = Field(0.1, ge=0, le=1)
    """Exploration of the most random lane: ε of copy i is epsilon^(1 + epsilon_alpha·i/(N-1))."""
    epsilon_alpha: float = Field(7.0, ge=0)
    """Spread of the per-lane ε schedule (Horgan et al. 2018)."""


class LearnerConfig(Section):
    """The process that trains."""

    processes: int = Field(1, ge=1, le=1024)
    """Learner processes that `fornix run` starts; with `per_agent`, the policies are dealt out to them."""
    gradient_steps: int = Field(12_000, ge=1)
    """Gradient steps in the run."""
    batch_size: int = Field(256, ge=1, le=65_536)
    """Transitions in a batch."""
    n_step: int = Field(3, ge=1, le=64)
    """Rewards summed before bootstrapping."""
    discount: float = Field(0.9, ge=0, le=1)
    """γ: the discount per step. A short horizon learns sooner, where rewards are near."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size at the start."""
    learning_rate_end: float = Field(2e-5, gt=0)
    """Adam's step size after the last gradient step: it falls in a straight line."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Adam's ε: raise it to damp the steps of weights with small gradients."""
    quantiles: int = Field(12, ge=1, le=256)
    """Quantile fractions drawn for each state, on both sides of the loss."""
    huber_kappa: float = Field(1.0, gt=0)
    """κ: errors beyond it, in units of return, count linearly instead of squared."""
    tau: float = Field(0.01, gt=0, le=1)
    """Share of the online weights in the one soft target update of a gradient step."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads that torch computes with."""
    publish_period_steps: int = Field(20, ge=1)
    """Gradient steps between two publications of the weights."""
    checkpoint_period_steps: int = Field(1_000, ge=1)
    """Gradient steps between two checkpoints."""


class WeightsConfig(Section):
    """The channel on which learners publish weights."""

    addresses: tuple[Address, ...] = Field(("tcp://127.0.0.1:5556",), min_length=1)
    """Where learner 0, 1, … publishes; actors subscribe to all."""


class RunConfig(Section):
    """Everything that a run is made of."""

    name: Name = "treasurehunt"
    """Name of the run; its files are in runs/<name>."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of every random number in the run."""
    environment: EnvironmentConfig = Field(default_factory=TreasureHuntConfig)
    """What the agents live in: `kind: treasurehunt`, or `kind: gymnasium` with an `id`."""
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    replay: ReplayConfig = Field(default_factory=ReplayConfig)
    actor: ActorConfig = Field(default_factory=ActorConfig)
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    weights: WeightsConfig = Field(default_factory=WeightsConfig)

    @model_validator(mode="before")
    @classmethod
    def _kind_of_environment(cls, values: Any) -> Any:
        """An environment that doesn't say its kind is a treasure hunt, as the default is."""
        if isinstance(values, dict) and isinstance(environment := values.get("environment"), dict):
            return values | {"environment": {"kind": "treasurehunt"} | environment}
        return values

    @model_validator(mode="after")
    def _learners_fit(self) -> "RunConfig":
        if self.learner.processes > len(self.weights.addresses):
            raise ValueError(
                f"learner.processes {self.learner.processes} is more than the "
                f"{len(self.weights.addresses)} of weights.addresses; each learner publishes at one "
                f"of its own, so add addresses or lower learner.processes"
            )
        if self.learner.processes > self.policies:
            raise ValueError(
                f"learner.processes {self.learner.processes} is more than the policies that there are "
                f"to train, {self.policies} with policy.sharing {self.policy.sharing!r}; lower "
                f"learner.processes"
            )
        return self

    @model_validator(mode="after")
    def _transitions_fit(self) -> "RunConfig":
        longest = self.replay.n_frames + self.learner.n_step
        if self.replay.capacity_steps < longest:
            raise ValueError(
                f"replay.capacity_steps {self.replay.capacity_steps} can't hold one transition of "
                f"replay.n_frames + learner.n_step = {longest} steps; raise capacity_steps"
            )
        return self

    @property
    def agents(self) -> int:
        """Agents in one copy of the environment."""
        environment = self.environment
        return environment.agents if isinstance(environment, TreasureHuntConfig) else 1

    @property
    def policies(self) -> int:
        """Policies that are trained: one, or one for each agent."""
        return self.agents if self.policy.sharing == "per_agent" else 1
