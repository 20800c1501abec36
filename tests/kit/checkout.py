"""Where this checkout is, and how a process of its own imports it and the tests."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
"""The root of the project."""

PYTHONPATH = os.pathsep.join(map(str, (CHECKOUT / "src", CHECKOUT)))
"""Value of the variable of that name, for processes that import `qgexec` and ``tests``."""
