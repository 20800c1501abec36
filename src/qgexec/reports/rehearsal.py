"""How a rehearsed submission is told in plain text."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator

from qgexec.batch.forecast import Forecast, JobKind
from qgexec.batch.rounds import Round
from qgexec.batch.system import PlannedCall
from qgexec.config.units import duration_text, size_text
from qgexec.plaintext import printable
from qgexec.reports.table import Column, render

__all__ = ["format_rehearsal"]

_CALLS_SHOWN = 10

_WORTH_SAYING = 0.01
"""Smaller parts of the expected time are not."""


def format_rehearsal(
    batch_round: Round,
    calls: tuple[PlannedCall, ...],
    forecast: Forecast,
    *,
    n_files: int,
    n_bytes: int,
    remarks: tuple[str, ...] = (),
    width: int = 100,
) -> str:
    """Return in plain text what would be submitted.

    Parameters
    ----------
    batch_round, calls, forecast
        What, how, and what it would cost.
    n_files, n_bytes
        What was written for it.
    remarks
        Sentences to end with.
    width
        Of the terminal, characters.
    """
    jobs = batch_round.jobs
    n_quanta = len(jobs.all_quanta())
    lines = [
        f"Would submit   {len(jobs)} jobs with {n_quanta} quanta to {batch_round.model}",
        f"Written        {batch_round.folder} ({n_files} files, {size_text(n_bytes)})",
        *_times(forecast),
        "",
        *render(_columns(forecast), width),
        "",
        *_calls(calls),
    ]
    lines += [line for remark in remarks for line in textwrap.wrap(remark, width)]
    return "\n".join(lines)


def _times(forecast: Forecast) -> Iterator[str]:
    if forecast.total_s is None or forecast.critical_path_s is None or forecast.least_s is None:
        yield "Expected       unknown: name an earlier run of these tasks with --run-times RUN_DIR"
        return
    yield f"Expected       {duration_text(forecast.total_s)} in jobs, all added up"
    yield f"               {duration_text(forecast.least_s)} at the least, however many run at once"
    waiting_s = forecast.least_s - forecast.critical_path_s
    if waiting_s > _WORTH_SAYING * forecast.least_s:
        yield f"               ({duration_text(waiting_s)} of it waiting for jobs that are no prerequisites)"


def _columns(forecast: Forecast) -> list[Column]:
    kinds = forecast.kinds
    return [
        Column("jobs of", [printable(kind.name) for kind in kinds], is_text=True),
        Column("jobs", [str(kind.n_jobs) for kind in kinds]),
        Column("quanta", [str(kind.n_quanta) for kind in kinds]),
        Column("cores", [str(kind.request.cores) for kind in kinds]),
        Column("memory", [size_text(kind.request.memory_bytes) for kind in kinds]),
        Column("time limit", [duration_text(kind.request.walltime_s) for kind in kinds]),
        Column("expected a job", [duration_text(_mean_s(kind)) for kind in kinds]),
    ]


def _mean_s(kind: JobKind) -> float | None:
    return None if kind.expected_s is None else kind.expected_s / kind.n_jobs


def _calls(calls: tuple[PlannedCall, ...]) -> Iterator[str]:
    for call in calls[:_CALLS_SHOWN]:
        waits = f" ({call.waits_for})" if call.waits_for else ""
        yield f"{call.n_jobs} job{'' if call.n_jobs == 1 else 's'}{waits}:"
        yield f"  {shlex.join(call.command)}"
    if len(calls) > _CALLS_SHOWN:
        n_more = len(calls) - _CALLS_SHOWN
        yield f"and {n_more} more call{'' if n_more == 1 else 's'}"
