"""Owns the snapshot: what a reader made of a journal, kept so that the next reads on from there.

It is a cache, and never trusted over the journal: one that is damaged, of another version, another
plan or another journal is as good as none, and one that cannot be written is not missed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qgexec.books.codec import JOURNAL_VERSION, decode, encode
from qgexec.books.journal import (
    DamagedLine,
    Position,
    counted_bytes_of,
    journal_file,
    last_epoch,
    read_events,
    tell_of_damage,
)
from qgexec.books.journalfile import LONGEST_LINE_BYTES
from qgexec.errors import IllegalEventError, JournalError, QgexecError
from qgexec.events import EndReason, RunStarted, StopReason
from qgexec.regularfile import open_regular
from qgexec.reports.executing import ExecutingState
from qgexec.reports.failures import Ending
from qgexec.reports.fold import Fold, FoldState
from qgexec.reports.measured import Measured
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.restorable import STATE_CODES
from qgexec.storedarrays import read_arrays
from qgexec.storedvalues import UNFIT, check_types, parse_json

__all__ = ["SNAPSHOT_VERSION", "WORTH_KEEPING", "SnapshotReader", "read_fold"]

SNAPSHOT_VERSION = 5
"""Version of the file, an ``.npz`` without objects.

1: header (JSON), states, attempts, ingested, caveats and blocked (index and value), endings (journal lines).
2: also running and started_at.
3: also cpu_s, wall_s and peak_rss_bytes of each quantum; what was wasted, by task.
4: also which of what runs is known to have begun, and which workers have.
5: also what quanta left in workers, by task.
"""

WORTH_KEEPING = 20_000
"""Lines to read, about a quarter of a second, from which on a new snapshot is written."""

_FORMAT = "qgexec-snapshot"
_BLOCK = 4096
_MEASURED = ("cpu_s", "wall_s", "peak_rss_bytes")
"""Arrays named as the attributes of `Measured`."""


class _UnfitError(Exception):
    """A snapshot that is not this journal's and plan's."""


def read_fold(journal: Path, plan: Plan, snapshot: Path, *, worth_keeping: int = WORTH_KEEPING) -> Fold:
    """Fold a journal, from where a snapshot ends if there is one that fits.

    Parameters
    ----------
    journal
        The run directory's ``journal`` folder.
    plan
        The quanta.
    snapshot
        Its file; brought up to date where enough was read, if it can be written.
    worth_keeping
        How many lines are enough.

    Raises
    ------
    qgexec.errors.JournalError
        The journal is missing, damaged, of a newer version, or another plan's.
    """
    reader = SnapshotReader(journal, plan, snapshot, worth_keeping=worth_keeping)
    reader.read_on()
    tell_of_damage(reader.damaged)
    return reader.fold


class SnapshotReader:
    """Reads a journal from where a snapshot ends, and on, as often as it is told; writes new snapshots.

    Parameters are those of `read_fold`.
    """

    def __init__(
        self, journal: Path, plan: Plan, snapshot: Path, *, worth_keeping: int = WORTH_KEEPING
    ) -> None:
        self._journal = journal
        self._plan = plan
        self._snapshot = snapshot
        self._worth_keeping = worth_keeping
        self.fold, self._positions = _read_snapshot(snapshot, journal, plan)
        """What was read up to now."""
        self.damaged: list[DamagedLine] = []
        """Lines that were passed over."""
        self._kept = _n_lines(self._positions)

    def read_on(self) -> None:
        """Read what the journal has got since; about 7 us an event.

        Raises
        ------
        qgexec.errors.JournalError
            As `read_fold`.
        """
        known = _n_lines(self._positions)
        # On network file systems a line that is being written may seem to be damaged.
        if known and (self.damaged or _counts_less(self._journal, self._positions)):
            self._begin_anew()
        try:
            self._read_on()
        except JournalError:
            if not known:
                raise
            # Before the journal is found wanting, what the snapshot says is doubted.
            self._begin_anew()
            self._read_on()
        n_lines = _n_lines(self._positions)
        # A snapshot would hide which lines are damaged.
        if n_lines - self._kept >= self._worth_keeping and not self.damaged:
            # Read-only file systems, full disks, other people's runs: the next reader takes as long as we.
            with contextlib.suppress(OSError):
                state = self.fold.state()
                header = _header(state, self._journal, self._plan, self._positions)
                _write_snapshot(self._snapshot, state, header)
                self._kept = n_lines

    def _begin_anew(self) -> None:
        self.fold, self._positions, self._kept = Fold(self._plan), {}, 0
        self.damaged.clear()

    def _read_on(self) -> None:
        try:
            for event in read_events(self._journal, self._positions, self.damaged):
                if self.damaged:
                    self.fold.expect_gaps()
                self.fold.apply(event)
        except IllegalEventError as err:
            raise JournalError(
                f"the journal in {self._journal.parent} does not fit its plan: {err.message}",
                hint="Bring journal/ and plan.npz back from the same copy.",
            ) from err


def _counts_less(journal: Path, positions: Mapping[int, Position]) -> bool:
    """Return whether more was read than counts: a later writer has taken over, and did not see all of it."""
    counted = counted_bytes_of(journal)
    return any(position.offset > counted.get(epoch, position.offset) for epoch, position in positions.items())


def _n_lines(positions: Mapping[int, Position]) -> int:
    return sum(position.lines for position in positions.values())


def _read_snapshot(snapshot: Path, journal: Path, plan: Plan) -> tuple[Fold, dict[int, Position]]:
    try:
        with open_regular(snapshot) as file:
            arrays = read_arrays(file)
        header = parse_json(arrays["header"].tobytes())
        positions = _checked_positions(header, journal, plan)
        state = _state(header, arrays)
        check_types(state)
        return Fold.restored(plan, state), positions
    except (OSError, QgexecError, _UnfitError, *UNFIT):
        return Fold(plan), {}


def _header(state: FoldState, journal: Path, plan: Plan, positions: Mapping[int, Position]) -> dict[str, Any]:
    return {
        **_identity(plan),
        "files": [
            [
                epoch,
                position.offset,
                position.lines,
                _fingerprint(journal_file(journal, epoch), position.offset),
            ]
            for epoch, position in positions.items()
        ],
        "replaced": list(state.replaced),
        "began": [[index, *told] for index, told in state.executing.began.items()],
        "workers": list(state.executing.workers),
        "last_end_at": state.executing.last_end_at,
        "sends_ahead": state.executing.sends_ahead,
        "driver": state.driver and encode(state.driver).decode("ascii"),
        "end": state.end and state.end.value,
        "stop_reason": state.stop_reason and state.stop_reason.value,
        "last_event_at": state.last_event_at,
        "closed_s": state.closed_s,
        "quantum_s": list(state.quantum_s),
        "cpu_s": list(state.cpu_s),
        "peak_rss_bytes": list(state.peak_rss_bytes),
        "wasted_cpu_s": list(state.wasted_cpu_s),
        "wasted_unmeasured_s": list(state.wasted_unmeasured_s),
    }


def _identity(plan: Plan) -> dict[str, Any]:
    """Return what must be the same for a snapshot to mean anything."""
    arrays = plan.to_arrays()
    names = ("label_codes", "quantum_ids", "successor_offsets", "successor_targets")
    return {
        "format": _FORMAT,
        "version": SNAPSHOT_VERSION,
        "journal_version": JOURNAL_VERSION,
        "states": [state.value for state in STATE_CODES],
        "plan": [len(plan), *(zlib.crc32(np.ascontiguousarray(arrays[name]).data) for name in names)],
    }


def _fingerprint(path: Path, offset: int) -> str:
    """Return a hash of a file's beginning, and of what ends at an offset.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with open_regular(path) as file:
        head = file.read(min(_BLOCK, offset))
        file.seek(max(0, offset - _BLOCK))
        tail = file.read(min(_BLOCK, offset))
    return hashlib.blake2b(head + tail, digest_size=16).hexdigest()


def _checked_positions(header: Mapping[str, Any], journal: Path, plan: Plan) -> dict[int, Position]:
    """Return how far the snapshot goes, if it is about this plan and these files."""
    if any(header[key] != value for key, value in _identity(plan).items()):
        raise _UnfitError
    files = header["files"]
    # All that it covers must come before all that it does not: later files than its last may follow.
    epochs = [epoch for epoch, *_ in files]
    if not epochs or epochs != list(range(1, len(epochs) + 1)) or len(epochs) > last_epoch(journal):
        raise _UnfitError
    positions = {}
    counted = counted_bytes_of(journal)
    for epoch, offset, lines, fingerprint in files:
        path = journal_file(journal, epoch)
        n_bytes = counted.get(epoch, sys.maxsize)
        if not offset <= min(path.stat().st_size, n_bytes) or _fingerprint(path, offset) != fingerprint:
            raise _UnfitError
        if epoch < len(files) and _has_more_lines(path, offset, n_bytes):
            raise _UnfitError
        positions[epoch] = Position(offset, lines)
    return positions


def _has_more_lines(path: Path, offset: int, counted_bytes: int) -> bool:
    with open_regular(path) as file:
        file.seek(offset)
        line = file.readline(LONGEST_LINE_BYTES)
        return line.endswith(b"\n") and offset + len(line) <= counted_bytes


def _state(header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> FoldState:
    driver = decode(header["driver"].encode("ascii")) if header["driver"] else None
    if driver is not None and not isinstance(driver, RunStarted):
        raise _UnfitError
    lines = arrays["endings"].tobytes().splitlines(keepends=True)
    endings = [event for line in lines if isinstance(event := decode(line), Ending)]
    return FoldState(
        states=arrays["states"].tobytes(),
        attempts=arrays["attempts"],
        ingested=arrays["ingested"].tobytes(),
        caveats=dict(arrays["caveats"].tolist()),
        blocked=dict(arrays["blocked"].tolist()),
        replaced=header["replaced"],
        executing=ExecutingState(
            in_hand=dict(zip(arrays["running"].tolist(), arrays["started_at"].tolist(), strict=True)),
            began={index: (at, worker) for index, at, worker in header["began"]},
            workers=header["workers"],
            last_end_at=header["last_end_at"],
            sends_ahead=header["sends_ahead"],
        ),
        endings=endings,
        quantum_s=header["quantum_s"],
        cpu_s=header["cpu_s"],
        peak_rss_bytes=header["peak_rss_bytes"],
        wasted_cpu_s=header["wasted_cpu_s"],
        wasted_unmeasured_s=header["wasted_unmeasured_s"],
        measured=Measured(*(np.asarray(arrays[name], dtype=np.float32) for name in _MEASURED)),
        driver=driver,
        end=EndReason(header["end"]) if header["end"] else None,
        stop_reason=StopReason(header["stop_reason"]) if header["stop_reason"] else None,
        last_event_at=header["last_event_at"],
        closed_s=header["closed_s"],
    )


def _write_snapshot(snapshot: Path, state: FoldState, header: Mapping[str, Any]) -> None:
    """Write it aside and rename it: of two readers at once the last wins, and each is right."""
    in_hand = state.executing.in_hand
    arrays: dict[str, Any] = {
        "header": _bytes_array(json.dumps(header).encode("ascii")),
        "states": _bytes_array(state.states),
        "attempts": state.attempts,
        "ingested": _bytes_array(state.ingested),
        "caveats": _pairs(state.caveats),
        "blocked": _pairs(state.blocked),
        "running": np.array(list(in_hand), dtype=np.int64),
        "started_at": np.array(list(in_hand.values()), dtype=np.float64),
        **{name: getattr(state.measured, name) for name in _MEASURED},
        "endings": _bytes_array(b"".join(map(encode, state.endings))),
    }
    aside = snapshot.with_name(f".{snapshot.name}.{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        aside.unlink(missing_ok=True)  # one left by a process of the same number is of no use
        with aside.open("xb") as file:  # the folder may be anybody's: no link there is written through
            np.savez(file, **arrays)
        aside.replace(snapshot)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def _bytes_array(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def _pairs(values: Mapping[int, int]) -> npt.NDArray[np.int64]:
    return np.array(list(values.items()), dtype=np.int64).reshape(-1, 2)
