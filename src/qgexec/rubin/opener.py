"""What a process is sent that is to open a bench of a real run; imports no lsst before it does.

Whoever has quanta executed elsewhere, as a batch job in its worker, need not import the stack itself: that
takes seconds, and ten times the memory.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, get_type_hints

from qgexec.config.logoptions import LogOptions
from qgexec.config.runoptions import RunOptions
from qgexec.errors import UsageError
from qgexec.foreign import no_exit
from qgexec.quantum import SegmentRef
from qgexec.storedvalues import UNFIT, check_types

if TYPE_CHECKING:
    from lsst.pipe.base.quantum_graph_executor import QuantumExecutor

    from qgexec.rubin.jobbench import JobBench
    from qgexec.rubin.workbench import ExecutorBench, Workbench

__all__ = [
    "Books",
    "ExecutorBenchOpener",
    "ImportedExecutor",
    "JobBenchOpener",
    "WorkbenchOpener",
    "WorkbenchOptions",
]


@dataclass(frozen=True, slots=True)
class Books:
    """Where a bench of a run writes its books; the same for all benches of one driver."""

    segments: str
    """Folder of the segments."""

    epoch: int
    """Number of the journal's writer that this bench works for."""

    logs: str
    """Folder of the logs: ``<segment name>.log`` holds that of the current attempt, and may be missing
    after it; ``<index>.<attempt>.log`` (`qgexec.books.rundir.RunDir.attempt_log`) that of one that failed."""

    log_level: str | None = "INFO"
    """Level of the stack's loggers while the bench is open; `None` leaves logging to the caller."""

    logging: LogOptions | None = None
    """What is logged, and where, instead."""

    syncs_segments: bool = False
    """Details are on the disk, and not only with the kernel, before anybody is told of them."""

    debugger: str | None = None
    """Module whose ``post_mortem`` is called where a quantum fails, in a process with a terminal."""


@dataclass(frozen=True, slots=True)
class WorkbenchOptions:
    """How quanta are executed; names and meanings are those of upstream's `SingleQuantumExecutor`."""

    run_is_new: bool = True
    """The output RUN did not exist before the run, whichever driver of it this is: a first attempt
    looks for no outputs, `skip_existing` and `clobber_outputs` mean nothing."""

    run_began_at: float = math.inf
    """When the run began, UNIX seconds. In a RUN that existed before, what was written since then was left by
    earlier attempts of this run: an attempt that is not the first removes it whatever the next two
    say, which are about what is older. By default nothing was."""

    clears_first: bool = False
    """A first attempt, too, removes what was left since then: there may have been one before it."""

    skip_existing: bool = False
    """Do not execute quanta whose metadata exists."""

    clobber_outputs: bool = False
    """Remove outputs that are in the way."""

    raise_on_partial_outputs: bool = True
    """A task that reports partial outputs has failed, rather than succeeded with a caveat."""

    implicit_threads: bool = False
    """Leave numerical libraries their own threads."""

    lsst_debug: bool = False
    """Import ``debug.py`` before each quantum."""

    job_metadata: Mapping[str, float] | None = None
    """What goes into the metadata of each quantum under ``job``; nothing where it is `None`."""

    @classmethod
    def of_run(
        cls, options: RunOptions, *, run_is_new: bool, run_began_at: float, clears_first: bool = False
    ) -> Self:
        """Return what a run was told."""
        return cls(
            run_is_new=run_is_new,
            run_began_at=run_began_at,
            clears_first=clears_first,
            skip_existing=options.skip_existing,
            clobber_outputs=options.clobber_outputs,
            raise_on_partial_outputs=options.raise_on_partial_outputs,
            implicit_threads=options.implicit_threads,
            lsst_debug=options.lsst_debug,
        )


@dataclass(frozen=True, slots=True)
class WorkbenchOpener:
    """Opens workbenches in the processes that it is sent to."""

    repository: str
    """Butler repository: root, configuration file or alias."""

    graph_file: str
    """Local ``.qg`` file with datastore records."""

    books: Books
    """Where to write details and logs."""

    options: WorkbenchOptions = WorkbenchOptions()
    """How to execute."""

    def __call__(self, name: str) -> Workbench:
        """Open a workbench in this process; a second or two, mostly imports.

        Raises
        ------
        qgexec.errors.GraphError
            The graph file cannot be read, or a task class not be imported.
        qgexec.errors.RepositoryError
            The datastore cannot be opened.
        qgexec.errors.RunDirError
            Details or logs cannot be written.
        """
        from qgexec.rubin.workbench import Workbench

        return Workbench(self, name)


@dataclass(frozen=True, slots=True)
class JobBenchOpener:
    """Opens the bench of a batch job, to which inputs come from other machines."""

    workbench: WorkbenchOpener
    """How to execute."""

    producers: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By index of a quantum of the job: those of its prerequisites that were executed elsewhere."""

    details: Mapping[int, SegmentRef] = field(default_factory=dict)
    """By index of each of those: where it is said what it wrote."""

    visibility_s: float = 60.0
    """Longest wait for that to be seen here, seconds."""

    strict_versions: bool = False
    """Refuse to execute with other package versions than those that the RUN says it was made with."""

    def __call__(self, name: str) -> JobBench:
        """Open a bench in this process; raises as `WorkbenchOpener` and `qgexec.rubin.jobbench.JobBench`."""
        from qgexec.rubin.jobbench import JobBench

        return JobBench(self, name)


@dataclass(frozen=True, slots=True)
class ImportedExecutor:
    """An executor of the client's own, by what a process imports and calls to make one.

    That can be written down where an object cannot: jobs of a batch system make one each, and `resume`
    needs nobody to bring it again.

    Raises
    ------
    qgexec.errors.UsageError
        The arguments cannot be written as JSON.
    """

    path: str
    """``package.module:Class``, a subclass of `lsst.pipe.base.quantum_graph_executor.QuantumExecutor` or
    a function that is annotated to return one: nothing else that a file may name is called."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments, as JSON can hold them."""

    def __post_init__(self) -> None:
        try:
            json.dumps(self.to_json(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"the arguments of the quantum executor {self.path} cannot be written as JSON: {error}",
                hint="Give numbers, text, lists and mappings of them.",
            ) from error

    def find(self) -> Any:
        """Return what makes the executor.

        Raises
        ------
        qgexec.errors.UsageError
            It cannot be imported, or makes no quantum executors.
        """
        module, _, name = self.path.partition(":")
        try:
            with no_exit():
                found = getattr(importlib.import_module(module), name)
        except Exception as error:  # a module may raise anything when it is imported
            raise UsageError(
                f"the quantum executor {self.path} cannot be imported: {error}",
                hint="Name it as package.module:Class, and have it installed wherever quanta run.",
            ) from error
        if not _makes_executors(found):
            raise UsageError(
                f"{self.path} is no quantum executor",
                hint="Name a subclass of lsst.pipe.base.quantum_graph_executor.QuantumExecutor, or a "
                "function that is annotated to return one (-> QuantumExecutor).",
            )
        return found

    def make(self) -> QuantumExecutor:
        """Return a new executor; raises as `find`, and whatever it raises itself."""
        executor: QuantumExecutor = self.find()(**self.arguments)
        return executor

    def to_json(self) -> dict[str, Any]:
        """Return its attributes by their names."""
        return {"path": self.path, "arguments": dict(self.arguments)}

    @classmethod
    def of_run(cls, options: Mapping[str, Any]) -> Self | None:
        """Return the one that ``run.json`` names among a run's options; `None` where it names none.

        Raises
        ------
        qgexec.errors.UsageError
            What it says is no executor.
        """
        named = options.get("own_executor")
        if not isinstance(named, Mapping):
            return None
        try:
            executor = cls(named["path"], named["arguments"])
            check_types(executor)
        except UNFIT as error:
            raise UsageError(
                f"the executor in the run's run.json is damaged: {error}",
                hint="Bring run.json back from a copy.",
            ) from error
        return executor


def _makes_executors(found: object) -> bool:
    """Return whether what was imported is a class of executors, or says that it returns one."""
    from lsst.pipe.base.quantum_graph_executor import QuantumExecutor

    made = found
    if inspect.isfunction(found):
        try:
            made = get_type_hints(found).get("return")
        except Exception:  # noqa: BLE001 - annotations are code that need not work
            return False
    return isinstance(made, type) and issubclass(made, QuantumExecutor)


@dataclass(frozen=True, slots=True)
class ExecutorBenchOpener:
    """Opens benches for an executor of the client's own."""

    executor: QuantumExecutor | ImportedExecutor
    """The executor itself, of which another process works with a copy of its own, sent once; or how it
    is made in each process."""

    graph_file: str
    """Local ``.qg`` file."""

    books: Books
    """Where to write details and logs."""

    implicit_threads: bool = False
    """Leave numerical libraries their own threads."""

    def __call__(self, name: str) -> ExecutorBench:
        """Open a bench in this process.

        Raises
        ------
        qgexec.errors.GraphError
            The graph file cannot be read, or a task class not be imported.
        qgexec.errors.RunDirError
            Details or logs cannot be written.
        qgexec.errors.UsageError
            The executor cannot be imported.
        """
        from qgexec.rubin.workbench import ExecutorBench

        return ExecutorBench(self, name)
