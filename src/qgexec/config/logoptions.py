"""Owns what is to be logged and where, by name and value, with daf_butler's meanings; logs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from qgexec.errors import UsageError

__all__ = ["LEVELS", "LogOptions"]

LEVELS = ("CRITICAL", "ERROR", "WARNING", "INFO", "VERBOSE", "DEBUG", "TRACE")
"""Levels that upstream knows, the most important first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What is logged by drivers, workers and batch jobs of a run alike."""

    levels: tuple[tuple[str | None, str], ...] = ()
    """Loggers and their levels, in the order in which they are set; `None` for upstream's own root loggers
    (``lsst``, and those that ``DAF_BUTLER_ROOT_LOGGER`` names), ``.`` for the root of all. Those that are
    not named are at INFO and at WARNING."""

    long: bool = False
    """With time, place in the source and data ID."""

    files: tuple[str, ...] = ()
    """Files to append to; as JSON, a record a line, where the name ends in ``.json``."""

    terminal: bool = True
    """Print it too."""

    labels: tuple[tuple[str, str], ...] = ()
    """Keys and values that each record in JSON gets."""

    @classmethod
    def parse(
        cls,
        levels: Iterable[str] = (),
        labels: Iterable[str] = (),
        *,
        long: bool = False,
        files: Iterable[str] = (),
        terminal: bool = True,
    ) -> Self:
        """Return what these values of options ask for.

        Parameters
        ----------
        levels
            ``LEVEL`` or ``LOGGER=LEVEL``, in upper or lower case.
        labels
            ``KEY=VALUE``.
        long, files, terminal
            See the class; files are made absolute.

        Raises
        ------
        qgexec.errors.UsageError
            There is no such level, or a label has no value.
        """
        chosen: list[tuple[str | None, str]] = []
        for text in levels:
            logger, equals, level = text.rpartition("=")
            if level.upper() not in LEVELS or (equals and not logger):
                raise UsageError(
                    f"--log-level {text!r} is neither LEVEL nor LOGGER=LEVEL.",
                    hint=f"Levels are {', '.join(LEVELS)}; for example: --log-level lsst.daf.butler=DEBUG",
                )
            chosen.append((logger if equals else None, level.upper()))
        pairs: list[tuple[str, str]] = []
        for text in labels:
            key, equals, value = text.partition("=")
            if not (key and equals):
                raise UsageError(f"--log-label {text!r} is not of the form KEY=VALUE.")
            pairs.append((key, value))
        return cls(
            levels=tuple(chosen),
            long=long,
            files=tuple(str(Path(file).absolute()) for file in files),
            terminal=terminal,
            labels=tuple(pairs),
        )

    def for_job(self, name: str) -> Self:
        """Return the same for a batch job of this name, whose files are its own.

        Several machines cannot append to one file of a network file system.
        """
        paths = [Path(file) for file in self.files]
        return replace(self, files=tuple(str(p.with_name(f"{p.stem}.{name}{p.suffix}")) for p in paths))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {
            "levels": [list(pair) for pair in self.levels],
            "long": self.long,
            "files": list(self.files),
            "terminal": self.terminal,
            "labels": [list(pair) for pair in self.labels],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` was called for."""
        return cls(
            levels=tuple((logger, level) for logger, level in values["levels"]),
            long=values["long"],
            files=tuple(values["files"]),
            terminal=values["terminal"],
            labels=tuple((key, value) for key, value in values["labels"]),
        )
