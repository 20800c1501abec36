"""Owns the dimension records of the demonstration: exposures, visits, tracts, patches, regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from hashlib import sha1

from astropy.time import Time
from lsst.daf.butler import Butler, DimensionRecord, Timespan
from lsst.sphgeom import ConvexPolygon

from qgexec.demo.camera import CCD_SHAPE, DAY_OBS, DETECTORS, FIRST_EXPOSURE_START, Exposure
from qgexec.demo.instrument import VISIT_SYSTEM
from qgexec.demo.layout import INSTRUMENT, PHYSICAL_FILTERS
from qgexec.demo.skygrid import SkyGrid, wcs_polygon

__all__ = ["insert_exposures", "insert_sky_map", "nightly_timespan"]

REGION_MARGIN_PX = 40.0
"""Detectors' regions are widened by so much, because the telescope does not look where it believes to."""


def nightly_timespan() -> Timespan:
    """Return the time for which calibrations of the demonstration night hold."""
    half_a_day = timedelta(hours=12)
    return _timespan(FIRST_EXPOSURE_START - half_a_day, FIRST_EXPOSURE_START + half_a_day)


def insert_sky_map(butler: Butler, name: str, tract: int, grid: SkyGrid) -> None:
    """Insert the records of a sky map of one tract.

    Parameters
    ----------
    butler
        The repository.
    name
        Name of the sky map.
    tract
        ID of the tract.
    grid
        Its patches.
    """
    _insert(
        butler,
        "skymap",
        [
            {
                "name": name,
                "hash": sha1(grid.model_dump_json().encode(), usedforsecurity=False).digest(),
                "tract_max": tract + 1,
                "patch_nx_max": grid.n_patches_x,
                "patch_ny_max": grid.n_patches_y,
            }
        ],
    )
    place = {"skymap": name, "tract": tract}
    _insert(butler, "tract", [{"skymap": name, "id": tract, "region": grid.tract_region()}])
    _insert(
        butler,
        "patch",
        [
            place
            | {
                "id": patch,
                "cell_x": grid.cell(patch)[0],
                "cell_y": grid.cell(patch)[1],
                "region": grid.patch_region(patch),
            }
            for patch in grid.patches
        ],
    )


def insert_exposures(butler: Butler, exposures: Sequence[Exposure], detectors: Sequence[int]) -> None:
    """Insert the records of exposures, and of visits of one exposure each.

    Parameters
    ----------
    butler
        The repository.
    exposures
        What was observed.
    detectors
        IDs of the detectors that were read out.
    """
    instrument: dict[str, object] = {"instrument": INSTRUMENT}
    _insert(butler, "day_obs", [instrument | {"id": DAY_OBS}])
    _insert(butler, "group", [instrument | {"name": exposure.obs_id} for exposure in exposures])
    _insert(butler, "exposure", [instrument | _exposure_record(exposure) for exposure in exposures])
    _insert(butler, "visit", [instrument | _visit_record(exposure) for exposure in exposures])
    pairs = [instrument | {"visit": exposure.id} for exposure in exposures]
    _insert(butler, "visit_definition", [pair | {"exposure": pair["visit"]} for pair in pairs])
    _insert(butler, "visit_system_membership", [pair | {"visit_system": VISIT_SYSTEM} for pair in pairs])
    _insert(
        butler,
        "visit_detector_region",
        [
            instrument | {"visit": exposure.id, "detector": detector, "region": _region(exposure, detector)}
            for exposure in exposures
            for detector in detectors
        ],
    )


def _region(exposure: Exposure, detector: int) -> ConvexPolygon:
    """Return the part of the sky that a detector may see, given how well the telescope points."""
    return wcs_polygon(DETECTORS[detector].wcs(exposure.requested), CCD_SHAPE, margin_px=REGION_MARGIN_PX)


def _exposure_record(exposure: Exposure) -> dict[str, object]:
    return {
        "id": exposure.id,
        "obs_id": exposure.obs_id,
        "physical_filter": PHYSICAL_FILTERS[exposure.band],
        "group": exposure.obs_id,
        "day_obs": DAY_OBS,
        "exposure_time": exposure.exposure_s,
        "dark_time": exposure.dark_s,
        "observation_type": "science",
        "observation_reason": "science",
        "seq_num": exposure.id,
        "seq_start": exposure.id,
        "seq_end": exposure.id,
        "target_name": "demo field",
        "science_program": "demo",
        "tracking_ra": exposure.requested.ra_deg,
        "tracking_dec": exposure.requested.dec_deg,
        "sky_angle": exposure.requested.rotation_deg,
        "has_simulated": True,
        "can_see_sky": True,
        "timespan": _timespan(exposure.start, exposure.end),
    }


def _visit_record(exposure: Exposure) -> dict[str, object]:
    corners = [_region(exposure, detector.id) for detector in DETECTORS]
    return {
        "id": exposure.id,
        "name": exposure.obs_id,
        "physical_filter": PHYSICAL_FILTERS[exposure.band],
        "day_obs": DAY_OBS,
        "seq_num": exposure.id,
        "exposure_time": exposure.exposure_s,
        "target_name": "demo field",
        "observation_reason": "science",
        "science_program": "demo",
        "region": _hull(corners),
        "timespan": _timespan(exposure.start, exposure.end),
    }


def _hull(regions: Sequence[ConvexPolygon]) -> ConvexPolygon:
    return ConvexPolygon.convexHull([vertex for region in regions for vertex in region.getVertices()])


def _timespan(begin: datetime, end: datetime) -> Timespan:
    return Timespan(Time(begin, scale="utc").tai, Time(end, scale="utc").tai)


def _insert(butler: Butler, element: str, rows: Iterable[dict[str, object]]) -> None:
    record_class: type[DimensionRecord] = butler.dimensions[element].RecordClass
    butler.registry.insertDimensionData(element, *(record_class(**row) for row in rows))
