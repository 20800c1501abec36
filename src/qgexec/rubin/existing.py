"""What the registry has of a RUN, by data ID, and which quanta are done by that; reads no files."""

from __future__ import annotations

from collections.abc import Iterable

from lsst.daf.butler import Butler, MissingCollectionError, MissingDatasetTypeError
from lsst.pipe.base.pipeline_graph import PipelineGraph

from qgexec.quantum import DataIdValue
from qgexec.scheduling.plan import Plan

__all__ = ["done_quanta", "existing_data_ids"]


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


def done_quanta(butler: Butler, pipeline: PipelineGraph, plan: Plan, run: str) -> set[int]:
    """Return the indices of quanta whose metadata is in a RUN: done, as upstream has it.

    Parameters
    ----------
    butler
        The repository.
    pipeline
        The tasks.
    plan
        The quanta; about 3 us each, for tasks that have any metadata in the RUN.
    run
        RUN collection; need not exist.
    """
    tasks = [pipeline.tasks[label] for label in plan.labels]
    names = [task.metadata_output.dataset_type_name for task in tasks]
    keys = [tuple(task.dimensions.required) for task in tasks]
    existing = existing_data_ids(butler, names, run)
    found = [existing.get(name, set()) for name in names]
    done: set[int] = set()
    for index, code in enumerate(plan.label_codes):
        if found[code]:
            data_id = plan.data_id(index)
            if tuple(data_id[key] for key in keys[code]) in found[code]:
                done.add(index)
    return done
