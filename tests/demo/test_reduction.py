"""The whole reduction, held to figures that a good one reaches.

The bounds for a survey of three visits and two detectors per band:

- completeness: r = 22 is ten times the noise; what is missed is blended.
  One star in 40 has a brighter neighbour nearer than two FWHM; of 100
  stars that is 2.5 +- 1.6, and two sigma are allowed for.
- astrometry: the reference stars are wrong by 10 mas each; 20 of them fix
  an affine WCS to 10 mas x sqrt(3 / 20) = 4 mas, the same in all visits,
  as the stars are the same. Photon noise adds 3 mas per star.
- photometry: stars of magnitude 18.5 have up to 9 mmag of photon noise in
  three visits, brighter ones less; flats add 2, zero points of 20
  reference stars with 8 mmag each 2: 9.4 together. The robust scatter of
  the 20 to 30 stars of a small survey is uncertain by a fifth, and two
  sigma are allowed for.
"""

from __future__ import annotations

import numpy as np
import pytest
from lsst.daf.butler import Butler
from lsst.pipe.base.quantum_graph import PredictedQuantumGraph

from qgexec.demo import DemoRepository, measure_recovery

pytestmark = pytest.mark.thorough


def test_the_truth_is_recovered(reduced: Butler) -> None:
    """Completeness and scatter are those of a good reduction."""
    recovery = measure_recovery(reduced, "DemoCam/runs/demo")
    assert recovery.n_stars > 60
    assert recovery.completeness > 0.94
    assert recovery.purity > 0.95
    assert recovery.star_purity > 0.95
    assert recovery.astrometric_scatter_mas < 9
    assert recovery.astrometric_offset_mas < 5
    assert recovery.photometric_scatter_mmag < 13
    assert recovery.photometric_offset_mmag < 8


def test_figures_are_text(reduced: Butler, small_survey: DemoRepository) -> None:
    """The root alone will do for measuring, and the result prints as three lines."""
    assert str(measure_recovery(small_survey)).count("\n") == 2
    assert measure_recovery(str(small_survey.root)) == measure_recovery(reduced)


def test_coadd_inputs_are_those_that_overlap(graph: PredictedQuantumGraph) -> None:
    """The graph builder gives a patch the detectors that lie on it, and no others."""
    counts = {label: len(quanta) for label, quanta in graph.quanta_by_task.items()}
    assert counts["isr"] == counts["calibrate"] == 12
    assert counts["catalogue"] == counts["quality"] == 1
    detectors: dict[object, set[object]] = {0: set(), 2: set()}
    for quantum in graph.build_execution_quanta(task_label="coadd").values():
        assert quantum.dataId is not None
        inputs = {ref.dataId["detector"] for ref in quantum.inputs["calibrated"]}
        detectors.setdefault(quantum.dataId["patch"], set()).update(inputs)
    assert detectors[0] == {0, 1}
    assert detectors[2] == {1}


def test_calibrations_are_shared(graph: PredictedQuantumGraph) -> None:
    """All exposures of a detector use one bias."""
    graph_quanta = graph.build_execution_quanta()
    biases = [quantum.inputs["bias"][0].id for quantum in graph_quanta.values() if "bias" in _names(quantum)]
    assert len(biases) == 12
    assert len(set(biases)) == 2


def test_metadata_say_how_it_went(reduced: Butler) -> None:
    """Tasks leave their figures in the metadata datasets."""
    ref = next(iter(reduced.query_datasets("calibrate_metadata")))
    metadata = reduced.get(ref).to_dict()["calibrate"]
    assert metadata["n_zero_point_stars"] >= 5
    assert 2 < metadata["seeing_fwhm_px"] < 4


def test_plots_are_png(reduced: Butler) -> None:
    """Every quality plot is a PNG file of some substance."""
    for name in ("astrometry_plot", "photometry_plot", "colour_plot", "picture"):
        content = reduced.getURI(name, skymap="demo_sky", tract=0).read()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000


def test_objects_are_as_the_schema_says(reduced: Butler) -> None:
    """The init-output that describes the catalogue describes it."""
    schema = reduced.get("object_schema")
    objects = reduced.get("objects", skymap="demo_sky", tract=0)
    assert objects.colnames == schema.colnames
    assert objects["ra_deg"].unit == schema["ra_deg"].unit == "deg"
    assert np.all(np.isfinite(objects["ra_deg"]))


def test_the_truth_is_out_of_reach(small_survey: DemoRepository) -> None:
    """No task could read the truth if it tried."""
    with Butler.from_config(str(small_survey.root), collections=small_survey.input_collection) as butler:
        assert not butler.query_datasets("truth", explain=False)


def _names(quantum: object) -> set[str]:
    return {dataset_type.name for dataset_type in quantum.inputs}  # type: ignore[attr-defined]
