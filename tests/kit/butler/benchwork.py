"""Runs graphs on benches and, to compare, with upstream's executor over a full butler as pipetask does."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, DatasetRef
from lsst.daf.butler.logging import ButlerLogRecords
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor

from qgexec.books.journal import read_detail
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.events import AttemptFailed, AttemptSkipped, AttemptSucceeded
from qgexec.quantum import Attempt, Outcome, OutcomeStatus, RunContext
from qgexec.rubin.compat import export_records
from qgexec.rubin.datastores import leaf_datastores
from qgexec.rubin.graphfile import GraphSource, read_plan
from qgexec.rubin.ingest import Ingester, IngesterOpener
from qgexec.rubin.opener import Books, WorkbenchOpener, WorkbenchOptions
from qgexec.rubin.quantumlog import pipetask_logging
from qgexec.rubin.workbench import Workbench
from qgexec.scheduling.plan import Plan
from tests.kit.butler.repos import INPUT_CHAIN, OUTPUT_RUN, MockRepository

VOLATILE = frozenset({"TaskMetadata", "ButlerLogRecords"})


def prepare_outputs(repository: MockRepository) -> None:
    """Do with upstream's functions what comes before a run: dataset types, RUN, init-outputs."""
    with PredictedQuantumGraph.open(str(repository.graph)) as reader:
        reader.read_all()
        graph = reader.finish()
    with repository.butler(writeable=True) as butler:
        graph.pipeline_graph.register_dataset_types(butler)
        butler.collections.register(OUTPUT_RUN)
    with repository.butler(writeable=True, run=OUTPUT_RUN) as butler:
        graph.init_output_run(butler)


@dataclass(slots=True)
class Run:
    """Outcomes and details of one pass over a graph, by quantum index."""

    plan: Plan
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    details: dict[int, dict[str, Any]] = field(default_factory=dict)

    def label(self, label: str) -> list[Outcome]:
        """Return the outcomes of one task."""
        return [outcome for index, outcome in self.outcomes.items() if self.plan.label(index) == label]

    def detail(self, label: str) -> dict[str, Any]:
        """Return the first detail of one task."""
        return next(detail for index, detail in self.details.items() if self.plan.label(index) == label)


@dataclass(slots=True)
class Site:
    """A repository with its outputs prepared, and a run directory."""

    repository: MockRepository
    run_dir: Path
    epoch: int = 0

    def keep_books(self) -> RunDir:
        """Make the run directory one that has settings and a plan; to be called before anything else."""
        run_dir = RunDir.create(self.run_dir)
        run_dir.save_plan(read_plan(self.repository.graph))
        context = RunContext(
            str(self.run_dir), str(self.repository.root), str(self.repository.graph), OUTPUT_RUN
        )
        run_dir.write_settings(RunSettings(context, model="pool"))
        return run_dir

    def opener(self, **options: Any) -> WorkbenchOpener:
        """Return an opener that writes to segments of its own."""
        self.epoch += 1
        for name in ("segments", "logs"):
            (self.run_dir / name).mkdir(parents=True, exist_ok=True)
        books = Books(str(self.run_dir / "segments"), self.epoch, str(self.run_dir / "logs"))
        return WorkbenchOpener(
            str(self.repository.root), str(self.repository.graph), books, WorkbenchOptions(**options)
        )

    @contextmanager
    def bench(self, **options: Any) -> Iterator[Workbench]:
        """Open a bench for a moment."""
        bench = self.opener(**options)("driver")
        try:
            yield bench
        finally:
            bench.close()

    def run(self, labels: Collection[str] | None = None, *, isolated: bool = False, **options: Any) -> Run:
        """Execute all quanta of these tasks whose prerequisites have not failed."""
        run = Run(read_plan(self.repository.graph))
        failed: set[int] = set()
        with self.bench(**options) as bench:
            for attempt in attempts(run.plan, labels):
                if failed.intersection(run.plan.prerequisites(attempt.index)):
                    failed.add(attempt.index)
                    continue
                event = bench.execute(replace(attempt, isolated=isolated))
                assert isinstance(event, AttemptSucceeded | AttemptSkipped | AttemptFailed)
                run.outcomes[attempt.index] = event.outcome
                if event.outcome.status is OutcomeStatus.FAILED:
                    failed.add(attempt.index)
                if event.outcome.detail is not None:
                    segments = self.run_dir / "segments"
                    run.details[attempt.index] = read_detail(segments, event.outcome.detail)
        return run

    def ingest(self, details: Sequence[Mapping[str, Any]], **options: Any) -> int:
        """Ingest with an ingester of its own."""
        ingester = self.ingester(**options)
        try:
            return ingester.ingest(details)
        finally:
            ingester.close()

    def ingester(self, **options: Any) -> Ingester:
        """Open an ingester; the caller closes it."""
        return self.ingester_opener(**options)()

    def ingester_opener(self, **options: Any) -> IngesterOpener:
        """Return an opener of ingesters that know the run directory."""
        return IngesterOpener(str(self.repository.root), OUTPUT_RUN, run_dir=str(self.run_dir), **options)

    def discard(self, indices: Sequence[int], **options: Any) -> None:
        """Clean up with an ingester of its own."""
        with closing(self.ingester(**options)) as ingester:
            ingester.discard(indices)

    def detail(self, event: object) -> dict[str, Any]:
        """Return the detail of an outcome."""
        assert isinstance(event, AttemptSucceeded | AttemptSkipped | AttemptFailed)
        assert event.outcome.detail is not None
        return read_detail(self.run_dir / "segments", event.outcome.detail)

    def run_as_pipetask(self, labels: Collection[str] | None = None, **options: Any) -> None:
        """Execute all quanta in this process with upstream's executor over a full butler."""
        source = GraphSource(self.repository.graph)
        plan = read_plan(self.repository.graph)
        butler = self.repository.butler(writeable=True, collections=[INPUT_CHAIN], run=OUTPUT_RUN)
        failed: set[int] = set()
        with butler, pipetask_logging("INFO"):
            executor = SingleQuantumExecutor(butler=butler, **options)
            for attempt in attempts(plan, labels):
                if failed.intersection(plan.prerequisites(attempt.index)):
                    failed.add(attempt.index)
                    continue
                task_node, quantum = (
                    source.task_node(attempt.task_label),
                    source.quantum(attempt.quantum_id),
                )
                try:
                    executor.execute(task_node, quantum, quantum_id=attempt.quantum_id)
                except BaseException:  # noqa: BLE001  whatever a task raises
                    failed.add(attempt.index)
        source.close()


def attempts(plan: Plan, labels: Collection[str] | None = None) -> list[Attempt]:
    """Return first attempts at the quanta of these tasks, in the plan's order."""
    return [
        Attempt(index=node.index, number=1, quantum_id=node.quantum_id, task_label=node.task_label)
        for node in plan
        if labels is None or node.task_label in labels
    ]


def registered(repository: MockRepository) -> dict[str, Any]:
    """Return what a plain butler finds in the output RUN: types, data IDs, and contents as far as stable.

    Everything must be readable, and everything's file be where the registry says.
    """
    found = {}
    with repository.butler() as butler:
        for ref in butler.query_all_datasets(OUTPUT_RUN, find_first=False, limit=None):
            assert butler.exists(ref, full_check=True), ref
            found[f"{ref.datasetType.name} {ref.dataId}"] = (str(ref.datasetType), _stable(butler, ref))
    return found


def _stable(butler: Butler, ref: DatasetRef) -> object:
    content = butler.get(ref)
    if isinstance(content, TaskMetadata):
        return sorted(content.names())
    if isinstance(content, ButlerLogRecords):
        # Removing outputs that are in the way says more with a full butler than with a quantum's own.
        executed = [record for record in content if not record.name.startswith("lsst.daf.butler")]
        return [(record.name, record.levelname, sorted(record.MDC)) for record in executed]
    return content if ref.datasetType.name != "packages" else None


def datastore_rows(repository: MockRepository) -> list[str]:
    """Return the registry's datastore records in the output RUN."""
    rows = []
    with repository.butler() as butler:
        for ref in butler.query_all_datasets(OUTPUT_RUN, find_first=False, limit=None):
            for data in export_records(butler, [ref]).values():
                for table, infos in data.records.get(ref.id, {}).items():
                    rows += [json.dumps([str(ref.id), table, info.to_record()]) for info in infos]
    return sorted(rows)


def later(attempt: Attempt) -> Attempt:
    """Return the next attempt at the same quantum."""
    return numbered(attempt, attempt.number + 1)


def numbered(attempt: Attempt, number: int) -> Attempt:
    """Return an attempt at the same quantum."""
    return replace(attempt, number=number)


def remembered(bench: Any) -> list[Any]:
    """Return all rows and objects that a bench's datastore holds."""
    rows: list[Any] = []
    for leaf in leaf_datastores(bench.supply.datastore):
        if leaf.isEphemeral:
            rows += [*leaf.datasets, *leaf.records]  # type: ignore[attr-defined]
            continue
        rows += leaf._table.fetch()  # type: ignore[attr-defined]
        rows += [leaf.bridge] * len(leaf.bridge)  # type: ignore[attr-defined]
    return rows
