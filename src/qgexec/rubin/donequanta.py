"""Which quanta are done in a RUN already: those whose metadata is there, as upstream has it."""

from __future__ import annotations

from lsst.daf.butler import Butler, MissingDatasetTypeError
from lsst.pipe.base.pipeline_graph import PipelineGraph

from qgexec.scheduling.plan import Plan

__all__ = ["done_quanta"]


def done_quanta(butler: Butler, pipeline: PipelineGraph, plan: Plan, output_run: str) -> set[int]:
    """Return the indices of quanta whose metadata the registry has.

    Parameters
    ----------
    butler
        The repository.
    pipeline
        The tasks.
    plan
        The quanta; about 3 us each, for tasks that have any metadata in the RUN.
    output_run
        RUN collection, which exists.
    """
    found: dict[str, set[tuple[object, ...]]] = {}
    keys: dict[str, tuple[str, ...]] = {}
    for label in plan.labels:
        node = pipeline.tasks[label]
        keys[label] = tuple(node.dimensions.required)
        try:
            refs = butler.query_datasets(
                node.metadata_output.dataset_type_name, output_run, explain=False, limit=None
            )
        except MissingDatasetTypeError:
            refs = []
        found[label] = {tuple(ref.dataId.required_values) for ref in refs}
    done: set[int] = set()
    for index in range(len(plan)):
        label = plan.label(index)
        if found[label]:
            data_id = plan.data_id(index)
            if tuple(data_id[key] for key in keys[label]) in found[label]:
                done.add(index)
    return done
