"""The list of a user's runs: where each is, and what it writes; advice, which no run depends on.

    $QGEXEC_STATE, else $XDG_STATE_HOME/qgexec, else ~/.local/state/qgexec
        runs/<digest>.json      a run: written when a driver begins, or goes on with it

A file for each run needs no lock, which a home on a network would not give. A folder that is missing, full,
read-only or damaged means a shorter list, never an error. What became of a run is not written here: its run
directory says that. A run leaves the list when its run directory is gone, or many others have begun since.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from qgexec.processes.births import KERNEL
from qgexec.storedvalues import UNFIT, check_types, parse_json

__all__ = ["RunEntry", "RunList", "state_folder"]

_logger = logging.getLogger(__name__)

_FORMAT = "qgexec-listed-run"

_VERSION = 1
"""Version of an entry. 1: the first."""

_ENTRY_BYTES = 64 * 1024
"""An entry is not larger than this."""

_N_KEPT = 200
"""So many runs are listed, the newest, and those that go on."""

_UNSEEN_S = 30 * 86400.0
"""A run whose directory cannot be seen from here leaves the list when it is as old as this, seconds."""


def _boot_id() -> str:
    return (KERNEL.here() or ("", ""))[0]


def _namespaces() -> str:
    return (KERNEL.here() or ("", ""))[1]


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run on the list."""

    run_dir: str
    """Run directory; absolute, without symbolic links."""

    output_run: str
    """RUN collection that it writes."""

    repository: str = ""
    """Repository, as it was given; empty for an executor of the client's own without one."""

    registry: str = ""
    """What the repository's registry is, however the repository is spelled; empty where that is not known."""

    root: str = ""
    """The same of its datastore."""

    model: str = ""
    """Name of the execution model."""

    began_at: float = 0.0
    """When the run was made, UNIX seconds: with the run directory it names one run for good."""

    driver_began_at: float = field(default_factory=time.time)
    """When its last driver began, UNIX seconds."""

    host: str = field(default_factory=socket.gethostname)
    """Host of that driver."""

    boot_id: str = field(default_factory=_boot_id)
    """Which boot of the host that was; empty where that cannot be read."""

    pid_namespace: str = field(default_factory=_namespaces)
    """In which PID namespace it ran; empty where that cannot be read."""

    pid: int = field(default_factory=os.getpid)
    """Its process ID there."""

    written_ns: int = field(default=0, compare=False)
    """When the entry was written, by the file system's own clock, nanoseconds; 0 before."""

    def writes_the_same(self, other: RunEntry) -> bool:
        """Tell whether both write the same RUN of the same repository, by registry and datastore."""
        is_same = bool(self.registry and self.registry == other.registry)
        is_same = is_same or bool(self.root and self.root == other.root)
        return is_same and self.output_run == other.output_run

    @property
    def is_of_here(self) -> bool:
        """Whether its driver saw the same file systems and processes as this one, as far as is known."""
        here = socket.gethostname(), _namespaces()
        return (self.host, self.pid_namespace) == here

    @property
    def is_of_this_process(self) -> bool:
        """Whether its driver is, or was, this process."""
        here = (_boot_id(), os.getpid())
        return self.is_of_here and (self.boot_id, self.pid) == here

    def to_json(self) -> dict[str, Any]:
        """Return what an entry's file holds."""
        values = asdict(self)
        del values["written_ns"]
        return {"format": _FORMAT, "version": _VERSION, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], written_ns: int) -> Self:
        """Return what a file holds; raise `ValueError`, `KeyError` or `TypeError` where it is no entry."""
        if values["format"] != _FORMAT or values["version"] > _VERSION:
            raise ValueError("it is no entry, or one of a newer version")
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        entry = cls(**known | {"written_ns": written_ns})
        check_types(entry)
        return entry


def state_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return where this user's state is kept; `None` where there is no such place.

    Parameters
    ----------
    environ
        Environment variables.
    """
    if own := environ.get("QGEXEC_STATE"):
        return Path(own).absolute()
    shared = Path(environ.get("XDG_STATE_HOME", ""))
    if shared.is_absolute():  # a relative one is to be ignored: XDG Base Directory Specification
        return shared / "qgexec"
    try:
        home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    except RuntimeError:  # a container's user need not be in its password file
        return None
    return home / ".local/state/qgexec" if home.is_absolute() else None


class RunList:
    """The runs of a user; no method raises for what is wrong with its folder.

    Parameters
    ----------
    state
        The folder that `state_folder` returned.
    """

    def __init__(self, state: Path | None) -> None:
        self._folder = None if state is None else state / "runs"

    @classmethod
    def of_user(cls) -> Self:
        """Return the list of whoever runs this process."""
        return cls(state_folder())

    def add(self, entry: RunEntry) -> RunEntry:
        """Put a run on the list, in the place of what was said of it before.

        Returns
        -------
        entry
            With the time at which it was written; as it was, where it could not be.
        """
        if self._folder is None:
            return entry
        path = self._file(self._folder, entry)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                aside.write_text(json.dumps(entry.to_json(), indent=1) + "\n", encoding="ascii")
                written_ns = aside.stat().st_mtime_ns
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            _logger.debug("The run is not on the list of runs: %s", error)
            return entry
        for file, other in self._read():
            if file != path and other.run_dir == entry.run_dir:  # it held another run before
                _remove(file)
        return RunEntry.from_json(entry.to_json(), written_ns)

    def remove(self, entry: RunEntry) -> None:
        """Take a run off the list."""
        if self._folder is not None:
            _remove(self._file(self._folder, entry))

    def entries(self) -> list[RunEntry]:
        """Return the runs on the list, those whose drivers began last first."""
        return sorted((entry for _, entry in self._read()), key=lambda entry: -entry.driver_began_at)

    def prune(self, is_going_on: Callable[[RunEntry], bool]) -> None:
        """Take off the list what is gone: run directories that were removed, and the oldest of too many.

        Parameters
        ----------
        is_going_on
            Tells whether a run has a driver, or jobs; asked only of those that are too many.
        """
        left = []
        for file, entry in self._read():
            if _is_gone(entry):
                _remove(file)
            else:
                left.append((file, entry))
        left.sort(key=lambda pair: -pair[1].driver_began_at)
        for file, entry in left[_N_KEPT:]:
            if not is_going_on(entry):
                _remove(file)

    def _read(self) -> list[tuple[Path, RunEntry]]:
        """Return files and what they hold; a file that is no entry is passed over."""
        pairs = [(path, _read_entry(path)) for path in _json_files(self._folder)]
        return [(path, entry) for path, entry in pairs if entry is not None]

    @staticmethod
    def _file(folder: Path, entry: RunEntry) -> Path:
        name = f"{entry.run_dir}\0{entry.began_at!r}"
        return folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:24]}.json"


def _read_entry(path: Path) -> RunEntry | None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _ENTRY_BYTES:
            return None
        return RunEntry.from_json(parse_json(path.read_bytes()), status.st_mtime_ns)
    except (OSError, *UNFIT):
        return None


def _json_files(folder: Path | None) -> list[Path]:
    try:
        return [] if folder is None else sorted(folder.glob("[!.]*.json"))
    except (OSError, ValueError):
        return []


def _is_gone(entry: RunEntry) -> bool:
    try:
        os.lstat(entry.run_dir)
    except FileNotFoundError:
        return entry.is_of_here or time.time() - entry.driver_began_at > _UNSEEN_S
    except (OSError, ValueError):
        return False
    return False


def _remove(file: Path) -> None:
    with contextlib.suppress(OSError, ValueError):
        file.unlink(missing_ok=True)
