"""Meter: what an attempt took, and what the kernel cannot tell."""

from __future__ import annotations

from pathlib import Path

from qgexec.rubin.meter import Meter


def test_peak_is_unknown_where_it_cannot_be_set_back(tmp_path: Path) -> None:
    """Where the mark cannot be reset, the peak is unknown rather than that of an earlier quantum."""
    (tmp_path / "status").write_text("VmHWM: 12 kB\n")
    meter = Meter(tmp_path / "missing")
    assert meter.read().peak_rss_bytes is None
    (tmp_path / "clear_refs").touch()
    meter = Meter(tmp_path)
    assert meter.read().peak_rss_bytes == 12 * 1024


def test_usage_is_that_since_the_start() -> None:
    """CPU time is counted from the start, not from that of the process."""
    meter = Meter()
    sum(range(2_000_000))
    first = meter.read()
    meter.start()
    second = meter.read()
    assert second.cpu_s <= first.cpu_s
    assert first.started_at <= first.ended_at <= second.started_at
