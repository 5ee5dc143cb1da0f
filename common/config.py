"""The configuration of a run: data with units in its names, checked once and frozen.

`RunConfig` is what a YAML file holds. Every command reads the same file and takes its own part.
Reading it from file, flags and environment is `fornix.common.settings`.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Section(BaseModel):
    """A part of the configuration: immutable, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TreasureHuntConfig(Section):
    """The treasure-hunt gridworld: agents collect what grows on the floor."""

    kind: Literal["treasurehunt"] = "treasurehunt"
    height: int = Field(10, ge=3, le=1000)
    """Rows of the world, the walls on its border included."""
    width: int = Field(10, ge=3, le=1000)
    """Columns of the world, the walls on its border included."""
    agents: int = Field(5, ge=1, le=1000)
    """Agents that move in one world."""
    treasures: dict[Name, float] = Field(default_factory=lambda: {"gem": 10.0}, min_length=1)
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
    id: str = Field("CartPole-v1", min_length=1, max_length=200)
    """The id under which Gymnasium knows the environment."""


EnvironmentConfig = Annotated[TreasureHuntConfig | GymnasiumConfig, Field(discriminator="kind")]


class NetworkConfig(Section):
    """The implicit quantile network (Dabney et al. 2018)."""

    width: int = Field(256, ge=1, le=8192)
    """Units in each hidden layer."""
    layers: int = Field(2, ge=1, le=8)
    """Hidden layers between the frame stack and the quantile embedding."""
    cosines: int = Field(64, ge=1, le=1024)
    """Cosine features that embed a quantile fraction."""
    dueling: bool = True
    """Separate streams for state value and advantages (Wang et al. 2016)."""
    noisy: bool = True
    """Factorised Gaussian noise in the layers after the embedding (Fortunato et al. 2018)."""


class PolicyConfig(Section):
    """How agents share what they learn."""

    sharing: Literal["shared", "per_agent"] = "shared"
    """`shared`: one table and one policy for all agents. `per_agent`: one of each for every agent."""


class ReplayConfig(Section):
    """The memory: what it holds, and how data and training are tied together."""

    address: str = "tcp://127.0.0.1:5555"
    """Where the replay server answers, and where actors and learners ask."""
    n_frames: int = Field(5, ge=1, le=64)
    """Frames in a stack."""
    capacity_steps: int = Field(200_000, ge=2)
    """Steps that a table remembers before it overwrites the oldest."""
    min_size: int = Field(2_000, ge=1)
    """Agent steps that must have been written before the first sample is drawn."""
    samples_per_insert: float = Field(8.0, gt=0)
    """How often each agent step is drawn on average; the limiter holds back whoever runs ahead."""
    error_buffer_inserts: float = Field(2_000, gt=0)
    """How far either side may run ahead of that ratio, in agent steps."""


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

    gradient_steps: int = Field(10_000, ge=1)
    """Gradient steps in the run."""
    batch_size: int = Field(256, ge=1, le=65_536)
    """Transitions in a batch."""
    n_step: int = Field(3, ge=1, le=64)
    """Rewards summed before bootstrapping."""
    discount: float = Field(0.99, ge=0, le=1)
    """γ: the discount per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Adam's step size at the start."""
    quantiles: int = Field(12, ge=1, le=256)
    """Quantile fractions drawn for each state, on both sides of the loss."""
    tau: float = Field(0.005, gt=0, le=1)
    """Share of the online weights in the one soft target update of a gradient step."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads that torch computes with."""
    publish_period_steps: int = Field(20, ge=1)
    """Gradient steps between two publications of the weights."""
    checkpoint_period_steps: int = Field(1_000, ge=1)
    """Gradient steps between two checkpoints."""


class WeightsConfig(Section):
    """The channel on which learners publish weights."""

    address: str = "tcp://127.0.0.1:5556"
    """Where the learner publishes, and where actors subscribe."""


class RunConfig(Section):
    """Everything that a run is made of."""

    name: Name = "treasurehunt"
    """Name of the run; its files are in runs/<name>."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of every random number in the run."""
    environment: EnvironmentConfig = Field(default_factory=TreasureHuntConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    replay: ReplayConfig = Field(default_factory=ReplayConfig)
    actor: ActorConfig = Field(default_factory=ActorConfig)
    learner: LearnerConfig = Field(default_factory=LearnerConfig)
    weights: WeightsConfig = Field(default_factory=WeightsConfig)
