"""Which of many like cases `make test` runs, and which it leaves to `make test-thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def every(n: int, values: Iterable[Any], *, first: int = 0) -> list[Any]:
    """Return parameters of a test: `make test` runs each n-th of them, the others are marked ``thorough``.

    Parameters
    ----------
    n
        How many like cases one stands for.
    values
        What the test is given.
    first
        Position of the first one that `make test` runs.
    """
    return [
        value if position % n == first else pytest.param(value, marks=pytest.mark.thorough)
        for position, value in enumerate(values)
    ]
