"""The astrometric solution: what was put in comes out, and nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qgexec.demo.astrometry import AstrometryError, fit_astrometry, match_sky
from qgexec.demo.camera import DETECTORS, PIXEL_SCALE_ARCSEC, Pointing

NOMINAL = Pointing(150.1, 2.2)
ACTUAL = Pointing(150.1 + 5.0 / 3600, 2.2 - 7.0 / 3600, 0.04, PIXEL_SCALE_ARCSEC * 1.0003)
Array = NDArray[np.float64]


def _stars(n: int, *, noise_px: float = 0.0) -> tuple[Array, Array, Array, Array]:
    """Return pixel positions under the actual pointing, and the true sky positions."""
    rng = np.random.default_rng(4)
    x, y = rng.uniform(5, 505, n), rng.uniform(5, 505, n)
    ra, dec = DETECTORS[5].wcs(ACTUAL).all_pix2world(x, y, 0)
    return x + rng.normal(0, noise_px, n), y + rng.normal(0, noise_px, n), ra, dec


def test_an_offset_of_arc_seconds_is_recovered() -> None:
    """Pointing, rotation and scale errors are all absorbed, to well under a milliarcsecond."""
    x, y, ra, dec = _stars(40)
    fit = fit_astrometry(x, y, ra[:25], dec[:25], DETECTORS[5].wcs(NOMINAL), search_radius_arcsec=20)
    assert len(fit.source_index) == 25
    fit_ra, fit_dec = fit.wcs.all_pix2world(x, y, 0)
    assert np.abs(3.6e6 * (fit_ra - ra)).max() < 0.5
    assert np.abs(3.6e6 * (fit_dec - dec)).max() < 0.5


def test_noise_averages_out() -> None:
    """With noisy positions the solution is better than each, by the square root of their number."""
    x, y, ra, dec = _stars(60, noise_px=0.05)
    fit = fit_astrometry(x, y, ra, dec, DETECTORS[5].wcs(NOMINAL), search_radius_arcsec=20)
    assert fit.scatter_mas == pytest.approx(20, rel=0.3)
    centre = [[256.0, 256.0]]
    offset = fit.wcs.all_pix2world(centre, 0) - DETECTORS[5].wcs(ACTUAL).all_pix2world(centre, 0)
    assert np.abs(3.6e6 * offset).max() < 3 * 20 / np.sqrt(60)


def test_wrong_catalogue_is_refused() -> None:
    """Stars of another field do not match, and the error says how many did."""
    x, y, _, _ = _stars(40)
    rng = np.random.default_rng(9)
    ra, dec = 150.1 + rng.uniform(-0.05, 0.05, 30), 2.2 + rng.uniform(-0.05, 0.05, 30)
    with pytest.raises(AstrometryError, match="of 40 sources match one of 30"):
        fit_astrometry(x, y, ra, dec, DETECTORS[5].wcs(NOMINAL), search_radius_arcsec=20)


def test_matches_are_mutual() -> None:
    """Of two sources at one star only the nearer is the star."""
    index, other = match_sky(
        np.array([150.0, 150.0001]), np.array([2.0, 2.0]), np.array([150.00002]), np.array([2.0]), 1.0
    )
    assert list(index) == [0]
    assert list(other) == [0]
