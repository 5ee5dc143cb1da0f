"""The programs in the documents, run as they stand there."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fornix.replay.client import Client

from .programs import a_server

ROOT = Path(__file__).parents[2]
NUMBERS = r"\[([^\[\]]+)\]"  # of one row of an array, as numpy prints it
LANES = 8

#: The transitions of example 1 in docs/replay.md: discount, stack and next stack by key.
EXAMPLE_1 = {0: (0.9, [0, 0, 0, 11], [0, 0, 11, 12]), 1: (0.0, [0, 0, 11, 12], [0, 11, 12, 13])}


def program(page, heading):
    """Return the first Python block of a page under a heading."""
    text = (ROOT / page).read_text()
    _, found, section = text.partition(f"# {heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    before, found, rest = section.partition("\n```python\n")
    assert found, f"{page} has no program under {heading!r}"
    assert "\n#" not in before, f"{page} has no program under {heading!r}, but under a later heading"
    return rest.partition("\n```\n")[0]


def test_try_it_prints_the_first_example():
    command = [sys.executable, "-W", "error", "-c", program("docs/replay.md", "Try it")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = iter(re.findall(NUMBERS, done.stdout))

    def arrays(count):
        return [[float(number) for number in next(rows).split()] for _ in range(count)]

    assert arrays(3) == [[0, 0, 0, 11], [0, 0, 11, 12], [0, 11, 12, 13]]
    keys, discounts = arrays(2)
    drawn = zip(keys, discounts, arrays(8), arrays(8), strict=True)
    for key, *transition in drawn:
        assert tuple(transition) == EXAMPLE_1[key]
    assert arrays(1) == [[1, 2]]
    assert next(rows).split() == ["True", "True"]
    assert arrays(2) == [[0, 0, 0, 11], [0, 0, 11, 12]]
    assert next(rows, None) is None


@pytest.mark.system
def test_the_quick_start_of_the_readme_runs(ipc_address):
    text = program("README.md", "Use it from your own agent")
    default = "tcp://127.0.0.1:5555"
    assert default in text
    names = {
        "lanes": np.arange(LANES),
        "frames": np.arange(LANES * 4, dtype=np.float32).reshape(LANES, 4),
        "action": np.arange(LANES) % 2,
        "reward": np.arange(LANES, dtype=np.float32),
        "terminated": np.full(LANES, True),  # or no start would have three steps after it
        "truncated": np.full(LANES, False),
    }
    with a_server(ipc_address):
        exec(compile(text.replace(default, ipc_address), "README.md", "exec"), names)
        with Client.connect(ipc_address) as client:
            assert client.info().tables["mine"]["inserts"] == LANES
    assert names["stacks"].shape == (LANES, 4, 4)
    batch = names["batch"]
    assert batch.stack.shape == batch.next_stack.shape == (256, 4, 4)
    lane = batch.reward.astype(int)
    assert np.array_equal(batch.stack[:, -1], names["frames"][lane])
    assert np.array_equal(batch.next_stack[:, -2:], np.repeat(names["frames"][lane, None], 2, axis=1))
    assert np.array_equal(batch.action, names["action"][lane])
    assert not batch.discount.any()
