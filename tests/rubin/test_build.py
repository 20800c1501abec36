"""`qgexec.rubin.build`: from a pipeline file to a graph file, against real repositories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import CollectionType
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from qgexec.config.buildoptions import ChangeKind, GraphOptions, MockFailure, PipelineChange, PipelineOptions
from qgexec.errors import CollectionError, GraphError, QgexecError, RepositoryError, UsageError
from qgexec.rubin.build import build_graph, make_graph, save_graph
from qgexec.rubin.graphfile import prepare_graph, read_plan
from qgexec.rubin.pipelines import BuiltPipeline
from tests.kit.butler.repos import (
    INPUT_CHAIN,
    INPUT_RUN,
    N_QUANTA,
    OUTPUT,
    OUTPUT_RUN,
    MockRepository,
    pipeline_yaml,
)

Build = Callable[..., str]


@pytest.fixture(scope="session")
def pipeline(template: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    graph = prepare_graph(template.graph, folder, None)
    return pipeline_yaml(graph.pipeline_graph, folder / "pipeline.yaml")


@pytest.fixture
def build(template: MockRepository, pipeline: Path, tmp_path: Path) -> Build:
    def build(
        *,
        file: str | None = str(pipeline),
        changes: Sequence[str] = (),
        select: str = "",
        save_to: Path | None = tmp_path / "built.qg",
        repository: Any = None,
        collections: Mapping[str, Any] = {},
        **options: Any,
    ) -> str:
        made = BuiltPipeline(PipelineOptions(file, tuple(map(_change, changes)), select))
        given: dict[str, Any] = {"inputs": [INPUT_CHAIN], "output": OUTPUT, **collections}
        graph = GraphOptions(**options)
        components = make_graph(repository or str(template.root), made, **given, options=graph)
        return save_graph(components, save_to)

    return build


def _change(text: str) -> PipelineChange:
    option, _, value = text.partition(" ")
    return PipelineChange.parse(ChangeKind(option), value)


def refused(build: Build, template: MockRepository, error: type[QgexecError], **kwargs: Any) -> str:
    """Build, and return the message of the error; no file and no change in the repository is left."""
    before = template.dump()
    save_to = Path(kwargs.setdefault("save_to", Path(str(template.root)) / "refused.qg"))
    with pytest.raises(error) as raised:
        build(**kwargs)
    assert not save_to.exists()
    assert template.dump() == before
    return str(raised.value)


def test_graph_is_built_and_can_be_planned(build: Build) -> None:
    """The file has all quanta, the collections in its header, and datastore records."""
    path = Path(build(collections={"output_run": OUTPUT_RUN}))
    assert len(read_plan(path)) == N_QUANTA
    with PredictedQuantumGraph.open(str(path)) as reader:
        reader.read_all()
        header = reader.header
        assert (header.inputs, header.output, header.output_run) == ([INPUT_RUN], OUTPUT, OUTPUT_RUN)
        quanta = reader.components.quantum_datasets.values()
        assert all(bool(quantum.datastore_records) == (quantum.task_label == "isr") for quantum in quanta)


def test_new_run_is_named_after_output_and_time(build: Build) -> None:
    """Without --output-run the RUN is the output collection's name and a timestamp."""
    with PredictedQuantumGraph.open(build()) as reader:
        assert reader.header.output_run.startswith(f"{OUTPUT}/20")


def test_graph_is_saved_beside_the_run_directories_by_default(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no file is named, the graph is kept under the RUN's name."""
    monkeypatch.chdir(tmp_path)
    assert build(collections={"output_run": OUTPUT_RUN}, save_to=None) == f"qgexec-runs/{OUTPUT_RUN}.qg"
    assert Path(f"qgexec-runs/{OUTPUT_RUN}.qg").is_file()


def test_data_query_selects(build: Build) -> None:
    """Only data IDs of the query are in the graph: 4 detectors twice, one visit, the final task."""
    assert len(read_plan(Path(build(data_query="visit = 1")))) == 10


def test_config_overrides_and_files_are_applied(build: Build, tmp_path: Path) -> None:
    """-c and -C reach the tasks' configurations, the later one winning."""
    file = tmp_path / "override.py"
    file.write_text("config.int_value = 7\nconfig.str_value = 'from file'\n")
    path = build(changes=["-c isr:int_value=3", "-c calibrate:int_value=3", f"-C calibrate:{file}"])
    with PredictedQuantumGraph.open(path) as reader:
        tasks: dict[str, Any] = {label: node.config for label, node in reader.pipeline_graph.tasks.items()}
    assert tasks["isr"].int_value == 3
    assert (tasks["calibrate"].int_value, tasks["calibrate"].str_value) == (7, "from file")


def test_labels_after_the_file_name_select_tasks(build: Build, pipeline: Path) -> None:
    """A fragment of the pipeline's name selects a part of it, as with pipetask."""
    path = Path(build(file=f"{pipeline}#isr"))
    assert read_plan(path).count_by_label() == {"isr": 8}


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"changes": ["-c nolabel:sleep=1"]}, "-c nolabel:sleep=1"),
        ({"changes": ["-c isr:int_value=1", "-c isr:nokey=1"]}, "-c isr:nokey=1"),
        ({"changes": ["-c isr:sleep=long"]}, "Expected type float"),
        ({"changes": ["-C isr:/does/not/exist.py"]}, "-C isr:/does/not/exist.py"),
        ({"changes": ["--delete nosuch"]}, "--delete nosuch"),
        ({"changes": ["-t no.such.Task:a"]}, "-t no.such.Task:a"),
        ({"changes": ["--instrument no.such.Camera"]}, "--instrument no.such.Camera"),
        ({"select": "nosuch"}, "--select-tasks 'nosuch'"),
        ({"select": "isr & summary"}, "leaves none"),
        ({"data_id_tables": ("/does/not/exist.csv",)}, "--data-id-table /does/not/exist.csv"),
        ({"retained_dataset_types": "/does/not/exist.yaml"}, "--retained-dataset-types /does/not/exist.yaml"),
        ({"mock": True, "mock_failures": (MockFailure("nosuch", "", "visit=1"),)}, "no task 'nosuch'"),
        ({"mock": True, "mock_failures": (MockFailure("isr", "no.such", "visit=1"),)}, "'no.such'"),
        (
            {"mock": True, "mock_failures": (MockFailure("isr", "pathlib.Path", "visit=1"),)},
            "is no exception",
        ),
        ({"data_query": "visit = "}, "'visit = '"),
        ({"data_query": "nosuch = 3"}, "nosuch"),
        ({"file": "/does/not/exist.yaml"}, "/does/not/exist.yaml does not exist"),
        ({"collections": {"inputs": []}}, "no input collections"),
    ],
)
def test_wrong_option_is_named(
    build: Build, template: MockRepository, given: dict[str, Any], said: str
) -> None:
    """An option that cannot be applied is named, and nothing is written."""
    assert said in refused(build, template, UsageError, **given)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [1\nb: }", "line 1, column 8"),
        ("tasks: 3\n", "description"),
        ("description: x\ntasks:\n  a:\n    class: no.such.Task\n", "no.such.Task"),
    ],
)
def test_wrong_pipeline_file(
    build: Build, template: MockRepository, tmp_path: Path, text: str, said: str
) -> None:
    """A pipeline file that cannot be used is named with the reason."""
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    message = refused(build, template, UsageError, file=str(file), changes=["-c a:b=c"])
    assert str(file) in message
    assert said in message


def test_empty_graph_has_upstreams_reasons(build: Build, template: MockRepository) -> None:
    """A query without data IDs is an error that passes upstream's explanation on."""
    message = refused(build, template, GraphError, data_query="instrument = 'NoCam'")
    assert "no quanta" in message
    assert "instrument='NoCam'" in message


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"inputs": ["nosuch"]}, "no input collection 'nosuch'"),
        ({"output": None}, "no output collection"),
        ({"output": "input_run"}, "exists as a RUN collection"),
        ({"output_run": "input_run"}, "exists already"),
        ({"output_run": "input_chain"}, "exists as a CHAINED collection"),
        ({"extend_run": True}, "no RUN to extend"),
        ({"extend_run": True, "output_run": "nosuch"}, "does not exist and cannot be extended"),
        ({"output_run": OUTPUT}, "different names"),
        ({"replace_run": True}, "no RUN to replace"),
        ({"replace_run": True, "output": INPUT_CHAIN}, "is one of the inputs"),
    ],
)
def test_collections_are_checked(
    build: Build, template: MockRepository, given: dict[str, Any], said: str
) -> None:
    """Collections that are missing, in the way or of the wrong type are named."""
    assert said in refused(build, template, CollectionError, collections=given)


def test_existing_output_must_have_the_inputs(repository: MockRepository, build: Build) -> None:
    """An output collection made from other inputs is refused; without inputs it is itself the input."""
    with repository.butler(writeable=True) as butler:
        butler.collections.register("other", CollectionType.RUN)
        butler.collections.register(OUTPUT, CollectionType.CHAINED)
        butler.collections.redefine_chain(OUTPUT, ["input_run"])
        kwargs: dict[str, Any] = {"output": OUTPUT, "save_to": repository.root / "built.qg"}
        pipeline = pipeline_yaml(
            prepare_graph(repository.graph, repository.root, None).pipeline_graph, repository.root / "p.yaml"
        )
        with pytest.raises(CollectionError, match="made from other inputs"):
            build_graph(butler, str(pipeline), inputs=["other"], **kwargs)
        assert len(read_plan(Path(build_graph(butler, str(pipeline), **kwargs)))) == N_QUANTA


def test_missing_repository(pipeline: Path, tmp_path: Path) -> None:
    """A repository that is not there is named."""
    with pytest.raises(RepositoryError, match="no butler repository"):
        build_graph(str(tmp_path / "nowhere"), str(pipeline), inputs=["a"], output="b")
