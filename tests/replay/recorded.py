"""Episodes of random bytes under any signature, and how two of them are compared."""

import numpy as np
from hypothesis import strategies as st

from fornix.common.signature import DTYPES, ArraySpec, Signature
from fornix.replay.episodes import Episode

shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
specs = st.builds(ArraySpec, shape=shapes, dtype=st.sampled_from(sorted(DTYPES)))
names = st.text("abAB01_-", min_size=1, max_size=4)
frames = st.recursive(
    specs,
    lambda inner: (
        st.dictionaries(names, inner, min_size=1, max_size=2)
        | st.lists(inner, min_size=1, max_size=2).map(tuple)
    ),
    max_leaves=3,
)
signatures = st.builds(
    Signature,
    frame=frames,
    action=specs,
    reward=st.sampled_from([ArraySpec(dtype="<f4"), ArraySpec(dtype="<f8")]),
    extras=st.dictionaries(names | st.just("x.list.element"), specs, max_size=2),
    n_frames=st.integers(1, 4),
)


def an_array(spec, rows, rng):
    """Return random bits, [rows, *shape]: NaN of all kinds among the floats; or values in range."""
    if spec.n_values is not None:
        return rng.integers(0, spec.n_values, (rows, *spec.shape)).astype(spec.dtype)
    if spec.dtype == "|b1":
        return rng.random((rows, *spec.shape)) < 0.5
    count = rows * int(np.prod(spec.shape))
    bits = rng.bytes(count * np.dtype(spec.dtype).itemsize)
    return np.frombuffer(bits, spec.dtype).reshape(rows, *spec.shape).copy()


def an_episode(signature, rows, end="terminated", seed=0, versions=None, **changes):
    """Return an episode; `end` is terminated, truncated or open."""
    rng = np.random.default_rng([seed, rows])
    action, reward = an_array(signature.action, rows, rng), rng.normal(size=rows)
    action[0], reward[0] = 0, 0
    fields = {
        "writer": f"actor-{seed % 3}",
        "lane": seed % 5,
        "keys": 2**60 + np.sort(rng.choice(10 * rows, rows, replace=False)),
        "frame": {path: an_array(spec, rows, rng) for path, spec in signature.frames.items()},
        "action": action,
        "reward": reward.astype(signature.reward.dtype),
        "terminated": end == "terminated" and rows > 1,
        "open": end == "open",
        "policy_version": np.sort(rng.integers(0, 9, rows)) if versions is None else np.array(versions),
        "extras": {name: an_array(spec, rows, rng) for name, spec in signature.extras.items()},
    }
    return Episode(**(fields | changes))


def facts(episode):
    """Return all of an episode, with every array as its shape, dtype and bytes."""

    def fact(array):
        return array.shape, array.dtype.str, array.tobytes()

    return (
        episode.writer,
        episode.lane,
        episode.terminated,
        episode.open,
        *map(fact, (episode.keys, episode.action, episode.reward, episode.policy_version)),
        {path: fact(array) for path, array in episode.frame.items()},
        {name: fact(array) for name, array in episode.extras.items()},
    )
