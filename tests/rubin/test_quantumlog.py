"""Logging where quanta are executed, without any quantum."""

from __future__ import annotations

import logging
from pathlib import Path

from qgexec.rubin.quantumlog import QuantumLogRecords, StreamedLog


def test_bad_log_call_costs_its_record_only() -> None:
    """A log call whose arguments do not match its message does not raise in the task, as with pipetask."""
    records = QuantumLogRecords()
    for args in (("text",), (1,)):
        records.append(logging.LogRecord("lsst.isr", logging.INFO, __file__, 1, "number %d", args, None))
    assert [record.message for record in records] == ["number 1"]


def test_stream_is_readable_at_once_and_begins_anew(tmp_path: Path) -> None:
    """What was logged is in the file at once; a new title empties it, and a closed one stays quiet."""
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
    log.restart("third")
    log.emit(logging.LogRecord("a", logging.INFO, __file__, 1, "late", (), None))
    assert path.read_text() == "second\n"
