"""Owns the two image types of the demonstration, raw and reduced, and what the bits of a mask mean."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

__all__ = ["CcdImage", "MaskBit", "RawCcd"]


class MaskBit(IntFlag):
    """What is wrong with a pixel."""

    BAD = 1
    """The detector's fault: dead, hot, or without a usable flat."""

    SATURATED = 2
    """The full well was reached, here or so near that charge spilled."""

    COSMIC_RAY = 4
    """Hit by a cosmic ray; the value is interpolated from its neighbours."""

    NO_DATA = 8
    """No exposure contributes."""


@dataclass(frozen=True, slots=True)
class RawCcd:
    """One detector of one exposure as it was read out."""

    data: NDArray[np.uint16]
    """Counts in ADU, shape (rows, science columns + overscan columns)."""

    header: fits.Header
    """The raw header: exposure time, gain, read noise, approximate WCS."""


@dataclass(frozen=True, slots=True)
class CcdImage:
    """A reduced image, or a coadd: pixels, their variance, their mask, and where on the sky they are.

    All three arrays have the same shape (rows, columns).
    """

    image: NDArray[np.float32]
    """Pixel values in `unit`."""

    variance: NDArray[np.float32]
    """Variance of the pixel values, in `unit` squared."""

    mask: NDArray[np.uint8]
    """`MaskBit` flags."""

    header: fits.Header
    """WCS, and what is known of the exposure."""

    psf_fwhm_px: NDArray[np.float32] | None = None
    """FWHM of the PSF at every pixel of a coadd, where it jumps with the set of visits; else None."""

    @property
    def unit(self) -> str:
        """Unit of the pixel values: ``electron`` before, ``nJy`` after photometric calibration."""
        return str(self.header["BUNIT"])

    @property
    def wcs(self) -> WCS:
        """The transformation between pixels (origin 0) and ICRS degrees."""
        return WCS(self.header)

    def has(self, bits: MaskBit) -> NDArray[np.bool_]:
        """Return where any of ``bits`` is set; same shape as the image."""
        return np.asarray((self.mask & np.uint8(bits)) != 0)
