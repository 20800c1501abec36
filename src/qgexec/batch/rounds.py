"""Owns the folder of a round: what one submission to a batch system consists of, on disk.

    batch/0001/                 the round; the next submission of what is left makes 0002
        jobs.npz                its jobs; written first
        past.json               what is behind those of its quanta that have been tried before
        round.json              name, model, settings; written aside and renamed: with it the round is whole
        ticket.json             what the batch system calls it; written as soon as it is submitted
        closed                  an empty file: nothing of it is left in the batch system, all is in the books
        journals/000/000017/    the journal of job 17: a file for each try
        memory/000/000017       what memory job 17 has found to need, if more than it was given
        logs/                   what jobs printed
        ...                     the batch system's own files

A round without a ticket may have been submitted by somebody who died then: it is looked for by its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from qgexec.batch.jobs import Jobs
from qgexec.books.linefile import file_error
from qgexec.books.rundir import RunDir, write_aside
from qgexec.books.runsettings import OptionValue
from qgexec.books.trust import is_trusted
from qgexec.config.batchsettings import BatchSettings
from qgexec.errors import RunDirError
from qgexec.regularfile import open_regular, read_regular
from qgexec.storedarrays import read_arrays
from qgexec.storedvalues import UNFIT, check_types, parse_json

__all__ = ["ROUND_VERSION", "Round", "Ticket", "last_round", "round_folder", "rounds"]

ROUND_VERSION = 1
"""Version of ``round.json``. 1: the first."""

_FORMAT = "qgexec-round"

Ticket = Mapping[str, OptionValue]
"""What a batch system finds a round again by; whatever JSON can hold, no secrets."""


@dataclass(frozen=True, slots=True)
class Round:
    """One submission to a batch system."""

    folder: Path
    """``batch/0001`` and so on, absolute."""

    number: int
    """1 for the first of a run."""

    name: str
    """What it is called in the batch system, unlike any other round: letters, digits and ``-_.``."""

    model: str
    """Name of the execution model."""

    jobs: Jobs
    """What it consists of."""

    settings: BatchSettings
    """Site, queue, account, set-up, limits."""

    command: tuple[str, ...] = field(default=())
    """How to call qgexec on the machines of the batch system: program and first arguments."""

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.folder.parent.parent

    @property
    def logs(self) -> Path:
        """Folder of what jobs print."""
        return self.folder / "logs"

    @property
    def pasts(self) -> Path:
        """What is behind those of its quanta that have been tried before; see `qgexec.batch.past`."""
        return self.folder / "past.json"

    def journal(self, job: int) -> Path:
        """Folder of a job's journal; there as soon as the job has begun."""
        return self.folder / "journals" / f"{job // 1000:03d}" / f"{job:06d}"

    def memory_file(self, job: int) -> Path:
        """Where a job notes that it needs more memory than it has, for batch systems that try it again."""
        return self.folder / "memory" / f"{job // 1000:03d}" / f"{job:06d}"

    def job_command(self, job: str) -> tuple[str, ...]:
        """Return how a job is called; ``job`` is its number, or what the batch system replaces by it."""
        return (*self._call("worker"), "--job", job)

    def closing_command(self) -> tuple[str, ...]:
        """Return how the job is called that ingests and closes the books after all others."""
        return self._call("collect")

    def _call(self, verb: str) -> tuple[str, ...]:
        # Who submits has checked the run directory, or was told to trust it: jobs are told so, too.
        trust = () if is_trusted(self.run_dir) else ("--trust-owner",)
        return (*self.command, verb, str(self.run_dir), *trust, "--round", str(self.number))

    @property
    def ticket(self) -> Ticket | None:
        """What the batch system calls it; `None` where that was never written down."""
        path = self.folder / "ticket.json"
        try:
            ticket = parse_json(read_regular(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RunDirError(f"{path} cannot be read: {error}", hint="Bring it back from a copy.") from error
        if not isinstance(ticket, dict):
            raise RunDirError(f"{path} holds no ticket", hint="Bring it back from a copy.")
        return cast("Ticket", ticket)

    def write_ticket(self, ticket: Ticket) -> None:
        """Keep what the batch system calls it."""
        text = json.dumps(dict(ticket), indent=1) + "\n"
        write_aside(self.folder / "ticket.json", lambda file: file.write(text.encode("ascii")))

    @property
    def is_closed(self) -> bool:
        """Nothing of it is left in the batch system, and all that its jobs did is in the books."""
        return (self.folder / "closed").exists()

    def close(self) -> None:
        """Note that it is over; for whoever has the run in hand."""
        write_aside(self.folder / "closed", lambda _: None)

    def write(self) -> None:
        """Write the round; its folder must be there and hold no other.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be written.
        """
        arrays = cast("dict[str, Any]", self.jobs.to_arrays())
        write_aside(self.folder / "jobs.npz", lambda file: np.savez(file, **arrays))
        values = {
            "format": _FORMAT,
            "version": ROUND_VERSION,
            "name": self.name,
            "model": self.model,
            "command": list(self.command),
            "settings": self.settings.to_json(),
        }
        text = json.dumps(values, indent=1) + "\n"
        write_aside(self.folder / "round.json", lambda file: file.write(text.encode("ascii")))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a round.

        Raises
        ------
        qgexec.errors.RunDirError
            It is missing, damaged, or of a newer version.
        """
        path = folder / "round.json"
        try:
            values = parse_json(read_regular(path))
            if values["format"] != _FORMAT:
                raise ValueError(f"its format is {values['format']!r}")
            if values["version"] > ROUND_VERSION:
                raise RunDirError(
                    f"{path} is of version {values['version']}, but this qgexec reads up to {ROUND_VERSION}",
                    hint="Use a newer qgexec.",
                )
            found = cls(
                folder,
                int(folder.name),
                values["name"],
                values["model"],
                _read_jobs(folder / "jobs.npz"),
                BatchSettings.from_json(values["settings"]),
                tuple(values["command"]),
            )
            check_types(found)
            return found
        except OSError as error:
            raise file_error("read", path, error, RunDirError) from error
        except UNFIT as error:
            raise RunDirError(f"{path} is damaged: {error}", hint="Bring it back from a copy.") from error


def _read_jobs(path: Path) -> Jobs:
    try:
        with open_regular(path) as file:
            return Jobs.from_arrays(read_arrays(file))
    except OSError as error:
        raise file_error("read", path, error, RunDirError) from error
    except UNFIT as error:
        raise RunDirError(f"{path} is damaged: {error}", hint="Bring it back from a copy.") from error


def round_folder(run_dir: RunDir, number: int) -> Path:
    """Return the folder of a round, from 1."""
    return run_dir.batch / f"{number:04d}"


def rounds(run_dir: RunDir) -> list[Path]:
    """Return the folders of a run's rounds that are whole, in order."""
    return sorted(path.parent for path in run_dir.batch.glob("[0-9]*/round.json"))


def last_round(run_dir: RunDir) -> Round | None:
    """Return the last round of a run; `None` where it has none."""
    folders = rounds(run_dir)
    return Round.open(folders[-1]) if folders else None
