"""Says what a run would do, and what would go wrong with it, before anything is spent; writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lsst.daf.butler import Butler

from qgexec.assembly import Client, make_model, model_name, policy_of, remarks_beforehand
from qgexec.books.beginning import find_place
from qgexec.books.runlist import RunEntry, RunList
from qgexec.config.runoptions import RunOptions
from qgexec.errors import GraphError, QgexecError
from qgexec.models.base import ExecutionModel
from qgexec.models.batch import BatchModel
from qgexec.otherruns import other_runs
from qgexec.processes.machine import machine_memory_bytes
from qgexec.quantum import Resources
from qgexec.rubin.existing import ExistingQuanta, existing_quanta, outputs_in_the_way
from qgexec.rubin.graphfile import read_output_run
from qgexec.rubin.preexec import Preparation
from qgexec.rubin.preflight import Check, Preflight, preflight
from qgexec.rubin.repository import locate, open_butler, repository_identity
from qgexec.scheduling.outlook import Outlook, outlook
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.policy import Policy

__all__ = ["Preview", "TaskPreview", "preview"]


@dataclass(frozen=True, slots=True)
class TaskPreview:
    """What would be done of one task."""

    label: str
    n_quanta: int
    """Quanta that are asked for."""
    n_done: int
    """Those of them that would be skipped, for their metadata is in the output RUN already."""
    request: Resources
    """What each of the others asks for."""
    timeout_s: float | None
    """Time limit of each, seconds."""
    expected_s: float | None
    """Mean run time of such quanta in an earlier run, seconds; `None` where that is not known."""


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do."""

    checks: tuple[Check, ...]
    """What was looked at."""
    model: str
    """Name of the execution model."""
    n_in_graph: int
    """Quanta of the graph; 0 where it cannot be read."""
    tasks: tuple[TaskPreview, ...] = ()
    outlook: Outlook | None = None
    """What is to be expected; `None` where the run time of a task is not known."""
    cores: int | None = None
    """Cores that the run would have; `None` on a batch system, which has as many as it gives."""
    memory_bytes: int | None = None
    """Memory that it would have, bytes; `None` where that is no bound, or not known."""
    remarks: tuple[str, ...] = ()
    """What was asked for and would not be done."""

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, as far as can be known."""
        return all(check.is_well for check in self.checks)


def preview(
    graph: Any,
    repository: Any,
    client: Client,
    options: RunOptions,
    preparation: Preparation,
    run_dir: Path | None,
) -> Preview:
    """Look at a run before it begins.

    Parameters
    ----------
    graph
        File, or a graph in memory.
    repository
        A butler, or what one is made from; it is only read.
    client, options, preparation
        As for a run.
    run_dir
        Where it would keep its books; `None` for the default.
    """
    if run_dir is None:
        with suppress(GraphError):  # a graph that cannot be read is among the problems
            run_dir = find_place(read_output_run(graph))
    with tempfile.TemporaryDirectory(prefix="qgexec-") as folder:
        given, _ = locate(repository, Path(folder))
        flight = preflight(given, graph, Path(folder), run_dir or Path.cwd(), preparation)
        found = Preview(flight.checks, model_name(client.model), 0)
        if flight.graph is None:
            return found
        found = replace(found, n_in_graph=flight.graph.n_quanta)
        try:
            plan = client.plan_of(flight.graph.path, options.config.ordering)
        except QgexecError as error:
            return _with(found, Check("quanta", error.message, error.hint, is_well=False))
    try:
        model = make_model(client, options)
        if isinstance(model, BatchModel):
            model.system.check()
            found = _with(found, Check("execution model", f"{found.model} answers"))
    except QgexecError as error:
        return _with(found, Check("execution model", error.message, error.hint, is_well=False))
    found = _with(found, *_others(given, flight, plan, client))
    existing = _existing(given, flight, plan)
    if existing.failed and not options.clobber_outputs:
        in_the_way = outputs_in_the_way(plan, existing.failed)
        found = _with(found, Check("outputs", in_the_way.message, in_the_way.hint, is_well=False))
    done = existing.done if options.skip_existing else set()
    if not isinstance(model, ExecutionModel):
        return replace(found, tasks=_tasks(plan, done, policy_of(options, plan), {}))
    elsewhere = model.facts.orders_itself
    policy = policy_of(options, plan, elsewhere=elsewhere)
    durations = options.config.batch.durations
    found = replace(
        found,
        tasks=_tasks(plan, done, policy, durations),
        remarks=tuple(remarks_beforehand(options, plan, model, policy)),
        cores=None if elsewhere else options.cores,
        memory_bytes=None if elsewhere else machine_memory_bytes(),
    )
    return replace(found, outlook=_outlook(found, plan, done, policy, durations))


def _with(found: Preview, *checks: Check) -> Preview:
    return replace(found, checks=(*found.checks, *checks))


def _others(repository: str | Butler, flight: Preflight, plan: Plan, client: Client) -> list[Check]:
    """Say which runs that go on write the same output RUN."""
    if flight.collections is None:
        return []
    registry, root = repository_identity(repository)
    entry = RunEntry("", flight.collections.output_run, registry=registry, root=root)
    return [
        Check(
            "other runs",
            other.words(),
            other.refusal().hint if other.stands_in_the_way else "",
            is_well=client.force or not other.stands_in_the_way,
        )
        for other in other_runs(RunList.of_user(), entry, plan)
    ]


def _existing(repository: str | Butler, flight: Preflight, plan: Plan) -> ExistingQuanta:
    if flight.collections is None or not flight.collections.run_exists or flight.graph is None:
        return ExistingQuanta(set(), set())
    with open_butler(repository) as butler:
        return existing_quanta(butler, flight.graph.pipeline_graph, plan, flight.collections.output_run)


def _tasks(
    plan: Plan, done: set[int], policy: Policy, durations: Mapping[str, float]
) -> tuple[TaskPreview, ...]:
    n_done = dict.fromkeys(plan.labels, 0)
    for index in done:
        n_done[plan.label(index)] += 1
    found = []
    for label, n_quanta in plan.count_by_label().items():
        rules = policy.rules_of(label)
        if n_quanta:
            found.append(
                TaskPreview(
                    label, n_quanta, n_done[label], rules.request, rules.timeout_s, durations.get(label)
                )
            )
    return tuple(found)


def _outlook(
    found: Preview, plan: Plan, done: set[int], policy: Policy, durations: Mapping[str, float]
) -> Outlook | None:
    left = np.asarray([index for index in range(len(plan)) if index not in done], dtype=np.int64)
    if any(task.expected_s is None for task in found.tasks if task.n_done < task.n_quanta):
        return None
    return outlook(
        plan.part(left) if done else plan,
        durations,
        lambda label: policy.rules_of(label).request,
        cores=found.cores or max(1, len(left)),
        memory_bytes=found.memory_bytes,
    )
