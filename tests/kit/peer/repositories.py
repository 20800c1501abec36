"""The repositories that cases start from, each with its saved graph; copied for each side."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler import Butler, CollectionType, Config, DatasetType, Timespan
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.tests.mocks import DirectButlerRepo

from qgexec.config.buildoptions import GraphOptions
from qgexec.demo import make_repository
from qgexec.rubin.build import build_graph
from tests.kit.butler.composites import CACHED, chained
from tests.kit.butler.repos import INPUT_CHAIN, OUTPUT, OUTPUT_RUN, connection, open_repository
from tests.kit.peer.tasks import DigestConfig, DigestTask, MeasureConfig, MeasureTask, MoodyTask
from tests.kit.processes.postgres import PostgresServer

__all__ = ["DEMO", "ON_SERVER", "REPOSITORIES", "Template", "make_template"]

_WHERE = "instrument = 'Cam1' AND detector IN (1, 2, 3)"
_DETECTOR = ["visit", "detector"]
_CALIBRATIONS = "calibrations"
_CALIBRATION_RUN = "calibration_run"

STORAGE_CLASSES = """
storageClasses:
  MetricsPair:
    pytype: lsst.daf.butler.tests.MetricsExample
    delegate: lsst.daf.butler.tests.MetricsDelegate
    components: {summary: StructuredDataDict, output: StructuredDataDict, data: StructuredDataList}
  PeerPairs:
    pytype: tests.kit.peer.tasks.Pairs
    converters:
      dict: tests.kit.peer.tasks.Pairs.from_dict
      list: tests.kit.peer.tasks.Pairs.from_list
  PeerDict:
    pytype: dict
    converters:
      tests.kit.peer.tasks.Pairs: tests.kit.peer.tasks.Pairs.to_dict
      list: tests.kit.peer.tasks.list_to_dict
  PeerList:
    pytype: list
    converters:
      tests.kit.peer.tasks.Pairs: tests.kit.peer.tasks.Pairs.to_list
      dict: tests.kit.peer.tasks.dict_to_list
datastore:
  cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
  formatters:
    StructuredDataList: lsst.daf.butler.formatters.json.JsonFormatter
    PeerPairs: lsst.daf.butler.formatters.json.JsonFormatter
    PeerDict: lsst.daf.butler.formatters.json.JsonFormatter
    PeerList: lsst.daf.butler.formatters.json.JsonFormatter
  composites:
    disassembled: {MetricsPair: true}
"""


@dataclass(frozen=True, slots=True)
class Template:
    """A repository that nobody writes to, and graphs over it."""

    folder: Path
    """Holds ``repo`` and the graphs."""

    server: PostgresServer | None = None
    """Where the registry's database is; `None` for SQLite beside the files."""

    database: str = ""
    """Its name on that server."""

    inputs: str = INPUT_CHAIN
    """The collection that holds all that a graph starts from."""

    def graph(self, name: str) -> Path:
        """Return a graph file: ``graph.qg``, ``bare.qg`` (no datastore records) or ``old.qgraph``."""
        return self.folder / name

    def copy(self, folder: Path) -> Path:
        """Copy files and registry; return the copy's root."""
        root = folder / "repo"
        shutil.copytree(self.folder / "repo", root)
        if self.server is not None:
            config, name = root / "butler.yaml", self.server.make_database(template=self.database)
            config.write_text(config.read_text().replace(f"/{self.database}?", f"/{name}?"))
        return root


def _add_standard_tasks(repo: DirectButlerRepo) -> None:
    """Add isr, calibrate, summary and final: 6 + 6 + 2 + 1 quanta."""
    repo.add_task(
        "isr",
        task_class=MoodyTask,
        dimensions=_DETECTOR,
        init_inputs={"camera": connection("camera_schema")},
        inputs={"raw": connection("raw_mock", _DETECTOR)},
        prerequisite_inputs={
            "bias": connection("bias_mock", ["detector"], is_calibration=True),
            "defects": connection("defects_mock", ["detector"], minimum=0, multiple=True),
        },
        outputs={
            "exposure": connection("post_isr", _DETECTOR, storage_class="ArrowAstropy"),
            "statistics": connection("isr_statistics", _DETECTOR),
        },
        init_outputs={"schema": connection("isr_schema", storage_class="ArrowAstropy")},
    )
    repo.add_task(
        "calibrate",
        task_class=MoodyTask,
        dimensions=_DETECTOR,
        init_inputs={"schema": connection("isr_schema", storage_class="ArrowAstropy")},
        inputs={
            "exposure": connection("post_isr", _DETECTOR, storage_class="ArrowNumpy"),
            "columns": connection("post_isr.columns", _DETECTOR, storage_class="ArrowColumnList"),
            "statistics": connection("isr_statistics", _DETECTOR, minimum=0),
        },
        outputs={"calibrated": connection("calibrated", _DETECTOR)},
    )
    repo.add_task(
        "summary",
        task_class=MoodyTask,
        dimensions=["visit"],
        inputs={"calibrated": connection("calibrated", _DETECTOR, multiple=True)},
        outputs={"summary": connection("visit_summary_mock", ["visit"])},
    )
    repo.add_task(
        "final",
        task_class=MoodyTask,
        dimensions=["instrument"],
        inputs={"summaries": connection("visit_summary_mock", ["visit"], multiple=True)},
        outputs={"report": connection("final_report", ["instrument"])},
    )


def _insert_standard_inputs(repo: DirectButlerRepo) -> None:
    """Insert all inputs; the bias is certified in a CALIBRATION collection, detector 1 alone has defects."""
    butler = repo.butler
    butler.collections.register(_CALIBRATION_RUN)
    butler.collections.register(_CALIBRATIONS, CollectionType.CALIBRATION)
    repo.insert_datasets("camera_schema")
    repo.insert_datasets("raw_mock")
    repo.insert_datasets("defects_mock", True, where="instrument = 'Cam1' AND detector = 1")
    repo.input_run, input_run = _CALIBRATION_RUN, repo.input_run
    bias = repo.insert_datasets("bias_mock")
    repo.input_run = input_run
    butler.registry.certify(_CALIBRATIONS, bias, Timespan(None, None))
    butler.collections.redefine_chain(INPUT_CHAIN, [input_run, _CALIBRATIONS])


def _fill_standard(repo: DirectButlerRepo) -> None:
    _add_standard_tasks(repo)
    _insert_standard_inputs(repo)


def _fill_storage_classes(repo: DirectButlerRepo) -> None:
    """Measure and digest; the registry knows ``pairs`` as neither of them does."""
    repo.pipeline_graph.add_task("measure", MeasureTask, MeasureConfig())
    repo.pipeline_graph.add_task("digest", DigestTask, DigestConfig())
    repo.butler.registry.registerDatasetType(_pairs(repo.butler, "PeerDict"))
    repo.insert_datasets("raw_mock")


def _pairs(butler: Butler, storage_class: str) -> DatasetType:
    return DatasetType("pairs", butler.dimensions.conform(_DETECTOR), storage_class)


def _change_registry(butler: Butler) -> None:
    """Let the registry change its mind after the graph was built."""
    butler.registry.removeDatasetType("pairs")
    butler.registry.registerDatasetType(_pairs(butler, "PeerPairs"))


@dataclass(frozen=True, slots=True)
class _Kind:
    fill: Callable[[DirectButlerRepo], None]
    config: str = ""
    afterwards: Callable[[Butler], None] | None = None
    """Done when the graph has been saved; then all other dataset types are registered, too."""


REPOSITORIES = {
    "standard": _Kind(_fill_standard),
    "chained datastore": _Kind(_fill_standard, chained("final_report", "calibrated")),
    "cached datastore": _Kind(_fill_standard, CACHED),
    "storage classes": _Kind(_fill_storage_classes, STORAGE_CLASSES),
    "changed registry": _Kind(_fill_storage_classes, STORAGE_CLASSES, afterwards=_change_registry),
    "PostgreSQL": _Kind(_fill_standard),
}
"""What there is to copy, by name; beside `DEMO`."""

DEMO = "demo"
"""The simulated survey."""

ON_SERVER = frozenset({"PostgreSQL"})
"""Those whose registry's database is on a server."""


def make_template(name: str, folder: Path, server: PostgresServer | None) -> Template:
    """Make a repository and save its graphs: about a second and a half.

    Parameters
    ----------
    name
        Key of `REPOSITORIES`, or `DEMO`.
    folder
        Where; empty.
    server
        Where its database is to be, if it is to be on a server.
    """
    if name == DEMO:
        pytest.importorskip("photutils", reason="the extra [demo] is not installed")
        return _make_demo(folder)
    kind = REPOSITORIES[name]
    config: Any = Config.fromString(kind.config) if kind.config else Config()
    template = Template(folder)
    if server is not None:
        template = Template(folder, server, server.make_database())
        config["registry", "db"] = server.url(template.database)
    with open_repository(folder / "repo", config=config) as repo:
        kind.fill(repo)
        _save_graphs(repo, folder)
        if kind.afterwards is not None:
            repo.pipeline_graph.register_dataset_types(repo.butler)
            kind.afterwards(repo.butler)
    return template


def _make_demo(folder: Path) -> Template:
    """Simulate the smallest survey of which there is something to add up: a minute of real work."""
    demo = make_repository(folder / "repo", visits_per_band=2, n_detectors=1)
    build_graph(
        str(demo.root),
        str(demo.pipeline),
        inputs=[demo.input_collection],
        output=OUTPUT,
        output_run=OUTPUT_RUN,
        options=GraphOptions(data_query=demo.data_query),
        save_to=folder / "graph.qg",
    )
    return Template(folder, inputs=demo.input_collection)


def _save_graphs(repo: DirectButlerRepo, folder: Path) -> None:
    repo.pipeline_graph.resolve(repo.butler.registry)

    def build(*, records: bool) -> Any:
        builder = AllDimensionsQuantumGraphBuilder(
            repo.pipeline_graph,
            repo.butler,
            where=_WHERE,
            input_collections=[INPUT_CHAIN],
            output_run=OUTPUT_RUN,
        )
        return builder.finish(output=OUTPUT, attach_datastore_records=records)

    components = build(records=True)
    components.write(str(folder / "graph.qg"))
    components.write(str(folder / "old.qgraph"))
    build(records=False).write(str(folder / "bare.qg"))
