"""Gymnasium's autoreset modes, without Gymnasium."""

from enum import Enum, StrEnum

from fornix.common.errors import InvalidRequestError


class Autoreset(StrEnum):
    """When a vector environment begins a new episode after one has ended."""

    NEXT_STEP = "next_step"
    """The next step resets: it ignores the action and returns the new episode's first observation."""
    SAME_STEP = "same_step"
    """The step that ends an episode resets; the last observation is in `info["final_obs"]`."""
    DISABLED = "disabled"
    """The caller resets."""

    @classmethod
    def of(cls, mode: str | Enum) -> "Autoreset":
        """Return the mode of its name, or of a member of `gymnasium.vector.AutoresetMode`.

        Raises:
            InvalidRequestError: if it is none of the three.
        """
        name = mode.name if isinstance(mode, Enum) else mode
        bare = str(name).lower().replace("_", "").replace("-", "")
        for known in cls:
            if bare == known.value.replace("_", ""):
                return known
        raise InvalidRequestError(
            f"autoreset is {mode!r:.80}; it must be 'next_step', 'same_step' or 'disabled': give "
            f"envs.metadata['autoreset_mode'], which is what the environments do"
        )
