"""Instrument signature removal on frames of which everything is known."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

from qgexec.demo.camera import CCD_SHAPE, DETECTORS, plan_exposures
from qgexec.demo.electronics import CcdElectronics, make_electronics
from qgexec.demo.images import CcdImage, MaskBit
from qgexec.demo.simulation import simulate_raw
from qgexec.demo.sky import make_sky
from qgexec.demo.tasks.isr import IsrTask

SEED = 11
EXPOSURE = plan_exposures(SEED, visits_per_band=1)[0]
ANYTHING_ELSE = MaskBit.BAD | MaskBit.SATURATED | MaskBit.COSMIC_RAY


@pytest.fixture(scope="module")
def ccd() -> CcdElectronics:
    """Return the detector in the corner, where vignetting is worst."""
    return make_electronics(DETECTORS[0], SEED)


def _reduce(sky: Table, ccd: CcdElectronics) -> CcdImage:
    image = (
        IsrTask(config=IsrTask.ConfigClass())
        .run(
            raw=simulate_raw(sky, EXPOSURE, ccd, SEED),
            bias=ccd.master_bias(SEED),
            dark=ccd.master_dark(SEED),
            flat=ccd.master_flat(EXPOSURE.band, SEED),
        )
        .post_isr
    )
    assert isinstance(image, CcdImage)
    return image


def test_an_empty_sky_becomes_flat(ccd: CcdElectronics) -> None:
    """Without bias, dark and vignetting the sky is level to within its noise."""
    image = _reduce(make_sky(SEED)[:0], ccd)
    good = ~image.has(ANYTHING_ELSE)
    # The simulated sky itself has a gradient of 2 % up and down.
    sky = EXPOSURE.sky_electrons * (1 + 0.02 * np.linspace(-1, 1, CCD_SHAPE[0]))[:, np.newaxis]
    deviation = np.where(good, image.image - sky, np.nan)
    assert np.nanmean(deviation) == pytest.approx(0, abs=0.5)
    boxes = np.nanmean(deviation.reshape(8, 64, 8, 64), axis=(1, 3))
    # A box of 4,096 pixels knows its mean to 0.25 electrons; bias columns and flats add as much again.
    assert np.abs(boxes).max() < 1.5
    pulls = deviation / np.sqrt(image.variance)
    assert np.nanstd(pulls) == pytest.approx(1.0, abs=0.03)


def test_defects_are_flagged(ccd: CcdElectronics) -> None:
    """Dead and hot pixels carry the mask bit, and are filled with what is around them."""
    image = _reduce(make_sky(SEED)[:0], ccd)
    dead = ccd.flat[EXPOSURE.band] < 0.2
    hot = ccd.dark_electrons_per_s > 3
    assert image.has(MaskBit.BAD)[dead].all()
    assert image.has(MaskBit.BAD)[hot].all()
    assert np.abs(image.image[dead] - EXPOSURE.sky_electrons).max() < 60


def test_cosmic_rays_go_and_stars_stay(ccd: CcdElectronics) -> None:
    """Nearly all charge of cosmic rays is found, and hardly any star is taken for one."""
    sky = make_sky(SEED)
    image = _reduce(sky, ccd)
    hits = image.has(MaskBit.COSMIC_RAY)
    assert 30 < hits.sum() < 600
    x, y = ccd.detector.wcs(EXPOSURE.actual).all_world2pix(sky["ra_deg"], sky["dec_deg"], 0)
    on_ccd = sky["is_star"] & (x > 3) & (x < CCD_SHAPE[1] - 4) & (y > 3) & (y < CCD_SHAPE[0] - 4)
    bright = on_ccd & (sky["mag_r"] < 20)
    cores = hits[np.rint(y[bright]).astype(int), np.rint(x[bright]).astype(int)]
    assert len(cores) > 15
    assert cores.mean() < 0.1
