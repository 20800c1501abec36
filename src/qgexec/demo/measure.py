"""Owns the measuring of sources on images: where, how bright, how large; knows no butler, no sky."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.stats import mad_std
from numpy.typing import NDArray
from photutils.aperture import CircularAperture, aperture_photometry
from photutils.detection import find_peaks
from scipy import ndimage, optimize, sparse

from qgexec.demo.psf import MoffatPsf

__all__ = [
    "PsfFluxes",
    "aperture_correction",
    "aperture_fluxes",
    "find_sources",
    "fit_moffat",
    "fit_psf_fluxes",
    "matched_filter_snr",
    "size_ratios",
    "windowed_centroids",
]

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]

APERTURE_ERROR_FLOOR = 0.005
"""Relative error of the brightest star's aperture: an unseen companion must not decide alone."""

PSF_FIT_HALF_PX = 10
PSF_STAMP_HALF_PX = (10, 20, 40, 80)
"""Half widths of the stamps on which sources are fitted; the brightest need the widest."""


def matched_filter_snr(
    image: FloatArray, variance: FloatArray, bad: BoolArray, sigma_px: float
) -> FloatArray:
    """Return the signal-to-noise ratio of a point source at every pixel.

    Correlating with the PSF is the most sensitive search for point sources
    on white noise.

    Parameters
    ----------
    image, variance
        Background-subtracted pixels and their variances, shape (rows,
        columns).
    bad
        Pixels to leave out, same shape.
    sigma_px
        Standard deviation of the (Gaussian) filter: that of the PSF.

    Returns
    -------
    snr : `numpy.ndarray`
        Same shape; zero where every pixel around is bad.
    """
    weight = np.where(bad | (variance <= 0), 0.0, 1.0 / np.maximum(variance, 1e-30))
    signal = ndimage.gaussian_filter(np.where(bad, 0.0, image) * weight, sigma_px, mode="constant")
    # A Gaussian squared is a Gaussian of sigma / sqrt(2), less 1 / (4 pi sigma^2) in its integral.
    noise2 = ndimage.gaussian_filter(weight, sigma_px / np.sqrt(2), mode="constant")
    noise2 = noise2 / (4 * np.pi * sigma_px**2)
    return np.asarray(signal / np.sqrt(np.where(noise2 > 0, noise2, np.inf)))


def find_sources(
    snr: FloatArray, saturated: BoolArray, *, threshold: float, separation_px: float
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Find the peaks of a signal-to-noise map, and one source in every saturated blob.

    Parameters
    ----------
    snr
        From `matched_filter_snr`, shape (rows, columns).
    saturated
        Where pixels are saturated, same shape. Peaks in such a blob or next
        to it are noise on its flanks, and are replaced by its centre.
    threshold
        Smallest signal-to-noise ratio of a peak.
    separation_px
        Peaks that are nearer than half of this to a higher one are dropped.

    Returns
    -------
    x, y : `numpy.ndarray`
        Pixel positions, shape (n,).
    is_saturated : `numpy.ndarray`
        Which of them are saturated, shape (n,).
    """
    box = 2 * int(np.ceil(separation_px / 2)) + 1
    grown = ndimage.binary_dilation(saturated, iterations=box) if saturated.any() else saturated
    # An empty image is an answer, not worth the warning that photutils gives.
    peaks = find_peaks(snr, threshold=threshold, box_size=box) if (snr > threshold).any() else None
    column = np.asarray([] if peaks is None else peaks["x_peak"], dtype=np.intp)
    row = np.asarray([] if peaks is None else peaks["y_peak"], dtype=np.intp)
    beside = ~grown[row, column]
    x, y = column[beside].astype(float), row[beside].astype(float)
    labels, n_blobs = ndimage.label(grown)
    centres = np.reshape(ndimage.center_of_mass(saturated, labels, np.arange(1, n_blobs + 1)), (-1, 2))
    is_saturated = np.arange(len(x) + n_blobs) >= len(x)
    return np.append(x, centres[:, 1]), np.append(y, centres[:, 0]), is_saturated


def windowed_centroids(
    image: FloatArray, x: FloatArray, y: FloatArray, sigma_px: float, *, iterations: int = 12
) -> tuple[FloatArray, FloatArray]:
    """Refine positions by first moments under a Gaussian window.

    Nearly as precise as a PSF fit, without a model (Bertin & Arnouts 1996,
    and the SExtractor manual, XWIN_IMAGE).

    Parameters
    ----------
    image
        Background-subtracted pixels.
    x, y
        Starting positions, shape (n,).
    sigma_px
        Standard deviation of the window: that of the PSF.
    iterations
        Number of times that the window is moved.

    Returns
    -------
    x, y : `numpy.ndarray`
        Refined positions. Where the moments run away by over two sigma, the
        starting position.
    """
    stamps, column, row = _cutouts(image, x, y, half=int(np.ceil(4 * sigma_px)))
    new_x, new_y = np.array(x, dtype=float), np.array(y, dtype=float)
    for _ in range(iterations):
        dx, dy = column - new_x[:, np.newaxis, np.newaxis], row - new_y[:, np.newaxis, np.newaxis]
        weighted = stamps * np.exp(-0.5 * (dx**2 + dy**2) / sigma_px**2)
        total = weighted.sum(axis=(1, 2))
        total = np.where(total > 0, total, np.inf)
        # The window halves the first moment of a Gaussian of its own width, hence the factor.
        new_x += np.clip(2 * (weighted * dx).sum(axis=(1, 2)) / total, -1, 1)
        new_y += np.clip(2 * (weighted * dy).sum(axis=(1, 2)) / total, -1, 1)
    stays = np.hypot(new_x - x, new_y - y) < 2 * sigma_px
    return np.where(stays, new_x, x), np.where(stays, new_y, y)


def fit_moffat(
    image: FloatArray,
    variance: FloatArray,
    x: FloatArray,
    y: FloatArray,
    *,
    guess: MoffatPsf,
    scale: FloatArray | float = 1.0,
) -> MoffatPsf:
    """Fit one Moffat profile to many stars at once.

    Parameters
    ----------
    image, variance
        Background-subtracted pixels and their variances.
    x, y
        Positions of isolated, unsaturated stars, shape (n,).
    guess
        Where the fit starts.
    scale
        Local size of the PSF relative to the model, shape (n,) or a number.

    Returns
    -------
    psf : `MoffatPsf`
        The best profile. The fluxes of the stars are solved for inside, and
        a soft loss keeps neighbours from pulling.
    """
    stamps, column, row = _cutouts(image, x, y, half=PSF_FIT_HALF_PX)
    variances, _, _ = _cutouts(variance, x, y, half=PSF_FIT_HALF_PX)
    radius2 = (column - x[:, np.newaxis, np.newaxis]) ** 2 + (row - y[:, np.newaxis, np.newaxis]) ** 2
    stretch = _per_source(scale, x)
    valid = variances > 0
    # 2 % of the flux as error: no star may outweigh all others by its photons alone.
    error = np.sqrt(np.where(valid, variances, 1.0) + (0.02 * np.maximum(stamps, 0)) ** 2)

    def residuals(parameters: FloatArray) -> FloatArray:
        model = MoffatPsf(float(parameters[0]), float(parameters[1])).evaluate(radius2, stretch) * valid
        flux = (model * stamps).sum(axis=(1, 2)) / (model**2).sum(axis=(1, 2))
        return np.asarray(((stamps - flux[:, np.newaxis, np.newaxis] * model) / error)[valid])

    start = [guess.fwhm_px, guess.beta]
    fit = optimize.least_squares(residuals, start, bounds=([1.0, 1.5], [15.0, 10.0]), loss="soft_l1")
    return MoffatPsf(float(fit.x[0]), float(fit.x[1]))


@dataclass(frozen=True, slots=True)
class PsfFluxes:
    """Fluxes of n point sources that were fitted together."""

    flux: FloatArray
    """Total fluxes in the image's unit, shape (n,)."""

    flux_err: FloatArray
    """Their standard errors, shape (n,)."""

    residual: FloatArray
    """The image without the fitted sources; zero where it is bad."""

    @property
    def snr(self) -> FloatArray:
        """Signal-to-noise ratios."""
        return np.asarray(self.flux / self.flux_err)


def fit_psf_fluxes(
    image: FloatArray,
    variance: FloatArray,
    bad: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: MoffatPsf,
    *,
    scale: FloatArray | float = 1.0,
) -> PsfFluxes:
    """Fit the fluxes of all sources of an image together, at fixed positions.

    A linear least-squares problem: neighbours share the light of blended
    pixels in the best way, and nothing is iterated. All pixels weigh the
    same, so that an imperfect PSF model gives the same relative error to
    bright and to faint stars; the errors follow from the true variances.

    Parameters
    ----------
    image, variance
        Background-subtracted pixels and their variances.
    bad
        Pixels to leave out.
    x, y
        Positions, shape (n,).
    psf
        The point spread function.
    scale
        Local size of the PSF relative to the model, shape (n,) or a number.

    Returns
    -------
    fluxes : `PsfFluxes`
        In the order of the positions. Sources without any good pixel get
        flux 0 and an infinite error.
    """
    design = _design_matrix(image, bad, x, y, psf, scale)
    normal = (design.T @ design).toarray()
    seen = np.diag(normal) > 0.05 / psf.noise_pixels
    # Sources of which next to nothing is seen would make the equations singular.
    normal[~seen, :] = normal[:, ~seen] = 0.0
    normal[~seen, ~seen] = 1.0
    inverse = np.linalg.inv(normal)
    pixels = np.where(bad, 0.0, image).ravel().astype(np.float64)
    flux = inverse @ (design.T @ pixels)
    weighted = design.multiply(np.where(bad, 0.0, variance).ravel()[:, np.newaxis]).tocsr()
    covariance = inverse @ (design.T @ weighted).toarray() @ inverse
    error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    return PsfFluxes(
        flux=np.where(seen, flux, 0.0),
        flux_err=np.where(seen & (error > 0), error, np.inf),
        residual=(pixels - design @ np.where(seen, flux, 0.0)).reshape(image.shape),
    )


def _design_matrix(
    image: FloatArray,
    bad: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf: MoffatPsf,
    scale: FloatArray | float,
) -> sparse.csr_matrix:
    """Return the PSF of every source (columns) at every pixel (rows of the matrix)."""
    rows, columns = image.shape
    half = _stamp_half_widths(image, bad, x, y, psf)
    parts = []
    for width in np.unique(half):
        index = np.flatnonzero(half == width)
        _, column, row = _cutouts(image, x[index], y[index], half=int(width))
        radius2 = (column - x[index, np.newaxis, np.newaxis]) ** 2 + (
            row - y[index, np.newaxis, np.newaxis]
        ) ** 2
        light = psf.evaluate(radius2, _per_source(scale, x)[index])
        source = np.broadcast_to(index[:, np.newaxis, np.newaxis], radius2.shape)
        column, row = np.broadcast_to(column, radius2.shape), np.broadcast_to(row, radius2.shape)
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        inside[inside] = ~bad[row[inside], column[inside]]
        parts.append((light[inside], row[inside] * columns + column[inside], source[inside]))
    values, pixel, source = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sparse.csr_matrix((values, (pixel, source)), shape=(rows * columns, len(x)))


def _stamp_half_widths(
    image: FloatArray, bad: BoolArray, x: FloatArray, y: FloatArray, psf: MoffatPsf
) -> NDArray[np.intp]:
    """Choose how far every source is followed: until it sinks into the noise."""
    noise = float(mad_std(image[~bad]))
    stamps, _, _ = _cutouts(np.where(bad, 0.0, image), x, y, half=PSF_STAMP_HALF_PX[0])
    flux = np.maximum(stamps.sum(axis=(1, 2)), noise)
    radius = np.array([psf.radius_px(min(0.3 * noise / f, 1.0)) for f in flux])
    # The flux of a saturated star is mostly in pixels that are left out here.
    blind = _cutouts(bad.astype(float), x, y, half=1)[0].mean(axis=(1, 2)) > 0.5
    widths = np.array(PSF_STAMP_HALF_PX)
    chosen = widths[np.minimum(np.searchsorted(widths, radius), len(widths) - 1)]
    return np.asarray(np.where(blind, widths[-1], chosen))


def aperture_fluxes(image: FloatArray, x: FloatArray, y: FloatArray, radius_px: float) -> FloatArray:
    """Sum the flux in circular apertures; masked pixels must hold sensible values. Shape (n,)."""
    if len(x) == 0:
        return np.zeros(0)
    apertures = CircularAperture(np.stack([x, y], axis=1), radius_px)
    return np.asarray(aperture_photometry(image, apertures)["aperture_sum"])


def aperture_correction(
    residual: FloatArray,
    bad: BoolArray,
    x: FloatArray,
    y: FloatArray,
    psf_flux: FloatArray,
    radius_px: float,
) -> float:
    """Return the factor that takes PSF fluxes to the scale of a wide aperture.

    A fitted profile extrapolates into the wings; a wide aperture contains
    them. Looking at residuals keeps the neighbours out of it.

    Parameters
    ----------
    residual, bad
        What the PSF fit left, and which pixels to distrust.
    x, y, psf_flux
        Positions and PSF fluxes of bright stars, shape (n,).
    radius_px
        Radius of the aperture.

    Returns
    -------
    factor : `float`
        The weighted median over stars whose apertures are clean; 1 without
        any.
    """
    clean = aperture_fluxes(bad.astype(float), x, y, radius_px) == 0
    rows, columns = residual.shape
    clean &= (np.minimum(x, y) > radius_px) & (x < columns - radius_px) & (y < rows - radius_px)
    if not clean.any():
        return 1.0
    left = aperture_fluxes(residual, x, y, radius_px)[clean] / psf_flux[clean]
    sky_noise = float(mad_std(residual[~bad])) * np.sqrt(np.pi) * radius_px
    error2 = (sky_noise / psf_flux[clean]) ** 2 + APERTURE_ERROR_FLOOR**2
    return 1.0 + _weighted_median(left, 1.0 / error2)


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    order = np.argsort(values)
    # Interpolated between the middles of the steps, so that no single value decides.
    fraction = (np.cumsum(weights[order]) - 0.5 * weights[order]) / weights.sum()
    return float(np.interp(0.5, fraction, values[order]))


def size_ratios(
    image: FloatArray, x: FloatArray, y: FloatArray, psf: MoffatPsf, *, scale: FloatArray | float = 1.0
) -> FloatArray:
    """Compare the sizes of sources with that of the PSF.

    Parameters
    ----------
    image
        Background-subtracted pixels.
    x, y
        Positions, shape (n,).
    psf
        The point spread function.
    scale
        Local size of the PSF relative to the model, shape (n,) or a number.

    Returns
    -------
    ratio : `numpy.ndarray`
        Square root of the ratio of second moments under a Gaussian window of
        1.5 PSF sigma; 1 for a star, more for a galaxy, shape (n,).
    """
    window = 1.5 * psf.sigma_px
    stamps, column, row = _cutouts(image, x, y, half=int(np.ceil(3.5 * window)))
    radius2 = (column - x[:, np.newaxis, np.newaxis]) ** 2 + (row - y[:, np.newaxis, np.newaxis]) ** 2
    weight = np.exp(-0.5 * radius2 / window**2)
    model = psf.evaluate(radius2, _per_source(scale, x))

    def moment(light: FloatArray) -> FloatArray:
        total = (weight * light).sum(axis=(1, 2))
        return np.asarray((weight * light * radius2).sum(axis=(1, 2)) / np.where(total > 0, total, np.inf))

    return np.sqrt(np.maximum(moment(stamps), 0.0) / moment(model))


def _per_source(scale: FloatArray | float, x: FloatArray) -> FloatArray:
    """Give a scale the shape (n, 1, 1) that multiplies stamps."""
    return np.broadcast_to(np.asarray(scale, dtype=float), x.shape)[:, np.newaxis, np.newaxis]


def _cutouts(
    image: FloatArray, x: FloatArray, y: FloatArray, *, half: int
) -> tuple[FloatArray, NDArray[np.intp], NDArray[np.intp]]:
    """Cut squares around positions; zero beyond the image.

    Returns
    -------
    stamps : `numpy.ndarray`
        Shape (n, 2 half + 1, 2 half + 1).
    column, row : `numpy.ndarray`
        Pixel coordinates, shapes (n, 1, 2 half + 1) and (n, 2 half + 1, 1).
    """
    offset = np.arange(-half, half + 1)
    column = np.rint(x).astype(np.intp)[:, np.newaxis, np.newaxis] + offset[np.newaxis, np.newaxis, :]
    row = np.rint(y).astype(np.intp)[:, np.newaxis, np.newaxis] + offset[np.newaxis, :, np.newaxis]
    rows, columns = image.shape
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    stamps = image[np.clip(row, 0, rows - 1), np.clip(column, 0, columns - 1)]
    return np.where(inside, stamps, 0.0), column, row
