"""What became of quanta in several runs that recovered each other: the last word on each.

A quantum is the same in two runs if its task label and data ID are. A success in any run
counts; otherwise the last run that did something about it does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qgexec.books.holder import driver_is_alive
from qgexec.books.rundir import RunDir
from qgexec.errors import UsageError
from qgexec.events import RunStarted
from qgexec.reports.failures import TroubledQuantum
from qgexec.reports.fold import Fold, TaskReport, total_of
from qgexec.reports.measured import Measured, Spread
from qgexec.reports.report import REPORT_VERSION, RunReport, read_run
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.restorable import STATE_CODES
from qgexec.scheduling.states import State

__all__ = ["SeveralRuns", "Share", "read_several"]

_RANKS = {
    State.WAITING: 0,
    State.READY: 0,
    State.BLOCKED: 1,
    State.FAILED: 2,
    State.RUNNING: 2,
    State.SKIPPED: 3,
    State.SUCCEEDED: 4,
}
"""A later run has the last word on a quantum unless it got less far with it."""

_DONE = _RANKS[State.SKIPPED]
_SUCCEEDED = _RANKS[State.SUCCEEDED]
_RANK_OF_CODE = np.array([_RANKS[state] for state in STATE_CODES], dtype=np.int8)
_FAILED = STATE_CODES.index(State.FAILED)


@dataclass(frozen=True, slots=True)
class Share:
    """One of several runs, and what it did for the whole."""

    number: int
    """From 1, in the order in which the runs were made."""
    report: RunReport
    """Its own report, with those failures alone that are still failures in the end."""
    n_known: int
    """Quanta of it that are in an earlier one, too."""
    recovered: int
    """Quanta that succeeded in it, and had failed or been blocked in an earlier one."""


@dataclass(frozen=True, slots=True)
class SeveralRuns:
    """What became of the quanta of several runs in the end."""

    shares: tuple[Share, ...]
    """The runs, the oldest first."""
    tasks: tuple[TaskReport, ...]
    """In the order of the first run that has them; times are those of all runs together."""
    total: TaskReport
    """All tasks together."""

    @property
    def all_succeeded(self) -> bool:
        """Whether every quantum succeeded, or was found done, in one of the runs."""
        return self.total.succeeded + self.total.skipped == self.total.n_quanta

    def to_json(self) -> dict[str, Any]:
        """Return the report as what `json.dumps` takes.

        Returns
        -------
        report
            - ``format``, ``version`` and ``kind`` ("runs"), ``all_succeeded``;
            - ``runs``: of each ``number``, ``run_dir``, ``output_run``, ``state``, ``stop_reason``,
              ``last_event_at``, ``wall_s``, ``n_known``, ``recovered``, and ``total`` (its own counts);
            - ``tasks`` and ``total``: what holds in the end;
            - ``causes``, ``failures``, ``retried``: as in the report of one run, each with the
              number of its ``run``; indices are those of its plan.
        """
        parts = [(share.number, share.report.to_json()) for share in self.shares]
        return {
            "format": "qgexec-report",
            "version": REPORT_VERSION,
            "kind": "runs",
            "all_succeeded": self.all_succeeded,
            "runs": [_share_to_json(share) for share in self.shares],
            "tasks": [asdict(task) for task in self.tasks],
            "total": asdict(self.total),
            **{
                key: [{"run": number, **item} for number, part in parts for item in part[key]]
                for key in ("causes", "failures", "retried")
            },
        }


def _share_to_json(share: Share) -> dict[str, Any]:
    report = share.report
    return {
        "number": share.number,
        "run_dir": str(report.run_dir.path),
        "output_run": report.settings.context.output_run,
        "state": report.state.value,
        "stop_reason": report.stop_reason and report.stop_reason.value,
        "last_event_at": report.last_event_at,
        "wall_s": report.wall_s,
        "n_known": share.n_known,
        "recovered": share.recovered,
        "total": asdict(report.total),
    }


def read_several(
    run_dirs: Sequence[Path], *, is_alive: Callable[[RunStarted], bool | None] = driver_is_alive
) -> SeveralRuns:
    """Read what became of the quanta of several runs.

    Parameters
    ----------
    run_dirs
        The run directories, in any order: they are taken in that in which they were made.
    is_alive
        Tells whether a driver that has not closed its books is still there.

    Raises
    ------
    qgexec.errors.RunDirError
        One is no run directory, cannot be read, or is damaged.
    qgexec.errors.UsageError
        One is named twice.

    Notes
    -----
    One run after another is read, and of each 30 bytes a quantum are kept; about 150 more where the
    graphs differ.
    """
    _require_different(run_dirs)
    made = sorted(run_dirs, key=lambda run_dir: RunDir.open(run_dir).read_settings().created_at)
    ledger = _Ledger()
    shares = []
    for number, run_dir in enumerate(made, start=1):
        report, plan, fold = read_run(run_dir, is_alive=is_alive)
        shares.append(Share(number, report, *ledger.take(number, report, plan, fold)))
        del plan, fold
    tasks = ledger.tasks([share.report for share in shares])
    return SeveralRuns(tuple(map(ledger.with_last_word, shares)), tasks, total_of(tasks))


def _require_different(run_dirs: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for run_dir in run_dirs:
        if (path := run_dir.resolve()) in seen:
            raise UsageError(f"{run_dir} is named twice.", hint="Name each run directory once.")
        seen.add(path)


class _Ledger:
    """The last word on every quantum of the runs up to now, as columns with one entry for each."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._labels: list[str] = []
        self._last: tuple[bytes, npt.NDArray[np.int64]] | None = None
        self._of_runs: dict[int, npt.NDArray[np.int64]] = {}
        self._codes = np.empty(0, dtype=np.int32)  # of the task label
        self._states = np.empty(0, dtype=np.uint8)
        self._ranks = np.empty(0, dtype=np.int8)
        self._runs = np.empty(0, dtype=np.int32)  # which has the last word
        self._recovered = np.empty(0, dtype=np.bool_)
        self._ingested = np.empty(0, dtype=np.bool_)
        self._measured = Measured.nothing(0)
        self._caveats: dict[int, tuple[str, ...]] = {}
        self._redone_cpu_s: defaultdict[str, float] = defaultdict(float)  # of successes that were repeated

    def take(self, number: int, report: RunReport, plan: Plan, fold: Fold) -> tuple[int, int]:
        """Take in a run; return how many of its quanta were known, and how many of those it recovered."""
        n_before = len(self._states)
        places = self._places_of(plan)
        n_known = int(np.count_nonzero(places < n_before))
        states = np.frombuffer(fold.scheduler.save()[0], dtype=np.uint8)
        ranks = _RANK_OF_CODE[states]
        before = self._ranks[places]
        recovered = (before > 0) & (before < _DONE) & (ranks >= _DONE)
        self._recovered[places[recovered]] = True
        self._note(number, places, states, ranks, fold)
        self._of_runs[number] = places
        return n_known, int(np.count_nonzero(recovered))

    def _note(
        self,
        number: int,
        places: npt.NDArray[np.int64],
        states: npt.NDArray[np.uint8],
        ranks: npt.NDArray[np.int8],
        fold: Fold,
    ) -> None:
        counts = ranks >= self._ranks[places]
        kept = places[counts]
        measured, ours = fold.measured(), self._measured
        again = kept[(self._ranks[kept] == _SUCCEEDED) & (ranks[counts] == _SUCCEEDED)]
        for place in again.tolist():
            self._redone_cpu_s[self._labels[self._codes[place]]] += float(ours.cpu_s[place])
        self._states[kept], self._ranks[kept], self._runs[kept] = states[counts], ranks[counts], number
        self._ingested[kept] = fold.ingested()[counts]
        ours.cpu_s[kept], ours.wall_s[kept] = measured.cpu_s[counts], measured.wall_s[counts]
        ours.peak_rss_bytes[places] = np.fmax(ours.peak_rss_bytes[places], measured.peak_rss_bytes)
        caveats = {int(places[index]): names for index, names in fold.caveats().items() if counts[index]}
        for place in self._caveats.keys() & set(kept.tolist()):
            del self._caveats[place]
        self._caveats |= caveats

    def _places_of(self, plan: Plan) -> npt.NDArray[np.int64]:
        """Return where the quanta of a plan are in the columns, which grow by those that are new."""
        ids = plan.to_arrays()["quantum_ids"].tobytes()
        if self._last is not None and self._last[0] == ids:  # the same graph
            return self._last[1]
        known = self._places
        places = np.fromiter(
            (known.setdefault(key, len(known)) for key in plan.quantum_keys()),
            dtype=np.int64,
            count=len(plan),
        )
        self._grow(len(known) - len(self._states))
        self._labels += [label for label in plan.labels if label not in self._labels]
        codes = np.array([self._labels.index(label) for label in plan.labels], dtype=np.int32)
        self._codes[places] = codes[np.asarray(plan.label_codes)]
        self._last = (ids, places)
        return places

    def _grow(self, n_new: int) -> None:
        for name in ("_codes", "_states", "_ranks", "_runs", "_recovered", "_ingested"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate((column, np.zeros(n_new, dtype=column.dtype))))
        old, new = self._measured, Measured.nothing(n_new)
        self._measured = Measured(
            *(
                np.concatenate((getattr(old, name), getattr(new, name)))
                for name in ("cpu_s", "wall_s", "peak_rss_bytes")
            )
        )

    def tasks(self, reports: Sequence[RunReport]) -> tuple[TaskReport, ...]:
        """Count the quanta of each task as they are in the end; add up what all runs took."""
        caveats: list[Counter[str]] = [Counter() for _ in self._labels]
        for place, names in self._caveats.items():
            caveats[self._codes[place]].update(names)
        return tuple(
            self._task(
                code, label, caveats[code], [task for r in reports for task in r.tasks if task.label == label]
            )
            for code, label in enumerate(self._labels)
        )

    def _task(
        self, code: int, label: str, caveats: Counter[str], of_runs: Sequence[TaskReport]
    ) -> TaskReport:
        own = self._codes == code
        numbers = np.bincount(self._states[own], minlength=len(STATE_CODES)).tolist()
        counts = dict(zip(STATE_CODES, numbers, strict=True))
        measured = self._measured
        together = total_of(of_runs)
        # What had succeeded, and was done again, is wasted, too.
        redone_s = min(self._redone_cpu_s[label], together.useful_cpu_s)
        requests = [task.requested_memory_bytes for task in of_runs]
        return replace(
            together,
            label=label,
            n_quanta=int(np.count_nonzero(own)),
            succeeded=counts[State.SUCCEEDED],
            skipped=counts[State.SKIPPED],
            failed=counts[State.FAILED],
            blocked=counts[State.BLOCKED],
            running=counts[State.RUNNING],
            not_run=counts[State.WAITING] + counts[State.READY],
            recovered=int(np.count_nonzero(self._recovered[own])),
            ingested=int(np.count_nonzero(self._ingested[own])),
            retried=together.retried + together.failed - counts[State.FAILED],
            useful_cpu_s=round(together.useful_cpu_s - redone_s, 6),
            wasted_cpu_s=round(together.wasted_cpu_s + redone_s, 6),
            memory=Spread.of(measured.peak_rss_bytes[own]),
            requested_memory_bytes=requests[-1],
            wall=Spread.of(measured.wall_s[own]),
            caveats=dict(caveats),
        )

    def with_last_word(self, share: Share) -> Share:
        """Return the run with those failures alone that no other run has said anything more about."""
        places, number = self._of_runs[share.number], share.number
        still: list[TroubledQuantum] = []
        over = list(share.report.retried)
        for quantum in share.report.failures:
            place = places[quantum.index]
            is_last = self._states[place] == _FAILED and self._runs[place] == number
            (still if is_last else over).append(quantum)
        return replace(share, report=replace(share.report, failures=tuple(still), retried=_by_index(over)))


def _by_index(quanta: Sequence[TroubledQuantum]) -> tuple[TroubledQuantum, ...]:
    return tuple(sorted(quanta, key=lambda quantum: quantum.index))
