"""Owns the sky map of the demonstration: a tract, its tangent plane, its overlapping patches."""

from __future__ import annotations

import numpy as np
from astropy.wcs import WCS
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d
from numpy.typing import NDArray
from pydantic import BaseModel

__all__ = ["SkyGrid", "tangent_wcs", "unit_vector", "wcs_polygon"]


class SkyGrid(BaseModel):
    """A tract that is cut into patches, each overlapping its neighbours by twice the border."""

    ra_deg: float
    """Right ascension of the tract's centre."""

    dec_deg: float
    """Declination of the tract's centre."""

    pixel_scale_arcsec: float
    """Size of a coadd pixel."""

    patch_inner_px: int
    """Size of the part of a patch that it shares with no other."""

    patch_border_px: int
    """Width of the border around that part."""

    n_patches_x: int
    """Number of columns of patches."""

    n_patches_y: int
    """Number of rows of patches."""

    @property
    def patch_shape(self) -> tuple[int, int]:
        """Shape (rows, columns) of every patch, border included."""
        size = self.patch_inner_px + 2 * self.patch_border_px
        return (size, size)

    @property
    def patches(self) -> range:
        """The IDs of the patches of the tract."""
        return range(self.n_patches_x * self.n_patches_y)

    def cell(self, patch: int) -> tuple[int, int]:
        """Return the column and row of a patch in the tract."""
        row, column = divmod(patch, self.n_patches_x)
        return column, row

    def patch_origin(self, patch: int) -> tuple[int, int]:
        """Return the tract pixel (x, y) that is pixel (0, 0) of a patch, border included."""
        column, row = self.cell(patch)
        return (
            column * self.patch_inner_px - self.patch_border_px,
            row * self.patch_inner_px - self.patch_border_px,
        )

    def tract_wcs(self) -> WCS:
        """Return the WCS of the whole tract; pixel (0, 0) is the inner corner of patch 0."""
        centre = (
            0.5 * (self.n_patches_x * self.patch_inner_px - 1),
            0.5 * (self.n_patches_y * self.patch_inner_px - 1),
        )
        return tangent_wcs(self.ra_deg, self.dec_deg, centre, self.pixel_scale_arcsec)

    def patch_wcs(self, patch: int) -> WCS:
        """Return the WCS of a patch, border included: the tract's, shifted by whole pixels."""
        wcs = self.tract_wcs()
        wcs.wcs.crpix -= self.patch_origin(patch)
        return wcs

    def tract_region(self) -> ConvexPolygon:
        """Return the region of the sky that the tract covers, borders included."""
        border = self.patch_border_px
        shape = (self.n_patches_y * self.patch_inner_px, self.n_patches_x * self.patch_inner_px)
        return wcs_polygon(self.tract_wcs(), shape, margin_px=border)

    def patch_region(self, patch: int) -> ConvexPolygon:
        """Return the region of the sky that a patch covers, border included."""
        return wcs_polygon(self.patch_wcs(patch), self.patch_shape)


def tangent_wcs(
    ra_deg: float,
    dec_deg: float,
    centre_px: tuple[float, float],
    pixel_scale_arcsec: float,
    rotation_deg: float = 0.0,
) -> WCS:
    """Make a gnomonic (TAN) WCS with north up and east to the left, then rotated.

    Parameters
    ----------
    ra_deg, dec_deg
        The tangent point.
    centre_px
        Pixel (x, y), counted from 0, on which the tangent point falls.
    pixel_scale_arcsec
        Size of a pixel.
    rotation_deg
        Rotation of the detector on the sky.

    Returns
    -------
    wcs : `astropy.wcs.WCS`
        The transformation.
    """
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra_deg, dec_deg]
    wcs.wcs.crpix = [centre_px[0] + 1.0, centre_px[1] + 1.0]
    angle = np.deg2rad(rotation_deg)
    rotation: NDArray[np.float64] = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    wcs.wcs.cd = pixel_scale_arcsec / 3600 * np.diag([-1.0, 1.0]) @ rotation
    wcs.wcs.set()
    return wcs


def wcs_polygon(wcs: WCS, shape: tuple[int, int], *, margin_px: float = 0.0) -> ConvexPolygon:
    """Return the part of the sky that an image covers.

    Parameters
    ----------
    wcs
        The image's WCS.
    shape
        Its rows and columns.
    margin_px
        Widen the image by so much on all sides.

    Returns
    -------
    region : `lsst.sphgeom.ConvexPolygon`
        The four corners, joined by great circles.
    """
    low, (high_y, high_x) = -0.5 - margin_px, (n - 0.5 + margin_px for n in shape)
    corners = wcs.all_pix2world([low, high_x, high_x, low], [low, low, high_y, high_y], 0)
    return ConvexPolygon([unit_vector(ra, dec) for ra, dec in zip(*corners, strict=True)])


def unit_vector(ra_deg: float, dec_deg: float) -> UnitVector3d:
    """Return a direction as a unit vector."""
    return UnitVector3d(LonLat.fromDegrees(ra_deg, dec_deg))
