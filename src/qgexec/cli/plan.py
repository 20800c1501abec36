"""`qgexec plan`: what a run would do, and what would go wrong with it; nothing is written or executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from qgexec.cli import EXIT_BAD_USE
from qgexec.cli.commandclass import LongCommand
from qgexec.cli.inspect import terminal_width
from qgexec.cli.optionsfile import options_file
from qgexec.cli.run import building, executing, executor_for, graph_of
from qgexec.config.units import duration_text, size_text
from qgexec.plaintext import few, printable
from qgexec.reports.table import Column, render, wrapped

if TYPE_CHECKING:
    from qgexec.preview import Preview, TaskPreview

__all__ = ["format_preview", "plan"]

_HEAD = 15
"""Where what the lines of the head say begins."""

_VERDICT = 7
"""The same of checks, after their verdict."""

_SHOWN_PATH = 12


@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec plan -b REPO -g graph.qg -j 8 --run-times qgexec-runs/EARLIER\n"
    '  qgexec plan -b REPO -p pipe.yaml -i raw,calib -o u/me/test -d "visit = 42"',
)
@building
@executing
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options_file
def plan(*, as_json: bool, **given: Any) -> None:
    """Say what `qgexec run` would do with the same options, and find every problem at once.

    Shows the quanta of each task, those that are done already and would be
    skipped, what each asks for, the longest path through the graph and, with
    --run-times, how long it all takes. Looks at repository, collections, dataset
    types, init-outputs, package versions, tasks and disk space. Nothing is
    executed; a graph that is built is kept only where -q names a file for it.

    Exit codes: 0 nothing is wrong, as far as can be known; 2 something is.
    """
    graph = graph_of(given)
    if graph is None:
        return
    with executor_for(given) as executor:
        found = executor.preview(graph)
    if as_json:
        click.echo(json.dumps(asdict(found) | {"is_well": found.is_well}, indent=2))
    else:
        click.echo(format_preview(found, width=terminal_width()))
    raise SystemExit(0 if found.is_well else EXIT_BAD_USE)


def format_preview(found: Preview, *, width: int = 100) -> str:
    """Return in plain text what a run would do, and what would go wrong with it.

    Parameters
    ----------
    found
        The preview.
    width
        Of the terminal, characters.
    """
    lines: list[str] = []
    if found.tasks:
        lines += [*_quanta_lines(found), "", *render(_columns(found.tasks), width), "", *_times(found, width)]
        lines.append("")
    for about, checks in groupby(found.checks, key=lambda check: check.about):
        for check in checks:
            verdict = "ok   " if check.is_well else "WRONG"
            text = f"{verdict}  {about}: {printable(check.words)}"
            lines += wrapped(text, width, hanging=_VERDICT)
            if not check.is_well:
                for hint in check.hint.splitlines():
                    lines += wrapped(f"{' ' * _VERDICT}{hint}", width, hanging=_VERDICT)
    for remark in found.remarks:
        lines += wrapped(f"note   {remark}", width, hanging=_VERDICT)
    return "\n".join(lines)


def _quanta_lines(found: Preview) -> Iterator[str]:
    n_quanta = sum(task.n_quanta for task in found.tasks)
    n_done = sum(task.n_done for task in found.tasks)
    part = f"{n_quanta} of the graph's {found.n_in_graph}" if n_quanta < found.n_in_graph else f"{n_quanta}"
    yield f"Quanta         {part}"
    if n_done:
        yield f"Would skip     {n_done}, whose metadata is in the output RUN already"
    yield f"Would run      {n_quanta - n_done} on {found.model}{_on(found)}"


def _on(found: Preview) -> str:
    if found.cores is None:
        return ""
    cores = f", {found.cores} core{'' if found.cores == 1 else 's'}"
    return cores if found.memory_bytes is None else f"{cores}, {size_text(found.memory_bytes)}"


def _columns(tasks: tuple[TaskPreview, ...]) -> list[Column]:
    columns = [
        Column("task", [printable(task.label) for task in tasks], is_text=True),
        Column("quanta", [str(task.n_quanta) for task in tasks]),
        Column("done", [str(task.n_done) for task in tasks]),
        Column("cores", [str(task.request.cores) for task in tasks]),
        Column("memory", [size_text(task.request.memory_bytes) for task in tasks]),
        Column("time limit", [duration_text(task.timeout_s) for task in tasks]),
        Column("expected each", [duration_text(task.expected_s) for task in tasks]),
    ]
    return [column for column in columns if column.is_text or set(column.cells) - {"-", "0"}]


def _times(found: Preview, width: int) -> Iterator[str]:
    if all(task.n_done == task.n_quanta for task in found.tasks):
        yield "Expected       nothing is left to do"
        return
    if found.outlook is None:
        unknown = [task.label for task in found.tasks if task.expected_s is None]
        yield from wrapped(
            f"Expected       unknown for {few(unknown)}: "
            "name an earlier run of these tasks with --run-times RUN_DIR",
            width,
            hanging=_HEAD,
        )
        return
    expected = found.outlook
    yield f"Work           {duration_text(expected.total_s)}, all added up"
    runs = [f"{len(list(group))} x {label}" for label, group in groupby(expected.critical_path)]
    path = ", ".join(run.removeprefix("1 x ") for run in runs[:_SHOWN_PATH])
    more = ", ..." if len(runs) > _SHOWN_PATH else ""
    yield from wrapped(
        f"Longest path   {duration_text(expected.critical_path_s)}: {path}{more}",
        width,
        hanging=_HEAD,
    )
    if found.cores is not None:
        yield f"Expected       {duration_text(expected.wall_s)} from beginning to end"
