"""Owns what the service keeps of a submission: files in the submit directory, the list of a user's runs.

Below the submit directory of BPS:

    qgexec.json         what was submitted: name, operator, project, ..., and the command
    qgexec.yaml         the configuration, with all that ctrl_bps laid over it: what ``--resources`` names
    qgexec.log          what the command said
    qgexec/             the run directory

The submit directory is the identifier of the run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from qgexec.books.rundir import write_aside
from qgexec.errors import RunDirError
from qgexec.regularfile import read_regular
from qgexec.storedvalues import UNFIT, check_types, parse_json

__all__ = ["Submission", "remember", "remembered"]

_logger = logging.getLogger(f"lsst.{__name__}")  # what the --log-level of bps is about

_FORMAT, _VERSION = "qgexec-bps", 1
"""What ``qgexec.json`` says that it is. 1: the first."""

_FILE, _RUN = "qgexec.json", "qgexec"


@dataclass(frozen=True, slots=True)
class Submission:
    """A submit directory whose graph qgexec executes."""

    path: Path
    """The submit directory, absolute."""
    name: str
    """What ctrl_bps calls the run."""
    command: tuple[str, ...]
    """Arguments of `qgexec` that begin the run."""
    ends: bool
    """The command ends when the run is handed over; otherwise it stays as long as the run lasts."""
    waits: bool = False
    """``bps submit`` and ``bps restart`` wait for the command's end all the same."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Project, campaign, payload, operator and site, as in BPS's reports."""

    @property
    def identifier(self) -> str:
        """What the run is called by ``bps --id``."""
        return str(self.path)

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.path / _RUN

    @property
    def log(self) -> Path:
        """What the commands said."""
        return self.path / "qgexec.log"

    @property
    def resources(self) -> Path:
        """The configuration."""
        return self.path / "qgexec.yaml"

    def write(self) -> None:
        """Write ``qgexec.json``.

        Raises
        ------
        qgexec.errors.RunDirError
            It cannot be written.
        """
        values = asdict(self)
        del values["path"]
        text = json.dumps({"format": _FORMAT, "version": _VERSION, **values}, indent=1) + "\n"
        write_aside(self.path / _FILE, lambda file: file.write(text.encode()))

    @classmethod
    def find(cls, identifier: str | Path) -> Self:
        """Return the submission that somebody means.

        Parameters
        ----------
        identifier
            The submit directory, or the run directory in it.

        Raises
        ------
        qgexec.errors.RunDirError
            There is no submission of ours, or what is there cannot be read.
        """
        given = Path(identifier).absolute()
        path = given.parent if given.name == _RUN and not (given / _FILE).exists() else given
        file = path / _FILE
        try:
            values: dict[str, Any] = parse_json(read_regular(file))
            if values.pop("format") != _FORMAT:
                raise ValueError("it is of another format")
            if (version := values.pop("version")) > _VERSION:
                raise ValueError(f"it is of version {version}, and this qgexec reads up to {_VERSION}")
            found = cls(path, **{**values, "command": tuple(values["command"])})
            check_types(found)
            return found
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunDirError(
                f"there is no run of qgexec's in {given}",
                hint="The id of a run is its submit directory, as bps submit has printed it (Run Id).",
            ) from error
        except (OSError, *UNFIT) as error:
            raise RunDirError(f"{file} cannot be read: {error}") from error


def _list_file() -> Path:
    """Return the file with the submit directories of this user, one a line."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "qgexec" / "bps-runs"


def remember(path: Path) -> None:
    """Add a submit directory to the user's list: what ``bps report`` without an id goes through."""
    try:
        file = _list_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as lines:  # one write: lines of others are not torn
            lines.write(os.fsencode(path) + b"\n")
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        _logger.warning("bps report will find this run by its id only: %s", error)


def remembered() -> Iterator[Submission]:
    """Yield the submissions of the user's list that are still there, the newest first."""
    try:
        lines = read_regular(_list_file()).splitlines()
    except (OSError, RuntimeError):
        return
    for line in dict.fromkeys(reversed(lines)):
        try:
            yield Submission.find(os.fsdecode(line))
        except RunDirError as error:
            _logger.debug("not listed: %s", error.message)
