"""Refuses a run whose output RUN is written by another run that goes on, as far as the list of runs shows.

The list is that of one user (`qgexec.books.runlist`): runs of others are not seen, nor those of hosts that
have another home. Whether a run goes on is said by its run directory: by whoever decides that for `resume`,
or by jobs that a batch system has of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from qgexec.batch.rounds import last_round
from qgexec.books.holder import check_free
from qgexec.books.rundir import RunDir
from qgexec.books.runlist import RunEntry, RunList
from qgexec.errors import RunDirError, RunHeldError
from qgexec.scheduling.plan import Plan

__all__ = ["OtherRun", "goes_on", "list_run", "other_runs"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OtherRun:
    """A run that writes the same output RUN, and goes on or may."""

    entry: RunEntry

    goes_on: bool | None
    """Whether it goes on; `None` where that cannot be seen from here."""

    shares_quanta: bool
    """It has quanta of the same tasks and data IDs, or what it has is not known."""

    @property
    def stands_in_the_way(self) -> bool:
        """Whether both at once would do the same twice."""
        return bool(self.goes_on) and self.shares_quanta

    def words(self) -> str:
        """Return what is to be said of it."""
        entry, run = self.entry, f"the output RUN {self.entry.output_run!r} of this repository"
        if self.goes_on is None:
            return (
                f"{run} may be written by the run in {entry.run_dir} of {entry.host}, too: "
                "whether that one goes on cannot be seen from here"
            )
        others = "" if self.shares_quanta else "other quanta of "
        return f"the run in {entry.run_dir} (on {entry.host}) goes on, and writes {others}{run}"

    def refusal(self) -> RunHeldError:
        """Return the error that says so."""
        run_dir = self.entry.run_dir
        return RunHeldError(
            self.words(),
            hint=f"See how far it is: qgexec status {run_dir}. To end it: qgexec cancel {run_dir}\n"
            "Both at once would execute the same quanta twice: where that is meant, give --force.",
        )


def goes_on(entry: RunEntry) -> bool | None:
    """Return whether a run has a driver that lives, or jobs of a batch system; `None` where nobody knows.

    A driver on another host that has given no sign of life for minutes counts as gone.
    """
    run_dir = RunDir(Path(entry.run_dir))
    try:
        if not run_dir.journal.is_dir():
            return False if entry.is_of_here else None
        check_free(run_dir.journal, silence_is_death=True)
        batch_round = last_round(run_dir)
    except RunHeldError:
        return True
    except (RunDirError, OSError, ValueError):
        return None
    return batch_round is not None and not batch_round.is_closed


def other_runs(runs: RunList, entry: RunEntry, plan: Plan | None) -> Iterator[OtherRun]:
    """Yield the other runs on the list that write the same RUN, and go on or may.

    Parameters
    ----------
    runs
        The list.
    entry
        A run, on the list or not. Of two that begin at the same time, the one that was listed last finds
        the other.
    plan
        Its quanta; `None` for whatever there is in the RUN.
    """
    for other in runs.entries():
        is_later = entry.written_ns and other.written_ns > entry.written_ns
        if is_later or not entry.writes_the_same(other) or _is_one_place(other.run_dir, entry.run_dir):
            continue
        if other.is_of_this_process:  # which drives one run at a time: that one broke off
            continue
        if (state := goes_on(other)) is not False:
            yield OtherRun(other, state, plan is None or _shares_quanta(other, plan))


def list_run(
    runs: RunList, entry: RunEntry, plan: Plan, *, removes: str | None = None, force: bool = False
) -> None:
    """Put a run on the list, and look whether another one that goes on writes the same RUN.

    Parameters
    ----------
    runs
        The list.
    entry
        The run; its journal has this process's file already.
    plan
        Its quanta.
    removes
        RUN that it removes, or whose files, if any: nobody may write to that one either.
    force
        Only warn of others.

    Raises
    ------
    qgexec.errors.RunHeldError
        There is one, and both have quanta in common; the run is on the list no more.
    """
    listed = runs.add(entry)
    others = list(other_runs(runs, listed, plan))
    if removes is not None:
        others += other_runs(runs, replace(listed, output_run=removes), None)
    for other in others:
        if other.stands_in_the_way and not force:
            runs.remove(listed)
            raise other.refusal()
        words = other.words()
        _logger.warning("%s.", words[0].upper() + words[1:])
    runs.prune(lambda each: goes_on(each) is not False)


def _is_one_place(one: str, other: str) -> bool:
    try:
        return one == other or Path(one).samefile(other)
    except OSError:
        return False


def _shares_quanta(other: RunEntry, plan: Plan) -> bool:
    try:
        theirs = RunDir(Path(other.run_dir)).load_plan()
    except RunDirError:
        return True
    ours = set(plan.quantum_keys())
    return any(key in ours for key in theirs.quantum_keys())
