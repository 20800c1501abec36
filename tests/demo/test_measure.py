"""Measuring on images with known sources: nothing is lost, and errors are what they claim."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qgexec.demo import measure
from qgexec.demo.psf import MoffatPsf

PSF = MoffatPsf(fwhm_px=3.0, beta=3.5)
SHAPE = (300, 300)
NOISE = 10.0
Array = NDArray[np.float64]


def _image(x: Array, y: Array, flux: Array, *, seed: int = 1) -> tuple[Array, Array]:
    yy, xx = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    image = np.random.default_rng(seed).normal(0, NOISE, SHAPE)
    for one in zip(x, y, flux, strict=True):
        image += one[2] * PSF.evaluate((xx - one[0]) ** 2.0 + (yy - one[1]) ** 2.0)
    return image, np.full(SHAPE, NOISE**2)


@pytest.fixture
def stars() -> tuple[Array, Array, Array]:
    """Return positions and fluxes of 36 stars far from each other."""
    rng = np.random.default_rng(2)
    y, x = (
        grid.ravel() + rng.uniform(-0.5, 0.5, 36) for grid in np.mgrid[25:280:48, 25:280:48].astype(float)
    )
    return x, y, np.geomspace(1500, 50_000, 36)


NOTHING = np.zeros(SHAPE, dtype=bool)


def test_all_stars_are_found_where_they_are(stars: tuple[Array, Array, Array]) -> None:
    """Every star is detected, once, and its centroid is good to the noise of a matched filter."""
    x, y, flux = stars
    image, variance = _image(*stars)
    snr = measure.matched_filter_snr(image, variance, NOTHING, PSF.sigma_px)
    found_x, found_y, _ = measure.find_sources(snr, NOTHING, threshold=6, separation_px=6)
    assert len(found_x) == len(x)
    found_x, found_y = measure.windowed_centroids(image, found_x, found_y, PSF.sigma_px)
    nearest = np.argmin(np.hypot(found_x[:, np.newaxis] - x, found_y[:, np.newaxis] - y), axis=1)
    assert sorted(nearest) == list(range(len(x)))
    expected = 1.3 * PSF.sigma_px * NOISE * np.sqrt(PSF.noise_pixels) / flux[nearest]
    assert np.std((found_x - x[nearest]) / expected) < 1.5
    assert np.std((found_y - y[nearest]) / expected) < 1.5


def test_snr_map_is_normal_on_noise() -> None:
    """On an image without sources the signal-to-noise map has unit scatter."""
    image, variance = _image(np.zeros(0), np.zeros(0), np.zeros(0))
    snr = measure.matched_filter_snr(image, variance, NOTHING, PSF.sigma_px)
    assert np.std(snr) == pytest.approx(1.0, abs=0.05)


def test_the_psf_is_recovered(stars: tuple[Array, Array, Array]) -> None:
    """The fit finds the profile, also from a poor guess."""
    image, variance = _image(*stars)
    x, y, _ = stars
    psf = measure.fit_moffat(image, variance, x[10:], y[10:], guess=MoffatPsf(4.5, 2.5))
    assert psf.fwhm_px == pytest.approx(PSF.fwhm_px, rel=0.01)
    assert psf.beta == pytest.approx(PSF.beta, rel=0.05)


def test_fluxes_are_right_to_their_errors(stars: tuple[Array, Array, Array]) -> None:
    """Flux errors have unit scatter in units of what they claim, and no bias."""
    x, y, flux = stars
    image, variance = _image(*stars)
    fluxes = measure.fit_psf_fluxes(image, variance, NOTHING, x, y, PSF)
    pulls = (fluxes.flux - flux) / fluxes.flux_err
    assert abs(pulls.mean()) < 3 / np.sqrt(len(x))
    assert np.std(pulls) == pytest.approx(1.0, abs=0.35)
    assert fluxes.flux_err.mean() == pytest.approx(NOISE * np.sqrt(PSF.noise_pixels), rel=0.05)


def test_neighbours_share_blended_light() -> None:
    """Two stars 1.5 FWHM apart have the flux of each, not of both."""
    x, y, flux = np.array([100.0, 104.5]), np.array([100.2, 100.2]), np.array([20_000.0, 5_000.0])
    image, variance = _image(x, y, flux)
    fluxes = measure.fit_psf_fluxes(image, variance, NOTHING, x, y, PSF)
    np.testing.assert_allclose(fluxes.flux, flux, atol=5 * fluxes.flux_err.max())


def test_masked_pixels_do_not_count() -> None:
    """A dead column through a star changes its error, not its flux; a star unseen has no error."""
    x, y, flux = np.array([100.0, 200.0]), np.array([100.0, 200.0]), np.array([20_000.0, 20_000.0])
    image, variance = _image(x, y, flux)
    bad = NOTHING.copy()
    bad[:, 101] = True
    bad[180:220, 180:220] = True
    image[bad] = 1e6
    fluxes = measure.fit_psf_fluxes(image, variance, bad, x, y, PSF)
    assert fluxes.flux[0] == pytest.approx(20_000, abs=4 * fluxes.flux_err[0])
    assert fluxes.flux[1] == 0
    assert np.isinf(fluxes.flux_err[1])


def test_galaxies_are_larger_than_stars(stars: tuple[Array, Array, Array]) -> None:
    """Stars have size 1; the same light, spread wider, has more."""
    x, y, _ = stars
    image, _ = _image(*stars)
    bright = slice(18, None)
    sizes = measure.size_ratios(image, x[bright], y[bright], PSF)
    np.testing.assert_allclose(sizes, 1.0, atol=0.06)
    assert (measure.size_ratios(image, x[bright], y[bright], MoffatPsf(2.4, 3.5)) > 1.06).all()


def test_an_aperture_knows_the_wings_that_the_model_lacks(stars: tuple[Array, Array, Array]) -> None:
    """A PSF model that is too narrow loses light; the correction brings it back."""
    x, y, flux = stars
    image, variance = _image(*stars)
    fluxes = measure.fit_psf_fluxes(image, variance, NOTHING, x, y, MoffatPsf(3.0, 5.0))
    factor = measure.aperture_correction(
        fluxes.residual, NOTHING, x[20:], y[20:], fluxes.flux[20:], radius_px=12
    )
    ratio = np.median(fluxes.flux[20:] / flux[20:])
    assert ratio < 0.98
    assert ratio * factor == pytest.approx(1.0, abs=0.006)


def test_one_source_per_saturated_blob() -> None:
    """The flanks of a saturated star are no sources of their own."""
    image, variance = _image(np.array([150.0]), np.array([150.0]), np.array([5e6]))
    saturated = image > 100_000
    assert saturated.sum() > 5
    snr = measure.matched_filter_snr(image, variance + np.maximum(image, 0), saturated, PSF.sigma_px)
    x, y, is_saturated = measure.find_sources(snr, saturated, threshold=5, separation_px=6)
    near = np.hypot(x - 150, y - 150) < 8
    assert near.sum() == 1
    assert is_saturated[near].all()
