"""What is done for a run apart from its driver: its registry, single quanta, outputs left behind."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from qgexec import scripted
from qgexec.assembly import Client, OpenRun, ingester_opener, make_model, policy_of
from qgexec.batch.rounds import Round, Ticket, round_folder, rounds
from qgexec.batch.system import BatchSystem, JobState
from qgexec.books.history import History
from qgexec.books.holder import check_free, end_driver
from qgexec.books.journal import Journal, has_ended, last_epoch
from qgexec.books.rundir import RunDir, reopen
from qgexec.books.runsettings import RunSettings
from qgexec.config.runoptions import RunOptions
from qgexec.errors import ModelError, RunHeldError
from qgexec.ingestion.process import Batching, InlineIngestion
from qgexec.models.base import BenchOpener
from qgexec.models.batch import BatchModel, remove_round
from qgexec.plaintext import printable
from qgexec.provenance import keep_provenance, keep_provenance_of
from qgexec.reports.report import read_report
from qgexec.resume import harvest_round, settle_attempts, take_over
from qgexec.rubin.graphfile import AnyGraph, prepare_graph
from qgexec.rubin.opener import (
    Books,
    ExecutorBenchOpener,
    ImportedExecutor,
    WorkbenchOpener,
    WorkbenchOptions,
)
from qgexec.rubin.preexec import Preparation, Prepared, prepare_run
from qgexec.scheduling.states import State

__all__ = ["cancel", "close_round", "collect", "execute_quanta", "prepare"]

_logger = logging.getLogger(__name__)

_PATIENCE_S = 180.0
"""Time after which whoever still shows signs of life has the run in hand indeed, seconds."""

_LOOK_PERIOD_S = 2.0
"""Longest time between two looks at whether a driver has the run in hand, seconds."""


def prepare(repository: str, graph: AnyGraph, preparation: Preparation) -> Prepared:
    """Bring the registry up to date for a graph, without executing it.

    Raises
    ------
    qgexec.errors.QgexecError
        It cannot be done; nothing has changed then.
    """
    with tempfile.TemporaryDirectory(prefix="qgexec-") as folder:
        return prepare_run(repository, prepare_graph(graph, Path(folder), repository), preparation)


def execute_quanta(run_dir: Path, indices: Sequence[int], *, trust_owner: bool = False) -> bool:
    """Execute single quanta of a run in this process, without a driver.

    Parameters
    ----------
    run_dir
        The run directory.
    indices
        Which, each after its prerequisites.
    trust_owner
        Whoever could have written to the run directory is trusted.

    Returns
    -------
    succeeded
        Whether none failed.

    Raises
    ------
    qgexec.errors.QgexecError
        The run directory cannot be used, or there is no such quantum.
    """
    books, settings = reopen(run_dir, trust_owner=trust_owner)
    context = settings.context
    logging = RunOptions.from_json(settings.options).logging
    places = Books(str(books.segments), 0, str(books.logs), "INFO", logging=logging)
    opener: BenchOpener
    if (executor := ImportedExecutor.of_run(settings.options)) is not None:
        opener = ExecutorBenchOpener(executor, context.graph_file, places)
    else:
        # Quanta may be tried again by whatever runs the scripts.
        options = WorkbenchOptions(run_is_new=False, skip_existing=True, clobber_outputs=True)
        opener = WorkbenchOpener(context.repository, context.graph_file, places, options)
    return scripted.execute_quanta(books, books.load_plan(), indices, opener)


def collect(run_dir: Path, *, force: bool = False, trust_owner: bool = False) -> int:
    """Take outputs of finished quanta that the registry does not have yet into it.

    Parameters
    ----------
    run_dir
        The run directory.
    force
        Believe that a driver on another host, which has not closed its books, is gone.
    trust_owner
        Whoever could have written to the run directory is trusted.

    Returns
    -------
    n_datasets
        Number of datasets taken in.

    Raises
    ------
    qgexec.errors.QgexecError
        The run directory or the registry cannot be used.
    """
    books, settings = reopen(run_dir, trust_owner=trust_owner)
    opened = _open(books, settings)
    options = RunOptions.from_json(settings.options)
    batching = Batching(visibility_s=options.config.batch.visibility_s)
    ingestion = InlineIngestion(ingester_opener(opened), books.segments, batching)

    def harvest(history: History, journal: Journal) -> bool:
        client = Client.of_run(settings)
        try:
            none_left = harvest_round(opened, client, options, history, journal)
        except ModelError as error:
            _logger.warning("Jobs may be left: %s", printable(error.message))
            return False
        if none_left and history.in_the_air:  # a driver died that executed them itself
            limits = policy_of(options, opened.plan)
            for event in settle_attempts(opened, client, options, history, journal.epoch, limits):
                journal.append(event)
                history.apply(event)
        return none_left

    policy = policy_of(options, opened.plan, elsewhere=True)
    return scripted.collect(books, opened.plan, ingestion, policy=policy, harvest=harvest, force=force)


def _open(books: RunDir, settings: RunSettings) -> OpenRun:
    return OpenRun(books, settings.context, books.load_plan(), settings.run_is_new, settings.created_at)


def close_round(
    run_dir: Path, number: int, *, patience_s: float = _PATIENCE_S, trust_owner: bool = False
) -> bool:
    """Do what the closing job of a round does: record, take in, and submit what is to be tried again.

    While a driver watches the run nothing is done: it does all of that itself.

    Parameters
    ----------
    run_dir
        The run directory.
    number
        Number of the round; all its other jobs have ended.
    patience_s
        Time after which whoever still shows signs of life has the run in hand indeed, seconds.
    trust_owner
        Whoever could have written to the run directory is trusted.

    Returns
    -------
    is_well
        No quantum has failed, or is left without being in another round; or a driver sees to it.

    Raises
    ------
    qgexec.errors.QgexecError
        The run directory, the registry or the batch system cannot be used.
    """
    books, settings = reopen(run_dir, trust_owner=trust_owner)
    if not _is_left_alone(books, patience_s):
        _logger.warning("A driver watches the run in %s: it closes the books itself.", books.path)
        return True
    found = read_report(run_dir)
    options = RunOptions.from_json(settings.options)
    if books.cancel_file.exists() or found.stop_reason is not None:
        # Nothing more is to be submitted.
        collect(run_dir, force=True, trust_owner=trust_owner)
        if options.provenance and not books.cancel_file.exists():
            opened = _open(books, settings)
            keep_provenance_of(opened, policy_of(options, opened.plan, elsewhere=True))
        return False
    batch_round = Round.open(round_folder(books, number))
    if batch_round.is_closed and has_ended(books.journal, last_epoch(books.journal)):
        return found.submitted is not None or found.all_succeeded  # a driver did it all
    client = Client.of_run(settings, leaves=True)
    opened, loop = take_over(books, settings, client, options, force=True, closing=number)
    loop.execute()
    if loop.has_left:
        return True
    batch_round.close()  # the loop has not even looked, where all was in the books already
    if options.provenance:
        keep_provenance(opened, loop.scheduler)
    done = (State.SUCCEEDED, State.SKIPPED)
    return not any(n for state, n in loop.scheduler.counts().items() if state not in done)


def _is_left_alone(books: RunDir, patience_s: float) -> bool:
    """Wait until nobody has the run in hand; return `False` where somebody keeps it."""
    deadline, pause_s = time.monotonic() + patience_s, _LOOK_PERIOD_S / 64
    while True:
        try:
            check_free(books.journal, silence_is_death=True)
        except RunHeldError:
            if time.monotonic() > deadline:
                return False
        else:
            return True
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LOOK_PERIOD_S)


def cancel(run_dir: Path, *, patience_s: float = _PATIENCE_S, trust_owner: bool = False) -> None:
    """End a run, wherever it runs, and close its books; what is done is kept.

    Parameters
    ----------
    run_dir
        The run directory.
    patience_s
        Time that its driver has to end, seconds.
    trust_owner
        Whoever could have written to the run directory is trusted.

    Raises
    ------
    qgexec.errors.ModelError
        The batch system does not answer, or jobs do not go away; those that
        begin from now on execute nothing.
    qgexec.errors.RunHeldError
        Its driver does not end.
    """
    books, settings = reopen(run_dir, trust_owner=trust_owner)
    books.ask_to_cancel()
    end_driver(books.journal)
    options = RunOptions.from_json(settings.options)
    _remove_jobs(books, options)
    if not _is_left_alone(books, patience_s):
        check_free(books.journal)
    _remove_jobs(books, options)  # the driver may have been about to submit
    collect(run_dir, force=True, trust_owner=trust_owner)


def _remove_jobs(books: RunDir, options: RunOptions) -> None:
    """Have the batch system remove what it has of a run."""
    for folder in rounds(books):
        batch_round = Round.open(folder)
        model = make_model(Client(batch_round.model), options)
        assert isinstance(model, BatchModel)
        try:
            if not batch_round.is_closed:
                remove_round(model.system, batch_round)
            elif batch_round.ticket is not None:
                _remove_closing(model.system, batch_round, batch_round.ticket)
        except ModelError as error:
            advice = (
                "The run is told to end: jobs that begin now execute nothing. Cancel it again to be sure."
            )
            error.hint = f"{error.hint}\n{advice}".lstrip()
            raise


def _remove_closing(system: BatchSystem, batch_round: Round, ticket: Ticket) -> None:
    """Have the closing job removed of a round that is over; it may be waiting for its next try."""
    try:
        closing = system.look(batch_round, ticket).closing
        if closing is not None and closing.state is not JobState.ENDED:
            remove_round(system, batch_round)
    except ModelError as error:  # it has nothing to do, and ends by itself
        words = printable(error.message)
        _logger.warning("Whether the closing job of %s is left is not known: %s", batch_round.name, words)
