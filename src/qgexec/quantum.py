"""The words for one quantum, one attempt at it and its outcome; knows nothing of how or where quanta run.

Times are UNIX seconds (UTC) as float, as `time.time` gives them: they cross
pipes and journals a million times, and become dates only where people read.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

__all__ = [
    "Attempt",
    "DataIdValue",
    "ExceptionSummary",
    "Outcome",
    "OutcomeStatus",
    "Quanta",
    "QuantumNode",
    "QuantumSource",
    "Resources",
    "RunContext",
    "SegmentRef",
]

DataIdValue = int | str
"""Type of one value of a data ID."""


def describe(name: str, data_id: Mapping[str, DataIdValue]) -> str:
    """Return a task label, or dataset type, and data ID as one reads them: ``isr{visit: 42}``."""
    return f"{name}{{{', '.join(f'{key}: {value!r}' for key, value in data_id.items())}}}"


class QuantumSource(Protocol):
    """Reads what a `QuantumNode` does not hold from the graph file, when asked."""

    def quantum(self, quantum_id: uuid.UUID) -> Any:
        """Return the `lsst.daf.butler.Quantum` with this ID."""
        ...

    def task_node(self, task_label: str) -> Any:
        """Return the `lsst.pipe.base.pipeline_graph.TaskNode` of this label."""
        ...


@dataclass(frozen=True, slots=True)
class QuantumNode:
    """One quantum of a `Plan`: its index, and the indices that must succeed before it."""

    index: int
    """Place in the plan's topological order; greater than every prerequisite's."""

    quantum_id: uuid.UUID
    """The quantum's ID in the graph file."""

    task_label: str
    """Label of the task in the pipeline."""

    data_id: Mapping[str, DataIdValue]
    """Data ID, keyed by dimension name (required and implied dimensions)."""

    prerequisites: tuple[int, ...]
    """Indices of the quanta that must succeed before this one, ascending."""

    source: QuantumSource | None = field(default=None, repr=False, compare=False)
    """Where `quantum` and `task_node` are read from."""

    def quantum(self) -> Any:
        """Read the `lsst.daf.butler.Quantum` from the graph file (about a millisecond).

        Raises
        ------
        LookupError
            The plan was made without a graph file.
        """
        return self._source().quantum(self.quantum_id)

    @property
    def task_node(self) -> Any:
        """The `lsst.pipe.base.pipeline_graph.TaskNode` of this quantum's task."""
        return self._source().task_node(self.task_label)

    def _source(self) -> QuantumSource:
        if self.source is None:
            raise LookupError(f"quantum {self.index} ({self.task_label}) has no graph file to be read from")
        return self.source

    def __str__(self) -> str:
        return describe(self.task_label, self.data_id)


@dataclass(frozen=True, slots=True)
class RunContext:
    """Where a run reads, writes and keeps its books; all an execution model needs besides the quanta."""

    run_dir: str
    """Run directory, absolute."""

    repository: str
    """Butler repository: root, configuration file or alias; empty where the client has its own executor."""

    graph_file: str
    """The ``.qg`` file that the plan was read from, absolute path or URI."""

    output_run: str
    """Output RUN collection."""

    output: str | None = None
    """Output CHAINED collection, where there is one."""

    inputs: tuple[str, ...] = ()
    """Input collections, in search order."""


class Quanta(Protocol):
    """What a client's ``execute(quanta)`` is handed: the quanta, each after its prerequisites."""

    @property
    def context(self) -> RunContext:
        """Repository, graph file, collections and run directory."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[QuantumNode]: ...


@dataclass(frozen=True, slots=True)
class Resources:
    """What one quantum asks for, or what may be started now."""

    cores: int = 1
    """CPU cores."""

    memory_bytes: int | None = None
    """Memory; `None` where it is not limited."""

    def fits_memory(self, memory_bytes: int | None) -> bool:
        """Return whether so much memory is enough for it."""
        return memory_bytes is None or (self.memory_bytes or 0) <= memory_bytes

    def __str__(self) -> str:
        cores = f"{self.cores} core{'' if self.cores == 1 else 's'}"
        if self.memory_bytes is None:
            return cores
        return f"{cores} and {self.memory_bytes / 2**30:.3g} GiB of memory"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at one quantum, as an execution model is told to start it."""

    index: int
    """The quantum's index in the plan."""

    number: int
    """1 for the first try at this quantum."""

    quantum_id: uuid.UUID
    """The quantum's ID in the graph file."""

    task_label: str
    """Label of the task."""

    resources: Resources = Resources()
    """What this attempt may use."""

    timeout_s: float | None = None
    """Wall time after which the attempt is to be ended; `None` for no limit."""

    memory_limit_bytes: int | None = None
    """Resident memory, children included, over which the attempt is to be ended; `None` for no limit."""

    seed: int | None = None
    """What the random generators begin with, 32 bits; `None` where the worker is to draw it."""

    isolated: bool = False
    """It is executed in a process of its own."""

    keeps_processes: bool = False
    """Processes that it leaves behind are wanted: they go on until the end of the run."""


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """Where a detail too large for the journal lies: a line of a segment file beside it."""

    segment: str
    """File name below the run directory's ``segments`` folder."""

    offset: int
    """Byte offset of the line."""

    length: int
    """Length of the line in bytes, newline included."""


class OutcomeStatus(Enum):
    """How an attempt that came to its own end ended."""

    SUCCEEDED = "succeeded"
    """The task ran (or found no work): metadata and log are written."""

    SKIPPED = "skipped"
    """Not executed: an earlier attempt's metadata exists and skipping was asked for."""

    FAILED = "failed"
    """The task or the code around it raised."""


@dataclass(frozen=True, slots=True)
class ExceptionSummary:
    """An exception in two lines; its whole traceback is in the outcome's detail."""

    type: str
    """Fully qualified class name."""

    message: str
    """``str(exception)``, cut to 500 characters."""

    where: str = ""
    """``file:line function`` of the innermost frame."""

    exit_code: int | None = None
    """The exit code the exception class asks for (upstream's ``EXIT_CODE``), or `None`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt that was not lost."""

    index: int
    """The quantum's index in the plan."""

    attempt: int
    """The attempt's number, from 1."""

    status: OutcomeStatus
    """How it ended."""

    started_at: float
    """When the worker began, UNIX seconds."""

    ended_at: float
    """When the worker was done, log and metadata written, UNIX seconds."""

    cpu_s: float = 0.0
    """CPU time (user and system) of the worker process during the attempt, seconds."""

    peak_rss_bytes: int | None = None
    """Peak resident set size during the attempt, children included; `None` where the kernel cannot tell."""

    host: str = ""
    """Host name."""

    pid: int = 0
    """Process that ran it."""

    caveats: int = 0
    """Upstream's `QuantumSuccessCaveats` flags as an integer."""

    exception: ExceptionSummary | None = None
    """Set where the status is FAILED."""

    detail: SegmentRef | None = None
    """Traceback, output datasets and datastore records."""
