"""Owns instrument signature removal: from a raw frame to electrons that came through the telescope."""

from __future__ import annotations

from typing import ClassVar

import astroscrappy
import numpy as np
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import Input, Output, PrerequisiteInput
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from scipy import ndimage

from qgexec.demo.images import CcdImage, MaskBit, RawCcd

__all__ = ["IsrConfig", "IsrTask"]

CCD_EXPOSURE = ("instrument", "exposure", "detector")


class IsrConnections(PipelineTaskConnections, dimensions=CCD_EXPOSURE):
    """What `IsrTask` reads and writes.

    Calibrations are prerequisites: they must exist before the pipeline runs,
    and the one whose validity range contains the exposure is taken.
    """

    raw = Input(doc="Raw frame.", name="raw", storageClass="RawCcd", dimensions=CCD_EXPOSURE)
    bias = PrerequisiteInput(
        doc="Master bias.",
        name="bias",
        storageClass="CcdImage",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )
    dark = PrerequisiteInput(
        doc="Master dark.",
        name="dark",
        storageClass="CcdImage",
        dimensions=("instrument", "detector"),
        isCalibration=True,
    )
    flat = PrerequisiteInput(
        doc="Master flat of the exposure's filter.",
        name="flat",
        storageClass="CcdImage",
        dimensions=("instrument", "physical_filter", "detector"),
        isCalibration=True,
    )
    post_isr = Output(
        doc="Image in electrons, without the detector's signature.",
        name="post_isr",
        storageClass="CcdImage",
        dimensions=CCD_EXPOSURE,
    )


class IsrConfig(PipelineTaskConfig, pipelineConnections=IsrConnections):
    """Configuration of `IsrTask`."""

    overscan_order = Field[int](doc="Order of the polynomial along the overscan.", default=3)
    min_flat = Field[float](doc="Pixels with a lower response are bad.", default=0.3)
    max_dark_electrons = Field[float](doc="Pixels with more dark charge are bad.", default=50.0)
    saturation_fraction = Field[float](doc="Fraction of a full well that is saturated.", default=0.97)
    cosmic_ray_sigma = Field[float](doc="Laplacian signal-to-noise of a cosmic ray.", default=4.5)


class IsrTask(PipelineTask):
    """Subtract overscan, bias and dark, divide by the flat, and find bad pixels and cosmic rays."""

    ConfigClass: ClassVar[type[PipelineTaskConfig]] = IsrConfig
    _DefaultName: ClassVar[str] = "isr"
    config: IsrConfig

    def run(self, raw: RawCcd, bias: CcdImage, dark: CcdImage, flat: CcdImage) -> Struct:
        """Reduce one frame.

        Parameters
        ----------
        raw
            The raw frame.
        bias, dark, flat
            The master calibrations: ADU, electrons per second, and relative
            response.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``post_isr``: the reduced `CcdImage` in electrons.
        """
        header = raw.header
        n_columns = bias.image.shape[1]
        adu = raw.data[:, :n_columns] - self._overscan_level(raw.data[:, n_columns:]) - bias.image
        electrons = adu * header["GAIN"]
        collected = electrons - dark.image * header["DARKTIME"]
        mask = self._mask_pixels(electrons, dark.image * header["DARKTIME"], flat.image, header["FULLWELL"])
        response = np.where(mask & np.uint8(MaskBit.BAD), 1.0, flat.image)
        image = collected / response
        # What arrived, dark current included, has Poisson noise; what was subtracted had none worth counting.
        variance = (np.maximum(electrons, 0.0) + header["RDNOISE"] ** 2) / response**2
        image, mask = self._remove_cosmic_rays(image, variance, mask)
        self.metadata["n_cosmic_ray_pixels"] = int(np.count_nonzero(mask & np.uint8(MaskBit.COSMIC_RAY)))
        self.metadata["n_saturated_pixels"] = int(np.count_nonzero(mask & np.uint8(MaskBit.SATURATED)))
        self.metadata["sky_electrons"] = float(np.median(image))
        self.log.info(
            "Sky level %.1f electrons, %d pixels hit by cosmic rays.",
            self.metadata["sky_electrons"],
            self.metadata["n_cosmic_ray_pixels"],
        )
        header = header.copy()
        header["BUNIT"] = "electron"
        return Struct(post_isr=CcdImage(image.astype(np.float32), variance.astype(np.float32), mask, header))

    def _overscan_level(self, overscan: NDArray[np.uint16]) -> NDArray[np.floating]:
        """Return the bias level of every row, shape (rows, 1), smoothed so that it adds no noise."""
        rows = np.linspace(-1.0, 1.0, overscan.shape[0])
        coefficients = chebyshev.chebfit(rows, overscan.mean(axis=1), self.config.overscan_order)
        return np.asarray(chebyshev.chebval(rows, coefficients))[:, np.newaxis]

    def _mask_pixels(
        self,
        electrons: NDArray[np.floating],
        dark_electrons: NDArray[np.floating],
        flat: NDArray[np.floating],
        full_well: float,
    ) -> NDArray[np.uint8]:
        mask = np.zeros(electrons.shape, dtype=np.uint8)
        bad = (flat < self.config.min_flat) | (dark_electrons > self.config.max_dark_electrons)
        mask[bad] |= np.uint8(MaskBit.BAD)
        saturated = electrons > self.config.saturation_fraction * full_well
        # One pixel more: the neighbours of a full well are not linear either.
        mask[ndimage.binary_dilation(saturated) if saturated.any() else saturated] |= np.uint8(
            MaskBit.SATURATED
        )
        return mask

    def _remove_cosmic_rays(
        self, image: NDArray[np.floating], variance: NDArray[np.floating], mask: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Flag cosmic rays, and interpolate over them and over bad pixels (van Dokkum 2001)."""
        bad = (mask & np.uint8(MaskBit.BAD)) != 0
        hit, cleaned = astroscrappy.detect_cosmics(
            image.astype(np.float32),
            inmask=np.ascontiguousarray(mask != 0),
            invar=variance.astype(np.float32),
            sigclip=self.config.cosmic_ray_sigma,
            satlevel=np.inf,
        )
        mask = mask.copy()
        mask[hit] |= np.uint8(MaskBit.COSMIC_RAY)
        return _fill(cleaned, bad), mask


def _fill(image: NDArray[np.float32], bad: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Replace bad pixels by the Gaussian-weighted mean of the good ones around."""
    weight = ndimage.gaussian_filter((~bad).astype(np.float32), 1.0)
    smooth = ndimage.gaussian_filter(np.where(bad, np.float32(0), image), 1.0)
    return np.asarray(np.where(bad, smooth / np.maximum(weight, 1e-6), image), dtype=np.float32)
