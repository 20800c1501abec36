"""Owns the comparison of a finished catalogue with what was simulated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table
from lsst.daf.butler import Butler
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from qgexec.demo.astrometry import match_sky, tangent_offsets_arcsec
from qgexec.demo.images import CcdImage, MaskBit
from qgexec.demo.layout import BANDS, INSTRUMENT, SKYMAP, TRUTH_COLLECTION

__all__ = ["Recovery", "compare_catalogue", "covered_by", "read_recovery"]

COMPLETENESS_MAG = 22.0
"""Stars down to this r magnitude, about ten times the noise of a coadd of four, should all be found."""

SATURATION_MAG = 15.0
BRIGHT_MAG = 18.5
"""Stars between these magnitudes have less than 8 mmag of photon noise in four visits of either band."""

MATCH_RADIUS_ARCSEC = 0.6
MASK_MARGIN_PX = 6
"""Stars nearer to the edge of the data than this are not counted as missed."""

FloatArray = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Recovery:
    """How well a catalogue recovers the simulated stars."""

    completeness: float
    """Fraction of the stars in the field that were found."""

    completeness_mag: float
    """Down to this r magnitude."""

    n_stars: int
    """Number of such stars in the field."""

    purity: float
    """Fraction of the catalogue that is a simulated star or galaxy."""

    astrometric_scatter_mas: float
    """Robust standard deviation of bright stars' positions, per axis."""

    astrometric_offset_mas: float
    """Length of the median offset of bright stars."""

    photometric_scatter_mmag: float
    """Robust standard deviation of bright stars' magnitudes, the worst band."""

    photometric_offset_mmag: float
    """Largest median error of bright stars' magnitudes of all bands, absolute."""

    star_purity: float
    """Fraction of the objects called stars, down to the same magnitude, that are stars."""

    def __str__(self) -> str:
        return (
            f"completeness   {100 * self.completeness:5.1f} % of {self.n_stars} stars to r = "
            f"{self.completeness_mag:.1f}; {100 * self.purity:.1f} % of all objects are real, "
            f"{100 * self.star_purity:.1f} % of the stars are stars\n"
            f"astrometry     {self.astrometric_scatter_mas:5.1f} mas scatter per axis, "
            f"{self.astrometric_offset_mas:.1f} mas offset (bright stars)\n"
            f"photometry     {self.photometric_scatter_mmag:5.1f} mmag scatter, "
            f"{self.photometric_offset_mmag:.1f} mmag offset (bright stars, worst band)"
        )


def read_recovery(butler: Butler, collection: str) -> Recovery:
    """Read catalogue and truth from a repository, and compare them.

    Parameters
    ----------
    butler
        The demonstration repository.
    collection
        Collection with the outputs of the pipeline.

    Returns
    -------
    recovery : `Recovery`
        The figures.
    """
    truth = butler.get("truth", instrument=INSTRUMENT, collections=TRUTH_COLLECTION)
    objects = butler.get("objects", skymap=SKYMAP, tract=0, collections=collection)
    coadds = [butler.get(ref) for ref in butler.query_datasets("coadd", collections=collection)]
    return compare_catalogue(objects, truth, covered_by(truth, coadds))


def covered_by(truth: Table, coadds: Iterable[CcdImage]) -> NDArray[np.bool_]:
    """Return which simulated objects fall on good pixels in every band.

    Parameters
    ----------
    truth
        What was simulated; n rows.
    coadds
        Coadds of all patches and bands.

    Returns
    -------
    covered : `numpy.ndarray`
        Shape (n,).
    """
    by_band: dict[str, NDArray[np.bool_]] = {}
    for coadd in coadds:
        band = by_band.setdefault(str(coadd.header["BAND"]), np.zeros(len(truth), dtype=np.bool_))
        x, y = coadd.wcs.all_world2pix(truth["ra_deg"], truth["dec_deg"], 0)
        column, row = np.rint(x).astype(int), np.rint(y).astype(int)
        unusable = coadd.has(MaskBit.NO_DATA | MaskBit.SATURATED)
        unusable = ndimage.binary_dilation(unusable, iterations=MASK_MARGIN_PX)
        rows, columns = unusable.shape
        inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
        band[inside] |= ~unusable[row[inside], column[inside]]
    return np.asarray(np.all(list(by_band.values()), axis=0))


def compare_catalogue(objects: Table, truth: Table, covered: NDArray[np.bool_]) -> Recovery:
    """Compare a catalogue with what was simulated.

    Parameters
    ----------
    objects
        The catalogue.
    truth
        What was simulated; n rows.
    covered
        Which of it the images show, shape (n,).

    Returns
    -------
    recovery : `Recovery`
        The figures.
    """
    is_star = np.asarray(truth["is_star"])
    mag = np.asarray(truth["mag_r"])
    stars = np.flatnonzero(is_star & covered & (mag > SATURATION_MAG) & (mag < COMPLETENESS_MAG))
    one_to_one = match_sky(
        objects["ra_deg"],
        objects["dec_deg"],
        truth["ra_deg"][stars],
        truth["dec_deg"][stars],
        MATCH_RADIUS_ARCSEC,
    )
    found, which = objects[one_to_one[0]], truth[stars][one_to_one[1]]
    bright = {band: np.asarray(which[f"mag_{band}"]) < BRIGHT_MAG for band in BANDS}
    east, north = _offsets_mas(found[bright["r"]], which[bright["r"]])
    errors = [_magnitude_errors(found[bright[band]], which[bright[band]], band) for band in BANDS]
    nearest = _nearest_truth(objects, truth)
    called_star = np.asarray(objects["is_star"]) & (nearest >= 0) & (mag[nearest] < COMPLETENESS_MAG)
    return Recovery(
        completeness=len(found) / len(stars),
        completeness_mag=COMPLETENESS_MAG,
        n_stars=len(stars),
        purity=float(np.mean(nearest >= 0)),
        astrometric_scatter_mas=float(np.sqrt((mad_std(east) ** 2 + mad_std(north) ** 2) / 2)),
        astrometric_offset_mas=float(np.hypot(np.median(east), np.median(north))),
        photometric_scatter_mmag=max(float(mad_std(error)) for error in errors),
        photometric_offset_mmag=max(abs(float(np.median(error))) for error in errors),
        star_purity=float(np.mean(is_star[nearest[called_star]])),
    )


def _offsets_mas(objects: Table, truth: Table) -> tuple[FloatArray, FloatArray]:
    cos_dec = np.cos(np.deg2rad(np.asarray(truth["dec_deg"])))
    east = 3.6e6 * np.asarray(objects["ra_deg"] - truth["ra_deg"]) * cos_dec
    return east, 3.6e6 * np.asarray(objects["dec_deg"] - truth["dec_deg"])


def _magnitude_errors(objects: Table, truth: Table, band: str) -> FloatArray:
    flux = np.maximum(np.asarray(objects[f"psf_flux_{band}_njy"]), 1e-3)
    return np.asarray(1000 * (31.4 - 2.5 * np.log10(flux) - np.asarray(truth[f"mag_{band}"])))


def _nearest_truth(objects: Table, truth: Table) -> NDArray[np.intp]:
    """Return the simulated object at the place of each object, the brightest of several; -1 for none."""
    centre = float(np.mean(truth["ra_deg"])), float(np.mean(truth["dec_deg"]))
    tree = cKDTree(tangent_offsets_arcsec(truth["ra_deg"], truth["dec_deg"], *centre))
    at = tangent_offsets_arcsec(objects["ra_deg"], objects["dec_deg"], *centre)
    mag = np.asarray(truth["mag_r"])
    # Twice the radius: the centre of a blend lies between its members.
    near = tree.query_ball_point(at, r=2 * MATCH_RADIUS_ARCSEC)
    return np.array([min(places, key=lambda i: mag[i]) if places else -1 for places in near], dtype=np.intp)
