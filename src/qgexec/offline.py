"""What is done for a run apart from its driver: its registry, single quanta, outputs left behind."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qgexec import scripted
from qgexec.books.rundir import RunDir
from qgexec.ingestion.process import InlineIngestion
from qgexec.rubin.graphfile import prepare_graph
from qgexec.rubin.ingest import IngesterOpener
from qgexec.rubin.preexec import Preparation, Prepared, prepare_run
from qgexec.rubin.recorder import Books
from qgexec.rubin.workbench import WorkbenchOpener, WorkbenchOptions

__all__ = ["collect", "execute_quanta", "prepare"]


def prepare(repository: str, graph: str | Path, preparation: Preparation) -> Prepared:
    """Bring the registry up to date for a graph, without executing it.

    Raises
    ------
    qgexec.errors.QgexecError
        It cannot be done; nothing has changed then.
    """
    with tempfile.TemporaryDirectory(prefix="qgexec-") as folder:
        return prepare_run(repository, prepare_graph(graph, Path(folder), repository), preparation)


def execute_quanta(run_dir: Path, indices: Sequence[int]) -> bool:
    """Execute single quanta of a run in this process, without a driver.

    Returns
    -------
    succeeded
        Whether none failed.

    Raises
    ------
    qgexec.errors.QgexecError
        The run directory cannot be used, or there is no such quantum.
    """
    books = RunDir.open(run_dir)
    settings = books.read_settings()
    context = settings.context
    opener = WorkbenchOpener(
        context.repository,
        context.graph_file,
        Books(str(books.segments), 0, str(books.logs), "INFO"),
        # Quanta may be tried again by whatever runs the scripts.
        WorkbenchOptions(run_is_new=False, skip_existing=True, clobber_outputs=True),
    )
    return scripted.execute_quanta(books, books.load_plan(), indices, opener)


def collect(run_dir: Path, *, force: bool = False) -> int:
    """Take outputs of finished quanta that the registry does not have yet into it.

    Returns
    -------
    n_datasets
        Number of datasets taken in.

    Raises
    ------
    qgexec.errors.QgexecError
        The run directory or the registry cannot be used.
    """
    books = RunDir.open(run_dir)
    settings = books.read_settings()
    context = settings.context
    ingester = IngesterOpener(
        context.repository,
        context.output_run,
        run_dir=str(books.path),
        run_began_at=-math.inf if settings.run_is_new else settings.created_at,
    )
    return scripted.collect(books, books.load_plan(), InlineIngestion(ingester, books.segments), force=force)
