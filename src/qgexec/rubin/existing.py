"""What the registry has of a RUN, by data ID, and which quanta are done or failed by that; reads no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from lsst.daf.butler import Butler, MissingCollectionError, MissingDatasetTypeError
from lsst.pipe.base.pipeline_graph import PipelineGraph, TaskNode, WriteEdge

from qgexec.errors import CollectionError
from qgexec.plaintext import few
from qgexec.quantum import DataIdValue
from qgexec.scheduling.plan import Plan

__all__ = ["ExistingQuanta", "existing_data_ids", "existing_quanta", "outputs_in_the_way"]


def existing_data_ids(
    butler: Butler, dataset_types: Iterable[str], run: str
) -> dict[str, set[tuple[DataIdValue, ...]]]:
    """Return, by dataset type, the required data-ID values of what the registry has in a RUN.

    Parameters
    ----------
    butler
        The repository.
    dataset_types
        Names; those of which nothing was ever written are left out.
    run
        RUN collection; need not exist.
    """
    found: dict[str, set[tuple[DataIdValue, ...]]] = {}
    with butler.query() as query:
        for name in sorted(dataset_types):
            try:
                dimensions = butler.get_dataset_type(name).dimensions
                # Data IDs alone: references to datasets take twice as long to make.
                rows = query.join_dataset_search(name, [run]).data_ids(dimensions)
                found[name] = {data_id.required_values for data_id in rows}
            except (MissingDatasetTypeError, MissingCollectionError):
                continue  # nothing of it was ever written
    return found


@dataclass(frozen=True, slots=True)
class ExistingQuanta:
    """What the registry has in a RUN of the quanta of a plan."""

    done: set[int]
    """Indices of those whose metadata is there: done, as upstream has it."""

    failed: set[int]
    """Indices of those whose log is there, and no metadata."""


def existing_quanta(butler: Butler, pipeline: PipelineGraph, plan: Plan, run: str) -> ExistingQuanta:
    """Return which quanta are done, and which have failed.

    Parameters
    ----------
    butler
        The repository.
    pipeline
        The tasks.
    plan
        The quanta; about 3 us each, for tasks of which there is anything in the RUN.
    run
        RUN collection; need not exist.
    """
    tasks = [pipeline.tasks[label] for label in plan.labels]
    done = _quanta_with(butler, tasks, [task.metadata_output for task in tasks], plan, run)
    logged = _quanta_with(butler, tasks, [task.log_output for task in tasks], plan, run)
    return ExistingQuanta(done, logged - done)


def outputs_in_the_way(plan: Plan, failed: Collection[int]) -> CollectionError:
    """Return the error that says that quanta would fail, for an earlier attempt left outputs."""
    counts = Counter(map(plan.label, failed))
    by_task = few([f"{counts[label]} of {label}" for label in plan.labels if counts[label]])
    n_quanta, whose = ("one quantum", "its") if len(failed) == 1 else (f"{len(failed)} quanta", "their")
    return CollectionError(
        f"{n_quanta} ({by_task}) failed in this RUN, and would fail again: {whose} outputs are in the way",
        hint="Let them be removed with --clobber-outputs.",
    )


def _quanta_with(
    butler: Butler, tasks: Sequence[TaskNode], outputs: Sequence[WriteEdge | None], plan: Plan, run: str
) -> set[int]:
    """Return the indices of the quanta of which this output, one for each task, is there."""
    names = ["" if output is None else output.dataset_type_name for output in outputs]
    keys = [tuple(task.dimensions.required) for task in tasks]
    existing = existing_data_ids(butler, filter(None, names), run)
    found = [existing.get(name, set()) for name in names]
    quanta: set[int] = set()
    for index, code in enumerate(plan.label_codes):
        if found[code]:
            data_id = plan.data_id(index)
            if tuple(data_id[key] for key in keys[code]) in found[code]:
                quanta.add(index)
    return quanta
