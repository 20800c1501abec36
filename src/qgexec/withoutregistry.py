"""Executes quanta of a graph, and writes init-outputs, with quantum-backed butlers alone.

That is what a job does of a workflow which others order and keep books of: ``pipetask run-qbb`` and
``pre-exec-init-qbb``. The registry is neither read nor written, and no list of runs has what was executed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qgexec.assembly import (
    Client,
    OpenRun,
    make_loop,
    make_model,
    model_name,
    policy_of,
    tell_beforehand,
)
from qgexec.books.journal import Journal
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.config.runoptions import RunOptions
from qgexec.models.base import ExecutionModel
from qgexec.quantum import RunContext
from qgexec.rubin.datastorecache import shared_cache
from qgexec.rubin.graphfile import open_graph, read_output_run, serial_labels
from qgexec.rubin.graphload import parse_id
from qgexec.rubin.graphpart import local_graph, read_part
from qgexec.rubin.initoutputs import write_without_registry
from qgexec.rubin.repository import learn_storage_classes, repository_uri
from qgexec.scheduling.scheduler import Scheduler
from qgexec.verdict import ReportSource, raise_if_failed

__all__ = ["Execution", "GraphPart", "write_init_outputs"]


@dataclass(frozen=True, slots=True)
class GraphPart:
    """Quanta of a graph."""

    graph: str
    """Path or URI of a ``.qg`` or ``.qgraph`` file."""

    graph_id: str | None = None
    """Identifier that a ``.qgraph`` file must have."""

    quantum_ids: Sequence[str] = ()
    """UUIDs of the quanta; none for all. What they need of other quanta must be there."""


class Execution:
    """Quanta of a graph that are executed in this process or in workers of its own.

    Parameters
    ----------
    repository
        Butler repository: root, configuration file or alias.
    part
        What to execute.
    folder
        For files that are needed meanwhile; exists. Afterwards there is in it what is known of any run.
    options
        How to execute.
    model
        Name of the execution model.
    debugger
        Module whose ``post_mortem`` is called where a quantum fails in this process.
    outputs_exist
        Whether there may be outputs of earlier tries.

    Raises
    ------
    qgexec.errors.QgexecError
        The graph or the repository cannot be used.
    """

    def __init__(
        self,
        repository: str,
        part: GraphPart,
        folder: Path,
        options: RunOptions,
        *,
        model: str = "inprocess",
        debugger: str | None = None,
        outputs_exist: bool = True,
    ) -> None:
        began_at, since = time.time(), time.monotonic()
        ids = [parse_id(text) for text in part.quantum_ids]
        repository = repository_uri(repository, folder)
        learn_storage_classes(repository)
        path = local_graph(part.graph, folder, ids, part.graph_id)
        plan = read_part(path, ids)
        job_metadata = {"qg_read_time": time.monotonic() - since, "qg_size": len(plan)}
        client = Client(model, debugger=debugger, job_metadata=job_metadata)
        executor = make_model(client, options)
        assert isinstance(executor, ExecutionModel), "those that qgexec brings are"
        labels = _serial_labels(path) if executor.facts.parallel else frozenset()
        run_dir = RunDir.create(folder / "run")
        context = RunContext(str(run_dir.path), repository, str(path), read_output_run(path))
        opened = OpenRun(run_dir, context, plan, not outputs_exist, began_at, labels)
        _write_down(opened, client, options)
        self.run_dir = run_dir
        """What is known of it, as of any run."""
        policy = policy_of(options, plan)
        tell_beforehand(options, plan, executor, policy)
        self.scheduler = Scheduler(plan, policy=policy, serial_labels=opened.serial_on(executor))
        """Knows how each quantum ended."""
        journal = Journal.create(run_dir.journal)
        self._loop = make_loop(opened, executor, client, options, journal, self.scheduler)
        self.report = ReportSource(opened, self.scheduler, executor.facts)
        """Gives upstream's report, once it was executed."""

    @property
    def signal(self) -> int | None:
        """Number of the signal that ended it, if one did."""
        return self._loop.interrupts.first

    def execute(self) -> None:
        """Execute; the outputs are where ``butler transfer-from-graph`` looks for them.

        Raises
        ------
        qgexec.verdict.QuantaFailedError
            Quanta failed, or were blocked.
        KeyboardInterrupt
            A signal ended it.
        qgexec.errors.QgexecError
            The model, the repository or a disk failed.
        """
        with self.report.noting_error(), shared_cache():
            self._loop.execute()
            raise_if_failed(self.run_dir, self.scheduler)


def _serial_labels(path: Path) -> frozenset[str]:
    with open_graph(path) as reader:
        return serial_labels(reader.pipeline_graph)


def _write_down(opened: OpenRun, client: Client, options: RunOptions) -> None:
    """Leave what reports are made from."""
    opened.run_dir.save_plan(opened.plan)
    opened.run_dir.write_settings(
        RunSettings(
            context=opened.context,
            model=model_name(client.model),
            options=options.to_json(),
            created_at=opened.began_at,
            run_is_new=opened.run_is_new,
            labels=tuple(opened.plan.labels),
            serial_labels=tuple(sorted(opened.serial_labels)),
        )
    )


def write_init_outputs(repository: str, graph: str, folder: Path, graph_id: str | None = None) -> None:
    """Write configs, package versions and other init-outputs, or compare them with those that are there.

    Parameters
    ----------
    repository
        Butler repository: root, configuration file or alias.
    graph
        Path or URI of a ``.qg`` or ``.qgraph`` file.
    folder
        For files that are needed meanwhile; exists.
    graph_id
        Identifier that a ``.qgraph`` file must have.

    Raises
    ------
    qgexec.errors.QgexecError
        They are not the same, or cannot be written.
    """
    repository = repository_uri(repository, folder)
    learn_storage_classes(repository)
    with shared_cache():
        write_without_registry(repository, local_graph(graph, folder, graph_id=graph_id))
