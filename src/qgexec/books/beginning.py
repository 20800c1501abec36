"""How a run directory begins: as a new folder, or as what a start left that was killed; knows no registry.

Whoever prepares a run has it in hand from the first moment, by the journal's first file. A start that was
killed leaves one of two things, told apart by ``run.json``:

- without it the registry has not been touched, and all that is there is of no use;
- with it, and a preparation in it that is not done, the registry may have been: that is to be finished.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from qgexec.books.holder import check_not_held, check_silent, this_process
from qgexec.books.journal import Journal, journal_file, last_epoch, read_writer
from qgexec.books.rundir import RunDir, default_run_dir
from qgexec.books.runsettings import RunSettings
from qgexec.books.trust import check_trusted, is_trusted
from qgexec.errors import JournalError, RunHeldError

__all__ = ["Beginning", "begin", "find_place"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """A run directory that this process has in hand, and in which no run has begun."""

    run_dir: RunDir

    journal: Journal
    """This process's file of it; there is no event in it."""

    settings: RunSettings | None
    """What an earlier start, which was killed, may have done to the registry; `None` for nothing."""

    began_at: float = field(default_factory=time.time)
    """UNIX seconds."""

    def give_up(self) -> None:
        """Let go of it; what was made is taken away again, unless the registry may have been touched."""
        self.journal.withdraw()
        self.run_dir.discard()


def find_place(output_run: str, base: Path | None = None) -> Path:
    """Return where a run keeps its books by default, as `qgexec.books.rundir.default_run_dir` does.

    A folder that a start left which was killed before its run began is as good as an empty one.
    """
    return default_run_dir(output_run, base, may_take=_is_abandoned)


def _is_abandoned(path: Path) -> bool:
    run_dir = RunDir.unfinished(path)
    try:
        if run_dir is None or not is_trusted(path):
            return False
        _last_claim(run_dir)
    except (JournalError, OSError):
        return False
    return True


def begin(path: Path) -> Beginning:
    """Take a folder in hand for a new run.

    Parameters
    ----------
    path
        A new folder, an empty one, or one that a start left which was killed.

    Raises
    ------
    qgexec.errors.RunHeldError
        Another start has it in hand.
    qgexec.errors.RunDirError
        It cannot be made, or there is something in it; nothing has changed then.
    qgexec.errors.UntrustedError
        Others could have written what a killed start seems to have left there.
    """
    left = RunDir.unfinished(path)
    if left is None:
        new = RunDir.create(path)
        return Beginning(new, _claim(new, 0), None)
    check_trusted(path)
    journal = _claim(left, _last_claim(left))
    left.make_ready_again()
    settings = left.read_settings() if left.settings_file.exists() else None
    return Beginning(left, journal, settings)


def _claim(run_dir: RunDir, after: int) -> Journal:
    try:
        return Journal.create(run_dir.journal, after=after, writer=this_process())
    except RunHeldError:
        raise  # it is somebody else's now
    except JournalError:
        run_dir.discard()
        raise


def _last_claim(run_dir: RunDir) -> int:
    """Return the journal's last epoch, if its writer is gone; 0 where nobody came so far as to say who it is.

    Raises
    ------
    qgexec.errors.JournalError
        The writer lives, or may live; or the journal cannot be read.
    """
    epoch = last_epoch(run_dir.journal)
    if epoch:
        file = journal_file(run_dir.journal, epoch)
        writer, _ = read_writer(run_dir.journal, epoch)
        if writer is None:
            check_silent(file)
        else:
            check_not_held(writer, file)
    return epoch
