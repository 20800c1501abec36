"""How amounts of memory and time are written where people read them."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["duration_text", "moment_text", "size_text"]


def size_text(n_bytes: float | None) -> str:
    """Return an amount of memory: ``250 MB``, ``5.1 GB``; a dash where it is unknown."""
    if n_bytes is None:
        return "-"
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"


def duration_text(seconds: float | None) -> str:
    """Return a time: ``32 ms``, ``4.5 s``, ``2.0 min``, ``3.1 h``; a dash where it is unknown."""
    if seconds is None:
        return "-"
    if 0 < seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 60 else f"{hours:.1f} h"


def moment_text(at: float | None) -> str:
    """Return a moment, given in UNIX seconds: ``2026-05-04 03:02:01 UTC``; a dash if it is none."""
    if at is None:
        return "-"
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):  # of a file that is damaged
        return "-"
