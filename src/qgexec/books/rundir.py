"""Owns the run directory: what lies where in it, its settings and plan on disk; knows nothing of what runs.

    run.json            what the run is; before the registry is touched it says what is to be done there
    plan.npz            the plan's arrays
    graph.qg            the graph: the run's own copy, which nobody else writes to
    journal/            the events: a file for each writer
    snapshot.npz        what readers made of them; may be missing, and may be removed at any time
    segments/           tracebacks, outputs and datastore records: a file for each process
    logs/               what workers printed, and the logs and stacks of attempts that ended badly
    batch/              what was submitted to batch systems: a folder for each round

``run.json`` and ``plan.npz`` are written aside, forced to the disk and renamed: each is there whole or not at
all. Everything is made with the user's umask, but never so that everybody could write to it: who goes on with
a run trusts what is there (`qgexec.books.trust`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self, cast

import numpy as np

from qgexec.books.linefile import file_error, sync_folder
from qgexec.books.runsettings import RUN_FORMAT, RUN_VERSION, RunSettings, user_name
from qgexec.books.trust import check_trusted
from qgexec.errors import GraphError, RunDirError
from qgexec.regularfile import open_regular, read_regular
from qgexec.scheduling.plan import Plan
from qgexec.storedarrays import read_arrays
from qgexec.storedvalues import UNFIT, parse_json

__all__ = [
    "RunDir",
    "default_run_dir",
    "folder_name",
    "reopen",
    "write_aside",
]

_BEFORE_SETTINGS = ("plan.npz", "graph.qg", "butler.yaml", "batch")
"""What may be there before ``run.json`` is; the last is that of a rehearsed submission."""

_HEADER_BYTES = 65536
"""Longest first line of a journal's file."""

_ASIDE = (".run.json.*.tmp", ".plan.npz.*.tmp", ".*-graph.qg", ".again-*")
"""What is left of one of them whose writer was killed."""


class RunDir:
    """One run's folder; made by `create` or `open`.

    Parameters
    ----------
    path
        The folder, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._made: list[Path] = []

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a run directory: a new folder, with those above it, or an empty one.

        Until `write_settings` it is unfinished: `open` refuses it, `discard` takes it away again, and if
        nobody is left to do that, `unfinished` finds it.

        Raises
        ------
        qgexec.errors.RunDirError
            There is something in the folder, or it cannot be made; nothing has changed then.
        """
        run_dir = cls(Path(path).absolute())
        path = run_dir.path
        try:
            if _exists(path) and any(path.iterdir()):
                raise _taken(path)
            for folder in (*reversed(path.parents), path):
                if not _exists(folder):
                    folder.mkdir(exist_ok=True)
                    run_dir._made.append(folder)
            for folder in (run_dir.journal, run_dir.segments, run_dir.logs):
                folder.mkdir()
                run_dir._made.append(folder)
            for folder in (*run_dir._made, path):
                _close_to_others(folder)
        except FileExistsError as err:  # of two who came at the same time, the other was first
            raise _taken(path) from err
        except OSError as err:
            run_dir._take_back()
            raise file_error("make the run directory", path, err, RunDirError) from err
        return run_dir

    @classmethod
    def unfinished(cls, path: Path) -> Self | None:
        """Return what a start left that was cut off as it prepared the run; `None` where there is no such.

        There is nothing in the folder worth keeping. Whether that start still lives is not asked.
        """
        run_dir = cls(Path(path).absolute())
        if not run_dir.journal.is_dir():
            return None
        if _exists(run_dir.settings_file):
            try:
                return run_dir if run_dir.read_settings().preparation is not None else None
            except RunDirError:
                return None
        ours = {*run_dir._remains(), run_dir.journal, run_dir.segments, run_dir.logs}
        if not ours.issuperset(run_dir.path.iterdir()) or run_dir._has_books():
            return None
        run_dir._made = [run_dir.path, run_dir.journal, run_dir.segments, run_dir.logs]
        return run_dir

    def _remains(self) -> list[Path]:
        """Return the files that a start may have left before there was a ``run.json``, and parts of them."""
        whole = [path for name in _BEFORE_SETTINGS if _exists(path := self.path / name)]
        return [*whole, *(path for pattern in _ASIDE for path in self.path.glob(pattern))]

    def _has_books(self) -> bool:
        """Tell whether a run has begun here, whose ``run.json`` was lost; or others use these names."""
        for folder in (self.segments, self.logs):
            if _exists(folder) and any(folder.iterdir()):
                return True
        return any(_has_second_line(path) for path in self.journal.iterdir())

    def make_ready_again(self) -> None:
        """Clear away what a start that was killed had written in part; only for whoever has it in hand.

        Without ``run.json`` all that is there is of no use. The folders are made where they are missing.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be done.
        """
        has_settings = _exists(self.settings_file)
        try:
            for path in self._remains():
                if path.name in _BEFORE_SETTINGS and has_settings:
                    continue
                _remove(path)
            for folder in (self.segments, self.logs):
                folder.mkdir(exist_ok=True)
        except OSError as err:
            raise file_error("clear", self.path, err, RunDirError) from err

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a finished run directory.

        Raises
        ------
        qgexec.errors.RunDirError
            It does not exist, is none, was never finished, is of a newer
            version, or cannot be read.
        """
        run_dir = cls(Path(path).absolute())
        run_dir.read_settings()
        return run_dir

    @property
    def journal(self) -> Path:
        """Folder of the journal's files."""
        return self.path / "journal"

    @property
    def segments(self) -> Path:
        """Folder of the details' files."""
        return self.path / "segments"

    @property
    def logs(self) -> Path:
        """Folder of workers' output, and of the logs of attempts that were lost."""
        return self.path / "logs"

    @property
    def cancel_file(self) -> Path:
        """A file that is there while somebody wants the run ended: whoever runs it looks for it."""
        return self.path / "cancel"

    @property
    def batch(self) -> Path:
        """Folder of what was submitted to batch systems; there only if something was."""
        return self.path / "batch"

    @property
    def graph_file(self) -> Path:
        """The graph; runs of older versions may have left it where it was given."""
        return self.path / "graph.qg"

    @property
    def plan_file(self) -> Path:
        """The plan's arrays."""
        return self.path / "plan.npz"

    @property
    def snapshot_file(self) -> Path:
        """What readers have read, so that the next need not read it again."""
        return self.path / "snapshot.npz"

    @property
    def settings_file(self) -> Path:
        """What the run is."""
        return self.path / "run.json"

    def attempt_log(self, index: int, attempt: int) -> Path:
        """Where the log of an attempt that ended badly is kept."""
        return self.logs / f"{index}.{attempt}.log"

    def attempt_stack(self, index: int, attempt: int) -> Path:
        """Where the stacks of all threads are kept, of an attempt that was ended or crashed."""
        return self.logs / f"{index}.{attempt}.stack"

    def write_settings(self, settings: RunSettings) -> None:
        """Write ``run.json``: from now on this is a run directory.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be written, or is there already; nothing has changed then.
        """
        if _exists(self.settings_file):
            raise _taken(self.path)
        for name in _BEFORE_SETTINGS:  # made by others, with the user's umask
            _close_to_others(self.path / name)
        self.rewrite_settings(settings)

    def rewrite_settings(self, settings: RunSettings) -> None:
        """Replace ``run.json``; only for whoever has the run in hand.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be written; nothing has changed then.
        """
        try:
            text = json.dumps(settings.to_json(), indent=1, allow_nan=False) + "\n"
        except (TypeError, ValueError) as err:
            raise RunDirError(f"the run's settings cannot be written as JSON: {err}") from err
        write_aside(self.settings_file, lambda file: file.write(text.encode("ascii")))

    def read_settings(self) -> RunSettings:
        """Read ``run.json``.

        Raises
        ------
        qgexec.errors.RunDirError
            As `open`.
        """
        path = self.settings_file
        try:
            values = parse_json(read_regular(path))
            if values["format"] != RUN_FORMAT:
                raise ValueError(f"its format is {values['format']!r}")
            if values["version"] > RUN_VERSION:
                raise RunDirError(
                    f"{path} is of version {values['version']}, but this qgexec reads up to {RUN_VERSION}",
                    hint=f"Use qgexec {values.get('qgexec_version', '')} or newer.",
                )
            return RunSettings.from_json(values)
        except FileNotFoundError as err:
            raise self._no_run(err) from err
        except OSError as err:
            raise file_error("read", path, err, RunDirError) from err
        except UNFIT as err:
            raise RunDirError(f"{path} is damaged: {err}", hint="Bring it back from a copy.") from err

    def _no_run(self, err: OSError) -> RunDirError:
        if not _exists(self.path):
            return RunDirError(
                f"{self.path} does not exist", hint="Name the run directory of an earlier run."
            )
        if self.journal.is_dir():
            return RunDirError(
                f"{self.path} is an unfinished run directory: its run never began, and nothing was changed",
                hint="Start the run again with the same command: it takes this folder.",
            )
        return RunDirError(
            f"{self.path} is not a run directory: {err.filename or 'run.json'} is missing",
            hint="Run directories are named when a run starts; by default they are below qgexec-runs/.",
        )

    def save_plan(self, plan: Plan) -> None:
        """Write ``plan.npz``.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be written; nothing has changed then.
        """
        arrays = plan.to_arrays()
        write_aside(self.plan_file, lambda file: np.savez(file, **cast("dict[str, Any]", arrays)))

    def load_plan(self) -> Plan:
        """Read ``plan.npz``.

        Raises
        ------
        qgexec.errors.RunDirError
            It is missing, damaged, or cannot be read.
        """
        path = self.plan_file
        try:
            with open_regular(path) as file:
                return Plan.from_arrays(read_arrays(file))
        except OSError as err:
            raise file_error("read", path, err, RunDirError) from err
        except (GraphError, *UNFIT) as err:
            raise RunDirError(
                f"{path} is damaged: {err}", hint="Bring it back from a copy, or start the run anew."
            ) from err

    def ask_to_cancel(self) -> None:
        """Leave the mark by which whoever runs anything of the run ends it.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be written.
        """
        write_aside(self.cancel_file, lambda file: file.write(f"{user_name()}\n".encode()))

    def discard(self) -> None:
        """Take away what `create` made, if the run's preparation failed; a finished run directory is kept."""
        if self._made and not _exists(self.settings_file):
            self._take_back()

    def _take_back(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._remains():
                _remove(path)
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                if self.path in folder.parents:
                    shutil.rmtree(folder)
                else:
                    folder.rmdir()


def _has_second_line(path: Path) -> bool:
    """Tell whether a journal's file says more than what it is, which its first line does."""
    with open_regular(path) as file:
        return file.readline(_HEADER_BYTES).endswith(b"\n") and bool(file.readline(1))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def reopen(run_dir: Path, *, trust_owner: bool = False) -> tuple[RunDir, RunSettings]:
    """Open a run directory to go on with its run.

    Parameters
    ----------
    run_dir
        The run directory.
    trust_owner
        Whoever could have written to it is trusted.

    Raises
    ------
    qgexec.errors.RunDirError
        It is none, or cannot be read.
    qgexec.errors.UntrustedError
        Others could have written to it.
    qgexec.errors.GraphError
        The graph that the run was started from is not there any more.
    """
    check_trusted(run_dir, trust_owner=trust_owner)
    books = RunDir.open(run_dir)
    settings = books.read_settings()
    # A run directory that was moved keeps its own files with it.
    if not Path(settings.context.graph_file).exists():
        moved = books.path / Path(settings.context.graph_file).name
        if Path(settings.context.graph_file).parent != Path(settings.context.run_dir) or not moved.exists():
            raise GraphError(
                f"the graph {settings.context.graph_file} of the run in {books.path} is not there any more",
                hint="Bring it back to that place: workers read their quanta from it.",
            )
        settings = replace(settings, context=replace(settings.context, graph_file=str(moved)))
    return books, replace(settings, context=replace(settings.context, run_dir=str(books.path)))


def default_run_dir(
    output_run: str, base: Path | None = None, *, may_take: Callable[[Path], bool] = lambda _path: False
) -> Path:
    """Return where a run that writes this RUN collection keeps its books, unless told otherwise.

    Parameters
    ----------
    output_run
        Name of the RUN collection; its parts become folders.
    base
        Folder that holds ``qgexec-runs``; by default the current one.
    may_take
        Tells whether a folder that is not empty may be taken all the same.

    Returns
    -------
    path
        ``base/qgexec-runs/<output_run>``, with ``_2``, ``_3``, ... where that is taken.

    Raises
    ------
    qgexec.errors.RunDirError
        The name is empty, absolute, or leads out of the folder.
    """
    first = (base or Path.cwd()) / "qgexec-runs" / folder_name(output_run)
    path, number = first, 1
    while _is_taken(path) and not may_take(path):
        number += 1
        path = first.with_name(f"{first.name}_{number}")
    return path


def folder_name(output_run: str) -> PurePosixPath:
    """Return what the files of a run that writes this RUN collection are called, below ``qgexec-runs``.

    Raises
    ------
    qgexec.errors.RunDirError
        The name is empty, absolute, or leads out of the folder.
    """
    name = PurePosixPath(output_run)
    if not name.parts or name.is_absolute() or ".." in name.parts or "\0" in output_run:
        raise RunDirError(
            f"the output RUN {output_run!r} cannot name a folder",
            hint="Name the run directory with --run-dir, and the file of a graph that is built with -q.",
        )
    return name


def _is_taken(path: Path) -> bool:
    try:
        return any(path.iterdir())
    except NotADirectoryError:
        return _exists(path)
    except OSError:  # not there, or not to be had: whoever makes it says why
        return False


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError:
        return False
    return True


def write_aside(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file beside its place, force it to the disk and rename it: it is there whole or not at all.

    Raises
    ------
    qgexec.errors.RunDirError
        It cannot be written; what was there before is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with aside.open("wb") as file:  # one left by a process of the same number is of no use
                _close_to_others(aside)
                write(file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
    except OSError as err:
        raise file_error("write", path, err, RunDirError) from err


def _close_to_others(path: Path) -> None:
    """Take everybody's right to write from a file or folder of this user, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        if found.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH and found.st_uid == os.geteuid():
            path.chmod(stat.S_IMODE(found.st_mode) & ~stat.S_IWOTH)


def _taken(path: Path) -> RunDirError:
    if _exists(path / "run.json"):
        return RunDirError(f"{path} holds a run already", hint="Name another folder with --run-dir.")
    return RunDirError(
        f"{path} is not empty, and holds no finished run",
        hint="Name another folder with --run-dir, or remove this one if an earlier start left it.",
    )
