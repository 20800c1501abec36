"""What `qgexec report` says of graphs that pipetask executed is what `pipetask report` says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, CollectionType
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.quantum_provenance_graph import Summary

from qgexec.cli.report import report
from qgexec.reports.aggregated import aggregate_reports
from qgexec.reports.repository import ReadCaveats, RepositoryReport
from qgexec.reports.repositorytext import format_repository
from qgexec.rubin.graphfile import open_graph
from tests.kit.butler.repos import INPUT_CHAIN, OUTPUT, OUTPUT_RUN
from tests.kit.peer.cases import ONE, OTHER
from tests.kit.peer.programs import Command
from tests.kit.peer.reports import as_summary, in_order, ours, theirs
from tests.kit.peer.tasks import Mood, environment
from tests.kit.runs.reportschema import assert_valid
from tests.peer.conftest import Templates

SECOND_RUN = "u/someone/out/second"
FIRST_MOODS = (
    Mood("isr", "after", "raise", ONE),
    Mood("isr", "between", "report partial outputs", OTHER),
    Mood("calibrate", "before", "find no work", {"visit": 1, "detector": 1}),
    Mood("calibrate", "before", "raise", {"visit": 2, "detector": 1}),
)
SECOND_MOODS = (
    Mood("calibrate", "between", "raise", {"visit": 2, "detector": 1}),
    Mood("calibrate", "before", "find no work", ONE),
)


@dataclass(frozen=True, slots=True)
class Executed:
    """A repository in which pipetask executed two graphs, the second after the failures of the first."""

    root: Path
    first: Path
    second: Path

    @property
    def old(self) -> Path:
        """The first graph in the old format."""
        return self.first.with_name("old.qgraph")


@pytest.fixture(scope="module")
def executed(templates: Templates, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """A repository that tests must not write to."""
    folder = tmp_path_factory.mktemp("executed")
    template = templates("standard")
    root = template.copy(folder)
    for name in ("graph.qg", "old.qgraph"):
        shutil.copy(template.graph(name), folder / name)
    first, second = folder / "graph.qg", folder / "second.qg"
    run = partial(_execute, folder, root)
    run(first, OUTPUT_RUN, FIRST_MOODS)
    _build_second(root, first, second)
    run(second, SECOND_RUN, SECOND_MOODS, "--extend-run")
    return Executed(root, first, second)


def _execute(folder: Path, root: Path, graph: Path, run: str, moods: Iterable[Mood], *options: str) -> None:
    arguments = [
        "run",
        "-b",
        str(root),
        "-g",
        str(graph),
        "-i",
        INPUT_CHAIN,
        "-o",
        OUTPUT,
        "--output-run",
        run,
    ]
    arguments += ["--register-dataset-types", "--no-raise-on-partial-outputs", *options]
    command = Command("pipetask", arguments, folder, folder / "log", environment(moods))
    assert command.start().wait() == 1, (folder / "log").read_text()


def _build_second(root: Path, first: Path, path: Path) -> None:
    """Build the graph of what the first did not do."""
    with open_graph(first) as reader, Butler.from_config(str(root), writeable=True) as butler:
        butler.collections.register(SECOND_RUN, CollectionType.RUN)
        builder = AllDimensionsQuantumGraphBuilder(
            reader.pipeline_graph,
            butler,
            where="instrument = 'Cam1' AND detector IN (1, 2, 3)",
            input_collections=[OUTPUT_RUN, INPUT_CHAIN],
            output_run=SECOND_RUN,
            skip_existing_in=[OUTPUT_RUN],
        )
        builder.finish(output=OUTPUT, attach_datastore_records=True).write(str(path))


def assert_same(found: RepositoryReport, expected: Summary, folder: Path) -> None:
    """All counts, caveats, data IDs, log messages and exceptions; sentences about the wonky are our own."""
    assert in_order(as_summary(found, folder)) == in_order(json.loads(expected.model_dump_json()))
    assert {task.label: (task.n_quanta, task.succeeded, task.failed) for task in found.tasks} == {
        label: (task.n_expected, task.n_successful, task.n_failed) for label, task in expected.tasks.items()
    }
    assert {t.label: (t.blocked, t.unknown, t.wonky, t.recovered) for t in found.tasks} == {
        label: (task.n_blocked, task.n_unknown, task.n_wonky, len(task.recovered_quanta))
        for label, task in expected.tasks.items()
    }
    assert {d.dataset_type: (d.visible, d.shadowed, d.predicted_only, d.cursed) for d in found.datasets} == {
        name: (each.n_visible, each.n_shadowed, each.n_predicted_only, each.n_cursed)
        for name, each in expected.datasets.items()
    }


@pytest.mark.every(6)
@pytest.mark.parametrize("read_caveats", list(ReadCaveats))
@pytest.mark.parametrize("use_qbb", [True, False])
def test_one_graph(executed: Executed, read_caveats: ReadCaveats, use_qbb: bool, tmp_path: Path) -> None:
    """Failed, blocked, cursed, and successes with caveats of several kinds, as far as they are read."""
    how = None if read_caveats is ReadCaveats.NONE else read_caveats.value
    expected = theirs(executed.root, [executed.first], read_caveats=how, use_qbb=use_qbb)
    found = ours(executed.root, [executed.first], read_caveats=read_caveats, use_qbb=use_qbb)
    assert_same(found, expected, tmp_path)
    # It is the repository that it was meant to be.
    assert (found.total.failed, found.total.blocked) == (2, 4)
    assert len(found.cursed) == 2
    assert {task.label: task.caveats for task in found.tasks if task.caveats} == (
        {}
        if read_caveats is ReadCaveats.NONE
        else {
            "isr": dict.fromkeys(("ANY_OUTPUTS_MISSING", "PARTIAL_OUTPUTS_ERROR"), 1),
            "calibrate": dict.fromkeys(("ANY_OUTPUTS_MISSING", "ALL_OUTPUTS_MISSING", "NO_WORK"), 1),
        }
    )


@pytest.mark.thorough
def test_two_graphs(executed: Executed, tmp_path: Path) -> None:
    """The second recovers some, and fails at others; in which order they are named does not matter."""
    graphs = [executed.first, executed.second]
    found = ours(executed.root, reversed(graphs))
    assert_same(found, theirs(executed.root, graphs), tmp_path)
    assert [graph.name for graph in found.graphs] == [str(graph) for graph in graphs]
    assert found.graphs[1].recovered == found.total.recovered > 0
    assert found.total.failed > 0


@pytest.mark.every(4)
@pytest.mark.parametrize(
    "options",
    [
        {"collections": (OUTPUT,)},
        {"collections": (OUTPUT,), "curse_failed_logs": True},
        {"collections": (SECOND_RUN,)},
        {"where": "visit = 1 AND instrument = 'Cam1'"},
    ],
)
def test_what_is_visible(executed: Executed, options: dict[str, Any], tmp_path: Path) -> None:
    """Where and for which data IDs datasets are searched for decides about visible, shadowed and cursed."""
    graphs = [executed.first, executed.second]
    upstream = (
        {**options, "collections": list(options["collections"])} if "collections" in options else options
    )
    assert_same(ours(executed.root, graphs, **options), theirs(executed.root, graphs, **upstream), tmp_path)


def test_an_old_file(executed: Executed, tmp_path: Path) -> None:
    """A ``.qgraph`` has other quantum IDs, and says the same."""
    assert_same(ours(executed.root, [executed.old]), theirs(executed.root, [executed.old]), tmp_path)


@pytest.fixture
def tampered(executed: Executed, tmp_path: Path) -> Executed:
    """A copy in which datasets were removed, and one quantum of the second graph has outputs in both RUNs."""
    root = shutil.copytree(executed.root, tmp_path / "repo")
    with Butler.from_config(str(root), writeable=True) as butler:

        def remove(run: str, *types: str, **data_id: int) -> None:
            found = [butler.find_dataset(t, data_id, instrument="Cam1", collections=run) for t in types]
            butler.pruneDatasets([ref for ref in found if ref], disassociate=True, purge=True, unstore=True)

        remove(OUTPUT_RUN, "isr_log", visit=1, detector=1)
        remove(OUTPUT_RUN, "isr_log", "isr_metadata", visit=1, detector=3)
        remove(SECOND_RUN, "isr_log", "isr_metadata", visit=1, detector=2)
    return Executed(root, executed.first, executed.second)


@pytest.mark.thorough
def test_what_contradicts_itself(tampered: Executed, tmp_path: Path) -> None:
    """Wonky and unknown quanta, by one graph and by two."""
    one = ours(tampered.root, [tampered.first])
    assert_same(one, theirs(tampered.root, [tampered.first]), tmp_path)
    assert [trouble.data_id["detector"] for trouble in one.wonky] == [1]
    assert one.total.unknown == 1
    graphs = [tampered.first, tampered.second]
    assert_same(ours(tampered.root, graphs), theirs(tampered.root, graphs), tmp_path)
    text = format_repository(one, width=80)
    assert "Wonky quanta: 1" in text
    assert f"its metadata are in {OUTPUT_RUN}, its log is not" in text


def test_times_and_memory(executed: Executed) -> None:
    """They are known where all metadata are read, and then of failures, too, whose logs have them."""
    lazy = ours(executed.root, [executed.first])
    assert lazy.to_json()["total"]["useful_cpu_s"] is None
    assert_valid(lazy.to_json())
    found = ours(executed.root, [executed.first], read_caveats=ReadCaveats.EXHAUSTIVE, n_threads=2)
    isr = found.tasks[0]
    assert isr.wall is not None
    assert isr.memory is not None
    assert isr.wall.n == isr.memory.n == isr.succeeded == 5
    assert 0 < isr.wall.p50 <= isr.wall.p95 <= isr.wall.max
    assert isr.useful_cpu_s > 0
    assert isr.wasted_cpu_s > 0
    assert_valid(found.to_json())


def test_text(executed: Executed) -> None:
    """Counts, causes with exception types from the logs, and what is cursed, in 80 columns."""
    found = ours(executed.root, [executed.first], read_caveats=ReadCaveats.EXHAUSTIVE)
    text = format_repository(found, width=80)
    assert "Failed quanta: 2; causes: 2" in text
    assert "1. 1 x isr: ValueError" in text
    assert "Cursed datasets: 2" in text
    assert "Wrote part of its outputs: 1" in text
    wide = [line for line in text.splitlines() if len(line) > 80]
    assert [line for line in wide if str(executed.root.parent) not in line] == []
    brief = format_repository(found, width=80, brief=True)
    assert "ValueError" not in brief
    assert "Cursed datasets: 2" in brief


def test_the_commands(executed: Executed, tmp_path: Path) -> None:
    """The files that both programs write are the same, and either's can be put together."""
    files = {name: tmp_path / f"{name}.json" for name in ("pipetask", "qgexec")}
    graphs = [str(executed.first), str(executed.second)]
    arguments = ["report", str(executed.root), *graphs, "--full-output-filename", str(files["pipetask"])]
    log = tmp_path / "pipetask.log"
    pipetask = Command("pipetask", arguments, tmp_path, log, {"COLUMNS": "80"}).start()
    given = ["-b", str(executed.root), *(f"-g{graph}" for graph in graphs), "-j", "2"]
    with pytest.raises(SystemExit) as end:
        report.main([*given, "--full-output-filename", str(files["qgexec"])], standalone_mode=False)
    assert end.value.code == 1
    assert pipetask.wait() == 0, log.read_text()
    first, second = (in_order(json.loads(file.read_text())) for file in files.values())
    assert first == second
    told = [aggregate_reports([file]) for file in files.values()]
    assert_valid(told[0].to_json())
    assert told[0].total == told[1].total
    direct = ours(executed.root, graphs_of(executed))
    assert told[1].tasks == direct.tasks
    assert told[1].datasets == direct.datasets
    assert aggregate_reports(list(files.values())).total.n_quanta == 2 * direct.total.n_quanta


def graphs_of(executed: Executed) -> list[Path]:
    return [executed.first, executed.second]


@pytest.mark.thorough
@pytest.mark.postgres
def test_on_postgresql(templates: Templates, tmp_path: Path) -> None:
    """The registry's own database makes no difference."""
    template = templates("PostgreSQL")
    root, graph = template.copy(tmp_path), template.graph("graph.qg")
    _execute(tmp_path, root, graph, OUTPUT_RUN, FIRST_MOODS)
    found = ours(root, [graph], where="visit = 1 AND instrument = 'Cam1'")
    assert_same(found, theirs(root, [graph], where="visit = 1 AND instrument = 'Cam1'"), tmp_path)
    assert found.total.failed == 2
