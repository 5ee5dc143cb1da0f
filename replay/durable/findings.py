"""What a check has found: each in a sentence, as long as they are few."""

import numpy as np
from numpy.typing import NDArray


class Findings:
    """What is wrong with a folder.

    Args:
        most: so many are kept in words.

    Attributes:
        lines: one for each of the first findings.
        count: how many there are.
        checked: how many rows have been looked at.
    """

    def __init__(self, most: int) -> None:
        self.lines: list[str] = []
        self.count = 0
        self.checked = 0
        self._most = most

    def add(self, where: str, what: str) -> None:
        """Take down one."""
        self.count += 1
        if len(self.lines) < self._most:
            self.lines.append(f"{where}: {what}")

    def rows(self, where: str, keys: NDArray[np.int64], what: str) -> None:
        """Take down one for each row, by its key."""
        for key in keys[: max(0, self._most - len(self.lines))].tolist():
            self.lines.append(f"{where}, row {key}: {what}")
        self.count += len(keys)
