"""Owns how an object that adds ordering to a graph is made from its name, and asked; changes no graph."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsst.pipe.base.execution_graph_fixup import ExecutionGraphFixup
from lsst.utils import doImport

from qgexec.errors import UsageError
from qgexec.foreign import no_exit
from qgexec.rubin.graphfile import open_graph

__all__ = ["fixup_edges", "make_fixup"]


def make_fixup(name: str | ExecutionGraphFixup | None) -> ExecutionGraphFixup | None:
    """Return an object that adds ordering to a graph.

    Parameters
    ----------
    name
        Full name of a class or function that makes one when it is called; an object, or `None`, is
        returned as it is.

    Raises
    ------
    qgexec.errors.UsageError
        It cannot be imported or called, or makes something else.
    """
    if not isinstance(name, str):
        return name
    try:
        with no_exit():
            factory = doImport(name)
    except Exception as error:  # a module may raise what it likes
        raise UsageError(
            f"--graph-fixup {name} cannot be imported: {error}",
            hint="Give its full name (package.module.Class), and check PYTHONPATH.",
        ) from error
    try:
        with no_exit():
            made = factory()  # type: ignore[operator]  # a module is refused here, too
    except Exception as error:
        raise UsageError(f"--graph-fixup {name} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(made, ExecutionGraphFixup):
        raise UsageError(f"--graph-fixup {name} makes a {type(made).__name__}, not an ExecutionGraphFixup.")
    return made


@contextmanager
def _failures_told(fixup: ExecutionGraphFixup) -> Iterator[None]:
    try:
        with no_exit():
            yield
    except NotImplementedError:
        raise
    except Exception as error:  # the client's own code
        name = f"{type(fixup).__module__}.{type(fixup).__qualname__}"
        raise UsageError(
            f"the object that orders the graph, a {name}, failed: {type(error).__name__}: {error}",
            hint="Correct it, or leave out --graph-fixup.",
        ) from error


def fixup_edges(fixup: ExecutionGraphFixup, path: Path) -> list[tuple[uuid.UUID, uuid.UUID]]:
    """Ask a fixup of the client's which quanta must wait for which others besides.

    Parameters
    ----------
    fixup
        Upstream's hook: `fixup_graph` is called, or, where that is not
        implemented, the older `fixupQuanta` (which needs the whole graph in memory).
    path
        The ``.qg`` file.

    Returns
    -------
    edges
        Pairs of a quantum and one that must wait for it, without those that
        the graph has already.

    Raises
    ------
    qgexec.errors.UsageError
        The object raises something.
    """
    with open_graph(path) as reader:
        reader.read_thin_graph()
        graph = reader.components.assemble()
        known = set(graph.quantum_only_xgraph.edges)
        changed = graph.quantum_only_xgraph.copy()
        try:
            with _failures_told(fixup):
                fixup.fixup_graph(changed, graph.quanta_by_task)
            edges = set(changed.edges)
        except NotImplementedError:
            reader.read_all()
            old_graph = reader.components.assemble().to_old_quantum_graph()
            with _failures_told(fixup):
                old = fixup.fixupQuanta(old_graph)
            edges = {(first.nodeId, second.nodeId) for first, second in old.graph.edges}
    return sorted(edges - known)
