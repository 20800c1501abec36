"""Writes graph files beside their place and renames them: no reader meets a part, or sees it change."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lsst.pipe.base.quantum_graph import PredictedQuantumGraphComponents
from lsst.resources import ResourcePath

from qgexec.books.linefile import file_error
from qgexec.errors import GraphError, RunDirError
from qgexec.rubin.addresses import local_copy

__all__ = [
    "BuiltGraph",
    "copy_graph",
    "fetch_graph",
    "into_run_dir",
    "save_under_new_name",
    "write_graph",
]

_FICLONE = 0x40049409
"""See ioctl_ficlone(2): a copy that shares its blocks, on file systems that can do that."""


@dataclass(slots=True, eq=False)
class BuiltGraph:
    """A graph in memory that was built for one run, which writes it into its run directory."""

    components: PredictedQuantumGraphComponents | None
    """The graph; `None` once a run directory has it: a large one is not kept in memory while it runs."""

    output_run: str
    """Output RUN collection."""

    @classmethod
    def of(cls, components: PredictedQuantumGraphComponents) -> BuiltGraph:
        """Return what hands this graph to a run."""
        return cls(components, components.header.output_run)

    def take(self) -> PredictedQuantumGraphComponents:
        """Return the graph, with all that a file of it needs."""
        assert self.components is not None, "a graph that was built is executed once"
        return _completed(self.components)

    def forget(self) -> None:
        """Let go of the graph, for a run directory has it."""
        self.components = None


def _completed(components: PredictedQuantumGraphComponents) -> PredictedQuantumGraphComponents:
    if not components.thin_graph.quanta:
        # It was read from a file, perhaps in part, without what the new file needs.
        components.set_thin_graph()
        components.set_header_counts()
    return components


def write_graph(components: PredictedQuantumGraphComponents, target: Path) -> None:
    """Write a graph to a file; what was there before is replaced when all of it is written.

    Raises
    ------
    OSError
        It cannot be written; what was there before is untouched.
    """
    whole = _completed(components)
    target = target.resolve()  # not a link in place of what it leads to
    if target.exists() and not target.is_file():
        whole.write(str(target))  # a device
        return
    _write_aside(target, lambda aside: whole.write(str(aside)))


def save_under_new_name(components: PredictedQuantumGraphComponents, wanted: Path) -> Path:
    """Write a graph to a file that did not exist: with ``_2``, ``_3``, ... in its name where need be.

    Raises
    ------
    OSError
        It cannot be written.
    """
    for number in itertools.count(1):
        target = wanted if number == 1 else wanted.with_stem(f"{wanted.stem}_{number}")
        with suppress(FileExistsError):
            target.open("xb").close()
            break
    try:
        _write_aside(target, lambda aside: _completed(components).write(str(aside)))
    except BaseException:
        target.unlink()
        raise
    return target


def copy_graph(source: Path, target: Path) -> None:
    """Copy a graph file.

    Raises
    ------
    qgexec.errors.GraphError
        Somebody writes to it at this moment.
    OSError
        It cannot be copied.
    """

    def copy(aside: Path) -> None:
        with source.open("rb") as original, aside.open("wb") as new:
            before = os.fstat(original.fileno())
            try:
                fcntl.ioctl(new.fileno(), _FICLONE, original.fileno())
            except OSError:
                shutil.copyfileobj(original, new, 1 << 20)
            after = os.fstat(original.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise GraphError(
                f"graph file {source} was written to while it was copied into the run directory",
                hint="Wait until whoever writes it is done, and give the same command again.",
            )

    _write_aside(target, copy)


def fetch_graph(uri: ResourcePath, target: Path) -> None:
    """Copy a remote graph file.

    Raises
    ------
    qgexec.errors.GraphError
        There is no such file, or it cannot be reached.
    OSError
        It cannot be written.
    """
    with local_copy(uri) as copy:
        _write_aside(target, lambda aside: shutil.copyfile(copy, aside))


@contextmanager
def into_run_dir(target: Path) -> Iterator[None]:
    """Say what is wrong with the run directory where a file in it cannot be written."""
    try:
        yield
    except OSError as error:
        raise file_error("write", target, error, RunDirError) from error


def _write_aside(target: Path, write: Callable[[Path], object]) -> None:
    aside = _aside(target)
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _aside(target: Path) -> Path:
    """Return where a file is written first; run directories know this name as that of a remnant."""
    return target.with_name(f".{os.getpid()}-{target.name}")
