"""Logging where quanta are executed, without any quantum."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from qgexec.errors import RunDirError
from qgexec.rubin.quantumlog import QuantumLogRecords, StreamedLog


def test_bad_log_call_costs_its_record_only() -> None:
    """A log call whose arguments do not match its message does not raise in the task, as with pipetask."""
    records = QuantumLogRecords()
    for args in (("text",), (1,)):
        records.append(logging.LogRecord("lsst.isr", logging.INFO, __file__, 1, "number %d", args, None))
    assert [record.message for record in records] == ["number 1"]


def test_stream_is_readable_at_once_and_begins_anew(tmp_path: Path) -> None:
    """What was logged is in the file at once; a new title empties it, also where somebody has closed it."""
    path = tmp_path / "worker.log"
    path.write_text("of an earlier run\n")
    log = StreamedLog(path)
    log.restart("first")
    log.emit(logging.LogRecord("a", logging.INFO, __file__, 1, "h\udce9 %s", ("!",), None))
    lines = path.read_text().splitlines()
    assert lines[0] == "first"
    assert lines[1].endswith("Z INFO a: h\\udce9 !")
    log.restart("second")
    assert path.read_text() == "second\n"
    log.close()
    log.close()
    log.emit(logging.LogRecord("a", logging.INFO, __file__, 1, "late", (), None))
    assert path.read_text() == "second\n"
    log.restart("third")
    assert path.read_text() == "third\n"


def test_kept(tmp_path: Path) -> None:
    """A log that is kept has another name for good; what is logged before the next attempt is in no file."""
    path, kept = tmp_path / "worker.log", tmp_path / "7.1.log"
    kept.write_text("older\n")
    log = StreamedLog(path)
    log.restart("first")
    for _ in range(2):
        log.keep(kept)
        log.emit(logging.LogRecord("a", logging.INFO, __file__, 1, "between", (), None))
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"7.1.log": "first\n"}
    log.restart("second")
    log.close()
    log.keep(tmp_path / "8.1.log")
    assert (path.read_text(), kept.read_text()) == ("second\n", "first\n")
    assert not (tmp_path / "8.1.log").exists()


def test_cannot_be_kept(tmp_path: Path) -> None:
    """A log that cannot be renamed is an error, and goes on under its own name."""
    log = StreamedLog(tmp_path / "worker.log")
    log.restart("first")
    with pytest.raises(RunDirError, match=r"7\.1\.log"):
        log.keep(tmp_path / "none" / "7.1.log")
    assert (tmp_path / "worker.log").read_text() == "first\n"
    log.close()
