"""`qgexec report` and `aggregate-reports`: what became of runs, from their books or from the repository."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click
from click.core import ParameterSource

from qgexec.cli.building import check_files
from qgexec.cli.commandclass import LongCommand, section
from qgexec.cli.inspect import JSON, terminal_width
from qgexec.cli.values import comma_list, filled
from qgexec.errors import UsageError

if TYPE_CHECKING:
    from qgexec.reports.repository import RepositoryReport

__all__ = ["aggregate_reports", "report"]

_GRAPH_SUFFIXES = (".qg", ".qgraph")


class _Report(Protocol):
    """What reports of all kinds have in common."""

    @property
    def all_succeeded(self) -> bool: ...

    def to_json(self) -> dict[str, Any]: ...


_BRIEF = click.option("--brief", is_flag=True, help="Print counts alone.")
_FULL_OUTPUT = click.option(
    "--full-output-filename",
    metavar="FILE",
    type=filled,
    help="Write what pipetask report would write for several graphs, as JSON; the text is brief then.",
)
_FOR_GRAPHS = {
    "butler_config": "-b",
    "graphs": "-g",
    "collections": "--collections",
    "where": "--where",
    "full_output_filename": "--full-output-filename",
    "logs": "--logs/--no-logs",
    "curse_failed_logs": "--curse-failed-logs",
    "force_v2": "--force-v2",
    "read_caveats": "--read-caveats",
    "use_qbb": "--use-qbb/--no-use-qbb",
    "view_graph": "--view-graph",
    "processes": "-j",
}
"""Options that are about graphs and a repository, by parameter."""


@click.command(
    cls=LongCommand,
    epilog="Examples:\n\n"
    "\b\n"
    "  qgexec report qgexec-runs/u/me/test --json | jq .tasks\n"
    "  qgexec report REPO graph.qg    # a run of pipetask or BPS",
)
@click.argument("arguments", nargs=-1, metavar="[RUN_DIR...|REPO GRAPH...]")
@_BRIEF
@JSON
@click.option("--json-schema", is_flag=True, help="Print the JSON schema of all that --json prints, and end.")
@section(
    "Runs that others executed",
    click.option(
        "-b", "--butler-config", metavar="REPO", help="Butler repository of runs that others executed."
    ),
    click.option(
        "-g",
        "--qgraph",
        "graphs",
        metavar="GRAPH",
        multiple=True,
        help="Graph that was executed there; again for each one that recovered an earlier one.",
    ),
    click.option(
        "--collections",
        metavar="NAME,...",
        multiple=True,
        callback=comma_list,
        help="Where visible datasets are found, in search order; default: the graphs' RUNs, newest first.",
    ),
    click.option("--where", default="", metavar="EXPRESSION", help="Constrain that search."),
    _FULL_OUTPUT,
    click.option("--logs/--no-logs", default=True, show_default=True, help="Read the logs of failed quanta."),
    click.option(
        "--curse-failed-logs",
        is_flag=True,
        help="Logs of quanta that did not succeed are cursed, too, if visible; needs --collections.",
    ),
    click.option("--force-v2", is_flag=True, help="Without effect: its rules always hold."),
    click.option(
        "--read-caveats",
        type=click.Choice(["exhaustive", "lazy", "none"], case_sensitive=False),
        default="lazy",
        show_default=True,
        help="Read metadata of all quanta (times and memory, too), of those that lack outputs, or of none.",
    ),
    click.option(
        "--use-qbb/--no-use-qbb",
        default=True,
        show_default=True,
        help="Ask the datastore where files must be, rather than the registry where they are.",
    ),
    click.option("--view-graph", is_flag=True, help="Draw the pipeline with its counts instead."),
    click.option(
        "-j",
        "--processes",
        type=click.IntRange(min=1),
        default=1,
        help="Threads that read metadata and logs.",
    ),
)
@click.pass_context
def report(
    ctx: click.Context,
    /,
    *,
    arguments: tuple[str, ...],
    butler_config: str | None,
    graphs: tuple[str, ...],
    brief: bool,
    as_json: bool,
    full_output_filename: str | None,
    view_graph: bool,
    json_schema: bool,
    **options: Any,
) -> None:
    """Say what became of a run: counts per task, what was retried, and what failed.

    Failures are grouped by cause, each with one example's traceback, and what
    it blocks. See `qgexec log` and `qgexec debug` for a single quantum.

    Several runs that recovered each other may be named: then the last word on each
    quantum counts, and it is said how many each run recovered.

    Of runs of pipetask or BPS there is no run directory: name the repository and
    their graphs (REPO GRAPH..., or -b and -g), and it is told from what they left
    there, with the options of `pipetask report`.

    Exit codes: 0 all succeeded, 1 some quanta failed, were blocked or have not run.
    """
    if json_schema:
        from qgexec.reports.schema import report_schema

        click.echo(report_schema().rstrip())
        return
    run_dirs, butler_config, graphs = _sort_arguments(arguments, butler_config, graphs)
    _check_use(ctx, run_dirs, butler_config, graphs)
    if view_graph and as_json:
        raise UsageError("--view-graph draws, and --json does not.", hint="Ask for one of them.")
    check_files({"--full-output-filename": full_output_filename})
    if butler_config is not None:
        found = _of_repository(butler_config, graphs, options)
        _finish_repository(found, file=full_output_filename, brief=brief, as_json=as_json, draw=view_graph)
    elif len(run_dirs) == 1:
        _finish(*_of_one(run_dirs[0], brief=brief), as_json=as_json)
    else:
        _finish(*_of_several(run_dirs, brief=brief), as_json=as_json)


def _sort_arguments(
    arguments: Sequence[str], repository: str | None, graphs: tuple[str, ...]
) -> tuple[tuple[Path, ...], str | None, tuple[str, ...]]:
    """Return run directories, repository and graphs: before a graph, an argument is the repository."""
    named = tuple(each for each in arguments if each.partition("?")[0].endswith(_GRAPH_SUFFIXES))
    others = [each for each in arguments if each not in named]
    if not named:
        return tuple(map(Path, others)), repository, graphs
    if len(others) > 1 or (others and (repository is not None or arguments[0] in named)):
        raise UsageError(
            f"{others[-1]} is no graph, and {named[0]} is one.",
            hint="Name the repository first, and graphs after it: qgexec report REPO GRAPH...\n"
            "Or name run directories alone.",
        )
    return (), others[0] if others else repository, (*named, *graphs)


def _check_use(
    ctx: click.Context, run_dirs: Sequence[Path], repository: str | None, graphs: Sequence[str]
) -> None:
    """Refuse what does not go together."""
    given = [
        option
        for name, option in _FOR_GRAPHS.items()
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    ]
    if run_dirs and given:
        raise UsageError(
            f"{given[0]} is about graphs in a repository, and {run_dirs[0]} is taken for a run directory.",
            hint="Name run directories alone; or, for what others executed, REPO GRAPH... alone.",
        )
    if not run_dirs and not (repository and graphs):
        raise UsageError(
            "There is nothing to report on.",
            hint="Name run directories; or, for what others executed, both repository and graphs: "
            "qgexec report REPO GRAPH...",
        )


def _finish(found: _Report, text: Callable[[], str], *, as_json: bool) -> None:
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else text())
    raise SystemExit(0 if found.all_succeeded else 1)


def _of_one(run_dir: Path, *, brief: bool) -> tuple[_Report, Callable[[], str]]:
    from qgexec.reports.report import read_report
    from qgexec.reports.text import format_report

    found = read_report(run_dir)
    return found, partial(format_report, found, width=terminal_width(), brief=brief)


def _of_several(run_dirs: tuple[Path, ...], *, brief: bool) -> tuple[_Report, Callable[[], str]]:
    from qgexec.reports.several import read_several
    from qgexec.reports.severaltext import format_several

    found = read_several(run_dirs)
    return found, partial(format_several, found, width=terminal_width(), brief=brief)


def _of_repository(repository: str, graphs: tuple[str, ...], options: dict[str, Any]) -> RepositoryReport:
    from qgexec.reports.repository import ExamineOptions, ReadCaveats, report_repository

    how = ExamineOptions(
        collections=options["collections"],
        where=options["where"],
        logs=options["logs"],
        curse_failed_logs=options["curse_failed_logs"],
        read_caveats=ReadCaveats(options["read_caveats"].lower()),
        use_qbb=options["use_qbb"],
        n_threads=options["processes"],
    )
    return report_repository(repository, graphs, how)


def _finish_repository(
    found: RepositoryReport, *, file: str | None, brief: bool, as_json: bool, draw: bool = False
) -> None:
    from qgexec.reports.repositorytext import format_repository

    if file is not None:
        found.write_summary(Path(file))
    if draw:
        found.show_graph()
        raise SystemExit(0 if found.all_succeeded else 1)
    brief = brief or file is not None
    _finish(found, partial(format_repository, found, width=terminal_width(), brief=brief), as_json=as_json)


@click.command(
    "aggregate-reports", epilog="Example:  qgexec aggregate-reports group1.json group2.json --brief"
)
@click.argument("files", nargs=-1, required=True, type=click.Path(dir_okay=False, path_type=Path))
@_FULL_OUTPUT
@_BRIEF
@JSON
def aggregate_reports(
    *, files: tuple[Path, ...], full_output_filename: str | None, brief: bool, as_json: bool
) -> None:
    """Put reports about different data IDs together.

    FILES are what --full-output-filename has written, of `qgexec report` or of `pipetask report`.

    Exit codes: 0 all succeeded, 1 some quanta failed, were blocked or have not run.
    """
    check_files({"--full-output-filename": full_output_filename})
    from qgexec.reports import aggregated

    _finish_repository(
        aggregated.aggregate_reports(files), file=full_output_filename, brief=brief, as_json=as_json
    )
