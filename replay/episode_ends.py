"""Where episodes of a vector of environments end: the last observations, and the next ones' first."""

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from fornix.common import trees
from fornix.common.errors import InvalidRequestError
from fornix.replay.autoreset import Autoreset
from fornix.replay.gather import Array
from fornix.replay.vector_arrays import Leaves, wide_leaves
from fornix.replay.vector_lanes import Flags, Lanes

Info = Mapping[str, Any]

_WRAP = (
    "a wrapper that changes observations must go around the single environments, not around the vector of "
    "them"
)


def begun_frames(
    mode: Autoreset, seen: Leaves, first: Leaves | None, info: Info | None, done: Flags
) -> Leaves | None:
    """Return where to find what the next episodes begin with, or None if they have not begun yet.

    Args:
        mode: of the environments.
        seen: [N, *obs] by path, as `envs.step` returned it.
        first: the same, as `envs.reset` returned it if it was called since.
        info: as `envs.step` returned it.
        done: bool [N], whether the step ended an episode.

    Raises:
        InvalidRequestError: if the environments can't be of this mode, or `first` is unlike `seen`.
    """
    if first is not None and mode is not Autoreset.DISABLED:
        raise InvalidRequestError(
            f"first is given, but in mode {mode.value!r} the environments reset themselves; leave it out"
        )
    if mode is Autoreset.SAME_STEP:
        return seen
    if info is not None and "final_obs" in info and done.any():
        raise InvalidRequestError(
            f"info has 'final_obs', so the environments reset in the same step, but autoreset is "
            f"{mode.value!r}; give VectorWriter envs.metadata['autoreset_mode']"
        )
    if first is not None and done.any():
        _check_first(first, seen)
    return first


def _check_first(first: Leaves, seen: Leaves) -> None:
    forms = [{path: (a.shape, a.dtype.str) for path, a in leaves.items()} for leaves in (first, seen)]
    if forms[0] != forms[1]:
        raise InvalidRequestError(
            f"first has the arrays {forms[0]}, the observation has {forms[1]}; give what envs.reset and "
            f"envs.step returned"
        )
    if any(np.may_share_memory(array, seen[path]) for path, array in first.items()):
        raise InvalidRequestError(
            "first and observation lie in the same memory, so the last observations are overwritten; "
            "make the environments with copy=True, or copy the observation before they are reset"
        )


def put_ends(frames: Leaves, acted: Lanes, ended: Flags, info: Info | None, seen: Leaves) -> None:
    """Put the last observations of episodes into the frames of the rows that end them.

    Args:
        frames: [A + B, *obs] by path, of which the first A are of the lanes in `acted`.
        acted: int32 [A], ascending.
        ended: bool [N], which lanes' episodes ended; they are in `acted`.
        info: as `envs.step` returned it.
        seen: [N, *obs] by path, as `envs.step` returned it.

    Raises:
        InvalidRequestError: as `final_frames` does.
    """
    if ended.any():
        lanes = np.flatnonzero(ended).astype(np.int32)
        places = np.searchsorted(acted, lanes)
        for path, array in final_frames(info, lanes, seen).items():
            frames[path][places] = array


def final_frames(info: Info | None, lanes: Lanes, observation: Leaves) -> Leaves:
    """Return the last observations of episodes that ended, as `same_step` gives them.

    Gymnasium 1.1 to 1.4 give an object array [N] of single observations, each an array, dict or tuple as
    one environment returned it, and None elsewhere; `info["_final_obs"]` says where they are. A tree of
    arrays [N, *obs], as other vector environments give, is taken too.

    Args:
        info: as `envs.step` returned it.
        lanes: int32 [E], that ended.
        observation: [N, *obs] by path, as `envs.step` returned it.

    Returns:
        [E, *obs] by path, of the observation's dtypes.

    Raises:
        InvalidRequestError: if one is missing, or unlike the observation.
    """
    final = None if info is None else info.get("final_obs")
    if info is None or final is None:
        _missing(int(lanes[0]), "there is no info['final_obs']")
    rows = len(next(iter(observation.values())))
    single = isinstance(final, np.ndarray) and final.dtype == np.object_
    masks = [np.array([one is not None for one in final])] if single else []
    masks += [np.asarray(info["_final_obs"])] if "_final_obs" in info else []
    for there in masks:
        if there.shape != (rows,):
            _missing(int(lanes[0]), f"info['final_obs'] has {len(there)} rows, and the observation {rows}")
        if not there[lanes].all():
            _missing(int(lanes[~there[lanes]][0]), "info['final_obs'] has none for it")
    ends = _singles(final, lanes) if single else _taken(final, lanes, rows)
    if ends.keys() != observation.keys():
        raise InvalidRequestError(
            f"info['final_obs'] has the arrays {sorted(ends)}, the observation has {sorted(observation)}; "
            f"{_WRAP}"
        )
    return {path: _like(path, ends[path], array) for path, array in observation.items()}


def _singles(final: Array, lanes: Lanes) -> dict[str, list[Any]]:
    """Return what single environments gave, by path; the one loop over lanes, those that ended."""
    ends: dict[str, list[Any]] = {}
    for lane in lanes:
        for path, leaf in trees.leaves(final[lane]).items():
            ends.setdefault(path, []).append(np.asarray(leaf))
    return ends


def _taken(final: Any, lanes: Lanes, rows: int) -> dict[str, list[Any]]:
    leaves = wide_leaves("info['final_obs']", final, rows)
    return {path: list(leaf[lanes]) for path, leaf in leaves.items()}


def _like(path: str, ends: list[Any], observation: Array) -> Array:
    """Return observations as one array, cast as Gymnasium casts when it puts observations together."""
    shape, dtype = observation.shape[1:], observation.dtype
    for end in ends:
        if end.shape != shape or not np.can_cast(end.dtype, dtype, "same_kind"):
            name = f"info['final_obs']{f' at {path}' if path else ''}"
            raise InvalidRequestError(
                f"{name} has shape {end.shape} and dtype {end.dtype.str}, the observation has {shape} and "
                f"{dtype.str}; {_WRAP}"
            )
    return np.stack(ends).astype(dtype)


def _missing(lane: int, what: str) -> NoReturn:
    raise InvalidRequestError(
        f"lane {lane} ended, but its last observation is missing: {what}; hand on info as envs.step "
        f"returned it, and make the environments with AutoresetMode.SAME_STEP (make_vec: vector_kwargs="
        f"{{'autoreset_mode': 'SameStep'}}), or give VectorWriter the mode that they have"
    )
