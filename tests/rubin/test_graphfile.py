"""`qgexec.rubin.graphfile`: plans, files and quanta from graphs in every form, against real repositories."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import DimensionConfig
from lsst.pipe.base import QuantumGraph
from lsst.pipe.base.quantum_graph import (
    PredictedQuantumGraph,
    PredictedQuantumGraphComponents,
    ProvenanceQuantumGraph,
)

from benchmarks.synthetic import read_block, replace_blocks, synthetic_quanta, write_synthetic_graph
from qgexec.errors import GraphError, RepositoryError
from qgexec.rubin.graphfile import GraphSource, prepare_graph, read_plan
from qgexec.rubin.qgfile import QgFile
from tests.kit.butler.brokengraphs import without_task_class
from tests.kit.butler.repos import (
    N_QUANTA,
    OUTPUT,
    OUTPUT_RUN,
    MockRepository,
    open_repository,
)

DIMENSIONS = ("instrument", "detector", "visit", "band", "day_obs", "physical_filter")


def upstream_graph(path: Path) -> PredictedQuantumGraph:
    """Read a whole graph as upstream does."""
    with PredictedQuantumGraph.open(str(path)) as reader:
        reader.read_all()
        return reader.finish()


def edges_of(path: Path) -> set[tuple[uuid.UUID, uuid.UUID]]:
    """The plan's edges by quantum ID."""
    plan = read_plan(path)
    return {(plan.quantum_id(p), node.quantum_id) for node in plan for p in node.prerequisites}


def as_text(quantum: Any) -> Any:
    """A quantum as upstream serialises it: everything that it holds."""
    return json.loads(quantum.to_simple().model_dump_json())


class TestReadPlan:
    """`read_plan`."""

    def test_plan_is_upstreams_graph(self, template: MockRepository) -> None:
        """Labels, data IDs and edges are those that upstream reads from the same file."""
        plan, graph = read_plan(template.graph), upstream_graph(template.graph)
        assert plan.labels == ("isr", "calibrate", "summary", "final")
        assert plan.count_by_label() == {"isr": 8, "calibrate": 8, "summary": 2, "final": 1}
        xgraph = graph.quantum_only_xgraph
        for node in plan:
            state = xgraph.nodes[node.quantum_id]
            assert node.task_label == state["task_label"]
            assert node.data_id == dict(state["data_id"].mapping)
        assert edges_of(template.graph) == set(xgraph.edges)

    def test_quantum_never_comes_before_its_prerequisites(self, template: MockRepository) -> None:
        """The first quantum has no prerequisites, and none is greater than its quantum."""
        plan = read_plan(template.graph)
        assert plan[0].prerequisites == ()
        assert all(p < node.index for node in plan for p in node.prerequisites)

    def test_task_classes_are_not_imported(self, template: MockRepository, tmp_path: Path) -> None:
        """A plan can be read where the tasks are not installed."""
        assert len(read_plan(without_task_class(template.graph, tmp_path / "graph.qg"))) == N_QUANTA

    @pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
    def test_any_layout_of_the_json_text(
        self, template: MockRepository, tmp_path: Path, separators: tuple[str, str]
    ) -> None:
        """Text that upstream would not write gives the same plan, by another way."""
        quanta = list(synthetic_quanta(600, ["isr", "calibrate"], fan_in=3))
        path = write_synthetic_graph(template.graph, tmp_path / "s.qg", quanta, separators=separators)
        plan = read_plan(path)
        assert [node.quantum_id for node in plan] == [quantum_id for _, quantum_id, _, _ in quanta]
        dimensions = read_plan(template.graph)[0].data_id.keys()
        assert [node.data_id for node in plan] == [
            dict(zip(dimensions, values, strict=True)) for _, _, values, _ in quanta
        ]
        assert edges_of(path) == {(p, quantum_id) for _, quantum_id, _, before in quanta for p in before}

    def test_text_that_is_not_ascii(self, template: MockRepository, tmp_path: Path) -> None:
        """Data-ID values may be any text, also what looks like the file's own punctuation."""
        odd: Sequence[int | str] = ["Cämera", 1, 2, 'r"]}]},{"quantum_id":"', 20210909, "\\]}"]
        path = write_synthetic_graph(template.graph, tmp_path / "s.qg", [("isr", uuid.uuid4(), odd, [])])
        assert [*read_plan(path)[0].data_id.values()] == odd
        block = {"thin_graph.json.zst": read_block(path, "thin_graph").replace(rb"\u00e4", "ä".encode())}
        again = replace_blocks(path, tmp_path / "utf8.qg", block)
        assert [*read_plan(again)[0].data_id.values()] == odd

    def test_labels_without_quanta(self, template: MockRepository, tmp_path: Path) -> None:
        """A task of which nothing is to be done has a label and no quanta."""
        text = read_block(template.graph, "thin_graph")
        thin = json.loads(text)
        thin["quanta"] = {"isr": [], "calibrate": thin["quanta"]["calibrate"], "summary": [], "final": []}
        thin["edges"] = []
        block = {"thin_graph.json.zst": json.dumps(thin, separators=(",", ":")).encode()}
        plan = read_plan(replace_blocks(template.graph, tmp_path / "graph.qg", block))
        assert plan.count_by_label() == {"isr": 0, "calibrate": 8, "summary": 0, "final": 0}

    def test_format_version_0(self, template: MockRepository, tmp_path: Path) -> None:
        """The oldest format, whose quanta and edges are numbers, gives the same plan."""
        old = as_version_0(template.graph, tmp_path / "v0.qg")
        assert [str(node) for node in read_plan(old)] == [str(node) for node in read_plan(template.graph)]
        assert edges_of(old) == edges_of(template.graph)


def as_version_0(graph: Path, path: Path) -> Path:
    """Copy a graph with the thin part as format version 0 had it: places in the address file for IDs."""
    thin = json.loads(read_block(graph, "thin_graph"))
    ids = sorted(q["quantum_id"] for quanta in thin["quanta"].values() for q in quanta)
    place = {quantum_id: n for n, quantum_id in enumerate(ids)}
    old = {
        "quanta": {
            label: [
                {"quantum_index": place[q["quantum_id"]], "data_coordinate": q["data_coordinate"]}
                for q in quanta
            ]
            for label, quanta in thin["quanta"].items()
        },
        "edges": [[place[first], place[second]] for first, second in thin["edges"]],
    }
    header = json.loads(read_block(graph, "header")) | {"version": 0}
    return replace_blocks(
        graph,
        path,
        {"header.json.zst": json.dumps(header).encode(), "thin_graph.json.zst": json.dumps(old).encode()},
    )


class TestBadFiles:
    """Each kind of bad graph file has one clear message, from the plan and from the preparation."""

    @pytest.fixture(params=["read_plan", "prepare_graph"])
    def read(self, request: pytest.FixtureRequest, template: MockRepository, tmp_path: Path) -> Any:
        if request.param == "read_plan":
            return read_plan
        return lambda path: prepare_graph(path, tmp_path, str(template.root))

    def test_missing(self, read: Any, tmp_path: Path) -> None:
        """A file that is not there is named."""
        with pytest.raises(GraphError, match=r"nothing\.qg does not exist"):
            read(tmp_path / "nothing.qg")

    def test_directory(self, read: Any, tmp_path: Path) -> None:
        """A directory is called one."""
        (tmp_path / "folder.qg").mkdir()
        with pytest.raises(GraphError, match=r"folder\.qg is a directory"):
            read(tmp_path / "folder.qg")

    def test_text_file(self, read: Any, tmp_path: Path) -> None:
        """A file of another type is not a quantum graph."""
        (tmp_path / "pipeline.yaml").write_text("description: a pipeline")
        with pytest.raises(GraphError, match=r"pipeline\.yaml is not a quantum graph"):
            read(tmp_path / "pipeline.yaml")

    def test_other_zip_file(self, read: Any, tmp_path: Path) -> None:
        """Nor is just any zip file."""
        (tmp_path / "folder").mkdir()
        other = shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path / "folder")
        with pytest.raises(GraphError, match="is a zip file, but not a quantum graph"):
            read(Path(other))

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated(self, read: Any, template: MockRepository, tmp_path: Path, share: float) -> None:
        """Wherever the file ends too early, it is called truncated."""
        whole = template.graph.read_bytes()
        (tmp_path / "cut.qg").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(GraphError, match=r"cut\.qg is truncated"):
            read(tmp_path / "cut.qg")

    def test_damaged_block(self, read: Any, template: MockRepository, tmp_path: Path) -> None:
        """A block that is gone or cannot be unpacked is damage."""
        path = replace_blocks(
            template.graph, tmp_path / "bad.qg", {"header.json.zst": None, "header.json": b""}
        )
        with pytest.raises(GraphError):
            read(path)
        whole = bytearray(template.graph.read_bytes())
        at = whole.index(b"header.json.zst") + len("header.json.zst")
        whole[at + 10 : at + 20] = b"x" * 10
        (tmp_path / "flipped.qg").write_bytes(whole)
        with pytest.raises(GraphError, match=r"flipped\.qg is damaged"):
            read(tmp_path / "flipped.qg")

    def test_provenance_graph(self, read: Any, template: MockRepository, tmp_path: Path) -> None:
        """A graph of the type that records a run cannot be executed."""
        header = json.loads(read_block(template.graph, "header")) | {"graph_type": "provenance"}
        block = {"header.json.zst": json.dumps(header).encode()}
        path = replace_blocks(template.graph, tmp_path / "provenance.qg", block)
        assert ProvenanceQuantumGraph is not None
        with pytest.raises(GraphError, match="'provenance' quantum graph, which cannot be executed"):
            read(path)

    def test_newer_format(self, read: Any, template: MockRepository, tmp_path: Path) -> None:
        """A format version that is not known is not guessed at."""
        header = json.loads(read_block(template.graph, "header")) | {"version": 99}
        block = {"header.json.zst": json.dumps(header).encode()}
        with pytest.raises(GraphError, match="format version 99"):
            read(replace_blocks(template.graph, tmp_path / "newer.qg", block))

    def test_no_quanta(self, read: Any, template: MockRepository, tmp_path: Path) -> None:
        """A graph without quanta is an error, not a run of nothing."""
        with pytest.raises(GraphError, match="has no quanta"):
            read(write_synthetic_graph(template.graph, tmp_path / "empty.qg", []))


class TestPrepareGraph:
    """`prepare_graph`."""

    def test_complete_file_stays_where_it_is(self, template: MockRepository, tmp_path: Path) -> None:
        """A ``.qg`` with records is executed from where it is; its header is handed on."""
        prepared = prepare_graph(template.graph, tmp_path, str(template.root))
        assert prepared.path == template.graph
        assert (prepared.output, prepared.output_run, prepared.n_quanta) == (OUTPUT, OUTPUT_RUN, N_QUANTA)
        assert prepared.inputs == ("input_chain",)
        assert list(tmp_path.iterdir()) == []

    def test_missing_records_are_looked_up(self, template: MockRepository, tmp_path: Path) -> None:
        """What is written for a graph without records is the graph that was built with them."""
        prepared = prepare_graph(str(template.bare_graph), tmp_path, str(template.root))
        assert [path.name for path in tmp_path.iterdir()] == ["graph.qg"]
        assert prepared.path == tmp_path / "graph.qg"
        assert read_block(prepared.path, "thin_graph") == read_block(template.bare_graph, "thin_graph")
        assert datasets_with_records(prepared.path) == datasets_with_records(template.graph)
        assert len(datasets_with_records(prepared.path)) == 12

    def test_without_a_repository_nothing_is_looked_up(
        self, template: MockRepository, tmp_path: Path
    ) -> None:
        """A client with an executor of its own needs no records."""
        assert prepare_graph(template.bare_graph, tmp_path, None).path == template.bare_graph

    def test_butler_of_the_callers_is_used(self, template: MockRepository, tmp_path: Path) -> None:
        """A butler that is open already serves, and stays open."""
        with template.butler() as butler:
            prepare_graph(template.bare_graph, tmp_path, butler)
            assert butler.collections.query("*")

    def test_old_file(
        self, template: MockRepository, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An old ``.qgraph`` file is converted, with one line of log and no warning."""
        old = upstream_graph(template.graph).to_old_quantum_graph()
        old.saveUri(str(tmp_path / "old.qgraph"))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            prepared = prepare_graph(tmp_path / "old.qgraph", tmp_path, str(template.root))
        assert prepared.path == tmp_path / "graph.qg"
        assert plan_as_text(prepared.path) == plan_as_text(template.graph)
        assert datasets_with_records(prepared.path) == datasets_with_records(template.graph)
        assert [record.name for record in caplog.records] == ["qgexec.rubin.graphfile"]

    @pytest.mark.parametrize("broken", ["missing", "text"])
    def test_bad_old_file(self, template: MockRepository, tmp_path: Path, broken: str) -> None:
        """An old file that is missing or something else is named."""
        path = tmp_path / "old.qgraph"
        if broken == "text":
            path.write_text("not a graph")
        with pytest.raises(GraphError, match=r"old\.qgraph"):
            prepare_graph(path, tmp_path, str(template.root))
        assert not (tmp_path / "graph.qg").exists()

    @pytest.mark.parametrize("records", [True, False])
    @pytest.mark.parametrize("old", [True, False])
    def test_graph_in_memory(
        self, template: MockRepository, tmp_path: Path, old: bool, records: bool
    ) -> None:
        """A graph object of either class is written once, with records, and is not changed."""
        graph = upstream_graph(template.graph if records else template.bare_graph)
        given: PredictedQuantumGraph | QuantumGraph = graph.to_old_quantum_graph() if old else graph
        prepared = prepare_graph(given, tmp_path, str(template.root))
        assert plan_as_text(prepared.path) == plan_as_text(template.graph)
        assert edges_by_text(prepared.path) == edges_by_text(template.graph)
        assert datasets_with_records(prepared.path) == datasets_with_records(template.graph)
        quanta = graph.build_execution_quanta().values()
        assert any(quantum.datastore_records for quantum in quanta) == records

    def test_part_of_a_graph_in_memory(self, template: MockRepository, tmp_path: Path) -> None:
        """A graph of which some quanta were loaded is executed as far as it goes; a thin one cannot be."""
        wanted = [node.quantum_id for node in read_plan(template.graph) if node.task_label == "isr"][:3]
        part = PredictedQuantumGraphComponents.read_execution_quanta(str(template.graph), wanted).assemble()
        prepared = prepare_graph(part, tmp_path, str(template.root))
        assert {node.quantum_id for node in read_plan(prepared.path)} == set(wanted)
        with PredictedQuantumGraph.open(str(template.graph)) as reader:
            reader.read_thin_graph()
            thin = reader.finish()
        with pytest.raises(GraphError, match="only 0 of the 19 quanta"):
            prepare_graph(thin, tmp_path, str(template.root))

    def test_empty_graph_in_memory(self, template: MockRepository, tmp_path: Path) -> None:
        """A graph object without quanta is refused before anything is written."""
        with template.butler() as butler:
            empty = PredictedQuantumGraph.make_empty(butler.dimensions, output_run="run")
        with pytest.raises(GraphError, match="no quanta"):
            prepare_graph(empty, tmp_path, str(template.root))
        assert list(tmp_path.iterdir()) == []

    def test_task_class_that_does_not_import(self, template: MockRepository, tmp_path: Path) -> None:
        """Class, label, Python's reason and PYTHONPATH are named."""
        graph = without_task_class(template.graph, tmp_path / "graph.qg")
        with pytest.raises(GraphError) as raised:
            prepare_graph(graph, tmp_path, str(template.root))
        for text in ("no_such_package.NoSuchTask", "'isr'", "ModuleNotFoundError", "PYTHONPATH"):
            assert text in str(raised.value)

    def test_missing_repository(self, template: MockRepository, tmp_path: Path) -> None:
        """A repository that is not there is named."""
        with pytest.raises(RepositoryError, match="no butler repository"):
            prepare_graph(template.graph, tmp_path, str(tmp_path / "nowhere"))

    @pytest.mark.parametrize("bare", [True, False])
    def test_repository_of_another_graph(self, template: MockRepository, tmp_path: Path, bare: bool) -> None:
        """A repository that does not know the graph's inputs is not the graph's."""
        with open_repository(tmp_path / "other"):
            pass
        graph = template.bare_graph if bare else template.graph
        (tmp_path / "run").mkdir()
        with pytest.raises(RepositoryError, match=r"not the one that .* was built from"):
            prepare_graph(graph, tmp_path / "run", str(tmp_path / "other"))
        assert list((tmp_path / "run").iterdir()) == []

    def test_other_dimension_universe(self, template: MockRepository, tmp_path: Path) -> None:
        """Both universes are named."""
        dimensions = DimensionConfig()
        dimensions["version"] = 99
        with open_repository(tmp_path / "other", dimensions=dimensions):
            pass
        with pytest.raises(GraphError, match=r"daf_butler version \d+, but .* daf_butler version 99"):
            prepare_graph(template.graph, tmp_path, str(tmp_path / "other"))


def datasets_with_records(path: Path) -> set[tuple[str, str, str]]:
    """Label, dataset ID and record of what has records: what survives new quantum IDs."""
    with QgFile(path) as file:
        quanta = [json.loads(text) for text in file.quanta()]
    return {
        (quantum["task_label"], dataset_id, json.dumps(record, sort_keys=True))
        for quantum in quanta
        for stored in quantum["datastore_records"].values()
        for by_dataset in stored["records"].values()
        for dataset_id, record in by_dataset.items()
    }


def plan_as_text(path: Path) -> list[str]:
    """Labels and data IDs of a plan: what survives new quantum IDs."""
    return sorted(map(str, read_plan(path)))


def edges_by_text(path: Path) -> set[tuple[str, str]]:
    """Edges of a plan between labels and data IDs."""
    plan = read_plan(path)
    return {(str(plan[p]), str(node)) for node in plan for p in node.prerequisites}


class TestGraphSource:
    """`GraphSource`."""

    def test_quanta_are_upstreams(self, template: MockRepository) -> None:
        """Each quantum read alone is the one that upstream makes from the whole graph."""
        source, graph = GraphSource(template.graph), upstream_graph(template.graph)
        expected = graph.build_execution_quanta()
        for node in read_plan(template.graph).with_source(source):
            assert as_text(node.quantum()) == as_text(expected[node.quantum_id])
            assert node.task_node.label == node.task_label
        source.close()

    def test_unknown_quantum_and_label(self, template: MockRepository) -> None:
        """What is not in the graph is a lookup error."""
        source = GraphSource(template.graph)
        for unknown in (uuid.UUID(int=0), uuid.uuid4(), uuid.UUID(int=2**128 - 1)):
            with pytest.raises(LookupError, match=str(unknown)):
                source.quantum(unknown)
        with pytest.raises(LookupError):
            source.task_node("nolabel")

    def test_it_opens_again_after_close(self, template: MockRepository) -> None:
        """A closed source can be asked again; closing twice is no error."""
        source, plan = GraphSource(template.graph), read_plan(template.graph)
        first = source.quantum(plan.quantum_id(0))
        source.close()
        source.close()
        assert as_text(source.quantum(plan.quantum_id(0))) == as_text(first)

    def test_nothing_is_kept(self, template: MockRepository) -> None:
        """Reading quanta over and over leaves no more objects behind than reading them once."""
        source, plan = GraphSource(template.graph), read_plan(template.graph)

        def read_all() -> int:
            for node in plan:
                source.quantum(node.quantum_id)
            gc.collect()
            return len(gc.get_objects())

        read_all()
        before = read_all()
        for _ in range(5):
            after = read_all()
        assert after - before < N_QUANTA

    def test_addresses_of_a_large_graph(self, template: MockRepository, tmp_path: Path) -> None:
        """Every one of 760 quanta is found, and the compression dictionary of large graphs is used."""
        with PredictedQuantumGraph.open(str(template.graph)) as reader:
            reader.read_all()
            components = reader.components
        copies = [
            quantum.model_copy(update={"quantum_id": uuid.uuid4()})
            for quantum in components.quantum_datasets.values()
            for _ in range(40)
        ]
        components.quantum_datasets = {quantum.quantum_id: quantum for quantum in copies}
        components.set_thin_graph()
        components.set_header_counts()
        components.write(str(tmp_path / "graph.qg"))
        with QgFile(tmp_path / "graph.qg") as file:
            for quantum in copies:
                found = json.loads(file.quantum(quantum.quantum_id))
                assert (found["quantum_id"], found["task_label"]) == (
                    str(quantum.quantum_id),
                    quantum.task_label,
                )
        source = GraphSource(tmp_path / "graph.qg")
        assert source.quantum(copies[7].quantum_id).dataId is not None
        source.close()

    def test_importing_costs_no_butler(self) -> None:
        """The words of the plan do not import the stack (`qgexec --help` must be quick)."""
        code = "import sys, qgexec.scheduling.plan; sys.exit('lsst' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
