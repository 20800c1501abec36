"""Makes a real repository and a saved ``.qg`` of mock tasks at any size; knows nothing of qgexec.

The pipeline is ``isr -> calibrate -> summary -> final`` over E exposures of D
detectors, so ``2 E D + E + 1`` quanta::

    raw(exposure, detector), bias(detector, certified) -> isr(exposure, detector)
    isr, isr_schema (init-output of isr)               -> calibrate(exposure, detector)
    calibrate                                          -> summary(exposure)
    summary                                            -> final(instrument)

The tasks and datasets are those of `lsst.pipe.base.tests.mocks`: JSON files of
about a kilobyte, written and read through the butler like any others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import astropy.time
from lsst.daf.butler import (
    Butler,
    CollectionType,
    DataCoordinate,
    DatasetRef,
    DatasetType,
    FileDataset,
    Timespan,
)
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.tests.mocks import (
    DynamicConnectionConfig,
    DynamicTestPipelineTask,
    DynamicTestPipelineTaskConfig,
    MockDataset,
)

__all__ = ["LABELS", "MockGraph", "MockShape", "make_mock_graph"]

INSTRUMENT = "MockCam"
RAW_RUN = f"{INSTRUMENT}/raw/all"
BIAS_RUN = f"{INSTRUMENT}/calib/biasGen"
CALIBRATIONS = f"{INSTRUMENT}/calib"
INPUTS = f"{INSTRUMENT}/defaults"
OUTPUT = "u/bench/mock"
OUTPUT_RUN = "u/bench/mock/run"
LABELS = ("isr", "calibrate", "summary", "final")
_DETECTOR_DIMENSIONS = ("instrument", "exposure", "detector")
_MOCK_STORAGE_CLASS = "_mock_StructuredDataDict"
_INGEST_BATCH = 5_000


@dataclass(frozen=True, slots=True)
class MockShape:
    """Size and behaviour of a mock graph."""

    exposures: int
    """Number of exposures, at least 1."""

    detectors: int
    """Number of detectors, at least 1."""

    sleep_s: float = 0.0
    """Time that every quantum sleeps."""

    fail_label: str = ""
    """Label of the task that fails on some data IDs; empty for none."""

    fail_where: str = ""
    """Butler expression on the data ID that fails, for example ``exposure = 3 AND detector = 2``."""

    fail_exception: str = "builtins.ValueError"
    """Class of the exception that is raised there."""

    def __post_init__(self) -> None:
        if self.exposures < 1 or self.detectors < 1:
            raise ValueError(
                f"a graph needs exposures and detectors, not {self.exposures} x {self.detectors}"
            )
        if self.fail_label and self.fail_label not in LABELS:
            raise ValueError(f"no task {self.fail_label!r}; choose from {', '.join(LABELS)}")
        if bool(self.fail_label) != bool(self.fail_where):
            raise ValueError("a failure needs both a label and a condition")

    @property
    def n_quanta(self) -> int:
        """Number of quanta of the graph."""
        return 2 * self.exposures * self.detectors + self.exposures + 1


@dataclass(frozen=True, slots=True)
class MockGraph:
    """A repository and a graph to be run in it."""

    repository: Path
    """Root of the butler repository."""

    graph_file: Path
    """The ``.qg``, datastore records attached; it does not name the repository, so it serves copies too."""

    quanta_by_label: dict[str, int]
    """Number of quanta of each task, in pipeline order."""

    repository_s: float
    """Time that the repository and its inputs took, seconds."""

    graph_s: float
    """Time that building and saving the graph took, seconds."""

    @property
    def n_quanta(self) -> int:
        """Number of quanta of the graph."""
        return sum(self.quanta_by_label.values())


def make_mock_graph(directory: Path, shape: MockShape) -> MockGraph:
    """Make ``directory/repo`` with all inputs and ``directory/mock.qg``.

    Parameters
    ----------
    directory
        Made if missing; must not hold a repository already.
    shape
        Size and behaviour.

    Returns
    -------
    graph
        Where things are, and how long they took.

    Raises
    ------
    FileExistsError
        There is a repository already.
    """
    repository = directory / "repo"
    if repository.exists():
        raise FileExistsError(f"{repository} exists already; name another directory")
    started = time.perf_counter()
    repository.mkdir(parents=True)
    config = Butler.makeRepo(str(repository))
    with Butler.from_config(config, writeable=True) as butler:
        _insert_dimensions(butler, shape)
        _ingest_inputs(butler, repository, shape)
    made = time.perf_counter()
    graph_file = directory / "mock.qg"
    counts = _build_graph(repository, graph_file, shape)
    return MockGraph(repository, graph_file, counts, made - started, time.perf_counter() - made)


def _insert_dimensions(butler: Butler, shape: MockShape) -> None:
    """Insert instrument, detectors and exposures, one statement per dimension element."""
    begin = astropy.time.Time("2026-01-01T12:00:00", scale="tai")
    minute = astropy.time.TimeDelta(60.0, format="sec")
    ids = range(1, shape.exposures + 1)
    insert = butler.registry.insertDimensionData
    insert(
        "instrument",
        {
            "name": INSTRUMENT,
            "visit_max": 1_000_000,
            "visit_system": 0,
            "exposure_max": 1_000_000,
            "detector_max": 10_000,
            "class_name": "lsst.pipe.base.Instrument",
        },
    )
    insert("physical_filter", {"instrument": INSTRUMENT, "name": "Mock-r", "band": "r"})
    insert(
        "day_obs",
        {"instrument": INSTRUMENT, "id": 20260101, "timespan": Timespan(begin, begin + 1440 * minute)},
    )
    insert("group", *({"instrument": INSTRUMENT, "name": f"g{i}"} for i in ids))
    insert(
        "detector",
        *(
            {"instrument": INSTRUMENT, "id": d, "full_name": f"D{d:03d}", "purpose": "SCIENCE"}
            for d in range(shape.detectors)
        ),
    )
    insert(
        "exposure",
        *(
            {
                "instrument": INSTRUMENT,
                "id": i,
                "day_obs": 20260101,
                "group": f"g{i}",
                "physical_filter": "Mock-r",
                "obs_id": f"mock_{i}",
                "exposure_time": 30.0,
                "dark_time": 30.0,
                "observation_type": "science",
                "seq_num": i,
                "timespan": Timespan(begin + i * minute, begin + i * minute + 0.5 * minute),
            }
            for i in ids
        ),
    )


def _ingest_inputs(butler: Butler, repository: Path, shape: MockShape) -> None:
    """Write all input files in place and take them into registry and datastore by the thousand."""
    universe = butler.dimensions
    raw = DatasetType("raw", universe.conform(_DETECTOR_DIMENSIONS), _MOCK_STORAGE_CLASS)
    bias = DatasetType(
        "bias", universe.conform(("instrument", "detector")), _MOCK_STORAGE_CLASS, isCalibration=True
    )
    for dataset_type in (raw, bias):
        butler.registry.registerDatasetType(dataset_type)
    for run in (RAW_RUN, BIAS_RUN):
        butler.collections.register(run, CollectionType.RUN)
    butler.collections.register(CALIBRATIONS, CollectionType.CALIBRATION)
    butler.collections.register(INPUTS, CollectionType.CHAINED)
    butler.collections.redefine_chain(INPUTS, [RAW_RUN, CALIBRATIONS])
    detectors = range(shape.detectors)
    _ingest(
        butler,
        repository,
        raw,
        RAW_RUN,
        (
            {"instrument": INSTRUMENT, "exposure": e, "detector": d}
            for e in range(1, shape.exposures + 1)
            for d in detectors
        ),
    )
    refs = _ingest(
        butler, repository, bias, BIAS_RUN, ({"instrument": INSTRUMENT, "detector": d} for d in detectors)
    )
    butler.registry.certify(CALIBRATIONS, refs, Timespan(None, None))


def _ingest(
    butler: Butler,
    repository: Path,
    dataset_type: DatasetType,
    run: str,
    data_ids: Iterable[dict[str, int | str]],
) -> list[DatasetRef]:
    folder = repository / run / dataset_type.name
    folder.mkdir(parents=True)
    refs: list[DatasetRef] = []
    files: list[FileDataset] = []
    for mapping in data_ids:
        data_id = DataCoordinate.standardize(mapping, dimensions=dataset_type.dimensions)
        ref = DatasetRef(dataset_type, data_id, run=run)
        content = MockDataset(
            dataset_id=ref.id, dataset_type=dataset_type.to_simple(), data_id=mapping, run=run
        )
        file = folder / f"{dataset_type.name}_{'_'.join(str(v) for v in mapping.values())}.json"
        file.write_text(content.model_dump_json())
        refs.append(ref)
        files.append(FileDataset(path=str(file.relative_to(repository)), refs=[ref]))
    for first in range(0, len(files), _INGEST_BATCH):
        butler.ingest(*files[first : first + _INGEST_BATCH], transfer=None)
    return refs


def _new(config_class: Callable[..., Any]) -> Any:
    # lsst.pex.config is not annotated: its fields are descriptors of any type.
    return config_class()


def _connection(
    name: str, dimensions: Sequence[str] = (), *, multiple: bool = False, calibration: bool = False
) -> DynamicConnectionConfig:
    connection: DynamicConnectionConfig = _new(DynamicConnectionConfig)
    connection.dataset_type_name = name
    connection.dimensions = list(dimensions)
    connection.multiple = multiple
    connection.is_calibration = calibration
    return connection


def _pipeline(shape: MockShape) -> PipelineGraph:
    """Return the four tasks, not resolved."""
    exposure = ("instrument", "exposure")
    configs = {label: _new(DynamicTestPipelineTaskConfig) for label in LABELS}
    isr, calibrate, summary, final = configs.values()
    isr.dimensions = list(_DETECTOR_DIMENSIONS)
    isr.inputs = {"raw": _connection("raw", _DETECTOR_DIMENSIONS)}
    isr.prerequisite_inputs = {"bias": _connection("bias", ("instrument", "detector"), calibration=True)}
    isr.outputs = {"out": _connection("post_isr", _DETECTOR_DIMENSIONS)}
    isr.init_outputs = {"schema": _connection("isr_schema")}
    calibrate.dimensions = list(_DETECTOR_DIMENSIONS)
    calibrate.inputs = {"exposure": _connection("post_isr", _DETECTOR_DIMENSIONS)}
    calibrate.init_inputs = {"schema": _connection("isr_schema")}
    calibrate.outputs = {"out": _connection("calibrated", _DETECTOR_DIMENSIONS)}
    summary.dimensions = list(exposure)
    summary.inputs = {"exposures": _connection("calibrated", _DETECTOR_DIMENSIONS, multiple=True)}
    summary.outputs = {"out": _connection("exposure_summary", exposure)}
    final.dimensions = ["instrument"]
    final.inputs = {"summaries": _connection("exposure_summary", exposure, multiple=True)}
    final.outputs = {"out": _connection("final_summary", ("instrument",))}
    pipeline = PipelineGraph()
    for label, config in configs.items():
        config.sleep = shape.sleep_s
        if label == shape.fail_label:
            config.fail_condition = shape.fail_where
            config.fail_exception = shape.fail_exception
        pipeline.add_task(label, DynamicTestPipelineTask, config)
    return pipeline


def _build_graph(repository: Path, graph_file: Path, shape: MockShape) -> dict[str, int]:
    """Build and save the graph; return the number of quanta of each task."""
    with Butler.from_config(str(repository), writeable=False) as butler:
        builder = AllDimensionsQuantumGraphBuilder(
            _pipeline(shape), butler, input_collections=[INPUTS], output_run=OUTPUT_RUN
        )
        components = builder.finish(output=OUTPUT, attach_datastore_records=True)
        components.write(str(graph_file))
    by_label = dict.fromkeys(LABELS, 0)
    for quantum in components.quantum_datasets.values():
        if quantum.task_label in by_label:
            by_label[quantum.task_label] += 1
    return by_label


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a repository and a graph, and say where they are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mockgraph", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("directory", type=Path, help="made if missing; gets repo/ and mock.qg")
    parser.add_argument("--exposures", type=int, default=10)
    parser.add_argument("--detectors", type=int, default=20)
    parser.add_argument("--sleep", type=float, default=0.0, metavar="S", help="seconds that a quantum sleeps")
    parser.add_argument("--fail-label", default="", choices=("", *LABELS), help="task that fails")
    parser.add_argument("--fail-where", default="", metavar="EXPR", help="data IDs that fail")
    parser.add_argument("--fail-exception", default="builtins.ValueError", metavar="CLASS")
    options = parser.parse_args(arguments)
    shape = MockShape(
        options.exposures,
        options.detectors,
        options.sleep,
        options.fail_label,
        options.fail_where,
        options.fail_exception,
    )
    graph = make_mock_graph(options.directory, shape)
    print(f"repository: {graph.repository} ({graph.repository_s:.1f} s)")
    print(f"graph:      {graph.graph_file} ({graph.graph_s:.1f} s)")
    counts = ", ".join(f"{label} {n}" for label, n in graph.quanta_by_label.items())
    print(f"quanta:     {graph.n_quanta} ({counts})")


if __name__ == "__main__":
    main()
