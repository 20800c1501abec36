"""Fixtures of the demonstration's tests: one simulated frame, and one small survey that is reduced once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("photutils", reason="the extra [demo] is not installed")

from lsst.daf.butler import Butler
from lsst.pipe.base.all_dimensions_quantum_graph_builder import AllDimensionsQuantumGraphBuilder
from lsst.pipe.base.pipeline import Pipeline
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph
from lsst.pipe.base.simple_pipeline_executor import SimplePipelineExecutor

from qgexec.demo import OUTPUT_COLLECTION, DemoRepository, make_repository

OUTPUT_RUN = f"{OUTPUT_COLLECTION}/1"


@pytest.fixture(scope="session")
def small_survey(tmp_path_factory: pytest.TempPathFactory) -> DemoRepository:
    """Return a repository with 2 bands x 3 visits x 2 detectors: enough visits to reject outliers."""
    return make_repository(tmp_path_factory.mktemp("demo") / "repo", seed=8, visits_per_band=3, n_detectors=2)


@pytest.fixture(scope="session")
def graph(small_survey: DemoRepository) -> PredictedQuantumGraph:
    """Return the quantum graph of the small survey."""
    with Butler.from_config(str(small_survey.root)) as butler:
        builder = AllDimensionsQuantumGraphBuilder(
            Pipeline.fromFile(str(small_survey.pipeline)).to_graph(),
            butler,
            where=small_survey.data_query,
            input_collections=[small_survey.input_collection],
            output_run=OUTPUT_RUN,
        )
        return builder.finish(output=OUTPUT_COLLECTION, attach_datastore_records=False).assemble()


@pytest.fixture(scope="session")
def reduced(small_survey: DemoRepository, graph: PredictedQuantumGraph) -> Iterator[Butler]:
    """Return a butler on the small survey after its reduction."""
    butler = SimplePipelineExecutor.prep_butler(
        str(small_survey.root), [small_survey.input_collection], OUTPUT_COLLECTION, OUTPUT_RUN
    )
    with butler:
        SimplePipelineExecutor(graph, butler).run(register_dataset_types=True)
        yield butler


@pytest.fixture(scope="session")
def root(small_survey: DemoRepository) -> Path:
    """Return the root of the small survey."""
    return small_survey.root
