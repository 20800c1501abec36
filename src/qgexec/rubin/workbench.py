"""The benches of a real run: where a process executes one quantum after another; knows no registry.

What is expensive is done once, when a bench opens: the stack and the task
classes are imported, the graph file and the datastore opened. What upstream
lets grow is made anew for each quantum: its butler and its executor.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from uuid import UUID

from lsst.daf.butler import DatasetRef, Quantum, QuantumBackedButler
from lsst.pipe.base import ExecutionResources
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult
from lsst.utils.threads import disable_implicit_threading

from qgexec.events import Event
from qgexec.quantum import Attempt, OutcomeStatus, Resources
from qgexec.rubin.compat import QuantumExecutor, put_refs
from qgexec.rubin.datastores import (
    find_records,
    forget,
    modified_at,
    predicted_files,
    remove_files,
    uncache,
)
from qgexec.rubin.detail import Detail, output_row, records_to_json
from qgexec.rubin.fulldisk import check_room, refuse_without_room
from qgexec.rubin.graphfile import GraphSource
from qgexec.rubin.opener import ExecutorBenchOpener, ImportedExecutor, WorkbenchOpener, WorkbenchOptions
from qgexec.rubin.quantumlog import QuantumLogRecords
from qgexec.rubin.recorder import Recorder
from qgexec.rubin.supply import Supply

__all__ = ["ExecutorBench", "Workbench"]


class Workbench:
    """Executes quanta as upstream's `SingleQuantumExecutor` does, on a datastore that is kept open."""

    def __init__(self, opener: WorkbenchOpener, name: str) -> None:
        self._options = opener.options
        with contextlib.ExitStack() as stack:
            self._source = _open_source(opener.graph_file, opener.options.implicit_threads, opener.repository)
            stack.callback(self._source.close)
            self.supply = Supply.of_graph(opener.repository, self._source)
            stack.callback(self.supply.close)
            self._recorder = Recorder(opener.books, name)
            stack.callback(self._recorder.close)
            self._open = stack.pop_all()

    def execute(self, attempt: Attempt) -> Event:
        """Execute one quantum and say what came of it.

        Raises
        ------
        qgexec.errors.RunInterrupted
            The user has ended the run, in whose own process the quantum ran.
        qgexec.errors.JournalError
            The detail cannot be written.
        qgexec.errors.RepositoryFullError
            The repository has no room for what the quantum has made.
        """
        with _Sitting(self.supply, self._source, attempt, self._options) as sitting:
            event = self._recorder.record(attempt, sitting.execute, sitting.outputs)
        refuse_without_room(event)
        return event

    def close(self) -> None:
        """Release files and connections; may be called twice."""
        self._open.close()


class ExecutorBench:
    """Calls an executor of the client's own, and leaves what it writes to it."""

    def __init__(self, opener: ExecutorBenchOpener, name: str) -> None:
        executor = opener.executor
        self._executor = executor.make() if isinstance(executor, ImportedExecutor) else executor
        with contextlib.ExitStack() as stack:
            self._source = _open_source(opener.graph_file, opener.implicit_threads)
            stack.callback(self._source.close)
            self._recorder = Recorder(opener.books, name)
            stack.callback(self._recorder.close)
            self._open = stack.pop_all()

    def execute(self, attempt: Attempt) -> Event:
        """Execute one quantum and say what came of it; raises as `Workbench.execute`."""

        def call() -> QuantumExecutionResult:
            task_node = self._source.task_node(attempt.task_label)
            quantum = self._source.quantum(attempt.quantum_id)
            return self._executor.execute(task_node, quantum, quantum_id=attempt.quantum_id)

        return self._recorder.record(attempt, call, lambda _: {})

    def close(self) -> None:
        """Release files; may be called twice."""
        self._open.close()


def _open_source(graph_file: str, implicit_threads: bool, repository: str = "") -> GraphSource:
    if not implicit_threads:
        disable_implicit_threading()  # for libraries that read it when they are imported
    source = GraphSource(Path(graph_file), repository)
    try:
        _ = source.pipeline_graph  # reading it imports the task classes
        if not implicit_threads:
            disable_implicit_threading()  # for those that have been imported by now
    except BaseException:
        source.close()
        raise
    return source


class _Sitting:
    """One attempt at one quantum; the datastore knows nothing of it before and after."""

    def __init__(
        self, supply: Supply, source: GraphSource, attempt: Attempt, options: WorkbenchOptions
    ) -> None:
        self._supply = supply
        self._source = source
        self._attempt = attempt
        self._options = options
        self._quantum: Quantum | None = None
        self._butler: QuantumBackedButler | None = None

    def __enter__(self) -> _Sitting:
        return self

    @property
    def _is_first(self) -> bool:
        """Whether there was no attempt before."""
        return self._attempt.number == 1 and not self._options.clears_first

    def execute(self) -> QuantumExecutionResult:
        """Read and execute the quantum."""
        task_node = self._source.task_node(self._attempt.task_label)
        self._quantum = quantum = self._source.quantum(self._attempt.quantum_id)
        if quantum.datastore_records:
            # A known record would be refused; none is known, since every sitting forgets.
            self._supply.datastore.import_records(quantum.datastore_records)
        self._butler = butler = self._supply.butler(quantum)
        options = self._options
        replaces_log = not self._is_first and self._clear_remains(task_node, quantum, butler)
        executor = QuantumExecutor(
            butler=None,
            limited_butler_factory=lambda _: butler,
            resources=_execution_resources(self._attempt.resources),
            skip_existing=options.skip_existing and not replaces_log,
            # An earlier attempt that got as far as its log had nothing in its way, or was to remove it.
            clobber_outputs=options.clobber_outputs or replaces_log,
            assume_no_existing_outputs=options.run_is_new and not replaces_log,
            raise_on_partial_outputs=options.raise_on_partial_outputs,
            enable_lsst_debug=options.lsst_debug,
            job_metadata=options.job_metadata,
        )
        try:
            return executor.execute(
                task_node, quantum, quantum_id=self._attempt.quantum_id, log_records=QuantumLogRecords()
            )
        except Exception as error:
            check_room(self._supply.datastore, error)
            raise

    def _clear_remains(self, task_node: TaskNode, quantum: Quantum, butler: QuantumBackedButler) -> bool:
        """Remove what earlier attempts left, other than a log; say whether there is one.

        Upstream's executor takes a log over into the new one, for its provenance, and then removes it.
        """
        datastore = self._supply.datastore
        since = -math.inf if self._options.run_is_new else self._options.run_began_at
        logs = quantum.outputs[task_node.log_output.dataset_type_name] if task_node.log_output else []
        log_files = [file.uri for file in predicted_files(datastore, logs)]
        written_at = [at for uri in log_files if (at := modified_at(uri)) is not None]
        takes_over = bool(written_at) and min(written_at) >= since and _can_be_read(butler, logs)
        outputs = list(chain.from_iterable(quantum.outputs.values()))
        remove_files(datastore, outputs, since=since, keep=log_files if takes_over else ())
        return takes_over

    def outputs(self, status: OutcomeStatus) -> Detail:
        """Return what there is of the quantum's outputs now, and what is to be known of it.

        About 0.1 ms, and 0.1 ms more for each predicted output that this
        attempt did not put, if the RUN existed before or there was an attempt before.
        """
        if self._quantum is None or self._butler is None:
            return {}
        put = {ref.id: ref for ref in put_refs(self._butler)}
        records = dict(self._supply.datastore.export_records(put.values())) if put else {}
        detail: Detail = {}
        if self._options.run_is_new and self._is_first:
            existing = list(put.values())
        else:
            predicted = {ref.id: ref for ref in chain.from_iterable(self._quantum.outputs.values())}
            others = [ref for ref in predicted.values() if ref.id not in put]
            found = find_records(self._supply.datastore, others)
            found_ids: set[UUID] = set().union(*(data.records for data in found.values()))
            existing = [*put.values(), *(ref for ref in others if ref.id in found_ids)]
            for name, data in found.items():
                if name in records:
                    records[name].records.update(data.records)
                else:
                    records[name] = data
            detail["replaces"] = True
            # A skipped quantum was not tried: nothing is concluded from what it lacks.
            absent = [ref.id.hex for ref in others if ref.id not in found_ids]
            if absent and status is not OutcomeStatus.SKIPPED:
                detail["absent"] = absent
        if existing:
            detail["outputs"] = [output_row(ref) for ref in existing]
            detail["records"] = records_to_json(records)
        return detail

    def __exit__(self, *_: object) -> None:
        if (quantum := self._quantum) is None:
            return
        refs: dict[UUID, DatasetRef] = {
            ref.id: ref
            for ref in chain(quantum.initInputs.values(), *quantum.inputs.values(), *quantum.outputs.values())
        }
        forget(self._supply.datastore, refs.values())
        overall = set().union(*(data.records for data in (quantum.datastore_records or {}).values()))
        # Nobody writes overall inputs again while the run lasts; copies of the others might be out of date.
        uncache(self._supply.datastore, [ref for ref in refs.values() if ref.id not in overall])


def _can_be_read(butler: QuantumBackedButler, refs: Collection[DatasetRef]) -> bool:
    """Tell whether these are whole: a power cut leaves files without their content."""
    try:
        for ref in refs:
            butler.get(ref)
    except Exception:  # noqa: BLE001 - whatever a formatter raises about a damaged file
        return False
    return True


def _execution_resources(resources: Resources) -> ExecutionResources:
    return ExecutionResources(num_cores=resources.cores, max_mem=resources.memory_bytes)
