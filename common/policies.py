"""Which agents share a policy, by the run's configuration: one policy, one table, one weights topic."""

from dataclasses import dataclass

from fornix.common.config import EnvironmentConfig, RunConfig, TreasureHuntConfig

SHARED = "shared"


@dataclass(frozen=True)
class PolicyGroup:
    """Agents that share one policy. Its table and its weights topic have the policy's name."""

    policy: str
    agents: tuple[int, ...]
    """Their places among the agents of a copy."""


def agent_names(environment: EnvironmentConfig) -> tuple[str, ...]:
    """Return the names of the agents in one copy of an environment."""
    agents = environment.agents if isinstance(environment, TreasureHuntConfig) else 1
    return tuple(f"agent_{i}" for i in range(agents))


def policy_groups(config: RunConfig) -> tuple[PolicyGroup, ...]:
    """Return the policies of a run, and who acts by each."""
    names = agent_names(config.environment)
    if config.policy.sharing == "shared":
        return (PolicyGroup(SHARED, tuple(range(len(names)))),)
    return tuple(PolicyGroup(name, (i,)) for i, name in enumerate(names))
