"""The Python face: `GraphExecutor`, upstream's graph executor over qgexec's loop.

It brings the parts together, and turns what became of the quanta into upstream's reports and errors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lsst.daf.butler import Butler, Config
from lsst.pipe.base import ExecutionResources
from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor, QuantumGraphExecutor
from lsst.pipe.base.quantum_reports import Report

from qgexec.assembly import (
    Client,
    Observe,
    OpenRun,
    hand_over,
    make_loop,
    make_model,
    policy_of,
    require_survival,
    tell_beforehand,
)
from qgexec.books.beginning import begin, find_place
from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir, reopen
from qgexec.books.runsettings import RunSettings
from qgexec.config.logoptions import LogOptions
from qgexec.config.runconfig import RunConfig
from qgexec.config.runoptions import RunOptions
from qgexec.errors import EmptyGraphError, UsageError
from qgexec.executor import Loop
from qgexec.localpath import local_path
from qgexec.models.base import ExecutionModel
from qgexec.models.batch import BatchModel
from qgexec.models.registry import Model
from qgexec.newrun import open_new_run
from qgexec.preview import Preview, preview
from qgexec.provenance import keep_provenance
from qgexec.rehearsal import Rehearsal, rehearse
from qgexec.reports.keeper import keeping_snapshots
from qgexec.resume import take_over
from qgexec.rubin.compat import provenance_name
from qgexec.rubin.datastorecache import shared_cache
from qgexec.rubin.fixups import make_fixup
from qgexec.rubin.graphfile import AnyGraph, read_output_run
from qgexec.rubin.graphwrite import BuiltGraph
from qgexec.rubin.opener import ImportedExecutor
from qgexec.rubin.preexec import Preparation
from qgexec.rubin.provenance import write_provenance_graph
from qgexec.rubin.upstream_report import report_nothing
from qgexec.scheduling.parts import Part
from qgexec.scheduling.scheduler import Scheduler
from qgexec.standardstreams import open_standard_streams
from qgexec.verdict import QuantaFailedError, QuantaTimedOutError, ReportSource, raise_if_failed

if TYPE_CHECKING:
    from lsst.resources import ResourcePathExpression

__all__ = [
    "ExecutionResources",
    "GraphExecutor",
    "ImportedExecutor",
    "Part",
    "Preparation",
    "QuantaFailedError",
    "QuantaTimedOutError",
]


_logger = logging.getLogger(__name__)


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
        Execution model: a name (see ``qgexec models``), a class or an instance of
        `qgexec.models.base.ExecutionModel`, or of a class with one ``execute(quanta)``.
    processes
        Worker processes of the ``pool``.
    quantum_executor
        Executes single quanta instead of upstream's `SingleQuantumExecutor`
        over a quantum-backed butler. Workers get a copy each, once; jobs of a batch
        system make one each, for which it must be an `ImportedExecutor`. What it
        writes is its own affair: nothing is ingested.
    timeout_s
        Seconds after which a quantum is ended, on models that can do that.
    fail_fast
        Stop at the first failure.
    max_failures
        Stop after so many failures: a number, or ``"5%"`` of all quanta.
    retries
        How often a quantum is tried again that failed by its own fault.
    config
        Resources and retries by task, from `qgexec.config.bpsfile.read_config`; where both say
        something, ``retries``, ``timeout_s`` and ``resources`` replace what it says for all tasks.
    grace_s
        Seconds that running quanta have to finish after an interrupt; `None` for as long as they take.
    seed
        Quanta draw the same random numbers in each run with the same seed, 32 bits; `None`: never the same.
    execution_graph_fixup
        Adds ordering to the graph; or the full name of a class or function that makes such an object.
    part
        What of a graph is to be executed, if not all of it. What that needs of the rest must be there.
    skip_existing
        Do not execute quanta whose metadata exists in the output RUN.
    clobber_outputs
        Remove outputs in the way of a quantum.
    resources
        What each quantum asks for, and is told that it may use.
    raise_on_partial_outputs
        Count partial outputs as a failure.
    strict_versions
        Refuse to execute in batch jobs, or to go on later, with other package versions than those that
        the RUN says it was made with; otherwise they are named, and the run goes on.
    implicit_threads
        Leave numerical libraries in workers their own threads.
    provenance
        When the run has ended, whatever failed, take upstream's provenance graph into the output RUN, as
        dataset ``run_provenance``.
    lsst_debug
        Import ``debug.py`` before each quantum (lsstDebug).
    debugger
        Module whose ``post_mortem`` is called where a quantum fails, if quanta run in this process.
    log_level
        Level of the stack's loggers where quanta run in this process, which decides what their log datasets
        hold; `None` leaves logging as it is. In workers it is ``INFO``, as pipetask has it.
    logging
        What to log, and where, in workers and batch jobs; in this process, where quanta run in it, too.
    run_dir
        Where the run keeps its books; by default ``qgexec-runs/<output RUN>``.
    force
        Execute also where another run that goes on writes the same output RUN (and the same quanta).
    prepare
        What to do to the registry before the run. By default only the output
        RUN is registered if it is missing, and dataset types are checked: as
        for upstream's executors, configurations and init-outputs have been
        written before.
    observe
        Called before the run with the plan and, by task label, the number
        of quanta in each state; what it returns is called with every event.
    interrupted
        Called from the signal handler at each Ctrl-C or SIGTERM with their
        number so far.
    tell
        Called when somebody asked by SIGUSR1 how far the run is.

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
        quantum_executor: QuantumExecutor | ImportedExecutor | None = None,
        timeout_s: float | None = None,
        fail_fast: bool = False,
        max_failures: int | str | None = None,
        retries: int | None = None,
        config: RunConfig | None = None,
        grace_s: float | None = None,
        seed: int | None = None,
        execution_graph_fixup: ExecutionGraphFixup | str | None = None,
        part: Part | None = None,
        skip_existing: bool = False,
        clobber_outputs: bool = False,
        resources: ExecutionResources | None = None,
        raise_on_partial_outputs: bool = True,
        strict_versions: bool = False,
        implicit_threads: bool = False,
        provenance: bool = False,
        lsst_debug: bool = False,
        debugger: str | None = None,
        log_level: str | None = None,
        logging: LogOptions | None = None,
        run_dir: str | Path | None = None,
        force: bool = False,
        prepare: Preparation | None = None,
        observe: Observe | None = None,
        interrupted: Callable[[int], None] = lambda _count: None,
        tell: Callable[[], None] = lambda: None,
    ) -> None:
        open_standard_streams()
        if butler is None and quantum_executor is None:
            raise UsageError(
                "GraphExecutor has neither a butler nor a quantum_executor.",
                hint="Give the repository as butler=, or an executor of your own as quantum_executor=.",
            )
        if isinstance(quantum_executor, ImportedExecutor):
            quantum_executor.find()
        if timeout_s is not None and timeout_s <= 0:
            raise UsageError(f"timeout_s={timeout_s} ends every quantum at once.", hint="Give more than 0.")
        self._butler = butler
        self._prepare = prepare or Preparation(extend_run=None, init_writes=False, versions=False)
        self._wanted_run_dir = local_path(run_dir, "the run directory") if run_dir is not None else None
        self._options = RunOptions(
            processes=len(os.sched_getaffinity(0)) if processes is None else processes,
            fail_fast=fail_fast,
            max_failures=None if max_failures is None else str(max_failures),
            skip_existing=skip_existing,
            clobber_outputs=clobber_outputs,
            raise_on_partial_outputs=raise_on_partial_outputs,
            strict_versions=strict_versions,
            implicit_threads=implicit_threads,
            provenance=provenance,
            lsst_debug=lsst_debug,
            log_level=log_level,
            logging=logging,
            grace_s=grace_s,
            seed=seed,
            config=(config or RunConfig()).updated(
                RunConfig.for_all({"timeout_s": timeout_s, "n_retries": retries, **_requests(resources)})
            ),
        )
        _check_options(self._options, has_butler=butler is not None)
        self._client = Client(
            model=model,
            quantum_executor=quantum_executor,
            fixup=make_fixup(execution_graph_fixup),
            part=part or Part(),
            force=force,
            debugger=debugger,
            observe=observe,
            interrupted=interrupted,
            tell=tell,
        )
        self._reopened: tuple[RunDir, RunSettings] | None = None
        self.run_dir: Path | None = None
        """Where the last run keeps its books; `None` before `execute`."""
        self.has_left = False
        """The run goes on without this process: a batch system has what was left."""
        self.nothing_to_do: EmptyGraphError | None = None
        """Says so, where the last graph had no quanta: then there is no run, and no run directory."""
        self._report: Callable[[], Report] | None = None

    @classmethod
    def of_run(
        cls,
        run_dir: str | Path,
        *,
        model: str | type[Model] | Model | None = None,
        quantum_executor: QuantumExecutor | ImportedExecutor | None = None,
        config: RunConfig | None = None,
        observe: Observe | None = None,
        interrupted: Callable[[int], None] = lambda _count: None,
        tell: Callable[[], None] = lambda: None,
        trust_owner: bool = False,
        **changes: Any,
    ) -> Self:
        """Return an executor that can go on with a run: all is as it was, but for what is given here.

        Parameters
        ----------
        run_dir
            The run directory.
        model, quantum_executor, observe, interrupted, tell
            As for the class. A run with an executor object of the client's own needs it again.
        config
            What is to hold besides, or instead of, what the run was told of resources and retries.
        trust_owner
            Go on with a run whose files belong to another user, or can be written by everybody.
        **changes
            Attributes of `qgexec.config.runoptions.RunOptions`.

        Raises
        ------
        qgexec.errors.RunDirError
            It is no run directory.
        qgexec.errors.UntrustedError
            Others could have written what it says.
        qgexec.errors.UsageError
            There is no such option, or it makes no sense.
        """
        books, settings = reopen(Path(run_dir), trust_owner=trust_owner)
        quantum_executor = quantum_executor or ImportedExecutor.of_run(settings.options)
        if settings.options.get("own_executor") and quantum_executor is None:
            raise UsageError(
                f"the run in {books.path} was executed by a quantum_executor of its client's own",
                hint="Go on from Python, with GraphExecutor.of_run(run_dir, quantum_executor=...).resume().",
            )
        options = RunOptions.from_json(settings.options)
        if config is not None and config.ordering and config.ordering != options.config.ordering:
            raise UsageError(
                f"the order of the quanta of {books.path} is that with which it began",
                hint="Leave the section `ordering` out of the files, or begin another run.",
            )
        try:
            options = replace(options, **changes, config=options.config.updated(config or RunConfig()))
        except TypeError as error:
            raise UsageError(f"a run has no such option: {error}") from error
        executor = cls(
            settings.context.repository or None,
            model if model is not None else settings.model,
            quantum_executor=quantum_executor,
            observe=observe,
            interrupted=interrupted,
            tell=tell,
        )
        _check_options(options, has_butler=bool(settings.context.repository))
        executor._options, executor._reopened = options, (books, settings)
        return executor

    def resume(
        self,
        *,
        force: bool = False,
        leave: bool = False,
        provenance_graph_file: str | None = None,
    ) -> None:
        """Go on with the run that this was made from, to its end; raises as `execute` does.

        What succeeded is not executed again; what failed is. Outputs that the registry lacks are taken in.

        Parameters
        ----------
        force
            Believe that an earlier driver on another host is gone; and as for the class.
        leave
            Leave what is to be executed to a batch system and do not wait, as `submit` does.
        provenance_graph_file
            As for `execute`.

        Raises
        ------
        qgexec.errors.UsageError
            The execution model does not go on without a driver, but is to be left.
        qgexec.errors.RunHeldError
            Another driver has the run in hand, or may have; or another run writes the same output RUN.
        """
        if self._reopened is None:
            raise UsageError("there is no run to go on with", hint="Make the executor with of_run(run_dir).")
        if leave:
            require_survival(self._client, self._options)
        opened, loop = take_over(
            *self._reopened,
            replace(self._client, leaves=leave),
            self._options,
            force=force,
            strict_versions=self._options.strict_versions,
        )
        self._drive(opened, loop, provenance_graph_file)

    def execute(
        self,
        graph: AnyGraph,
        *,
        provenance_graph_file: str | None = None,
    ) -> None:
        """Execute a graph; one without quanta is nothing to do.

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
            The run was interrupted; what was done is recorded and ingested. What a batch system has in
            hand goes on (`has_left`).
        qgexec.errors.QgexecError
            The graph, the repository or the model cannot be used; nothing has changed then.
        """
        if provenance_graph_file is not None and self._butler is None:
            raise UsageError(
                "A provenance graph is made from the outputs, but there is no butler to read them with.",
                hint="Give the repository as butler=.",
            )
        try:
            self._execute(graph, self._client, provenance_graph_file)
        except EmptyGraphError as error:
            _logger.info("Nothing was executed: %s.", error.message)
            self.nothing_to_do, self._report = error, partial(report_nothing, graph)

    def submit(self, graph: AnyGraph) -> Path:
        """Leave a graph to a batch system, and do not wait for it.

        Parameters
        ----------
        graph
            As for `execute`.

        Returns
        -------
        run_dir
            The run directory: all that ``qgexec status``, ``report``, ``cancel`` and ``resume`` need.

        Raises
        ------
        qgexec.errors.UsageError
            The execution model does not go on without a driver.
        qgexec.errors.QgexecError
            The graph, the repository or the batch system cannot be used; nothing was submitted then.
        """
        require_survival(self._client, self._options)
        self._execute(graph, replace(self._client, leaves=True), None)
        assert self.run_dir is not None
        return self.run_dir

    def rehearse(self, graph: AnyGraph) -> Rehearsal:
        """Write all that `submit` would hand to a batch system, and submit nothing.

        Parameters
        ----------
        graph
            As for `execute`.

        Raises
        ------
        qgexec.errors.UsageError
            The execution model submits nothing, or the run directory holds a run that was begun.
        qgexec.errors.QgexecError
            The graph or the repository cannot be used, or quanta cannot be clustered as asked.
        """
        path = self._wanted_run_dir or find_place(f"{read_output_run(graph)}-dry-run")
        return rehearse(graph, self._butler, self._client, self._options, path)

    def preview(self, graph: AnyGraph) -> Preview:
        """Say what `execute` would do, and what would go wrong with it; nothing is written or executed.

        Parameters
        ----------
        graph
            As for `execute`; where it cannot be read, that is one of the problems.

        Raises
        ------
        qgexec.errors.UsageError
            There is no butler: nothing can be known beforehand of what an executor of the client's own does.
        """
        if self._butler is None:
            raise UsageError("There is no butler to look at.", hint="Give the repository as butler=.")
        return preview(graph, self._butler, self._client, self._options, self._prepare, self._wanted_run_dir)

    def _execute(
        self,
        graph: AnyGraph,
        client: Client,
        provenance_graph_file: str | None,
    ) -> None:
        self.run_dir = self.nothing_to_do = self._report = None
        options = self._options
        model = make_model(client, options)
        if isinstance(model, BatchModel):
            model.system.check()  # before anything is changed
        opened, journal = self._open_books(graph)
        elsewhere = isinstance(model, ExecutionModel) and model.facts.orders_itself
        policy = policy_of(options, opened.plan, elsewhere=elsewhere)
        scheduler = Scheduler(opened.plan, policy=policy, serial_labels=opened.serial_on(model))
        if not isinstance(model, ExecutionModel):
            journal.withdraw()  # nobody has it in hand: what this model does is not recorded
            self.run_dir = opened.run_dir.path
            self._report = ReportSource(opened, scheduler)
            hand_over(model, opened)
            return
        tell_beforehand(options, opened.plan, model, policy)
        loop = make_loop(opened, model, client, options, journal, scheduler)
        self._drive(opened, loop, provenance_graph_file)

    def _drive(self, opened: OpenRun, loop: Loop, provenance_graph_file: str | None) -> None:
        self.run_dir = opened.run_dir.path
        self._report = source = ReportSource(opened, loop.scheduler, loop.model.facts)
        with source.noting_error(), keeping_snapshots(opened.run_dir, len(opened.plan)), shared_cache():
            loop.execute()
        self.has_left = loop.has_left
        if self.has_left:
            if loop.leaves:
                return
            raise KeyboardInterrupt
        if provenance_graph_file is not None:
            write_provenance_graph(
                opened.context.graph_file, opened.context.repository, provenance_graph_file
            )
        if self._options.provenance:
            keep_provenance(opened, loop.scheduler)
        with source.noting_error():
            raise_if_failed(opened.run_dir, loop.scheduler)

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

    def _open_books(self, graph: AnyGraph) -> tuple[OpenRun, Journal]:
        """Make run directory and registry ready; where nothing was changed no run directory stays behind."""
        beginning = begin(self._wanted_run_dir or find_place(read_output_run(graph)))
        try:
            opened = open_new_run(graph, beginning, self._butler, self._client, self._options, self._prepare)
        except BaseException:
            beginning.give_up()
            raise
        finally:
            if isinstance(graph, BuiltGraph) and beginning.run_dir.settings_file.exists():
                graph.forget()
        return opened, beginning.journal


def _check_options(options: RunOptions, *, has_butler: bool) -> None:
    """Check that a provenance graph can be kept, if it is to be."""
    if options.provenance:
        provenance_name()
        if not has_butler:
            raise UsageError(
                "A provenance graph is kept in a repository, and there is no butler.",
                hint="Give the repository as butler=, or leave provenance= out.",
            )


def _requests(resources: ExecutionResources | None) -> dict[str, int | None]:
    """Return what each quantum asks for, as `qgexec.config.runconfig.TaskSettings` has it."""
    if resources is None:
        return {}
    memory = resources.max_mem
    return {
        "cores": resources.num_cores,
        "memory_bytes": None if memory is None else int(memory.to_value("byte")),
    }
