"""Owns the astrometric solution: which source is which reference star, and the WCS that follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from astropy.stats import mad_std
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.spatial import cKDTree

__all__ = ["AstrometricFit", "AstrometryError", "fit_astrometry", "match_sky", "tangent_offsets_arcsec"]

FloatArray = NDArray[np.floating]
IndexArray = NDArray[np.intp]

MATCH_RADII_ARCSEC = (1.5, 0.8, 0.5, 0.4)
"""Radius within which stars are matched, per iteration: the better the WCS, the smaller."""

MIN_STARS = 5


class AstrometryError(Exception):
    """No trustworthy solution: too few sources agree with the reference catalogue."""


@dataclass(frozen=True, slots=True)
class AstrometricFit:
    """A WCS that was fitted to reference stars."""

    wcs: WCS
    """The solution."""

    source_index: IndexArray
    """Which sources were used, shape (n,)."""

    reference_index: IndexArray
    """The reference stars that they are, shape (n,)."""

    scatter_mas: float
    """Robust standard deviation of the residuals per axis."""


def tangent_offsets_arcsec(
    ra_deg: FloatArray, dec_deg: FloatArray, centre_ra_deg: float, centre_dec_deg: float
) -> FloatArray:
    """Project positions onto the plane that touches the sky at a centre.

    Parameters
    ----------
    ra_deg, dec_deg
        Positions, shape (n,).
    centre_ra_deg, centre_dec_deg
        The tangent point.

    Returns
    -------
    offsets : `numpy.ndarray`
        Standard coordinates (east, north), shape (n, 2). See Calabretta &
        Greisen (2002), section 5.1.3.
    """
    ra = np.deg2rad(np.asarray(ra_deg) - centre_ra_deg)
    dec, dec0 = np.deg2rad(dec_deg), np.deg2rad(centre_dec_deg)
    cosine = np.sin(dec0) * np.sin(dec) + np.cos(dec0) * np.cos(dec) * np.cos(ra)
    east = np.cos(dec) * np.sin(ra) / cosine
    north = (np.cos(dec0) * np.sin(dec) - np.sin(dec0) * np.cos(dec) * np.cos(ra)) / cosine
    return np.asarray(np.rad2deg(np.stack([east, north], axis=1)) * 3600)


def match_sky(
    ra_deg: FloatArray,
    dec_deg: FloatArray,
    other_ra_deg: FloatArray,
    other_dec_deg: FloatArray,
    radius_arcsec: float,
) -> tuple[IndexArray, IndexArray]:
    """Match two lists of positions, each entry at most once: both must be the other's nearest.

    Returns
    -------
    index, other_index : `numpy.ndarray`
        Places in the two lists, shape (n_matches,).
    """
    centre = float(np.mean(ra_deg)), float(np.mean(dec_deg))
    first = tangent_offsets_arcsec(ra_deg, dec_deg, *centre)
    second = tangent_offsets_arcsec(other_ra_deg, other_dec_deg, *centre)
    return _match_planes(first, second, radius_arcsec)


def fit_astrometry(
    x_px: FloatArray,
    y_px: FloatArray,
    reference_ra_deg: FloatArray,
    reference_dec_deg: FloatArray,
    initial: WCS,
    *,
    search_radius_arcsec: float,
) -> AstrometricFit:
    """Fit a tangent-plane WCS to a reference catalogue.

    In the plane that touches the sky at the initial tangent point a TAN WCS
    is linear in the pixels, so that the best one is a linear least-squares
    solution.

    Parameters
    ----------
    x_px, y_px
        Positions of the sources, counted from 0, shape (n,).
    reference_ra_deg, reference_dec_deg
        Positions of reference stars, shape (m,).
    initial
        A TAN WCS that is right to ``search_radius_arcsec``.
    search_radius_arcsec
        How far off it may be.

    Returns
    -------
    fit : `AstrometricFit`
        The solution.

    Raises
    ------
    AstrometryError
        If fewer than `MIN_STARS` stars match.
    """
    centre = float(initial.wcs.crval[0]), float(initial.wcs.crval[1])
    reference = tangent_offsets_arcsec(reference_ra_deg, reference_dec_deg, *centre)
    pixels = np.stack([x_px, y_px, np.ones_like(x_px)], axis=1)
    ra, dec = initial.all_pix2world(x_px, y_px, 0)
    sky = tangent_offsets_arcsec(ra, dec, *centre)
    predicted = sky + _common_shift(sky, reference, search_radius_arcsec)
    for radius in MATCH_RADII_ARCSEC:
        source_index, reference_index = _match_planes(predicted, reference, radius)
        if len(source_index) < MIN_STARS:
            raise AstrometryError(
                f"only {len(source_index)} of {len(x_px)} sources match one of {len(reference)}"
                f" reference stars within {radius} arcsec; {MIN_STARS} are needed"
            )
        matrix = np.linalg.lstsq(pixels[source_index], reference[reference_index], rcond=None)[0]
        predicted = pixels @ matrix
        residuals = predicted[source_index] - reference[reference_index]
        scatter = float(mad_std(residuals))
        keep = np.hypot(*residuals.T) < 4 * scatter
        if keep.sum() >= MIN_STARS:
            source_index, reference_index = source_index[keep], reference_index[keep]
            matrix = np.linalg.lstsq(pixels[source_index], reference[reference_index], rcond=None)[0]
            predicted = pixels @ matrix
    return AstrometricFit(_linear_wcs(matrix, centre), source_index, reference_index, 1000 * scatter)


def _common_shift(sky: FloatArray, reference: FloatArray, radius_arcsec: float) -> FloatArray:
    """Find the offset (2,) that most pairs of source and reference star have in common."""
    pairs = (reference[np.newaxis, :, :] - sky[:, np.newaxis, :]).reshape(-1, 2)
    pairs = pairs[np.abs(pairs).max(axis=1) < radius_arcsec]
    if len(pairs) == 0:
        return np.zeros(2)
    # Every wrong pair lies anywhere, every right one near the shift: it has the most neighbours.
    tree = cKDTree(pairs)
    counts = tree.query_ball_point(pairs, r=0.8, return_length=True)
    best = pairs[int(np.argmax(counts))]
    return np.asarray(np.median(pairs[tree.query_ball_point(best, r=0.8)], axis=0))


def _match_planes(first: FloatArray, second: FloatArray, radius: float) -> tuple[IndexArray, IndexArray]:
    if len(first) == 0 or len(second) == 0:
        return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp)
    distance, nearest = cKDTree(second).query(first)
    _, back = cKDTree(first).query(second)
    index = np.flatnonzero((distance < radius) & (back[nearest] == np.arange(len(first))))
    return index, nearest[index]


def _linear_wcs(matrix: FloatArray, centre: tuple[float, float]) -> WCS:
    """Express offsets [arcsec] = (x, y, 1) @ matrix (3, 2) as a TAN WCS."""
    cd = matrix[:2].T / 3600
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = centre
    wcs.wcs.cd = cd
    wcs.wcs.crpix = 1.0 - np.linalg.solve(cd, matrix[2] / 3600)
    wcs.wcs.set()
    return wcs
