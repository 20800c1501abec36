"""Owns the simulation of one raw frame: the sky through the telescope onto one CCD."""

from __future__ import annotations

import numpy as np
from astropy.io import fits
from astropy.table import Row, Table
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from qgexec.demo.camera import CCD_SHAPE, PIXEL_SCALE_ARCSEC, Exposure
from qgexec.demo.electronics import CcdElectronics
from qgexec.demo.images import RawCcd
from qgexec.demo.layout import INSTRUMENT, PHYSICAL_FILTERS
from qgexec.demo.psf import MoffatPsf

__all__ = ["render_sources", "simulate_raw"]

PSF_BETA = 3.5
COSMIC_RAYS_PER_FRAME = 14
FAINTEST_ELECTRONS = 0.2
"""Stamps of stars end where they fall below this; the noise of the sky is a hundred times as large."""

GALAXY_OVERSAMPLING = 3

Frame = NDArray[np.float64]


def simulate_raw(sky: Table, exposure: Exposure, ccd: CcdElectronics, seed: int) -> RawCcd:
    """Simulate one detector of one exposure.

    Parameters
    ----------
    sky
        The truth, from `qgexec.demo.sky.make_sky`.
    exposure
        Which exposure; its actual pointing decides what is seen, its
        requested pointing is what the header says.
    ccd
        The detector's true properties.
    seed
        Seed of photons, cosmic rays and read noise.

    Returns
    -------
    raw : `RawCcd`
        The frame. The same arguments give the same frame, whatever else is
        simulated.
    """
    rng = np.random.default_rng([seed, 6, exposure.id, ccd.detector.id])
    psf = MoffatPsf(exposure.seeing_arcsec / PIXEL_SCALE_ARCSEC, PSF_BETA)
    wcs = ccd.detector.wcs(exposure.actual)
    x, y = wcs.all_world2pix(sky["ra_deg"], sky["dec_deg"], 0)
    flux = 10 ** (0.4 * (exposure.zero_point_mag - np.asarray(sky[f"mag_{exposure.band}"])))
    light = render_sources(sky, x, y, flux, psf) + _sky_background(exposure)
    expected = light * ccd.flat[exposure.band] + ccd.dark_electrons_per_s * exposure.dark_s
    electrons = rng.poisson(expected).astype(np.float64)
    _add_cosmic_rays(electrons, rng)
    return RawCcd(ccd.read_out(electrons, rng), _raw_header(exposure, ccd))


def render_sources(
    sky: Table, x: Frame, y: Frame, flux_electrons: Frame, psf: MoffatPsf, shape: tuple[int, int] = CCD_SHAPE
) -> Frame:
    """Draw stars and galaxies without noise.

    Parameters
    ----------
    sky
        Shapes of the sources; n rows.
    x, y
        Their pixel positions, shape (n,); outside of the frame is allowed.
    flux_electrons
        Their total fluxes, shape (n,).
    psf
        The point spread function.
    shape
        Rows and columns of the frame.

    Returns
    -------
    image : `numpy.ndarray`
        Expected electrons per pixel.
    """
    stars = np.zeros(shape)
    galaxies = np.zeros(shape)
    margin = 250
    inside = (x > -margin) & (x < shape[1] + margin) & (y > -margin) & (y < shape[0] + margin)
    for i in np.flatnonzero(inside):
        if sky["is_star"][i]:
            _add_star(stars, float(x[i]), float(y[i]), float(flux_electrons[i]), psf)
        else:
            _add_galaxy(galaxies, float(x[i]), float(y[i]), float(flux_electrons[i]), sky[i])
    offsets = np.arange(-50.0, 51.0) ** 2
    kernel = psf.evaluate(offsets[:, np.newaxis] + offsets[np.newaxis, :])
    return np.asarray(stars + np.maximum(fftconvolve(galaxies, kernel, mode="same"), 0.0))


def _add_star(image: Frame, x: float, y: float, flux: float, psf: MoffatPsf) -> None:
    half = int(np.clip(np.ceil(psf.radius_px(FAINTEST_ELECTRONS / flux)), 6, 250))
    window = _window(image, x, y, half)
    if window is None:
        return
    rows, columns = window
    yy = np.arange(rows.start, rows.stop)[:, np.newaxis] - y
    xx = np.arange(columns.start, columns.stop)[np.newaxis, :] - x
    image[window] += flux * psf.evaluate(xx**2 + yy**2)


def _add_galaxy(image: Frame, x: float, y: float, flux: float, shape: Row) -> None:
    """Add an inclined exponential disc, integrated over pixels, before the atmosphere blurs it."""
    # The half-light radius of an exponential disc is 1.678 scale lengths.
    scale_px = float(shape["half_light_arcsec"]) / 1.678 / PIXEL_SCALE_ARCSEC
    half = int(np.ceil(9 * scale_px)) + 1
    window = _window(image, x, y, half)
    if window is None:
        return
    n = GALAXY_OVERSAMPLING
    centre_x, centre_y = round(x), round(y)
    fine = (np.arange((2 * half + 1) * n) + 0.5) / n - 0.5 - half
    xx = fine[np.newaxis, :] + (centre_x - x)
    yy = fine[:, np.newaxis] + (centre_y - y)
    cos, sin = np.cos(shape["angle_rad"]), np.sin(shape["angle_rad"])
    major, minor = xx * cos + yy * sin, (yy * cos - xx * sin) / shape["axis_ratio"]
    disc = np.exp(-np.hypot(major, minor) / scale_px)
    stamp = disc.reshape(2 * half + 1, n, 2 * half + 1, n).sum(axis=(1, 3))
    rows, columns = window
    row0, column0 = centre_y - half, centre_x - half
    image[window] += (
        flux
        / stamp.sum()
        * stamp[rows.start - row0 : rows.stop - row0, columns.start - column0 : columns.stop - column0]
    )


def _window(image: Frame, x: float, y: float, half: int) -> tuple[slice, slice] | None:
    """Return the part of a square around a position that is on the image, or None."""
    rows, columns = image.shape
    low_x, high_x = max(round(x) - half, 0), min(round(x) + half + 1, columns)
    low_y, high_y = max(round(y) - half, 0), min(round(y) + half + 1, rows)
    if low_x >= high_x or low_y >= high_y:
        return None
    return slice(low_y, high_y), slice(low_x, high_x)


def _sky_background(exposure: Exposure) -> Frame:
    """Return the night sky in electrons per pixel, a little brighter towards the horizon."""
    rows, columns = CCD_SHAPE
    gradient = 1.0 + 0.02 * np.linspace(-1.0, 1.0, rows)[:, np.newaxis]
    return np.asarray(exposure.sky_electrons * gradient * np.ones((1, columns)))


def _add_cosmic_rays(electrons: Frame, rng: np.random.Generator) -> None:
    """Add straight tracks of charge, sharper than any star because no atmosphere blurs them."""
    rows, columns = electrons.shape
    for _ in range(rng.poisson(COSMIC_RAYS_PER_FRAME)):
        angle = rng.uniform(0.0, np.pi)
        steps = np.arange(0.0, 1.5 + rng.exponential(6.0), 0.5)
        x = np.rint(rng.uniform(0, columns) + steps * np.cos(angle)).astype(int)
        y = np.rint(rng.uniform(0, rows) + steps * np.sin(angle)).astype(int)
        track = np.unique(np.stack([y, x], axis=1), axis=0)
        track = track[(track >= 0).all(axis=1) & (track < electrons.shape).all(axis=1)]
        charge = 10 ** rng.uniform(2.5, 3.7) * rng.uniform(0.6, 1.4, len(track))
        electrons[track[:, 0], track[:, 1]] += charge


def _raw_header(exposure: Exposure, ccd: CcdElectronics) -> fits.Header:
    rows, columns = CCD_SHAPE
    header = ccd.detector.wcs(exposure.requested).to_header()
    header["INSTRUME"] = INSTRUMENT
    header["OBSID"] = (exposure.obs_id, "name of the observation")
    header["EXPID"] = (exposure.id, "number of the exposure")
    header["DETECTOR"] = (ccd.detector.id, "number of the CCD")
    header["FILTER"] = PHYSICAL_FILTERS[exposure.band]
    header["BAND"] = exposure.band
    header["DATE-OBS"] = (exposure.start.strftime("%Y-%m-%dT%H:%M:%S.%f"), "UTC, shutter open")
    header["EXPTIME"] = (exposure.exposure_s, "[s] shutter open")
    header["DARKTIME"] = (exposure.dark_s, "[s] dark current collected")
    header["GAIN"] = (ccd.detector.gain, "[electron/adu]")
    header["RDNOISE"] = (ccd.detector.read_noise_electrons, "[electron]")
    header["FULLWELL"] = (ccd.detector.full_well_electrons, "[electron]")
    header["BUNIT"] = "adu"
    header["DATASEC"] = f"[1:{columns},1:{rows}]"
    return header
