"""Runs a command that ends when its parent does: `python guard.py PARENT_PID COMMAND...`.

Asks the kernel for SIGKILL at the parent's death (PR_SET_PDEATHSIG, which survives exec) and then
becomes the command. Unlike a child that watches a pipe for its end, this holds for a command that hangs
or is stopped, and for any command; unlike `preexec_fn`, no Python runs between fork and exec in a parent
with threads. Only Linux has it; elsewhere the command starts without the guard.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9


def main(parent: int, command: list[str]) -> None:
    """Become `command`, unless `parent` is gone already."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    # the parent may have died before the kernel was asked
    if os.getppid() == parent:
        os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
