"""Figures as Markdown tables, and the facts of the machine that a reader needs; measures nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

__all__ = ["Section", "Table", "machine_facts", "spread"]

_PACKAGES = ("qgexec", "lsst-pipe-base", "lsst-daf-butler", "lsst-ctrl-mpexec", "numpy", "sqlalchemy")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of strings."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown; all columns but the first are flush right."""
        rule = ("---", *("---:" for _ in self.header[1:]))
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.header, rule, *self.rows))


@dataclass(frozen=True, slots=True)
class Section:
    """The result of one benchmark."""

    name: str
    """Name on the command line."""
    title: str
    """What was measured, in a line."""
    tables: tuple[Table, ...]
    """For people."""
    data: Mapping[str, object]
    """For programs: everything the tables were made from."""
    notes: tuple[str, ...] = field(default=())
    """What a reader must know to judge the figures."""

    def markdown(self) -> str:
        """Return title, tables and notes as Markdown."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        parts = [f"## {self.title}", *(table.markdown() for table in self.tables), notes]
        return "\n\n".join(part for part in parts if part)


def machine_facts() -> dict[str, str]:
    """Return cores, memory, kernel, Python and package versions; nothing that names the machine."""
    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    facts = {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "memory": f"{pages * page_bytes / 2**30:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for package in _PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def spread(values: Sequence[float], unit: str = "s", digits: int = 2) -> str:
    """Return the median, and the range where there is more than one value."""
    middle = f"{median(values):.{digits}f} {unit}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"
