"""Options from which pipelines and graphs are made and looked at, with pipetask's names and meanings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qgexec.cli.commandclass import given_in_order, section
from qgexec.cli.values import comma_list, filled, split_commas
from qgexec.config.buildoptions import (
    ChangeKind,
    GraphOptions,
    MockFailure,
    PipelineChange,
    PipelineOptions,
    Show,
)
from qgexec.errors import UsageError

if TYPE_CHECKING:
    from qgexec.scheduling.parts import Part

__all__ = [
    "BuildRequest",
    "check_collections",
    "collections",
    "execution_part",
    "graph_building",
    "graph_file",
    "graph_output",
    "graph_part",
    "part_of",
    "pipeline",
    "request_of",
    "show",
]


def _checked(kind: ChangeKind) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], Any]:
    """Return what refuses a value here, where the option is named, that is no change of this kind."""

    def check(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            for part in _parts(kind, value):
                try:
                    PipelineChange.parse(kind, part)
                except UsageError as error:
                    raise click.BadParameter(error.message.partition(" ")[2]) from error
        return values

    return check


def _parts(kind: ChangeKind, value: str) -> tuple[str, ...]:
    """Split what may name several at once; the value of a field may have commas of its own."""
    return (value,) if kind is ChangeKind.CONFIG else split_commas([value])


def _mock_failures(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[MockFailure, ...]:
    return tuple(MockFailure.parse(value) for value in values)


def _shows(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Show, ...]:
    return Show.parse(split_commas(values))


def _label_pair(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, str] | None:
    if value is None:
        return None
    source, _, anchor = value.partition(":")
    if not (source and anchor):
        raise click.BadParameter(f"{value!r} is not of the form SOURCE:ANCHOR.")
    return source, anchor


def _file(name: str, short: str = "", *, text: str) -> Callable[[Any], Any]:
    return click.option(*filter(None, (short, name)), metavar="FILE", type=filled, help=text)


show = click.option(
    "--show",
    "shows",
    metavar="WHAT[=VALUE]",
    multiple=True,
    callback=_shows,
    help="Print this, and execute nothing: pipeline, config, tasks, graph, ...; see docs/pipetask.md.",
)

pipeline = section(
    "Pipeline",
    _file("--pipeline", "-p", text="Pipeline file to build from; FILE#label,label for some of its tasks."),
    click.option(
        "-t",
        "--task",
        metavar="CLASS[:LABEL]",
        multiple=True,
        callback=_checked(ChangeKind.TASK),
        help="Add a task.",
    ),
    click.option(
        "--delete",
        metavar="LABEL",
        multiple=True,
        callback=_checked(ChangeKind.DELETE),
        help="Take a task out.",
    ),
    click.option(
        "-c",
        "--config",
        "config",
        metavar="LABEL:KEY=VALUE",
        multiple=True,
        callback=_checked(ChangeKind.CONFIG),
        help="Override a configuration field of a task.",
    ),
    click.option(
        "-C",
        "--config-file",
        "config_file",
        metavar="LABEL:FILE",
        multiple=True,
        callback=_checked(ChangeKind.CONFIG_FILE),
        help="Apply a configuration file to a task.",
    ),
    click.option(
        "--instrument",
        metavar="CLASS",
        multiple=True,
        callback=_checked(ChangeKind.INSTRUMENT),
        help="Apply an instrument's configuration overrides.",
    ),
    click.option(
        "--select-tasks",
        metavar="EXPR",
        default="",
        help="Keep only these tasks: 'isr | calibrate', '>= calibrate' (it and what follows).",
    ),
    _file("--save-pipeline", "-s", text="Save the pipeline as YAML."),
    _file("--pipeline-dot", text="Save a drawing of the pipeline in GraphViz's language."),
    _file("--pipeline-mermaid", text="Save a Mermaid diagram of the pipeline (.mmd, .svg or .png)."),
)

graph_file = section(
    "Graph",
    _file("--qgraph", "-g", text="Quantum graph that is built already (.qg or .qgraph)."),
    click.option(
        "--qgraph-id",
        metavar="ID",
        type=filled,
        help="Identifier that an old .qgraph must have; .qg files have none.",
    ),
)

graph_part = section(
    "Graph",
    click.option(
        "--qgraph-node-id",
        "qgraph_node_ids",
        metavar="UUID",
        multiple=True,
        callback=comma_list,
        help="Take only these quanta of the graph file, comma-separated.",
    ),
)

execution_part = section(
    "Part of the graph",
    click.option(
        "--only",
        metavar="QUANTA",
        type=filled,
        multiple=True,
        help="Execute only these: a task label, 'label{key: value}', '{key: value}', an index or a UUID; "
        "repeatable.",
    ),
    click.option(
        "--only-failures-of",
        metavar="RUN_DIR",
        type=click.Path(file_okay=False),
        multiple=True,
        help="Execute only what failed or was blocked there; in the same RUN, over what it left.",
    ),
    click.option("--with-ancestors", is_flag=True, help="Execute also all that these wait for."),
    click.option("--with-descendants", is_flag=True, help="Execute also all that waits for these."),
)

graph_output = section(
    "Graph",
    _file("--save-qgraph", "-q", text="Save the graph as this .qg file."),
    _file("--qgraph-dot", text="Save a drawing of the graph in GraphViz's language."),
    _file("--qgraph-mermaid", text="Save a Mermaid diagram of the graph."),
)

graph_building = section(
    "Building the graph",
    click.option("-d", "--data-query", metavar="QUERY", default="", help="Which data IDs to process."),
    click.option(
        "--data-id-table",
        "data_id_tables",
        metavar="FILE",
        type=filled,
        multiple=True,
        help="Process only data IDs of this table (any that astropy reads); repeatable.",
    ),
    click.option(
        "--dataset-query-constraint",
        metavar="all|off|TYPES",
        default="all",
        show_default=True,
        help="Inputs that must exist for a data ID to be found.",
    ),
    click.option(
        "--skip-existing-in",
        metavar="COLLECTION",
        multiple=True,
        callback=comma_list,
        help="Leave out quanta that are done in these collections, comma-separated.",
    ),
    click.option(
        "--retained-dataset-types",
        metavar="FILE",
        type=filled,
        help="YAML list of dataset types that were kept; what makes the others runs again if needed.",
    ),
    click.option(
        "--prune-unanchored-quanta",
        metavar="SOURCE:ANCHOR",
        callback=_label_pair,
        help="Leave out quanta of SOURCE that lead to none of ANCHOR, and what follows them.",
    ),
    click.option(
        "--qgraph-datastore-records/--no-qgraph-datastore-records",
        "datastore_records",
        default=True,
        show_default=True,
        help="Put the datastore records of the inputs into the graph.",
    ),
    click.option("--mock", is_flag=True, help="Build for mocks that only imitate the tasks."),
    click.option(
        "--mock-failure",
        "mock_failures",
        metavar="LABEL:ERROR:WHERE[:MEM]",
        multiple=True,
        callback=_mock_failures,
        help="Have mocks fail: 'isr::visit=42', 'isr:some.Error:visit=42:4GB'.",
    ),
    click.option(
        "--unmocked-dataset-types",
        metavar="TYPES",
        multiple=True,
        callback=comma_list,
        help="Inputs that mocks read as they are, comma-separated.",
    ),
)

collections = section(
    "Collections",
    click.option(
        "-i",
        "--input",
        "inputs",
        metavar="COLLECTION",
        type=filled,
        multiple=True,
        callback=comma_list,
        help="Input collections, comma-separated; with -g taken from the graph if not given.",
    ),
    click.option("-o", "--output", metavar="COLLECTION", type=filled, help="Output CHAINED collection."),
    click.option(
        "--output-run",
        metavar="RUN",
        type=filled,
        help="Output RUN collection; default: OUTPUT/<time>.",
    ),
    click.option("--extend-run", is_flag=True, help="Write into a RUN that exists; implies --skip-existing."),
    click.option(
        "--replace-run",
        is_flag=True,
        help="Take the newest RUN out of OUTPUT; its datasets stay where they are.",
    ),
    click.option(
        "--prune-replaced",
        type=click.Choice(["unstore", "purge"], case_sensitive=False),
        help="Remove the replaced RUN's files (unstore), or all of it (purge).",
    ),
    click.option("--rebase", is_flag=True, help="Put -i into an OUTPUT that was made from other inputs."),
)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What a command is asked to make, save, draw and show."""

    pipeline: PipelineOptions
    graph_file: str | None
    graph_id: str | None
    quantum_ids: tuple[str, ...]
    options: GraphOptions
    shows: tuple[Show, ...]
    save_pipeline: str | None
    pipeline_dot: str | None
    pipeline_mermaid: str | None
    save_graph: str | None
    graph_dot: str | None
    graph_mermaid: str | None

    def files(self) -> dict[str, str | None]:
        """Return what is to be written, by option."""
        return {
            "--save-pipeline": self.save_pipeline,
            "--pipeline-dot": self.pipeline_dot,
            "--pipeline-mermaid": self.pipeline_mermaid,
            "--save-qgraph": self.save_graph,
            "--qgraph-dot": self.graph_dot,
            "--qgraph-mermaid": self.graph_mermaid,
        }

    def building(self) -> list[str]:
        """Return the options that were given and mean nothing for a graph that is built already."""
        options = self.options
        given = {
            "--select-tasks": self.pipeline.select_tasks,
            "--save-pipeline": self.save_pipeline,
            "--pipeline-dot": self.pipeline_dot,
            "--pipeline-mermaid": self.pipeline_mermaid,
            "--data-query": options.data_query,
            "--data-id-table": options.data_id_tables,
            "--dataset-query-constraint": options.dataset_query_constraint != "all",
            "--skip-existing-in": options.skip_existing_in,
            "--retained-dataset-types": options.retained_dataset_types,
            "--prune-unanchored-quanta": options.prune_unanchored_quanta,
            "--mock": options.mock,
            "--mock-failure": options.mock_failures,
            "--unmocked-dataset-types": options.unmocked_dataset_types,
        }
        changes = dict.fromkeys(_OPTION[change.kind] for change in self.pipeline.changes)
        shows = [f"--show {show.what}" for show in Show.of_pipeline(self.shows)]
        return [*changes, *(name for name, value in given.items() if value), *shows]


_OPTION = {
    ChangeKind.INSTRUMENT: "--instrument",
    ChangeKind.TASK: "--task",
    ChangeKind.DELETE: "--delete",
    ChangeKind.CONFIG: "--config",
    ChangeKind.CONFIG_FILE: "--config-file",
}
"""What the options are called in messages."""

_CHANGES = {
    "instrument": ChangeKind.INSTRUMENT,
    "task": ChangeKind.TASK,
    "delete": ChangeKind.DELETE,
    "config": ChangeKind.CONFIG,
    "config_file": ChangeKind.CONFIG_FILE,
}
"""Names in Python of the options that change a pipeline."""


def request_of(given: dict[str, Any]) -> BuildRequest:
    """Take the options about pipelines and graphs out of all that are given.

    Parameters
    ----------
    given
        Options by their names in Python; ``skip_existing`` and ``clobber_outputs``, which execution has to
        do with as well, stay, and so do the collections.

    Raises
    ------
    qgexec.errors.UsageError
        Some of them make no sense together.
    """
    for name in _CHANGES:
        given.pop(name)
    changes = tuple(
        PipelineChange.parse(_CHANGES[name], part)
        for name, value in given_in_order(list(_CHANGES))
        for part in _parts(_CHANGES[name], value)
    )
    request = BuildRequest(
        pipeline=PipelineOptions(given.pop("pipeline"), changes, given.pop("select_tasks")),
        graph_file=given.pop("qgraph", None),
        graph_id=given.pop("qgraph_id", None),
        quantum_ids=given.pop("qgraph_node_ids", ()),
        options=GraphOptions(
            data_query=given.pop("data_query", ""),
            data_id_tables=given.pop("data_id_tables", ()),
            dataset_query_constraint=given.pop("dataset_query_constraint", "all"),
            skip_existing=given.get("skip_existing", False),
            skip_existing_in=given.pop("skip_existing_in", ()),
            retained_dataset_types=given.pop("retained_dataset_types", None),
            prune_unanchored_quanta=given.pop("prune_unanchored_quanta", None),
            clobber_outputs=given.get("clobber_outputs", False),
            datastore_records=given.pop("datastore_records", True),
            mock=given.pop("mock", False),
            mock_failures=given.pop("mock_failures", ()),
            unmocked_dataset_types=given.pop("unmocked_dataset_types", ()),
        ),
        shows=given.pop("shows"),
        save_pipeline=given.pop("save_pipeline"),
        pipeline_dot=given.pop("pipeline_dot"),
        pipeline_mermaid=given.pop("pipeline_mermaid"),
        save_graph=given.pop("save_qgraph", None),
        graph_dot=given.pop("qgraph_dot", None),
        graph_mermaid=given.pop("qgraph_mermaid", None),
    )
    _check(request)
    return request


def _check(request: BuildRequest) -> None:
    if request.graph_file and request.pipeline:
        raise UsageError(
            "-g and -p exclude each other.", hint="Give the graph, or the pipeline to build one from."
        )
    if request.graph_file and (names := request.building()):
        raise UsageError(
            f"{', '.join(names)}: only for building a graph, but -g {request.graph_file} is built already.",
            hint="Leave them out, or build the graph with -p.",
        )
    if not request.graph_file and (request.graph_id or request.quantum_ids):
        raise UsageError("--qgraph-id, --qgraph-node-id: there is no graph file.", hint="Name it with -g.")
    options = request.options
    if not options.mock and (options.mock_failures or options.unmocked_dataset_types):
        raise UsageError(
            "--mock-failure, --unmocked-dataset-types: nothing is mocked.", hint="Give --mock too."
        )
    if request.save_graph and not request.save_graph.endswith(".qg"):
        raise UsageError(f"--save-qgraph {request.save_graph} does not end in .qg.")


def part_of(given: dict[str, Any]) -> Part:
    """Take the options about a part of the graph out of all that are given.

    Raises
    ------
    qgexec.errors.RunDirError
        A run whose failures are meant cannot be read.
    """
    from qgexec.scheduling.parts import Part  # numpy: `--help` is to be fast

    run_dirs = given.pop("only_failures_of")
    quanta = None
    if run_dirs:
        from qgexec.reports.leftovers import failed_quanta

        quanta = [each for run_dir in run_dirs for each in failed_quanta(Path(run_dir))]
    return Part(
        names=given.pop("only"),
        quanta=quanta,
        ancestors=given.pop("with_ancestors"),
        descendants=given.pop("with_descendants"),
    )


def check_collections(given: dict[str, Any]) -> None:
    """Check that the options about collections make sense together; raises `UsageError`."""
    if given["extend_run"] and given["replace_run"]:
        raise UsageError("--extend-run and --replace-run exclude each other.")
    if given["prune_replaced"] and not given["replace_run"]:
        raise UsageError("--prune-replaced: no RUN is replaced.", hint="Give --replace-run too.")
    if given["replace_run"] and given.get("no_output_chain"):
        raise UsageError("--replace-run and --no-output-chain exclude each other.")
    if given["replace_run"] and not given["output"]:
        raise UsageError("--replace-run: in which collection?", hint="Name the output collection with -o.")
