"""What became of graphs that anybody executed, as the repository tells it; needs the stack.

The rules are upstream's: see `qgexec.rubin.verdicts`. No run directory is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qgexec.quantum import DataIdValue, describe
from qgexec.reports.failures import normalise
from qgexec.reports.fold import TaskReport, caveat_names, total_of
from qgexec.reports.measured import Spread
from qgexec.reports.report import REPORT_VERSION
from qgexec.rubin.examine import Examination, ExamineOptions, ReadCaveats, examine
from qgexec.rubin.upstream_summary import show_graph, summarize, write_summary
from qgexec.rubin.verdicts import DatasetFound, DatasetWord, LastWord, QuantumFound, RunWord

__all__ = [
    "DatasetTypeReport",
    "ExamineOptions",
    "FailureCause",
    "GraphReport",
    "ReadCaveats",
    "RepositoryReport",
    "Trouble",
    "report_repository",
]

_NEVER_KNOWN = ("running", "retried", "ingested", "requested_memory_bytes")
"""What a repository does not tell of a task."""

_FROM_METADATA = (
    "quantum_s",
    "cpu_s",
    "peak_rss_bytes",
    "useful_cpu_s",
    "wasted_cpu_s",
    "wasted_unmeasured_s",
    "memory",
    "wall",
)
"""What it tells only where all metadata are read."""


@dataclass(frozen=True, slots=True)
class GraphReport:
    """One graph, and what it did for the whole."""

    number: int
    """From 1, in the order in which the graphs were built."""
    name: str
    """Its file or address."""
    output_run: str
    built_at: float
    """UNIX seconds."""
    n_quanta: int
    succeeded: int
    """Its quanta that have metadata and log in its RUN."""
    recovered: int
    """Those that had failed, or been blocked, with an earlier graph."""
    n_datasets: int
    """Outputs of its quanta that the registry has in its RUN."""


@dataclass(frozen=True, slots=True)
class DatasetTypeReport:
    """The datasets of one type, counted; in upstream's words."""

    dataset_type: str
    producer: str
    """Label of the task that writes it."""
    n_expected: int
    visible: int
    shadowed: int
    predicted_only: int
    unsuccessful: int
    cursed: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """A quantum that failed, is wonky, or wrote part of its outputs; or a dataset that is cursed."""

    name: str
    """Task label, or dataset type."""
    data_id: Mapping[str, DataIdValue]
    quantum_id: str | None = None
    """In the graph whose RUN is the next; `None` where it is not known."""
    output_run: str | None = None
    """Where it was tried last, or where the dataset is."""
    runs: Mapping[str, str] | None = None
    """What was found in each RUN."""
    exception_type: str | None = None
    """As the log or the metadata name it."""
    message: str = ""
    """The exception's, or the last error in the log; why it is wonky or cursed."""
    messages: tuple[str, ...] = ()
    """All errors in the logs, and all other reasons."""

    def __str__(self) -> str:
        return describe(self.name, self.data_id)


@dataclass(frozen=True, slots=True)
class FailureCause:
    """Failures that look like one and the same trouble."""

    task_label: str
    exception_type: str | None
    message: str
    """What they have in common of their messages."""
    quanta: tuple[Trouble, ...]


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """What became of graphs, as a repository tells it."""

    repository: str | None
    """`None` where reports of several were put together, here and below."""
    graphs: tuple[GraphReport, ...]
    options: ExamineOptions | None
    tasks: tuple[TaskReport, ...]
    total: TaskReport
    datasets: tuple[DatasetTypeReport, ...]
    failures: tuple[Trouble, ...]
    wonky: tuple[Trouble, ...]
    partial: tuple[Trouble, ...]
    """Quanta that succeeded, and wrote part of their outputs for an exception's sake."""
    cursed: tuple[Trouble, ...]
    write_summary: Callable[[Path], None]
    """Writes upstream's summary of it."""
    show_graph: Callable[[], None]
    """Draws the pipeline with upstream's counts on stdout; nothing where there is no graph."""

    @property
    def all_succeeded(self) -> bool:
        """Whether every quantum succeeded, and nothing is wonky."""
        return self.total.succeeded == self.total.n_quanta

    @property
    def knows_use(self) -> bool:
        """Whether times and memory were read."""
        return self.options is not None and self.options.read_caveats is ReadCaveats.EXHAUSTIVE

    def causes(self) -> list[FailureCause]:
        """Return the failures, grouped by what looks like one cause; the most frequent first."""
        groups: dict[tuple[str, str | None, str], list[Trouble]] = {}
        for failure in self.failures:
            key = (failure.name, failure.exception_type, normalise(failure.message, failure.data_id))
            groups.setdefault(key, []).append(failure)
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        return [FailureCause(*key, tuple(quanta)) for key, quanta in ordered]

    def to_json(self) -> dict[str, Any]:
        """Return the report as what `json.dumps` takes; ``report.schema.json`` describes it."""
        options = self.options
        unknown = (*_NEVER_KNOWN, *(() if self.knows_use else _FROM_METADATA))
        return {
            "format": "qgexec-report",
            "version": REPORT_VERSION,
            "kind": "repository",
            "all_succeeded": self.all_succeeded,
            "repository": self.repository,
            "graphs": [asdict(graph) for graph in self.graphs],
            "collections": options and list(options.collections),
            "where": options and options.where,
            "read_caveats": options and options.read_caveats.value,
            "tasks": [asdict(task) | dict.fromkeys(unknown) for task in self.tasks],
            "total": asdict(self.total) | dict.fromkeys(unknown),
            "datasets": [asdict(datasets) for datasets in self.datasets],
            "causes": [
                {
                    "task_label": cause.task_label,
                    "exception_type": cause.exception_type,
                    "message": cause.message,
                    "n_quanta": len(cause.quanta),
                    "example": _trouble_to_json(cause.quanta[0]),
                }
                for cause in self.causes()
            ],
            **{
                key: [_trouble_to_json(trouble) for trouble in getattr(self, key)]
                for key in ("failures", "wonky", "partial", "cursed")
            },
        }


def _trouble_to_json(trouble: Trouble) -> dict[str, Any]:
    return asdict(trouble) | {"messages": list(trouble.messages)}


def report_repository(
    repository: str, graphs: Sequence[str], options: ExamineOptions | None = None
) -> RepositoryReport:
    """Find out from a repository what became of graphs.

    Parameters and errors are those of `qgexec.rubin.examine.examine`.
    """
    examination = examine(repository, graphs, options)
    verdicts = examination.verdicts
    quanta = list(verdicts.quanta.values())
    tasks = tuple(_counted(label, of_task) for label, of_task in verdicts.by_label().items())
    if examination.options.read_caveats is ReadCaveats.EXHAUSTIVE:
        tasks = tuple(
            _with_use(task, of_task)
            for task, of_task in zip(tasks, verdicts.by_label().values(), strict=True)
        )
    summary = summarize(examination)
    cursed = [each for each in verdicts.datasets.values() if each.word is DatasetWord.CURSED]
    dataset_types = _by_type(verdicts.datasets.values())
    return RepositoryReport(
        repository=repository,
        graphs=tuple(_graphs(examination)),
        options=examination.options,
        tasks=tasks,
        total=total_of(tasks),
        datasets=tuple(_dataset_type(name, datasets) for name, datasets in dataset_types.items()),
        failures=tuple(_trouble(quantum) for quantum in quanta if quantum.word is LastWord.FAILED),
        wonky=tuple(_trouble(quantum) for quantum in quanta if quantum.word is LastWord.WONKY),
        partial=tuple(map(_trouble, filter(_is_partial, quanta))),
        cursed=tuple(map(_cursed, cursed)),
        write_summary=lambda file: write_summary(summary, file),
        show_graph=lambda: show_graph(examination.graphs[0].pipeline_graph, summary),
    )


def _graphs(examination: Examination) -> Iterator[GraphReport]:
    succeeded: Counter[int] = Counter()
    recovered: Counter[int] = Counter()
    for quantum in examination.verdicts.quanta.values():
        for run in quantum.runs.values():
            succeeded[id(run.graph)] += run.word is RunWord.SUCCEEDED
        if quantum.recovered and quantum.last is not None:
            recovered[id(quantum.last[1].graph)] += 1
    n_datasets = Counter(
        run
        for dataset in examination.verdicts.datasets.values()
        for run, is_there in dataset.produced.items()
        if is_there
    )
    for number, graph in enumerate(examination.graphs, start=1):
        key = id(graph)
        yield GraphReport(
            number,
            graph.name,
            graph.output_run,
            graph.built_at,
            len(graph.plan),
            succeeded[key],
            recovered[key],
            n_datasets[graph.output_run],
        )


def _counted(label: str, quanta: Sequence[QuantumFound]) -> TaskReport:
    words = Counter(quantum.word for quantum in quanta)
    caveats: Counter[str] = Counter()
    for quantum in quanta:
        if quantum.word is LastWord.SUCCEEDED and quantum.last is not None:
            caveats.update(caveat_names(quantum.last[1].caveats or 0))
    return TaskReport(
        label=label,
        n_quanta=len(quanta),
        succeeded=words[LastWord.SUCCEEDED],
        failed=words[LastWord.FAILED],
        blocked=words[LastWord.BLOCKED],
        unknown=words[LastWord.UNKNOWN],
        wonky=words[LastWord.WONKY],
        recovered=sum(quantum.recovered and quantum.word is LastWord.SUCCEEDED for quantum in quanta),
        caveats=dict(caveats),
    )


def _with_use(task: TaskReport, quanta: Sequence[QuantumFound]) -> TaskReport:
    """Return a task with what its quanta took, where all metadata were read."""
    good = [quantum.last[1] for quantum in quanta if quantum.word is LastWord.SUCCEEDED and quantum.last]
    used = [run.usage for run in good if run.usage]
    useful_s = sum(usage.cpu_s for usage in used)
    all_cpu_s = sum(run.usage.cpu_s for quantum in quanta for run in quantum.runs.values() if run.usage)
    peaks = [usage.peak_rss_bytes for usage in used if usage.peak_rss_bytes is not None]
    return replace(
        task,
        quantum_s=sum(usage.wall_s for usage in used),
        cpu_s=round(all_cpu_s, 6),
        useful_cpu_s=round(useful_s, 6),
        wasted_cpu_s=max(0.0, round(all_cpu_s - useful_s, 6)),
        peak_rss_bytes=max(peaks, default=None),
        memory=Spread.of(np.array(peaks, dtype=np.float64)),
        wall=Spread.of(np.array([usage.wall_s for usage in used], dtype=np.float64)),
    )


def _by_type(datasets: Iterable[DatasetFound]) -> dict[str, list[DatasetFound]]:
    found: dict[str, list[DatasetFound]] = {}
    for dataset in datasets:
        found.setdefault(dataset.output.dataset_type, []).append(dataset)
    return found


def _dataset_type(name: str, datasets: Sequence[DatasetFound]) -> DatasetTypeReport:
    words = Counter(dataset.word for dataset in datasets)
    return DatasetTypeReport(
        dataset_type=name,
        producer=datasets[0].producer.label,
        n_expected=len(datasets),
        visible=words[DatasetWord.VISIBLE],
        shadowed=words[DatasetWord.SHADOWED],
        predicted_only=words[DatasetWord.PREDICTED_ONLY],
        unsuccessful=words[DatasetWord.UNSUCCESSFUL],
        cursed=words[DatasetWord.CURSED],
    )


def _is_partial(quantum: QuantumFound) -> bool:
    last = quantum.last
    return quantum.word is LastWord.SUCCEEDED and last is not None and last[1].exception is not None


def _trouble(quantum: QuantumFound) -> Trouble:
    name, run = quantum.last or (None, None)
    exception = (run.exception if run else None) or {}
    errors = [error for each in quantum.runs.values() for error in each.errors]
    messages = (*quantum.messages, *errors)
    return Trouble(
        name=quantum.label,
        data_id=quantum.data_id,
        quantum_id=str(run.quantum_id) if run else None,
        output_run=name,
        runs={name: each.word.value for name, each in quantum.runs.items()},
        exception_type=exception.get("type"),
        message=exception.get("message") or (messages[-1] if messages else ""),
        messages=messages,
    )


def _cursed(dataset: DatasetFound) -> Trouble:
    return Trouble(
        name=dataset.output.dataset_type,
        data_id=dataset.producer.data_id,
        output_run=next(iter(dataset.visible), None),
        message=dataset.messages[-1],
        messages=tuple(dataset.messages),
    )
