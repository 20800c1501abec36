"""Owns the making of the demonstration repository: everything that exists before a pipeline runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from astropy.io import fits
from astropy.table import Table
from lsst.daf.butler import (
    Butler,
    CollectionType,
    Config,
    DatasetRef,
    DatasetType,
    FileDataset,
    SkyPixDimension,
)

from qgexec.demo import layout
from qgexec.demo.camera import DETECTORS, PIXEL_SCALE_ARCSEC, Exposure, plan_exposures
from qgexec.demo.electronics import CcdElectronics, make_electronics
from qgexec.demo.instrument import DemoCam
from qgexec.demo.layout import BANDS, INSTRUMENT, PHYSICAL_FILTERS, SKYMAP, DemoRepository
from qgexec.demo.records import insert_exposures, insert_sky_map, nightly_timespan
from qgexec.demo.simulation import simulate_raw
from qgexec.demo.sky import FIELD_DEC_DEG, FIELD_RA_DEG, make_reference_catalogue, make_sky
from qgexec.demo.skygrid import SkyGrid, unit_vector

__all__ = ["build_repository"]

TRACT = 0
SKY_GRID = SkyGrid(
    ra_deg=FIELD_RA_DEG,
    dec_deg=FIELD_DEC_DEG,
    pixel_scale_arcsec=PIXEL_SCALE_ARCSEC,
    patch_inner_px=560,
    patch_border_px=40,
    n_patches_x=3,
    n_patches_y=2,
)

DATASET_TYPES: dict[str, tuple[tuple[str, ...], str, bool]] = {
    "raw": (("instrument", "exposure", "detector"), "RawCcd", False),
    "bias": (("instrument", "detector"), "CcdImage", True),
    "dark": (("instrument", "detector"), "CcdImage", True),
    "flat": (("instrument", "physical_filter", "detector"), "CcdImage", True),
    "demo_refcat": (("htm7",), "ArrowAstropy", False),
    "skyMap": (("skymap",), "SkyGrid", False),
    "truth": (("instrument",), "ArrowAstropy", False),
}
"""Dimensions, storage class, and whether it is a calibration, keyed by the name of the dataset type."""

DEFAULTS = (
    layout.RAW_COLLECTION,
    layout.CALIBRATION_COLLECTION,
    layout.REFERENCE_COLLECTION,
    layout.SKYMAP_COLLECTION,
)
"""What a reduction may see: everything but the truth."""

BUTLER_CONFIG = {
    "storageClasses": {
        "RawCcd": {"pytype": "qgexec.demo.images.RawCcd"},
        "CcdImage": {"pytype": "qgexec.demo.images.CcdImage"},
        "SkyGrid": {"pytype": "qgexec.demo.skygrid.SkyGrid"},
    },
    "datastore": {
        "formatters": {
            "RawCcd": "qgexec.demo.formatters.RawCcdFormatter",
            "CcdImage": "qgexec.demo.formatters.CcdImageFormatter",
            "SkyGrid": "lsst.daf.butler.formatters.json.JsonFormatter",
        }
    },
}
"""What the repository's butler.yaml adds to the defaults, so that every reader of it knows our images."""


def build_repository(
    root: Path,
    *,
    seed: int,
    visits_per_band: int,
    n_detectors: int,
    log: Callable[[str], object],
) -> DemoRepository:
    """Make the demonstration repository; `qgexec.demo.make_repository` says what the arguments mean."""
    Butler.makeRepo(str(root), config=Config(BUTLER_CONFIG))
    detectors = [make_electronics(detector, seed) for detector in DETECTORS[:n_detectors]]
    exposures = plan_exposures(seed, visits_per_band)
    sky = make_sky(seed)
    with Butler.from_config(str(root), writeable=True) as butler:
        log("Registering the instrument, exposures, visits and the sky map.")
        DemoCam().register(butler.registry)
        insert_exposures(butler, exposures, [ccd.detector.id for ccd in detectors])
        insert_sky_map(butler, SKYMAP, TRACT, SKY_GRID)
        _register_dataset_types(butler)
        log(f"Making bias, dark and flat for {len(detectors)} detectors.")
        _put_calibrations(butler, detectors, seed)
        _put_reference_catalogue(butler, make_reference_catalogue(sky, seed))
        _put(butler, SKY_GRID, "skyMap", layout.SKYMAP_COLLECTION, skymap=SKYMAP)
        truth = _put(butler, sky, "truth", layout.TRUTH_COLLECTION, instrument=INSTRUMENT)
        log(f"Simulating {len(exposures) * len(detectors)} raw frames.")
        _ingest_raws(butler, root, sky, exposures, detectors, seed)
        butler.collections.register(layout.DEFAULTS_COLLECTION, CollectionType.CHAINED)
        butler.collections.redefine_chain(layout.DEFAULTS_COLLECTION, DEFAULTS)
        truth_path = Path(butler.getURI(truth).ospath)
    return DemoRepository(
        root=root,
        input_collection=layout.DEFAULTS_COLLECTION,
        pipeline=layout.PIPELINE,
        instrument=INSTRUMENT,
        skymap=SKYMAP,
        truth_path=truth_path,
    )


def _register_dataset_types(butler: Butler) -> None:
    for name, (dimensions, storage_class, is_calibration) in DATASET_TYPES.items():
        butler.registry.registerDatasetType(
            DatasetType(
                name, dimensions, storage_class, universe=butler.dimensions, isCalibration=is_calibration
            )
        )


def _put(butler: Butler, dataset: object, name: str, run: str, **data_id: int | str) -> DatasetRef:
    butler.collections.register(run)
    return butler.put(dataset, name, data_id, run=run)


def _put_calibrations(butler: Butler, detectors: Sequence[CcdElectronics], seed: int) -> None:
    """Write the master calibrations, and certify them for the night."""
    run = layout.CALIBRATION_RUN
    refs = []
    for ccd in detectors:
        data_id: dict[str, int | str] = {"instrument": INSTRUMENT, "detector": ccd.detector.id}
        refs.append(_put(butler, ccd.master_bias(seed), "bias", run, **data_id))
        refs.append(_put(butler, ccd.master_dark(seed), "dark", run, **data_id))
        for band in BANDS:
            data_id["physical_filter"] = PHYSICAL_FILTERS[band]
            refs.append(_put(butler, ccd.master_flat(band, seed), "flat", run, **data_id))
    butler.collections.register(layout.CALIBRATION_COLLECTION, CollectionType.CALIBRATION)
    butler.registry.certify(layout.CALIBRATION_COLLECTION, refs, nightly_timespan())


def _put_reference_catalogue(butler: Butler, catalogue: Table) -> None:
    """Cut the catalogue along the pixels of the sky (HTM level 7), as all reference catalogues are."""
    dimension = butler.dimensions.skypix_dimensions["htm7"]
    assert isinstance(dimension, SkyPixDimension), "htm7 is a pixelization of the sky."
    positions = zip(catalogue["ra_deg"], catalogue["dec_deg"], strict=True)
    pixels = [dimension.pixelization.index(unit_vector(ra, dec)) for ra, dec in positions]
    # Pieces of sky without a star have a file too: an empty one says so, a missing one says nothing.
    for first, end in dimension.pixelization.envelope(SKY_GRID.tract_region()):
        for pixel in range(first, end):
            piece = catalogue[[p == pixel for p in pixels]]
            _put(butler, piece, "demo_refcat", layout.REFERENCE_COLLECTION, htm7=pixel)


def _ingest_raws(
    butler: Butler,
    root: Path,
    sky: Table,
    exposures: Sequence[Exposure],
    detectors: Sequence[CcdElectronics],
    seed: int,
) -> None:
    """Write raw frames as a camera would, outside of the repository, and take them in."""
    butler.collections.register(layout.RAW_COLLECTION)
    dataset_type = butler.get_dataset_type("raw")
    with tempfile.TemporaryDirectory(prefix="incoming-", dir=root) as incoming:
        files = []
        for exposure in exposures:
            for ccd in detectors:
                path = Path(incoming) / f"{exposure.obs_id}_{ccd.detector.name}.fits"
                raw = simulate_raw(sky, exposure, ccd, seed)
                fits.PrimaryHDU(raw.data, raw.header).writeto(path)
                data_id = butler.registry.expandDataId(
                    instrument=INSTRUMENT, exposure=exposure.id, detector=ccd.detector.id
                )
                ref = DatasetRef(dataset_type, data_id, run=layout.RAW_COLLECTION)
                files.append(FileDataset(path=str(path), refs=ref))
        butler.ingest(*files, transfer="move")
