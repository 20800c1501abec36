"""Tests of `qgexec.config.units`."""

from __future__ import annotations

import math

import pytest

from qgexec.config.units import duration_text, moment_text, size_text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(None, "-"), (0, "0 MB"), (250_000_000, "250 MB"), (5_100_000_000, "5.1 GB"), (64e9, "64.0 GB")],
)
def test_memory(n_bytes: int | None, text: str) -> None:
    """In MB below a GB."""
    assert size_text(n_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (0.0321, "32 ms"),
        (0.9998, "1.0 s"),
        (59.94, "59.9 s"),
        (120.0, "2.0 min"),
        (11160.0, "3.1 h"),
    ],
)
def test_time(seconds: float, text: str) -> None:
    """In the unit that one thinks in."""
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (None, "-"),
        (1777863721.9, "2026-05-04 03:02:01 UTC"),
        (1.8e16, "-"),
        (math.nan, "-"),
        (1e300, "-"),
    ],
)
def test_moment(at: float | None, text: str) -> None:
    """A number in a damaged file need not be a date."""
    assert moment_text(at) == text
