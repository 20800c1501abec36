"""Goes on with a run whose driver is gone: settles what it left open, then hands over to the loop.

The order matters, and is that of ``docs/design/0003-crash-rule.md``:

1. nobody else has the run in hand, and no worker of an earlier driver lives;
2. the journal gets a file of ours, which nobody else can get too, and the registry is made ready for the
   run, if a driver was killed before it had done that;
3. attempts that were in the air are settled from what is on disk;
4. quanta that had succeeded just before a power cut, or where lines of the journal are damaged, are looked
   at again;
5. what had failed is opened again, and what is not in the registry is offered to it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qgexec.assembly import (
    Client,
    OpenRun,
    bare_run,
    books_of,
    ingester_opener,
    make_loop,
    make_model,
    model_name,
    policy_of,
    tell_beforehand,
    workbench_opener,
)
from qgexec.batch.rounds import last_round
from qgexec.books.history import History
from qgexec.books.holder import has_restarted_since, read_when_free, this_process
from qgexec.books.journal import Journal, read_detail
from qgexec.books.rundir import RunDir
from qgexec.books.runsettings import RunSettings
from qgexec.config.runoptions import RunOptions
from qgexec.errors import JournalError, UsageError
from qgexec.events import AttemptReturned, AttemptSucceeded, AttemptTimedOut, Event, RunReopened
from qgexec.executor import Loop
from qgexec.models.base import ExecutionModel
from qgexec.models.batch import BatchModel, harvest
from qgexec.newrun import finish_preparation, list_run_of
from qgexec.quantum import RunContext, SegmentRef
from qgexec.reports.attemptlog import keep_streamed_logs
from qgexec.rubin.opener import WorkbenchOpener
from qgexec.rubin.settle import InTheAir, missing_outputs, settle
from qgexec.rubin.versions import update_versions
from qgexec.scheduling.policy import Policy
from qgexec.scheduling.scheduler import Scheduler
from qgexec.scheduling.states import State

__all__ = ["harvest_round", "settle_attempts", "take_over"]

_logger = logging.getLogger(__name__)


def take_over(
    books: RunDir,
    settings: RunSettings,
    client: Client,
    options: RunOptions,
    *,
    force: bool = False,
    strict_versions: bool = False,
    closing: int | None = None,
) -> tuple[OpenRun, Loop]:
    """Take a run in hand and return the loop that brings it to its end.

    Parameters
    ----------
    books, settings
        The run, as `reopen` returned them.
    client, options
        How to execute from now on.
    force
        Believe that an earlier driver that cannot be seen from here is gone, if it gives no sign of life;
        execute also where another run that goes on writes the same output RUN.
    strict_versions
        Refuse to go on with other package versions than before.
    closing
        Number of the round of a batch system whose closing job this is: its other jobs have ended. Then
        what has failed for good stays so.

    Raises
    ------
    qgexec.errors.RunHeldError
        Another driver has the run in hand, or may have; or another run writes the same output RUN.
    qgexec.errors.QgexecError
        The run directory, the repository or the model cannot be used.
    """
    context = settings.context
    plan = books.load_plan()
    opened = OpenRun(
        books,
        context,
        plan,
        settings.run_is_new,
        settings.created_at,
        frozenset(settings.serial_labels),
    )
    model = make_model(client, options, closing=closing)
    if not isinstance(model, ExecutionModel):
        raise UsageError(
            f"{model_name(client.model)} takes all quanta at once and keeps no books: "
            "there is nothing to go on from",
            hint=f"Name a model that runs quanta one by one, or collect: qgexec collect {books.path}",
        )
    if isinstance(model, BatchModel) and closing is None:
        model.system.check()  # before anything is changed
    policy = policy_of(options, plan, elsewhere=model.facts.orders_itself)
    serial_labels = opened.serial_on(model)
    history = read_when_free(
        books.journal, lambda: History.read(books.journal, plan, policy, serial_labels), force=force
    )
    opened = replace(opened, has_gaps=bool(history.damaged))
    if strict_versions:
        _take_over_versions(client, context, strict=True)
    tell_beforehand(options, plan, model, policy)
    journal = Journal.create(
        books.journal, after=history.epoch, read=history.positions, writer=this_process()
    )
    if closing is None:  # whose jobs stand on the list already
        _list_or_withdraw(opened, client, journal, force=force)
    try:
        # What jobs did while nobody watched; a closing job hears of it as any driver does.
        is_over = closing is None and harvest_round(opened, client, options, history, journal)
        if not is_over and not _has_in_hand(model, opened):
            raise _jobs_are_left(opened)
        if not is_over and closing is None:
            _tell_of_failures(history.scheduler)
        if closing is None:  # whose user has not asked for anything: a mark that was left just now stands
            books.cancel_file.unlink(missing_ok=True)
        changed = replace(
            settings,
            model=model_name(client.model),
            options=options.to_json() | {"own_executor": client.own_executor()},
        )
        books.rewrite_settings(changed)
        if not strict_versions:
            _take_over_versions(client, context, strict=False)
        finish_preparation(books, changed)
        before = policy_of(RunOptions.from_json(settings.options), plan)
        opening = _settle(opened, client, options, history, journal.epoch, before) if is_over else []
    except BaseException:
        journal.close()
        raise
    return opened, make_loop(
        opened,
        model,
        client,
        options,
        journal,
        history.scheduler,
        opening=opening,
        offers=_offers(history, opening),
    )


def _list_or_withdraw(opened: OpenRun, client: Client, journal: Journal, *, force: bool) -> None:
    """Put the run on the list of runs; where another one is in the way, leave it as it was."""
    try:
        list_run_of(opened, client, force=force)
    except BaseException:
        journal.withdraw()
        raise


def harvest_round(
    opened: OpenRun, client: Client, options: RunOptions, history: History, journal: Journal
) -> bool:
    """Record what jobs of a batch system did that nobody has recorded; return whether none is left there.

    Raises
    ------
    qgexec.errors.ModelError
        The batch system does not say.
    """
    pending = last_round(opened.run_dir)
    if pending is None or pending.is_closed:
        return True
    model = make_model(replace(client, model=pending.model), options)
    assert isinstance(model, BatchModel)

    def record(event: Event) -> None:
        history.scheduler.check(event)
        journal.append(event)
        history.apply(event)

    return harvest(model, bare_run(opened, history.scheduler), record)


def _has_in_hand(model: ExecutionModel, opened: OpenRun) -> bool:
    """Return whether the jobs that are left are those of this model."""
    pending = last_round(opened.run_dir)
    return isinstance(model, BatchModel) and pending is not None and pending.model == model.system.name


def _jobs_are_left(opened: OpenRun) -> UsageError:
    pending = last_round(opened.run_dir)
    assert pending is not None
    return UsageError(
        f"jobs of the run in {opened.run_dir.path} are still in the hands of {pending.model}",
        hint=f"Let them end (qgexec status), end them (qgexec cancel {opened.run_dir.path}), "
        f"or go on with --model {pending.model}.",
    )


def _tell_of_failures(scheduler: Scheduler) -> None:
    """Say that what has failed is not reopened while jobs are left, which may be at it still."""
    if n_failed := scheduler.counts()[State.FAILED]:
        _logger.warning(
            "Jobs of the run are still at work, and are watched. What has failed (quanta: %d) is not tried "
            "again before they have ended: resume once more then.",
            n_failed,
        )


def _take_over_versions(client: Client, context: RunContext, *, strict: bool) -> None:
    """Name the software that has changed, and merge it into what the RUN says of itself."""
    if client.quantum_executor is not None:
        return
    if changed := update_versions(context.repository, Path(context.graph_file), strict=strict):
        _logger.warning("Software has changed since the run began: %s.", "; ".join(changed))


def _settle(
    opened: OpenRun, client: Client, options: RunOptions, history: History, epoch: int, limits: Policy
) -> list[Event]:
    """Return the events that settle what the earlier driver left open, under the limits that it had."""
    ends = settle_attempts(opened, client, options, history, epoch, limits)
    if client.quantum_executor is not None:
        return [*ends, RunReopened(time.time())]
    opener = workbench_opener(opened, options, books_of(opened, options, epoch, own_process=True))
    revoked = _lost_successes(opener, opened.run_dir.segments, history)
    if revoked:
        _logger.warning("Outputs of %d quanta were lost as the host went down; they run again.", len(revoked))
    return [*ends, RunReopened(time.time(), revoked)]


def settle_attempts(
    opened: OpenRun, client: Client, options: RunOptions, history: History, epoch: int, limits: Policy
) -> list[Event]:
    """Return the ends of attempts that were in the air when their driver died, by what is on disk.

    Parameters
    ----------
    opened, client, options
        The run, and how it is executed.
    history
        Its past; nothing of it runs any more.
    epoch
        Number of the journal's file that they are to be recorded in.
    limits
        What its quanta were allowed.

    Raises
    ------
    qgexec.errors.QgexecError
        The graph, the datastore or the registry cannot be used.
    """
    in_the_air = [InTheAir(event.index, event.attempt, event.at) for event in history.in_the_air.values()]
    if client.quantum_executor is not None:
        # What such an executor writes, and where, it alone knows.
        now = time.time()
        return [AttemptReturned(now, each.index, each.attempt) for each in in_the_air]
    opener = workbench_opener(opened, options, books_of(opened, options, epoch, own_process=True))
    # Before their worker of the same name begins a new one.
    keep_streamed_logs(opened.run_dir, opened.plan, history.in_the_air)
    settled = settle(opener, ingester_opener(opened), opened.plan, in_the_air, sorted(history.left_behind))
    return [_as_timed_out(event, opened, limits) for event in settled]


def _lost_successes(opener: WorkbenchOpener, segments: Path, history: History) -> tuple[int, ...]:
    """Return the quanta whose outputs did not survive what damaged the journal, or a power cut."""
    may_be_lost = history.driver is None or (history.is_open and has_restarted_since(history.driver))
    if not (history.damaged or may_be_lost):
        return ()
    details, lost = {}, []
    for index, ref in history.recent_successes():
        try:
            details[index] = read_detail(segments, ref)
        except JournalError:
            lost.append(index)
    return (*lost, *missing_outputs(opener, details))


def _offers(history: History, opening: Sequence[Event]) -> dict[int, SegmentRef]:
    """Return the details that the registry does not have and that are the last word on their quanta."""
    again = {index for event in opening if isinstance(event, RunReopened) for index in event.revoked}
    return {index: ref for index, ref in history.awaiting_ingest.items() if index not in again}


def _as_timed_out(event: AttemptSucceeded | AttemptReturned, opened: OpenRun, limits: Policy) -> Event:
    """Say of an attempt in the driver's own process that its time limit ended that process, if it did."""
    stack = opened.run_dir.attempt_stack(event.index, event.attempt)
    if isinstance(event, AttemptSucceeded) or not (stack.exists() and stack.stat().st_size):
        return event
    timeout_s = limits.rules_of(opened.plan.label(event.index)).timeout_s or 0.0
    return AttemptTimedOut(event.at, event.index, event.attempt, timeout_s)
