"""Has descriptors 0, 1 and 2 open, whatever this process was started with.

Cron, systemd and ``2>&-`` may have closed them. Whatever is opened next gets their numbers then: a journal
would hold what was meant for a terminal, and Python has `None` where its streams should be.
"""

from __future__ import annotations

import os
import sys

__all__ = ["open_standard_streams"]

_MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}


def open_standard_streams() -> None:
    """Open ``/dev/null`` where a standard stream is closed; to be called before any other file is opened."""
    for descriptor, (name, mode) in enumerate(_MODES.items()):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            stream = open(descriptor, mode, closefd=False, errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, stream)
