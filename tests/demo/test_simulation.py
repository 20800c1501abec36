"""What the simulator draws: the same for the same seed, and as bright as it should be."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from qgexec.demo.camera import CCD_SHAPE, DETECTORS, plan_exposures
from qgexec.demo.electronics import make_electronics
from qgexec.demo.psf import MoffatPsf
from qgexec.demo.simulation import render_sources, simulate_raw
from qgexec.demo.sky import REFERENCE_POSITION_ERROR_MAS, make_reference_catalogue, make_sky
from qgexec.demo.truth import compare_catalogue

PSF = MoffatPsf(fwhm_px=3.0, beta=3.5)


def _one_source(*, is_star: bool) -> Table:
    return Table(
        {
            "is_star": [is_star],
            "half_light_arcsec": [0.0 if is_star else 1.2],
            "axis_ratio": [0.6],
            "angle_rad": [0.7],
        }
    )


def test_same_seed_same_pixels() -> None:
    """A frame depends on the seed, not on what was simulated before it."""
    exposure = plan_exposures(3, visits_per_band=2)[1]
    frames = [
        simulate_raw(make_sky(seed), exposure, make_electronics(DETECTORS[4], seed), seed).data
        for seed in (3, 4, 3)
    ]
    np.testing.assert_array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1])


def test_plan_does_not_depend_on_its_length() -> None:
    """More visits change nothing about the first."""
    assert plan_exposures(3, visits_per_band=4)[:4] == plan_exposures(3, visits_per_band=2)


@pytest.mark.parametrize("is_star", [True, False])
def test_sources_have_their_flux(is_star: bool) -> None:
    """What is drawn sums up to the flux that was asked for, wherever in a pixel it lies."""
    image = render_sources(
        _one_source(is_star=is_star), np.array([100.3]), np.array([99.6]), np.array([1e5]), PSF, (200, 200)
    )
    assert image.sum() == pytest.approx(1e5, rel=3e-3)
    y, x = np.mgrid[0:200, 0:200]
    assert (image * x).sum() / image.sum() == pytest.approx(100.3, abs=0.02)
    assert (image * y).sum() / image.sum() == pytest.approx(99.6, abs=0.02)


def test_full_wells_bleed_along_columns() -> None:
    """Charge above the full well is not lost: it fills the pixels above and below."""
    ccd = make_electronics(DETECTORS[0], seed=1)
    electrons = np.zeros(CCD_SHAPE)
    electrons[250, 100] = 5 * ccd.detector.full_well_electrons
    raw = ccd.read_out(electrons, np.random.default_rng(1))[:, : CCD_SHAPE[1]].astype(float)
    full = (raw - 1000) * ccd.detector.gain > 0.9 * ccd.detector.full_well_electrons
    assert full[248:253, 100].all()
    assert full.sum() == 5


def test_reference_catalogue_is_not_the_truth() -> None:
    """It holds brighter stars only, and their positions are off by what it says."""
    sky = make_sky(1)
    catalogue = make_reference_catalogue(sky, 1)
    truth = sky[np.searchsorted(sky["id"], catalogue["id"])]
    assert truth["is_star"].all()
    assert truth["mag_r"].max() < 20.6
    error_mas = 3.6e6 * (catalogue["dec_deg"] - truth["dec_deg"])
    assert np.std(error_mas) == pytest.approx(REFERENCE_POSITION_ERROR_MAS, rel=0.15)


def test_recovery_counts_what_is_missed_and_what_is_false() -> None:
    """Leaving out a tenth, shifting the rest, and inventing some shows in the figures."""
    sky = make_sky(1)
    stars = sky[sky["is_star"] & (sky["mag_r"] > 15) & (sky["mag_r"] < 22)]
    rng = np.random.default_rng(5)
    found = stars[np.arange(len(stars)) % 10 != 0]
    objects = Table(
        {
            "ra_deg": found["ra_deg"],
            "dec_deg": found["dec_deg"] + rng.normal(7.0, 6.0, len(found)) / 3.6e6,
            "is_star": np.ones(len(found), dtype=bool),
        }
    )
    for band in ("g", "r"):
        error = rng.normal(0.020, 0.010, len(found))
        objects[f"psf_flux_{band}_njy"] = 10 ** (0.4 * (31.4 - found[f"mag_{band}"] - error))
    recovery = compare_catalogue(objects, sky, np.ones(len(sky), dtype=bool))
    assert recovery.completeness == pytest.approx(0.9, abs=0.01)
    assert recovery.purity == 1.0
    assert recovery.astrometric_offset_mas == pytest.approx(7.0, abs=2)
    assert recovery.photometric_scatter_mmag == pytest.approx(10.0, rel=0.25)
    assert recovery.photometric_offset_mmag == pytest.approx(20.0, abs=3)
