"""Become a server that dies with its parent.

Usage: ``python guarded_exec.py PARENT SIGNAL UID GID PROGRAM ARGUMENT…``

A program of its own, because the same work between fork and exec (``preexec_fn``) can deadlock a
process that has threads.  On Linux the kernel sends SIGNAL when the parent is gone, even after a
SIGKILL; elsewhere the next start stops what was left (`service.embedded`).
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Take the user's rights, ask for the signal, and turn into the program."""
    parent, death_signal, uid, gid = (int(word) for word in sys.argv[1:5])
    program = sys.argv[5:]
    if uid != os.getuid():
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":  # after setuid, which clears the request
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606 - no shell is meant


if __name__ == "__main__":
    main()
