"""What can be known to go wrong before anything is spent: every problem at once; nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from lsst.daf.butler import Butler

from qgexec.config.units import size_text
from qgexec.errors import GraphError, QgexecError, RepositoryError
from qgexec.plaintext import few
from qgexec.rubin.collections import RunCollections
from qgexec.rubin.graphfile import AnyGraph, GraphFile, peek_graph, prepare_graph
from qgexec.rubin.graphwrite import BuiltGraph
from qgexec.rubin.initoutputs import plan_init_outputs
from qgexec.rubin.preexec import Preparation, missing_dataset_types, run_collections
from qgexec.rubin.repository import nearest_existing, open_butler, require_writeable

__all__ = ["Check", "Preflight", "preflight"]

_BOOKS_BYTES = 4096
"""What the run directory takes for each quantum, more or less; see ``docs/benchmarks.md``."""

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    about: str
    """What: one or two words."""
    words: str
    """How it is, or what is wrong with it."""
    hint: str = ""
    """What to do, where something is wrong."""
    is_well: bool = True


@dataclass(frozen=True, slots=True)
class Preflight:
    """All that was looked at."""

    checks: tuple[Check, ...]
    graph: GraphFile | None
    """The graph; `None` where it cannot be read."""
    collections: RunCollections | None
    """The collections; `None` where something is wrong with them."""

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, as far as can be known."""
        return all(check.is_well for check in self.checks)


def preflight(
    repository: str | Butler, graph: AnyGraph, folder: Path, run_dir: Path, asked: Preparation
) -> Preflight:
    """Look at everything that a run needs.

    Parameters
    ----------
    repository
        Butler repository, or a butler on it; it is only read.
    graph
        File, or a graph in memory.
    folder
        Where the graph is written to if it has to be written anew.
    run_dir
        Where the run would keep its books; need not exist.
    asked
        What is to be done to the registry.
    """
    look = _Look()
    with ExitStack() as stack:
        butler = look.at("repository", lambda: stack.enter_context(open_butler(repository)))
        if butler is not None:
            look.at(
                "repository", partial(require_writeable, butler), lambda _: f"{repository} can be written"
            )
        whole = look.at("graph", lambda: prepare_graph(graph, folder, butler), partial(_graph_words, graph))
        found = whole or _peeked(graph)
        collections = None
        if butler is not None and found is not None:
            collections = _look_at_registry(look, butler, found, asked, imported=whole is not None)
        n_quanta = found.n_quanta if found is not None else 0
        look.at("run directory", partial(_free, run_dir, _BOOKS_BYTES * n_quanta), _space_words)
        for root in _local_roots(butler):
            look.at("datastore", partial(_free, root, 1), _space_words)
    return Preflight(tuple(look.checks), found, collections)


class _Look:
    """Looks at one thing after another, and keeps what is to be said of it."""

    def __init__(self) -> None:
        self.checks: list[Check] = []

    def at(
        self, about: str, find: Callable[[], _Found], words: Callable[[_Found], str] | None = None
    ) -> _Found | None:
        """Return what is there; `None` where something is wrong with it."""
        try:
            found = find()
        except QgexecError as error:
            self.checks.append(Check(about, error.message, error.hint, is_well=False))
            return None
        if words is not None:
            self.checks.append(Check(about, words(found)))
        return found


def _look_at_registry(
    look: _Look, butler: Butler, graph: GraphFile, asked: Preparation, *, imported: bool
) -> RunCollections | None:
    with butler.registry.caching_context():
        collections = look.at(
            "collections", partial(run_collections, butler, graph, asked), _collections_words
        )
        look.at(
            "dataset types",
            partial(missing_dataset_types, butler, graph.pipeline_graph, asked),
            lambda missing: _types_words([dataset_type.name for dataset_type in missing]),
        )
        # Tasks are constructed for it; where one cannot be imported the graph has said so.
        if imported and asked.init_writes and collections is not None:
            plan = partial(
                plan_init_outputs,
                butler,
                graph,
                run_exists=collections.run_exists,
                versions=asked.versions,
            )
            look.at("init-outputs", plan, lambda planned: _init_words(len(planned.datasets)))
    return collections


def _peeked(graph: AnyGraph) -> GraphFile | None:
    """Return a graph whose tasks do not import, for what can be looked at without them."""
    if not isinstance(graph, str | Path):
        return None
    try:
        return peek_graph(Path(graph))
    except GraphError:
        return None


def _graph_words(given: AnyGraph, graph: GraphFile) -> str:
    name = "in memory" if isinstance(given, BuiltGraph) else graph.path
    n_tasks = len(graph.pipeline_graph.tasks)
    return f"{name}: {graph.n_quanta} quanta of {n_tasks} tasks, all of which can be imported"


def _collections_words(collections: RunCollections) -> str:
    run = f"output RUN {collections.output_run} {'is extended' if collections.run_exists else 'is new'}"
    if collections.output is None:
        return run
    return f"{run}; {collections.output} {'exists' if collections.output_exists else 'is made'}"


def _types_words(missing: list[str]) -> str:
    if not missing:
        return "all are registered"
    return f"to be registered: {few(sorted(missing))}"


def _init_words(n_datasets: int) -> str:
    return f"{n_datasets} to be written, all others agree" if n_datasets else "all are there, and agree"


def _local_roots(butler: Butler | None) -> Iterator[Path]:
    roots = butler.get_datastore_roots().values() if butler is not None else ()
    return (Path(root.ospath) for root in roots if root is not None and root.isLocal)


def _free(path: Path, needed_bytes: int) -> tuple[Path, int]:
    """Return a path, and how much may be written there.

    Raises
    ------
    qgexec.errors.RepositoryError
        It is less than needed.
    """
    free_bytes = shutil.disk_usage(nearest_existing(path.absolute())).free
    if free_bytes < needed_bytes:
        raise RepositoryError(
            f"{path} has {size_text(free_bytes)} left, and about {size_text(needed_bytes)} are needed",
            hint="Make room, or name another place.",
        )
    return path, free_bytes


def _space_words(found: tuple[Path, int]) -> str:
    path, free_bytes = found
    return f"{path}: {size_text(free_bytes)} free"
