"""Brings the parts of a run together: plan, policy, execution model, benches, ingester, loop."""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import OptionValue, RunSettings
from qgexec.clustering.algorithms import cluster_remarks
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.runconfig import remarks
from qgexec.config.runoptions import RunOptions
from qgexec.errors import UsageError
from qgexec.events import Event
from qgexec.executor import Loop
from qgexec.ingestion.base import Ingestion, NoIngestion
from qgexec.ingestion.process import Batching, IngestionProcess, InlineIngestion
from qgexec.interrupts import Interrupts
from qgexec.models.base import Bench, BenchOpener, ExecutionModel, Run, SimpleModel
from qgexec.models.pool import Pool
from qgexec.models.registry import Model, find_model, takes_setting
from qgexec.plaintext import few
from qgexec.processes.machine import machine_memory_bytes
from qgexec.quantum import QuantumNode, RunContext, SegmentRef
from qgexec.rubin import PRELOAD
from qgexec.rubin.fixups import fixup_edges
from qgexec.rubin.graphfile import GraphSource, read_plan
from qgexec.rubin.ingest import IngesterOpener
from qgexec.rubin.opener import (
    Books,
    ExecutorBenchOpener,
    ImportedExecutor,
    WorkbenchOpener,
    WorkbenchOptions,
)
from qgexec.scheduling.ordergroup import OrderGroup
from qgexec.scheduling.ordering import ordered
from qgexec.scheduling.parts import Part
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler, State

__all__ = [
    "Client",
    "Observe",
    "Observer",
    "OpenRun",
    "bare_run",
    "books_of",
    "hand_over",
    "ingester_opener",
    "make_loop",
    "make_model",
    "model_name",
    "policy_of",
    "remarks_beforehand",
    "require_survival",
    "tell_beforehand",
    "workbench_opener",
]

_logger = logging.getLogger(__name__)

Observer = Callable[[Event], None]
"""Called with each event after it was recorded."""

Observe = Callable[[Plan, Mapping[str, Mapping[State, int]]], Observer]
"""Makes an observer of a run, from its plan and, by task label, the numbers of quanta in each state."""


@dataclass(frozen=True, slots=True)
class Client:
    """What a client brings that no file can hold."""

    model: str | type[Model] | Model
    """Execution model: name, class or instance."""

    quantum_executor: Any = None
    """A `lsst.pipe.base.quantum_graph_executor.QuantumExecutor` of the client's own, the
    `qgexec.rubin.opener.ImportedExecutor` that makes one, or `None`."""

    debugger: str | None = None
    """Module whose ``post_mortem`` is called where a quantum fails in this process."""

    fixup: Any = None
    """A `lsst.pipe.base.execution_graph_fixup.ExecutionGraphFixup`, or `None`."""

    part: Part = field(default_factory=Part)
    """What of the graph is to be executed."""

    observe: Observe | None = None
    """Called before the run; what it returns is called with every event."""

    interrupted: Callable[[int], None] = lambda _count: None
    """Called from the signal handler at each Ctrl-C or SIGTERM with their number so far."""

    tell: Callable[[], None] = lambda: None
    """Called when somebody asked by SIGUSR1 how far the run is."""

    force: bool = False
    """Execute also where another run that goes on writes the same output RUN."""

    leaves: bool = False
    """Go away as soon as all that is left is in the hands of a batch system."""

    job_metadata: Mapping[str, float] | None = None
    """Where given, this is a job of a workflow that others order: the metadata of each quantum say this of
    it, it takes nothing into the registry, and its workers print where it does."""

    @classmethod
    def of_run(cls, settings: RunSettings, *, leaves: bool = False) -> Self:
        """Return what a run's own files say of it."""
        return cls(settings.model, ImportedExecutor.of_run(settings.options), leaves=leaves)

    def plan_of(self, graph_file: Path, ordering: Sequence[OrderGroup] = ()) -> Plan:
        """Return what is to be executed of a graph, in the order that is asked for.

        Parameters
        ----------
        graph_file
            The graph.
        ordering
            What the run's configuration says of it.

        Raises
        ------
        qgexec.errors.GraphError
            The file cannot be read, or its quanta wait for one another in a circle.
        qgexec.errors.UsageError
            There is nothing to execute of what is asked for, or no such order.
        """
        plan = read_plan(graph_file)
        if self.fixup is not None:
            plan = plan.with_edges(fixup_edges(self.fixup, graph_file))
        return ordered(self.part.of(plan), ordering)

    def own_executor(self) -> OptionValue:
        """Return what ``run.json`` is to say of the executor: how to make it, or whether there is one."""
        named = self.quantum_executor
        return named.to_json() if isinstance(named, ImportedExecutor) else named is not None


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run whose books are open: all that is needed to execute it."""

    run_dir: RunDir
    context: RunContext
    plan: Plan
    run_is_new: bool
    """The output RUN did not exist before this run."""
    began_at: float
    """When the run was made, UNIX seconds."""
    serial_labels: frozenset[str] = field(default_factory=frozenset)
    """Labels of tasks of which only one quantum may run at a time."""
    has_gaps: bool = False
    """Its journal has damaged lines: there may have been attempts that nobody knows of."""

    def serial_on(self, model: Model) -> frozenset[str]:
        """Return these labels, if the model runs quanta side by side; otherwise none need be kept apart."""
        parallel = isinstance(model, ExecutionModel) and model.facts.parallel
        return self.serial_labels if parallel else frozenset()


def make_model(client: Client, options: RunOptions, *, closing: int | None = None) -> Model:
    """Return the execution model, ready to be opened; raises as `qgexec.models.registry.find_model`.

    Parameters
    ----------
    client, options
        What the run is told.
    closing
        For the closing job of a batch system: the number of its round.
    """
    model = client.model
    if takes_setting(model, "settings"):
        found = find_model(model, settings=options.config.batch, closing=closing)
    # Only the pool has a number of processes; whoever gives a class or an instance sets it up.
    elif model not in ("pool", Pool):
        found = find_model(model)
    else:
        found = find_model(model, processes=options.processes, cores=options.cores)
    if (
        not isinstance(client.quantum_executor, ImportedExecutor | None)
        and isinstance(found, ExecutionModel)
        and found.facts.orders_itself
    ):
        raise UsageError(
            f"{model_name(model)} cannot take a quantum_executor as an object: its jobs are other processes",
            hint="Say how they make one: quantum_executor=ImportedExecutor('package.module:Class', {...}).",
        )
    return found


def require_survival(client: Client, options: RunOptions) -> None:
    """Check that a run goes on without its driver.

    Raises
    ------
    qgexec.errors.UsageError
        Its execution model needs a driver as long as it runs.
    """
    model = make_model(client, options)
    if not (isinstance(model, ExecutionModel) and model.facts.survives_driver):
        raise UsageError(
            f"{model_name(client.model)} needs a driver as long as it runs: it cannot be submitted",
            hint="Name a batch system (--model slurm), or wait for it: qgexec run, or no --no-wait.",
        )


def model_name(model: str | type[Model] | Model) -> str:
    """Return a model's name for people."""
    if isinstance(model, str):
        return model
    return (model if isinstance(model, type) else type(model)).__name__.lower()


def policy_of(options: RunOptions, plan: Plan, *, elsewhere: bool = False) -> Policy:
    """Return what the options mean for this plan.

    Parameters
    ----------
    options, plan
        The run's.
    elsewhere
        Quanta do not run on this machine, whose memory is no bound for them then.
    """
    return options.policy(plan, machine_memory_bytes=None if elsewhere else machine_memory_bytes())


def tell_beforehand(options: RunOptions, plan: Plan, model: ExecutionModel, policy: Policy) -> None:
    """Warn of what was said and will not be done."""
    for warning in remarks_beforehand(options, plan, model, policy):
        _logger.warning("%s", warning)


def remarks_beforehand(options: RunOptions, plan: Plan, model: ExecutionModel, policy: Policy) -> list[str]:
    """Return what was said and will not be done, one sentence or two each."""
    # What this machine has is no bound for quanta that run elsewhere.
    most_bytes = None if model.facts.orders_itself else machine_memory_bytes()
    warnings = remarks(options.config, plan.labels, machine_memory_bytes=most_bytes)
    rules = [policy.rules_of(label) for label in plan.labels]
    name = model_name(model)
    if not model.facts.enforces_timeout and any(rule.timeout_s is not None for rule in rules):
        warnings.append(f"Execution model {name} cannot end quanta here: the time limit has no effect.")
    if not model.facts.enforces_memory and any(rule.enforce_memory for rule in rules):
        warnings.append(f"Execution model {name} cannot watch memory: its limits have no effect (see -j).")
    if model.facts.orders_itself:
        batch = options.config.batch
        warnings += cluster_remarks(plan, np.arange(len(plan)), batch.clustering, durations=batch.durations)
    else:
        warnings += _variables_not_set(options.config.batch, plan, name)
    return warnings


def _variables_not_set(batch: BatchSettings, plan: Plan, model: str) -> Iterator[str]:
    """Yield what is said of the environment of jobs, where there are none."""
    missing = [name for name, value in batch.environment.items() if os.environ.get(name) != value]
    if missing:
        yield (
            f"Execution model {model} has no jobs that get an environment: {few(missing)} not set as told. "
            f"Set it before you begin: export {missing[0]}={shlex.quote(batch.environment[missing[0]])}"
        )
    if labels := [label for label in plan.labels if label in batch.environments]:
        yield f"Execution model {model} has one environment for all tasks, not that of {few(labels)}."


def make_loop(
    opened: OpenRun,
    model: ExecutionModel,
    client: Client,
    options: RunOptions,
    journal: Journal,
    scheduler: Scheduler,
    *,
    opening: Sequence[Event] = (),
    offers: Mapping[int, SegmentRef] | None = None,
) -> Loop:
    """Return the loop that executes what the scheduler has not seen end.

    Parameters
    ----------
    opened, model, client, options
        What, where and how to execute.
    journal
        This driver's own file.
    scheduler
        The states of all quanta.
    opening, offers
        What an earlier driver left: see `qgexec.executor.Loop`.
    """
    opener, ingestion = _make_bench(model, opened, client, options, journal.epoch)
    run = Run(
        context=opened.context,
        bench_opener=opener,
        logs=opened.run_dir.logs,
        preload=PRELOAD,
        serial_labels=opened.serial_labels,
        implicit_threads=options.implicit_threads,
        prints_here=client.job_metadata is not None,
        ledger=scheduler,
    )
    return Loop(
        scheduler=scheduler,
        model=model,
        run=run,
        journal=journal,
        ingestion=ingestion,
        model_name=model_name(model),
        n_quanta=len(opened.plan),
        opening=opening,
        offers=offers or {},
        observers=(client.observe(opened.plan, scheduler.counts_by_label()),) if client.observe else (),
        interrupts=Interrupts(client.interrupted, grace_s=options.grace_s),
        tell=client.tell,
        cancelled=opened.run_dir.cancel_file.exists,
        leaves=client.leaves,
        seed=options.seed,
    )


def bare_run(opened: OpenRun, scheduler: Scheduler) -> Run:
    """Return what a model is opened with that is only to tell what became of its jobs."""

    def no_bench(_name: str) -> Bench:
        raise AssertionError("nothing is executed here")

    return Run(opened.context, no_bench, opened.run_dir.logs, ledger=scheduler)


def _make_bench(
    model: ExecutionModel, opened: OpenRun, client: Client, options: RunOptions, epoch: int
) -> tuple[BenchOpener, Ingestion]:
    run_dir, context = opened.run_dir, opened.context
    books = books_of(opened, options, epoch, own_process=not model.facts.parallel)
    books = replace(books, debugger=client.debugger)
    if client.quantum_executor is not None:
        own = ExecutorBenchOpener(
            client.quantum_executor, context.graph_file, books, options.implicit_threads
        )
        return own, NoIngestion()
    opener = workbench_opener(opened, options, books)
    if client.job_metadata is not None:
        bench_options = replace(opener.options, job_metadata=client.job_metadata)
        return replace(opener, options=bench_options), NoIngestion()
    ingester = ingester_opener(opened)
    batching = Batching(visibility_s=options.config.batch.visibility_s)
    ingestion = (
        IngestionProcess(ingester, run_dir.segments, run_dir.logs, batching, preload=PRELOAD)
        if model.facts.parallel
        else InlineIngestion(ingester, run_dir.segments, batching)
    )
    return opener, ingestion


def ingester_opener(opened: OpenRun) -> IngesterOpener:
    """Return the opener of what takes outputs into the registry."""
    return IngesterOpener(
        opened.context.repository,
        opened.context.output_run,
        run_dir=str(opened.run_dir.path),
        run_began_at=-math.inf if opened.run_is_new else opened.began_at,
    )


def books_of(opened: OpenRun, options: RunOptions, epoch: int, *, own_process: bool) -> Books:
    """Return where the benches of one driver write."""
    # In the caller's own process logging is the caller's.
    level = options.log_level if own_process else "INFO"
    return Books(
        str(opened.run_dir.segments), epoch, str(opened.run_dir.logs), level, logging=options.logging
    )


def workbench_opener(opened: OpenRun, options: RunOptions, books: Books) -> WorkbenchOpener:
    """Return the opener of benches that execute as upstream's own executor does."""
    bench_options = WorkbenchOptions.of_run(
        options,
        run_is_new=opened.run_is_new,
        run_began_at=opened.began_at,
        clears_first=opened.has_gaps,
    )
    return WorkbenchOpener(opened.context.repository, opened.context.graph_file, books, bench_options)


class _HandedQuanta:
    """What a client's ``execute(quanta)`` gets."""

    def __init__(self, plan: Plan, context: RunContext) -> None:
        self._plan = plan
        self.context = context

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[QuantumNode]:
        return iter(self._plan)


def hand_over(model: SimpleModel, opened: OpenRun) -> None:
    """Give a simple model all quanta."""
    source = GraphSource(Path(opened.context.graph_file), opened.context.repository)
    try:
        model.execute(_HandedQuanta(opened.plan.with_source(source), opened.context))
    finally:
        source.close()
