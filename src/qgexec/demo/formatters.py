"""Owns how the demonstration's images look as FITS files; butler.yaml names these classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from astropy.io import fits
from lsst.daf.butler import FormatterV2
from lsst.resources import ResourcePath

from qgexec.demo.images import CcdImage, RawCcd

__all__ = ["CcdImageFormatter", "RawCcdFormatter"]


class RawCcdFormatter(FormatterV2):
    """Reads and writes a `RawCcd` as a FITS file with one unsigned 16-bit image."""

    default_extension: ClassVar[str | None] = ".fits"
    can_read_from_local_file: ClassVar[bool] = True

    def read_from_local_file(
        self,
        path: str,
        component: str | None = None,
        expected_size: int = -1,
    ) -> Any:
        """Read a raw frame; see the base class."""
        with fits.open(path, memmap=False) as hdus:
            return RawCcd(np.asarray(hdus[0].data, dtype=np.uint16), hdus[0].header)

    def write_local_file(self, in_memory_dataset: RawCcd, uri: ResourcePath) -> None:
        """Write a raw frame; see the base class."""
        fits.PrimaryHDU(in_memory_dataset.data, in_memory_dataset.header).writeto(uri.ospath)


class CcdImageFormatter(FormatterV2):
    """Reads and writes a `CcdImage`: HDUs IMAGE (with the header), VARIANCE, MASK, and of coadds PSFFWHM."""

    default_extension: ClassVar[str | None] = ".fits"
    can_read_from_local_file: ClassVar[bool] = True

    def read_from_local_file(
        self,
        path: str,
        component: str | None = None,
        expected_size: int = -1,
    ) -> Any:
        """Read a reduced image; see the base class."""
        with fits.open(path, memmap=False) as hdus:
            has_psf = "PSFFWHM" in hdus
            return CcdImage(
                # FITS is big-endian; compiled code downstream wants the machine's own order.
                image=hdus["IMAGE"].data.astype(np.float32),
                variance=hdus["VARIANCE"].data.astype(np.float32),
                mask=hdus["MASK"].data.astype(np.uint8),
                header=hdus["IMAGE"].header,
                psf_fwhm_px=hdus["PSFFWHM"].data.astype(np.float32) if has_psf else None,
            )

    def write_local_file(self, in_memory_dataset: CcdImage, uri: ResourcePath) -> None:
        """Write a reduced image; see the base class."""
        hdus = fits.HDUList(
            [
                fits.PrimaryHDU(),
                fits.ImageHDU(in_memory_dataset.image, in_memory_dataset.header, name="IMAGE"),
                fits.ImageHDU(in_memory_dataset.variance, name="VARIANCE"),
                fits.ImageHDU(in_memory_dataset.mask, name="MASK"),
            ]
        )
        if in_memory_dataset.psf_fwhm_px is not None:
            hdus.append(fits.ImageHDU(in_memory_dataset.psf_fwhm_px, name="PSFFWHM"))
        hdus.writeto(uri.ospath)
