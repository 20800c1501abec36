"""What became of quanta by what they left, over one graph or several: upstream's rules; reads nothing itself.

They are those of `lsst.pipe.base.quantum_provenance_graph`, which ``pipetask report --force-v2`` prints:

- In one RUN a quantum **succeeded** if its metadata and log are there, **failed** if its log alone is. With
  neither, it is **blocked** if a quantum before it failed or is blocked, else nothing is known. Metadata
  without a log are **wonky**.
- Over several RUNs a success ends all trouble that was there before (the quantum is *recovered*), blocked
  does not undo a failure, and nothing known does. A success that is followed by anything else is wonky.
- A dataset is **visible** if a search of the collections finds it, **shadowed** if it is in a RUN all the
  same, **predicted only** if a quantum that succeeded did not write it, **unsuccessful** if its quantum did
  not succeed, and **cursed** if it did not and the dataset is visible. Outputs of one quantum that are
  visible in more than one RUN make it wonky.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, assert_never
from uuid import UUID

from qgexec.quantum import DataIdValue
from qgexec.rubin.graphoutputs import GraphOutputs, Output

__all__ = [
    "DatasetFound",
    "DatasetWord",
    "LastWord",
    "QuantumFound",
    "RunFound",
    "RunWord",
    "Usage",
    "Verdicts",
]

DatasetKey = tuple[str, tuple[DataIdValue, ...]]
"""Dataset type, and required values of the data ID."""


class RunWord(Enum):
    """What a quantum left in one RUN says."""

    SUCCEEDED = "succeeded"
    """Metadata and log are there."""

    FAILED = "failed"
    """Its log is there, its metadata are not."""

    BLOCKED = "blocked"
    """Neither is there, and a quantum before it failed or is blocked."""

    LOG_MISSING = "log missing"
    """Its metadata are there, its log is not."""

    UNKNOWN = "unknown"
    """Neither is there, and nothing before it failed."""


class LastWord(Enum):
    """What holds of a quantum after all RUNs."""

    SUCCEEDED = "succeeded"
    """It succeeded in the last RUN that tried it."""

    FAILED = "failed"
    """It failed in the last RUN that tried it."""

    BLOCKED = "blocked"
    """No RUN tried it, for something before it failed."""

    UNKNOWN = "unknown"
    """The last RUN that has it says nothing about it."""

    WONKY = "wonky"
    """What is there contradicts itself: somebody should look."""


class DatasetWord(Enum):
    """What holds of a dataset after all RUNs."""

    VISIBLE = "visible"
    """It is found."""

    SHADOWED = "shadowed"
    """It is in a RUN, and not found."""

    PREDICTED_ONLY = "predicted only"
    """Its quantum succeeded without it."""

    UNSUCCESSFUL = "unsuccessful"
    """Its quantum did not succeed."""

    CURSED = "cursed"
    """Its quantum did not succeed, and yet it is found."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What upstream measured of a quantum."""

    wall_s: float
    """Seconds from its preparation to its end."""
    cpu_s: float
    """CPU seconds of its process meanwhile."""
    peak_rss_bytes: int | None
    """Peak resident set size of its process up to its end; of warm workers that is more than its own."""


@dataclass(slots=True)
class RunFound:
    """A quantum in one RUN."""

    graph: GraphOutputs
    """The graph that has it."""
    index: int
    """Its index in that graph's plan."""
    word: RunWord = RunWord.UNKNOWN
    """What it left says."""
    caveats: int | None = None
    """Flags of a success; `None` where they were not read, or there are none."""
    exception: Mapping[str, Any] | None = None
    """``type``, ``message`` and ``metadata`` of what was raised, where it was read."""
    errors: Sequence[str] = ()
    """Messages in its log, of errors and worse, where it was read."""
    usage: Usage | None = None
    """What upstream measured, where it was read."""

    @property
    def quantum_id(self) -> UUID:
        """ID of the quantum in that graph."""
        return self.graph.plan.quantum_id(self.index)


@dataclass(slots=True)
class QuantumFound:
    """A quantum over all RUNs: one task label and data ID."""

    label: str
    runs: dict[str, RunFound] = field(default_factory=dict)
    """By RUN, in the order of the graphs."""
    outputs: dict[DatasetKey, DatasetFound] = field(default_factory=dict)
    """What it is to write."""
    word: LastWord = LastWord.UNKNOWN
    recovered: bool = False
    """It succeeded after something else."""
    messages: list[str] = field(default_factory=list)
    """Why it is wonky."""

    @property
    def data_id(self) -> dict[str, DataIdValue]:
        """Required part of its data ID."""
        run = next(iter(self.runs.values()))
        n_required = run.graph.n_required[self.label]
        return dict(list(run.graph.plan.data_id(run.index).items())[:n_required])

    @property
    def last(self) -> tuple[str, RunFound] | None:
        """The last RUN that tried it; `None` if none did."""
        tried = (item for item in reversed(self.runs.items()) if item[1].word not in _NOT_TRIED)
        return next(tried, None)


_NOT_TRIED = (RunWord.UNKNOWN, RunWord.BLOCKED)


@dataclass(slots=True)
class DatasetFound:
    """A dataset over all RUNs."""

    producer: QuantumFound
    output: Output
    """As the first graph has it."""
    produced: dict[str, bool] = field(default_factory=dict)
    """By RUN, whether it is there."""
    visible: set[str] = field(default_factory=set)
    """RUNs in which it is found."""
    word: DatasetWord = DatasetWord.PREDICTED_ONLY
    messages: list[str] = field(default_factory=list)
    """Why it is cursed."""


class Verdicts:
    """Takes in graphs, the oldest first, and what of their outputs exists; then says what became of all."""

    def __init__(self) -> None:
        self.quanta: dict[bytes, QuantumFound] = {}
        """By `qgexec.scheduling.plan.Plan.quantum_keys`."""
        self.datasets: dict[DatasetKey, DatasetFound] = {}
        """Outputs of all quanta."""

    def add(
        self, graph: GraphOutputs, existing: Mapping[str, AbstractSet[tuple[DataIdValue, ...]]]
    ) -> list[RunFound]:
        """Take in a graph that is later than all before.

        Parameters
        ----------
        graph
            The graph.
        existing
            By dataset type, the required data-ID values of what exists in its RUN.

        Returns
        -------
        runs
            Its quanta in that RUN, in the order of its plan.
        """
        stopped = bytearray(len(graph.plan))
        found = []
        for index, key in enumerate(graph.plan.quantum_keys()):
            label = graph.plan.label(index)
            quantum = self.quanta.setdefault(key, QuantumFound(label))
            run = quantum.runs[graph.output_run] = RunFound(graph, index)
            for output in graph.outputs[index]:
                self._note_output(quantum, output, graph.output_run, existing)
            is_behind = any(stopped[before] for before in graph.plan.prerequisites(index))
            run.word = self._word(graph, index, is_behind=is_behind)
            stopped[index] = run.word in (RunWord.FAILED, RunWord.BLOCKED)
            _update(quantum, graph.output_run, run.word)
            found.append(run)
        return found

    def _note_output(
        self,
        quantum: QuantumFound,
        output: Output,
        run: str,
        existing: Mapping[str, AbstractSet[tuple[DataIdValue, ...]]],
    ) -> None:
        values = output.required_values
        key = (output.dataset_type, values)
        if (dataset := self.datasets.get(key)) is None:
            dataset = self.datasets[key] = DatasetFound(quantum, output)
        dataset.produced[run] = values in existing.get(output.dataset_type, ())
        quantum.outputs[key] = dataset

    def _word(self, graph: GraphOutputs, index: int, *, is_behind: bool) -> RunWord:
        label = graph.plan.label(index)
        has_metadata = self._exists(graph, index, graph.metadata_types[label])
        if label not in graph.log_types:
            has_log = has_metadata
        else:
            has_log = self._exists(graph, index, graph.log_types[label])
        match has_metadata, has_log:
            case True, True:
                return RunWord.SUCCEEDED
            case True, False:
                return RunWord.LOG_MISSING
            case False, True:
                return RunWord.FAILED
            case _:
                return RunWord.BLOCKED if is_behind else RunWord.UNKNOWN

    def _exists(self, graph: GraphOutputs, index: int, dataset_type: str) -> bool:
        output = graph.output_of(index, dataset_type)
        if output is None:
            return False
        return self.datasets[dataset_type, output.required_values].produced[graph.output_run]

    def all_exist(self, run: RunFound) -> bool:
        """Tell whether all that a quantum was to write in a RUN is there."""
        name = run.graph.output_run
        return all(
            self.datasets[output.dataset_type, output.required_values].produced[name]
            for output in run.graph.outputs[run.index]
        )

    def see(self, dataset_type: str, values: tuple[DataIdValue, ...], run: str) -> None:
        """Take in that a dataset is found in a RUN; datasets of no graph, and other RUNs, do not matter."""
        dataset = self.datasets.get((dataset_type, values))
        if dataset is not None and run in dataset.produced:
            dataset.visible.add(run)

    def see_newest(self, runs: Sequence[str]) -> None:
        """Take in that RUNs are searched in this order, and nothing else."""
        for dataset in self.datasets.values():
            newest = next((run for run in runs if dataset.produced.get(run)), None)
            if newest is not None:
                dataset.visible = {newest}

    def conclude(self, log_types: AbstractSet[str], *, curse_failed_logs: bool = False) -> None:
        """Decide about the datasets, when all graphs were added and all that is visible was seen.

        Parameters
        ----------
        log_types
            Dataset types of logs.
        curse_failed_logs
            Logs of quanta that did not succeed are cursed as other datasets are.
        """
        for quantum in self.quanta.values():
            runs: set[str] = set()
            for dataset in quantum.outputs.values():
                runs |= dataset.visible
                is_log = dataset.output.dataset_type in log_types
                dataset.word = _dataset_word(dataset, quantum.word, may_curse=curse_failed_logs or not is_log)
                if dataset.word is DatasetWord.CURSED:
                    dataset.messages.append(f"its quantum is {quantum.word.value}, and yet it is visible")
            if len(runs) > 1:
                quantum.word = LastWord.WONKY
                quantum.messages.append(f"its outputs are visible in several RUNs: {', '.join(sorted(runs))}")

    def by_label(self) -> dict[str, list[QuantumFound]]:
        """Return the quanta by task label, in the order of the graphs."""
        found: dict[str, list[QuantumFound]] = {}
        for quantum in self.quanta.values():
            found.setdefault(quantum.label, []).append(quantum)
        return found


def _update(quantum: QuantumFound, run: str, word: RunWord) -> None:
    """Take in what one more RUN says of a quantum."""
    before = quantum.word
    if before is LastWord.WONKY:
        return
    match word:
        case RunWord.SUCCEEDED:
            quantum.recovered |= before in (LastWord.FAILED, LastWord.BLOCKED)
            quantum.word = LastWord.SUCCEEDED
        case RunWord.LOG_MISSING:
            quantum.word = LastWord.WONKY
            quantum.messages.append(f"its metadata are in {run}, its log is not")
        case _ if before is LastWord.SUCCEEDED:
            quantum.word = LastWord.WONKY
            quantum.messages.append(f"it had succeeded before, and is {word.value} in {run}")
        case RunWord.BLOCKED:
            if before is LastWord.UNKNOWN:
                quantum.word = LastWord.BLOCKED
        case RunWord.UNKNOWN:
            quantum.word = LastWord.UNKNOWN
        case RunWord.FAILED:
            quantum.word = LastWord.FAILED
        case _:
            assert_never(word)


def _dataset_word(dataset: DatasetFound, quantum: LastWord, *, may_curse: bool) -> DatasetWord:
    if quantum is LastWord.SUCCEEDED:
        if dataset.visible:
            return DatasetWord.VISIBLE
        return DatasetWord.SHADOWED if any(dataset.produced.values()) else DatasetWord.PREDICTED_ONLY
    return DatasetWord.CURSED if dataset.visible and may_curse else DatasetWord.UNSUCCESSFUL
