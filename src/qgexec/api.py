"""The Python face: `GraphExecutor`, upstream's graph executor over qgexec's loop.

It brings the parts together (graph file, registry, plan, journal, execution
model, ingester) and turns what became of the quanta into upstream's reports
and errors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lsst.daf.butler import Butler, Config
from lsst.pipe.base import ExecutionResources, QuantumGraph
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.mp_graph_executor import MPGraphExecutorError, MPTimeoutError
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor, QuantumGraphExecutor
from lsst.pipe.base.quantum_reports import Report

from qgexec.errors import QgexecError, UsageError
from qgexec.events import Event, StopReason
from qgexec.executor import Ingestion, Interrupts, Loop, NoIngestion
from qgexec.ingestion import IngestionProcess, InlineIngestion
from qgexec.journal import Journal
from qgexec.models.base import BenchOpener, ExecutionModel, Run, SimpleModel
from qgexec.models.pool import Pool
from qgexec.models.registry import Model, find_model
from qgexec.plan import Plan
from qgexec.policy import Policy
from qgexec.quantum import QuantumNode, RunContext
from qgexec.report import read_report
from qgexec.rubin import PRELOAD
from qgexec.rubin.graphfile import (
    GraphFile,
    GraphSource,
    fixup_edges,
    prepare_graph,
    read_output_run,
    read_plan,
    serial_labels,
)
from qgexec.rubin.ingest import IngesterOpener
from qgexec.rubin.preexec import Preparation, Prepared, prepare_run
from qgexec.rubin.provenance import write_provenance_graph
from qgexec.rubin.qgfile import QgFile
from qgexec.rubin.recorder import Books
from qgexec.rubin.repository import open_butler, repository_uri
from qgexec.rubin.upstream_report import make_upstream_report
from qgexec.rubin.workbench import ExecutorBenchOpener, WorkbenchOpener, WorkbenchOptions
from qgexec.rundir import RunDir, RunSettings, default_run_dir
from qgexec.scheduler import Scheduler, State

if TYPE_CHECKING:
    from lsst.resources import ResourcePathExpression

__all__ = [
    "ExecutionResources",
    "GraphExecutor",
    "Preparation",
    "QuantaFailedError",
    "QuantaTimedOutError",
]

_logger = logging.getLogger(__name__)

Observer = Callable[[Event], None]
"""Called with each event after it was recorded."""


class QuantaFailedError(QgexecError, MPGraphExecutorError):
    """Some quanta failed; the run itself went as it should."""


class QuantaTimedOutError(QuantaFailedError, MPTimeoutError):
    """Some quanta took longer than allowed, and none failed in another way."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a `GraphExecutor` was told, all checked."""

    model: str | type[Model] | Model
    processes: int
    quantum_executor: QuantumExecutor | None
    timeout_s: float | None
    policy: Policy
    fixup: ExecutionGraphFixup | None
    skip_existing: bool
    clobber_outputs: bool
    resources: ExecutionResources
    raise_on_partial_outputs: bool
    implicit_threads: bool
    log_level: str | None
    run_dir: Path | None
    prepare: Preparation
    observe: Callable[[Plan], Observer] | None
    interrupted: Callable[[int], None]

    def bench_options(self, *, run_is_new: bool) -> WorkbenchOptions:
        return WorkbenchOptions(
            run_is_new=run_is_new,
            skip_existing=self.skip_existing,
            clobber_outputs=self.clobber_outputs,
            raise_on_partial_outputs=self.raise_on_partial_outputs,
            resources=self.resources,
            implicit_threads=self.implicit_threads,
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    """A run whose books are open: all that is needed to execute it."""

    run_dir: RunDir
    context: RunContext
    graph: GraphFile
    plan: Plan
    run_is_new: bool
    serial_labels: frozenset[str]


class GraphExecutor(QuantumGraphExecutor):
    """Execute quantum graphs on any execution model.

    Drops in wherever upstream takes a graph executor, for example
    `lsst.pipe.base.separable_pipeline_executor.SeparablePipelineExecutor.run_pipeline`.

    Parameters
    ----------
    butler
        Butler repository: a path or alias, a configuration, or a butler.
        Outputs are taken into its registry while the run goes on.
    model
        Execution model: a name (see ``qgexec models``), a class or an
        instance of `qgexec.models.base.ExecutionModel`, or of a class with
        one ``execute(quanta)``.
    processes
        Worker processes of the ``pool``.
    quantum_executor
        Executes single quanta instead of upstream's `SingleQuantumExecutor`
        over a quantum-backed butler. Workers get a copy each, once. What it
        writes is its own affair: nothing is ingested.
    timeout_s
        Seconds after which a quantum is ended, on models that can do that.
    fail_fast
        Stop at the first failure.
    execution_graph_fixup
        Adds ordering to the graph.
    skip_existing
        Do not execute quanta whose metadata exists in the output RUN.
    clobber_outputs
        Remove outputs in the way of a quantum.
    resources
        What each quantum is told that it may use.
    raise_on_partial_outputs
        Count partial outputs as a failure.
    implicit_threads
        Leave numerical libraries in workers their own threads.
    log_level
        Level of the stack's loggers where quanta run in this process, which
        decides what their log datasets hold; `None` leaves logging as it is.
        In workers it is ``INFO``, as pipetask has it.
    run_dir
        Where the run keeps its books; by default ``qgexec-runs/<output RUN>``.
    prepare
        What to do to the registry before the run. By default only the output
        RUN is registered if it is missing, and dataset types are checked: as
        for upstream's executors, configurations and init-outputs have been
        written before.
    observe
        Called with the plan before the run; what it returns is called with
        every event of the run.
    interrupted
        Called from the signal handler at each Ctrl-C or SIGTERM with their
        number so far.

    Raises
    ------
    qgexec.errors.UsageError
        An argument makes no sense, or there is neither a butler nor a quantum executor.
    """

    def __init__(  # noqa: PLR0913 - the arguments of upstream's executors, all of them by keyword
        self,
        butler: Butler | Config | ResourcePathExpression | None = None,
        model: str | type[Model] | Model = "pool",
        *,
        processes: int | None = None,
        quantum_executor: QuantumExecutor | None = None,
        timeout_s: float | None = None,
        fail_fast: bool = False,
        execution_graph_fixup: ExecutionGraphFixup | None = None,
        skip_existing: bool = False,
        clobber_outputs: bool = False,
        resources: ExecutionResources | None = None,
        raise_on_partial_outputs: bool = True,
        implicit_threads: bool = False,
        log_level: str | None = None,
        run_dir: str | Path | None = None,
        prepare: Preparation | None = None,
        observe: Callable[[Plan], Observer] | None = None,
        interrupted: Callable[[int], None] = lambda _count: None,
    ) -> None:
        if butler is None and quantum_executor is None:
            raise UsageError(
                "GraphExecutor has neither a butler nor a quantum_executor.",
                hint="Give the repository as butler=, or an executor of your own as quantum_executor=.",
            )
        if processes is not None and processes < 1:
            raise UsageError(f"processes={processes} leaves nothing to run with.", hint="Give at least 1.")
        if timeout_s is not None and timeout_s <= 0:
            raise UsageError(f"timeout_s={timeout_s} ends every quantum at once.", hint="Give more than 0.")
        self._butler = butler
        self._settings = _Settings(
            model=model,
            processes=processes or len(os.sched_getaffinity(0)),
            quantum_executor=quantum_executor,
            timeout_s=timeout_s,
            policy=Policy(fail_fast=fail_fast),
            fixup=execution_graph_fixup,
            skip_existing=skip_existing,
            clobber_outputs=clobber_outputs,
            resources=resources or ExecutionResources(),
            raise_on_partial_outputs=raise_on_partial_outputs,
            implicit_threads=implicit_threads,
            log_level=log_level,
            run_dir=Path(run_dir) if run_dir is not None else None,
            prepare=prepare or Preparation(extend_run=None, init_writes=False, versions=False),
            observe=observe,
            interrupted=interrupted,
        )
        self.run_dir: Path | None = None
        """Where the last run keeps its books; `None` before `execute`."""
        self._report: Callable[[], Report] | None = None

    def execute(
        self,
        graph: QuantumGraph | PredictedQuantumGraph | str | Path,
        *,
        provenance_graph_file: str | None = None,
    ) -> None:
        """Execute a graph.

        Parameters
        ----------
        graph
            A path of a ``.qg`` or ``.qgraph`` file, or a graph in memory.
        provenance_graph_file
            Write upstream's provenance graph to this path after the run.

        Raises
        ------
        QuantaFailedError
            Quanta failed; also upstream's `MPGraphExecutorError`.
        QuantaTimedOutError
            All failures were time-outs; also upstream's `MPTimeoutError`.
        KeyboardInterrupt
            The run was interrupted; what was done is recorded and ingested.
        qgexec.errors.QgexecError
            The graph, the repository or the model cannot be used; nothing has changed then.
        """
        if provenance_graph_file is not None and self._butler is None:
            raise UsageError(
                "A provenance graph is made from the outputs, but there is no butler to read them with.",
                hint="Give the repository as butler=.",
            )
        settings = self._settings
        model = _make_model(settings)
        opened = self._open_books(graph)
        self.run_dir = opened.run_dir.path
        if not isinstance(model, ExecutionModel):
            self._report = partial(_upstream_report, opened, Scheduler(opened.plan, policy=settings.policy))
            _hand_over(model, opened)
            return
        loop = self._make_loop(model, opened)
        self._report = partial(_upstream_report, opened, loop.scheduler)
        loop.execute()
        if provenance_graph_file is not None:
            write_provenance_graph(
                opened.context.graph_file, opened.context.repository, provenance_graph_file
            )
        _raise_if_failed(opened.run_dir, loop.scheduler)

    def getReport(self) -> Report:  # noqa: N802 - upstream's name
        """Return upstream's report of the last call to `execute`.

        Raises
        ------
        RuntimeError
            `execute` has not been called.
        """
        if self._report is None:
            raise RuntimeError("getReport() called before execute()")
        return self._report()

    def _open_books(self, graph: QuantumGraph | PredictedQuantumGraph | str | Path) -> _Opened:
        """Make run directory and registry ready; where that cannot be, no run directory stays behind."""
        run_dir = RunDir.create(self._settings.run_dir or default_run_dir(read_output_run(graph)))
        try:
            return self._prepare(graph, run_dir)
        except BaseException:
            run_dir.discard()
            raise

    def _prepare(self, graph: QuantumGraph | PredictedQuantumGraph | str | Path, run_dir: RunDir) -> _Opened:
        settings = self._settings
        repository = repository_uri(self._butler, run_dir.path) if self._butler is not None else ""
        with ExitStack() as stack:
            butler = None
            if self._butler is not None:
                given = self._butler if isinstance(self._butler, Butler) else repository
                butler = stack.enter_context(open_butler(given, writeable=True))
            graph_file = prepare_graph(graph, run_dir.path, butler)
            plan = read_plan(graph_file.path)
            if settings.fixup is not None:
                plan = plan.with_edges(fixup_edges(settings.fixup, graph_file.path))
            # Before the registry is written: where there is no room for it, nothing has changed yet.
            run_dir.save_plan(plan)
            prepared = (
                prepare_run(butler, graph_file, settings.prepare)
                if butler is not None
                else Prepared(graph_file.output_run, graph_file.output, graph_file.inputs, fresh=False)
            )
        opened = _Opened(
            run_dir=run_dir,
            context=RunContext(
                run_dir=str(run_dir.path),
                repository=repository,
                graph_file=str(graph_file.path),
                output_run=prepared.output_run,
                output=prepared.output,
                inputs=prepared.inputs,
            ),
            graph=graph_file,
            plan=plan,
            run_is_new=prepared.fresh,
            serial_labels=serial_labels(graph_file.pipeline_graph),
        )
        run_dir.write_settings(_run_settings(opened, settings))
        return opened

    def _make_loop(self, model: ExecutionModel, opened: _Opened) -> Loop:
        settings = self._settings
        journal = Journal.create(opened.run_dir.journal)
        opener, ingestion = self._make_bench(model, opened, journal.epoch)
        parallel = model.facts.parallel
        scheduler = Scheduler(
            opened.plan,
            policy=settings.policy,
            serial_labels=opened.serial_labels if parallel else (),
            timeout_s=settings.timeout_s,
        )
        if settings.timeout_s is not None and not model.facts.enforces_timeout:
            _logger.warning(
                "Execution model %s cannot end quanta: the time limit has no effect.", _name(model)
            )
        return Loop(
            scheduler=scheduler,
            model=model,
            run=Run(
                context=opened.context,
                bench_opener=opener,
                logs=opened.run_dir.logs,
                preload=PRELOAD,
                serial_labels=opened.serial_labels,
                implicit_threads=settings.implicit_threads,
            ),
            journal=journal,
            ingestion=ingestion,
            model_name=_name(model),
            n_quanta=len(opened.plan),
            observers=(settings.observe(opened.plan),) if settings.observe else (),
            interrupts=Interrupts(settings.interrupted),
        )

    def _make_bench(
        self, model: ExecutionModel, opened: _Opened, epoch: int
    ) -> tuple[BenchOpener, Ingestion]:
        settings = self._settings
        # In the caller's own process logging is the caller's.
        level = "INFO" if model.facts.parallel else settings.log_level
        books = Books(str(opened.run_dir.segments), epoch, str(opened.run_dir.logs), level)
        graph_file, context = str(opened.graph.path), opened.context
        if settings.quantum_executor is not None:
            executor = settings.quantum_executor
            return ExecutorBenchOpener(executor, graph_file, books, settings.implicit_threads), NoIngestion()
        options = settings.bench_options(run_is_new=opened.run_is_new)
        ingester = IngesterOpener(context.repository, context.output_run)
        ingestion = (
            IngestionProcess(ingester, opened.run_dir.segments, opened.run_dir.logs, preload=PRELOAD)
            if model.facts.parallel
            else InlineIngestion(ingester, opened.run_dir.segments)
        )
        return WorkbenchOpener(context.repository, graph_file, books, options), ingestion


class _HandedQuanta:
    """What a client's ``execute(quanta)`` gets."""

    def __init__(self, plan: Plan, context: RunContext) -> None:
        self._plan = plan
        self.context = context

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[QuantumNode]:
        return iter(self._plan)


def _make_model(settings: _Settings) -> Model:
    model = settings.model
    # Only the pool has a number of processes; whoever gives a class or an instance sets it up.
    return find_model(model, processes=settings.processes) if model in ("pool", Pool) else find_model(model)


def _name(model: Model) -> str:
    return type(model).__name__.lower()


def _hand_over(model: SimpleModel, opened: _Opened) -> None:
    source = GraphSource(opened.graph.path)
    try:
        model.execute(_HandedQuanta(opened.plan.with_source(source), opened.context))
    finally:
        source.close()


def _run_settings(opened: _Opened, settings: _Settings) -> RunSettings:
    model = settings.model if isinstance(settings.model, str) else getattr(settings.model, "__name__", "")
    return RunSettings(
        context=opened.context,
        model=model or type(settings.model).__name__,
        options={
            "processes": settings.processes,
            "timeout_s": settings.timeout_s,
            "fail_fast": settings.policy.fail_fast,
            "skip_existing": settings.skip_existing,
            "clobber_outputs": settings.clobber_outputs,
            "raise_on_partial_outputs": settings.raise_on_partial_outputs,
            "implicit_threads": settings.implicit_threads,
        },
        labels=tuple(opened.plan.labels),
        serial_labels=tuple(sorted(opened.serial_labels)),
    )


def _upstream_report(opened: _Opened, scheduler: Scheduler) -> Report:
    failures = {failure.index: failure for failure in read_report(opened.run_dir.path).failures}
    with QgFile(opened.graph.path) as file:
        header = file.header
    return make_upstream_report(opened.plan, map(scheduler.state, range(len(opened.plan))), failures, header)


def _raise_if_failed(run_dir: RunDir, scheduler: Scheduler) -> None:
    if scheduler.stopping is StopReason.INTERRUPTED:
        raise KeyboardInterrupt
    counts = scheduler.counts()
    if not counts[State.FAILED]:
        return
    failures = read_report(run_dir.path).failures
    first = failures[0]
    message = (
        f"{len(failures)} quanta failed and {counts[State.BLOCKED]} were blocked by them; "
        f"the first: {first} {first.exception_type or ''}: {first.message}"
    )
    timed_out = all(failure.timed_out for failure in failures)
    error = QuantaTimedOutError if timed_out else QuantaFailedError
    raise error(message, hint=f"See them all with: qgexec report {run_dir.path}")
