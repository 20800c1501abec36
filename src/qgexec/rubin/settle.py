"""Settles what drivers that died left open: attempts in the air, and successes that a power cut undid.

Runs nothing. An attempt whose outcome nobody heard is complete when its metadata and log are
there: upstream writes them last, in this order. What an `Outcome` says is then taken from the
metadata, and the datastore records from the files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

from lsst.daf.butler import DatasetRef, Quantum
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base.pipeline_graph import TaskNode

from qgexec.books.journal import SegmentWriter, segment_path
from qgexec.errors import RepositoryError
from qgexec.events import AttemptReturned, AttemptSucceeded
from qgexec.quantum import Outcome, OutcomeStatus, SegmentRef
from qgexec.rubin.datastores import find_records, is_whole, recorded_files
from qgexec.rubin.detail import Detail, output_row, records_from_json, records_to_json
from qgexec.rubin.graphfile import GraphSource
from qgexec.rubin.ingest import IngesterOpener
from qgexec.rubin.opener import WorkbenchOpener
from qgexec.rubin.supply import Supply
from qgexec.scheduling.plan import Plan

__all__ = ["InTheAir", "missing_outputs", "settle"]

_logger = logging.getLogger(__name__)

_SEGMENT = "settle"


@dataclass(frozen=True, slots=True)
class InTheAir:
    """An attempt that was started, and of which nobody knows how it ended."""

    index: int
    """The quantum's index in the plan."""

    attempt: int
    """The attempt's number, from 1."""

    started_at: float
    """When it was handed to the execution model (`AttemptStarted.at`), UNIX seconds."""


def settle(
    opener: WorkbenchOpener,
    ingester: IngesterOpener,
    plan: Plan,
    attempts: Sequence[InTheAir],
    unfinished: Collection[int] = (),
) -> list[AttemptSucceeded | AttemptReturned]:
    """Find out which attempts in the air are complete, and remove what the others left.

    To be called when none of them runs any more, before anything is
    started. What is removed are files and, where an earlier attempt's had
    been taken in, their datasets in the registry. Doing it again before
    the events are recorded gives equal events.

    Parameters
    ----------
    opener
        What benches are opened with, its books those of the new driver: the
        details of complete attempts go into the segment ``settle`` of its epoch.
    ingester
        What ingesters are opened with, ``run_dir`` and ``run_began_at`` included.
    plan
        The run's plan.
    attempts
        The attempts, one at most for each quantum.
    unfinished
        Quanta whose last attempt is known to have come to no end of its own, or is to be followed by
        another: what it left is removed as well, if nobody has done so.

    Returns
    -------
    events
        One for each attempt, in their order: `AttemptSucceeded` with what the
        metadata say (times, CPU, memory, host, caveats; no process ID), or `AttemptReturned`.
        To be recorded; the details of the successes are to be ingested.

    Raises
    ------
    qgexec.errors.GraphError
        The graph cannot be read, or a task class not be imported.
    qgexec.errors.RepositoryError
        Datastore or registry cannot be opened, or files not be looked at.
    qgexec.errors.IngestError
        What incomplete attempts left cannot be removed.
    qgexec.errors.JournalError
        The segment cannot be written.

    Notes
    -----
    A second or two to open graph and datastore, then about 5 ms an attempt.
    """
    complete = _find_complete(opener, plan, attempts)
    incomplete = [*unfinished, *(each.index for each in attempts if each.index not in complete)]
    if incomplete:
        with closing(ingester()) as discarding:
            discarding.discard(incomplete)
    if attempts:
        _logger.info("%d of %d attempts in the air were complete.", len(complete), len(attempts))
    details = _write_details(opener, complete)
    now = time.time()
    return [
        AttemptSucceeded(now, complete[each.index].outcome(each, details[each.index]))
        if each.index in complete
        else AttemptReturned(now, each.index, each.attempt)
        for each in attempts
    ]


def missing_outputs(opener: WorkbenchOpener, details: Mapping[int, Mapping[str, Any]]) -> list[int]:
    """Find quanta that succeeded, but whose output files are gone, or not what they were, by size.

    Parameters
    ----------
    opener
        What benches are opened with.
    details
        Details (`qgexec.books.journal.read_detail`) of quanta that succeeded, by index.

    Returns
    -------
    indices
        Quanta of which a file is missing or of another size, ascending; about 0.1 ms a file.

    Raises
    ------
    qgexec.errors.GraphError, qgexec.errors.RepositoryError
        As for `settle`.
    """
    if not details:
        return []
    with _open(opener) as (_, supply):
        return sorted(
            index
            for index, detail in details.items()
            if any(
                file.size() != file.info.file_size
                for file in recorded_files(supply.datastore, records_from_json(detail.get("records", {})))
            )
        )


@contextmanager
def _open(opener: WorkbenchOpener) -> Iterator[tuple[GraphSource, Supply]]:
    with ExitStack() as stack:
        source = stack.enter_context(closing(GraphSource(Path(opener.graph_file), opener.repository)))
        supply = stack.enter_context(closing(Supply.of_graph(opener.repository, source)))
        try:
            yield source, supply
        except OSError as error:
            raise RepositoryError(
                f"the datastore of {opener.repository} cannot be read: {error}",
                hint="Check that its folders are mounted and may be read, then try again.",
            ) from error


@dataclass(frozen=True, slots=True)
class _Complete:
    """What is known of a complete attempt."""

    metadata: TaskMetadata
    """Metadata of the quantum, other than the task's own."""
    detail: Detail

    def outcome(self, attempt: InTheAir, detail: SegmentRef) -> Outcome:
        metadata = self.metadata
        peak = metadata.get("endMaxResidentSetSize")
        return Outcome(
            index=attempt.index,
            attempt=attempt.attempt,
            status=OutcomeStatus.SUCCEEDED,
            started_at=_seconds(metadata["prepUtc"]),
            ended_at=_seconds(metadata["endUtc"]),
            cpu_s=round(metadata.get("endCpuTime", 0.0) - metadata.get("prepCpuTime", 0.0), 6),
            peak_rss_bytes=int(peak) if peak is not None else None,
            host=str(metadata.get("nodeName", "")),
            caveats=int(metadata.get("caveats", 0)),
            detail=detail,
        )


def _find_complete(opener: WorkbenchOpener, plan: Plan, attempts: Sequence[InTheAir]) -> dict[int, _Complete]:
    if not attempts:
        return {}
    with _open(opener) as (source, supply):
        return {each.index: done for each in attempts if (done := _examine(source, supply, plan, each))}


def _examine(source: GraphSource, supply: Supply, plan: Plan, attempt: InTheAir) -> _Complete | None:
    """Return what a complete attempt left; `None` if it is not complete."""
    task_node = source.task_node(plan.label(attempt.index))
    quantum = source.quantum(plan.quantum_id(attempt.index))
    last = _last_outputs(task_node, quantum)
    if not all(is_whole(supply.datastore, ref) for ref in last):
        return None
    metadata = _read_metadata(supply, quantum, last)
    # What is older was there before: the attempt had not come to removing it, or was not to execute at all.
    if metadata is None or _seconds(metadata["prepUtc"]) < attempt.started_at:
        return None
    outputs = list(chain.from_iterable(quantum.outputs.values()))
    records = find_records(supply.datastore, outputs)
    found: set[UUID] = set().union(*(data.records for data in records.values()))
    put = metadata.getArray("outputs") if "outputs" in metadata else ()
    # After a power cut a file may be there without its content.
    empty = {file.dataset_id for file in recorded_files(supply.datastore, records) if not file.info.file_size}
    if not {UUID(each) for each in put} <= found - empty:
        return None
    detail: Detail = {
        "outputs": [output_row(ref) for ref in outputs if ref.id in found],
        "records": records_to_json(records),
        "replaces": True,
    }
    if absent := [ref.id.hex for ref in outputs if ref.id not in found]:
        detail["absent"] = absent
    return _Complete(metadata, detail)


def _last_outputs(task_node: TaskNode, quantum: Quantum) -> list[DatasetRef]:
    """Return metadata and log, in this order; not every task has a log."""
    last = list(quantum.outputs[task_node.metadata_output.dataset_type_name])
    if task_node.log_output is not None:
        last += quantum.outputs[task_node.log_output.dataset_type_name]
    return last


def _read_metadata(supply: Supply, quantum: Quantum, last: Sequence[DatasetRef]) -> TaskMetadata | None:
    """Return the quantum's part of the metadata; `None` if that, or the log, was not written to its end."""
    butler = supply.butler(quantum)
    try:
        metadata, *_ = [butler.get(ref) for ref in last]
        of_quantum = metadata["quantum"]
        if isinstance(of_quantum, TaskMetadata) and "prepUtc" in of_quantum and "endUtc" in of_quantum:
            return of_quantum
    except Exception as error:  # noqa: BLE001 - whatever a formatter raises about a damaged file
        _logger.warning("Quantum %s left outputs that cannot be read: %s", quantum.dataId, error)
    return None


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _write_details(opener: WorkbenchOpener, complete: Mapping[int, _Complete]) -> dict[int, SegmentRef]:
    if not complete:
        return {}
    books = opener.books
    with closing(SegmentWriter(segment_path(Path(books.segments), books.epoch, _SEGMENT))) as writer:
        return {index: writer.append(each.detail) for index, each in complete.items()}
