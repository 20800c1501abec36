"""Begins a run: folder, ``run.json`` and registry, so that what a killed start leaves can be finished."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler

from qgexec.assembly import Client, OpenRun, model_name
from qgexec.books.beginning import Beginning
from qgexec.books.rundir import RunDir
from qgexec.books.runlist import RunEntry, RunList
from qgexec.books.runsettings import RunSettings
from qgexec.config.runoptions import RunOptions
from qgexec.errors import QgexecError, RunDirError
from qgexec.otherruns import list_run
from qgexec.quantum import RunContext
from qgexec.rubin.existing import existing_quanta, outputs_in_the_way
from qgexec.rubin.graphfile import GraphFile, prepare_graph, read_plan, serial_labels
from qgexec.rubin.preexec import Begun, Preparation, Prepared, prepare_run, run_collections
from qgexec.rubin.provenance import check_provenance
from qgexec.rubin.repository import learn_storage_classes, locate, open_butler, repository_identity
from qgexec.scheduling.plan import Plan

__all__ = ["entry_of", "finish_preparation", "list_run_of", "open_new_run"]

_logger = logging.getLogger(__name__)


def open_new_run(
    graph: Any,
    beginning: Beginning,
    repository: Any,
    client: Client,
    options: RunOptions,
    preparation: Preparation,
) -> OpenRun:
    """Make a run directory and the registry ready.

    Parameters
    ----------
    graph
        A path of a ``.qg`` or ``.qgraph`` file, or a graph in memory.
    beginning
        The run directory; give it up where this raises.
    repository
        A butler, or what one is made from; `None` where the client has an executor of its own.
    client, options
        How to execute.
    preparation
        What to do to the registry.

    Raises
    ------
    qgexec.errors.QgexecError
        It cannot be done; nothing has changed then, or else the error says how to go on.
    """
    run_dir, begun = beginning.run_dir, beginning.settings
    with ExitStack() as stack:
        butler, uri = None, ""
        if repository is not None:
            given, uri = locate(repository, run_dir.path)
            _tell_of_namesake(run_dir.path, uri)
            butler = stack.enter_context(open_butler(given, writeable=True))
        if begun is not None:
            _require_same(graph, client, run_dir, begun, uri)
            if begun.preparation is not None:
                preparation = replace(preparation, replaced=Preparation.from_json(begun.preparation).replaced)
        graph_file = prepare_graph(graph, run_dir.path, butler, own=True)
        plan = client.plan_of(graph_file.path, options.config.ordering)
        if butler is not None and begun is None and client.quantum_executor is None:
            _require_clear(butler, graph_file, plan, options, preparation)
        if butler is not None and options.provenance:
            check_provenance(
                butler,
                graph_file.output_run,
                lambda: {node.quantum_id for node in read_plan(graph_file.path)},
            )
        # Before the registry is written: where there is no room for it, nothing has changed yet.
        run_dir.save_plan(plan)
        write_down = partial(_write_down, beginning, uri, graph_file, plan, client, options)
        if butler is None:
            prepared = Prepared(graph_file.output_run, graph_file.output, graph_file.inputs, fresh=False)
        else:
            with _saying_how_to_go_on(run_dir):
                prepared = prepare_run(
                    butler,
                    graph_file,
                    preparation,
                    begun=None if begun is None else Begun(begun.run_is_new),
                    announce=lambda prepared: write_down(
                        prepared, replace(preparation, replaced=prepared.replaced)
                    ),
                )
        return write_down(prepared, None)


def _tell_of_namesake(path: Path, repository: str) -> None:
    """Say that the run directory has a number in its name for a run on another repository has the name."""
    name, _, number = path.name.rpartition("_")
    if not (name and number.isdecimal()):
        return
    try:
        namesake = RunDir.open(path.with_name(name))
        other = namesake.read_settings().context.repository
    except QgexecError:
        return
    if other != repository:
        _logger.warning(
            "%s is the run directory of a run on another repository, %s; that of this run is %s.",
            namesake.path,
            other,
            path,
        )


def _require_clear(
    butler: Butler, graph_file: GraphFile, plan: Plan, options: RunOptions, preparation: Preparation
) -> None:
    """Check that no quantum would fail for what an earlier attempt left in the RUN.

    Raises
    ------
    qgexec.errors.CollectionError
        Some would, or something is wrong with the collections.
    """
    if options.clobber_outputs or not options.skip_existing:
        return
    collections = run_collections(butler, graph_file, preparation)
    if collections.run_exists:
        pipeline = graph_file.pipeline_graph
        if failed := existing_quanta(butler, pipeline, plan, collections.output_run).failed:
            raise outputs_in_the_way(plan, failed)


def _write_down(
    beginning: Beginning,
    repository: str,
    graph_file: GraphFile,
    plan: Plan,
    client: Client,
    options: RunOptions,
    prepared: Prepared,
    to_do: Preparation | None,
) -> OpenRun:
    """Write ``run.json``, with what is still to be done to the registry; return what it is about.

    Raises
    ------
    qgexec.errors.RunHeldError
        Another run that goes on writes the same output RUN.
    qgexec.errors.RunDirError
        It cannot be written.
    """
    run_dir, begun = beginning.run_dir, beginning.settings
    context = RunContext(
        run_dir=str(run_dir.path),
        repository=repository,
        graph_file=str(graph_file.path),
        output_run=prepared.output_run,
        output=prepared.output,
        inputs=prepared.inputs,
    )
    # Files that are older than the run are somebody else's.
    began_at = beginning.began_at if begun is None else begun.created_at
    labels = serial_labels(graph_file.pipeline_graph)
    opened = OpenRun(run_dir, context, plan, prepared.fresh, began_at, labels)
    if to_do is not None or not repository:  # the first time; nothing has changed yet
        pruned = prepared.replaced if to_do is not None and to_do.prune_replaced else None
        list_run_of(opened, client, removes=pruned)
    write = run_dir.rewrite_settings if run_dir.settings_file.exists() else run_dir.write_settings
    write(_run_settings(opened, client, options, to_do))
    return opened


def list_run_of(opened: OpenRun, client: Client, *, removes: str | None = None, force: bool = False) -> None:
    """Put a run on this user's list of runs; raises as `qgexec.otherruns.list_run`.

    Parameters
    ----------
    opened, client
        The run, and how it is executed.
    removes, force
        As there; the client may want ``force``, too.
    """
    entry = entry_of(opened.context, model_name(client.model), opened.began_at)
    list_run(RunList.of_user(), entry, opened.plan, removes=removes, force=force or client.force)


def entry_of(context: RunContext, model: str, began_at: float) -> RunEntry:
    """Return what the list of runs says of a run.

    Parameters
    ----------
    context
        Repository, collections and run directory.
    model
        Name of the execution model.
    began_at
        When the run was made, UNIX seconds.
    """
    registry, root = repository_identity(context.repository) if context.repository else ("", "")
    return RunEntry(
        run_dir=str(Path(context.run_dir).resolve()),
        output_run=context.output_run,
        repository=context.repository,
        registry=registry,
        root=root,
        model=model,
        began_at=began_at,
    )


@contextmanager
def _saying_how_to_go_on(run_dir: RunDir) -> Iterator[None]:
    """Advise to go on where the registry may have been touched: its run directory stays."""
    try:
        yield
    except QgexecError as error:
        if run_dir.settings_file.exists():
            error.hint = f"{error.hint}\nThen go on, with the same command or: qgexec resume {run_dir.path}"
        raise


def _require_same(graph: Any, client: Client, run_dir: RunDir, begun: RunSettings, repository: str) -> None:
    """Check that a start goes on where an earlier one was killed: with the same graph and repository.

    Raises
    ------
    qgexec.errors.RunDirError
        It has others: what the earlier one has done to the registry would never be done to its end.
    """
    with tempfile.TemporaryDirectory(dir=run_dir.path, prefix=".again-") as folder:
        plan = client.part.of(read_plan(prepare_graph(graph, Path(folder), None).path))
    # In any order: a client's own ordering changes it.
    ours, theirs = ({node.quantum_id for node in each} for each in (plan, run_dir.load_plan()))
    if begun.context.repository != repository or ours != theirs:
        raise RunDirError(
            f"{run_dir.path} is that of a run with another graph or repository, "
            "whose start was cut off as it prepared the registry",
            hint=f"Go on with that one: qgexec resume {run_dir.path}\n"
            "Or name another folder with --run-dir; the graph needs another RUN then, or --extend-run.",
        )


def finish_preparation(run_dir: RunDir, settings: RunSettings) -> RunSettings:
    """Do to the registry what a start did not come to the end of; return the settings as they are then.

    Raises
    ------
    qgexec.errors.QgexecError
        It cannot be done.
    """
    if settings.preparation is None:
        return settings
    context = settings.context
    with _saying_how_to_go_on(run_dir):
        learn_storage_classes(context.repository)
        prepare_run(
            context.repository,
            prepare_graph(context.graph_file, run_dir.path, None),
            Preparation.from_json(settings.preparation),
            begun=Begun(settings.run_is_new),
        )
    settings = replace(settings, preparation=None)
    run_dir.rewrite_settings(settings)
    return settings


def _run_settings(
    opened: OpenRun, client: Client, options: RunOptions, to_do: Preparation | None
) -> RunSettings:
    return RunSettings(
        context=opened.context,
        model=model_name(client.model),
        options=options.to_json() | {"own_executor": client.own_executor()},
        created_at=opened.began_at,
        run_is_new=opened.run_is_new,
        preparation=None if to_do is None else to_do.to_json(),
        labels=tuple(opened.plan.labels),
        serial_labels=tuple(sorted(opened.serial_labels)),
    )
