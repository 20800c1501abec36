"""Takes upstream's provenance graph of a run into the run's repository, once the run has ended."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from qgexec.assembly import OpenRun
from qgexec.books.history import History
from qgexec.errors import QgexecError, RepositoryError
from qgexec.rubin.provenance import ingest_provenance_graph, write_provenance_graph
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State

__all__ = ["keep_provenance", "keep_provenance_of"]

_logger = logging.getLogger(__name__)


def keep_provenance(opened: OpenRun, scheduler: Scheduler) -> None:
    """Write the provenance graph of a run, and take it into its RUN in place of an earlier one.

    Parameters
    ----------
    opened, scheduler
        The run, of which all outputs are in the registry, and what became of its quanta.

    Raises
    ------
    qgexec.errors.RepositoryError
        It cannot be made, or taken in; the run's own outputs are there nevertheless.
    """
    plan, context = opened.plan, opened.context
    ended = (State.SUCCEEDED, State.SKIPPED, State.FAILED)
    executed = {plan.quantum_id(i) for i in range(len(plan)) if scheduler.state(i) in ended}
    try:
        with TemporaryDirectory(dir=opened.run_dir.path, prefix="provenance-") as folder:
            file = Path(folder) / "provenance.qg"
            quanta = write_provenance_graph(
                context.graph_file, context.repository, str(file), executed=executed
            )
            ingest_provenance_graph(file, context.repository, context.output_run, quanta)
    except Exception as error:  # a damaged log, a full disk: whatever upstream raises
        told = error.message if isinstance(error, QgexecError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, QgexecError) else ""
        raise RepositoryError(
            f"the run has ended, but its provenance graph is not in {context.output_run}: {told}",
            hint=hint,
        ) from error
    _logger.info("The provenance graph is in %s as run_provenance.", context.output_run)


def keep_provenance_of(opened: OpenRun, policy: Policy) -> None:
    """Do the same for a run whose journal says what became of its quanta."""
    keep_provenance(opened, History.read(opened.run_dir.journal, opened.plan, policy).scheduler)
