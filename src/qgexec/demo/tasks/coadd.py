"""Owns the coadds: the calibrated images of one band, resampled to a patch of the sky and averaged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from astropy.wcs import WCS
from lsst.daf.butler import DeferredDatasetHandle
from lsst.pex.config import Field
from lsst.pipe.base import (
    InputQuantizedConnection,
    NoWorkFound,
    OutputQuantizedConnection,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    Struct,
)
from lsst.pipe.base.connectionTypes import Input, Output
from numpy.typing import NDArray
from reproject import reproject_interp
from scipy import ndimage

from qgexec.demo.images import CcdImage, MaskBit
from qgexec.demo.skygrid import SkyGrid

__all__ = ["CoaddConfig", "CoaddTask", "Warp", "average", "warp"]

PATCH_BAND = ("skymap", "tract", "patch", "band")
FloatArray = NDArray[np.floating]


class CoaddConnections(PipelineTaskConnections, dimensions=PATCH_BAND):
    """What `CoaddTask` reads and writes.

    That a calibrated CCD is an input of those patches that it overlaps is
    found by the graph builder, from the regions of both in the registry.
    """

    sky_map = Input(
        doc="Geometry of tracts and patches.", name="skyMap", storageClass="SkyGrid", dimensions=("skymap",)
    )
    calibrated = Input(
        doc="Calibrated images that overlap the patch.",
        name="calibrated",
        storageClass="CcdImage",
        dimensions=("instrument", "visit", "detector"),
        multiple=True,
        deferLoad=True,
    )
    coadd = Output(doc="Coadd of a patch.", name="coadd", storageClass="CcdImage", dimensions=PATCH_BAND)


class CoaddConfig(PipelineTaskConfig, pipelineConnections=CoaddConnections):
    """Configuration of `CoaddTask`."""

    clip_sigma = Field[float](doc="Pixels that are farther from the median are rejected.", default=5.0)
    clip_contrast = Field[float](
        doc="Deviation, as a fraction of the signal, that differences in seeing may cause.", default=1.0
    )


@dataclass(frozen=True, slots=True)
class Warp:
    """All detectors of one visit, resampled to a patch; arrays of the patch's shape."""

    image: FloatArray
    """Pixel values; NaN where there are none."""

    variance: FloatArray
    """Their variances."""

    weight: FloatArray
    """Weight in an average; zero where there is no pixel."""

    saturated: NDArray[np.bool_]
    """Where the visit is saturated."""

    psf_fwhm_px: FloatArray
    """FWHM of the PSF."""


class CoaddTask(PipelineTask):
    """Resample and average: inverse variances as weights, outliers rejected."""

    ConfigClass: ClassVar[type[PipelineTaskConfig]] = CoaddConfig
    _DefaultName: ClassVar[str] = "coadd"
    config: CoaddConfig

    def runQuantum(  # noqa: N802 - upstream's name
        self,
        butlerQC: QuantumContext,  # noqa: N803 - upstream's name
        inputRefs: InputQuantizedConnection,  # noqa: N803 - upstream's name
        outputRefs: OutputQuantizedConnection,  # noqa: N803 - upstream's name
    ) -> None:
        """Read inputs, run, write outputs; overridden because `run` must know which patch it works on."""
        inputs: dict[str, Any] = butlerQC.get(inputRefs)
        data_id = butlerQC.quantum.dataId
        assert data_id is not None, "A task with dimensions has a data ID."
        outputs = self.run(**inputs, patch=int(data_id["patch"]), band=str(data_id["band"]))
        butlerQC.put(outputs, outputRefs)

    def run(
        self, sky_map: SkyGrid, calibrated: Sequence[DeferredDatasetHandle], *, patch: int, band: str
    ) -> Struct:
        """Make the coadd of one patch.

        Parameters
        ----------
        sky_map
            Geometry of the patches.
        calibrated
            Handles of the images; one at a time is held in memory.
        patch
            Which patch.
        band
            Which band; goes into the header.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``coadd``: the `CcdImage` in nJy.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            If images overlap the patch in the registry, but no pixel does.
        """
        wcs, shape = sky_map.patch_wcs(patch), sky_map.patch_shape
        by_visit: dict[int, list[DeferredDatasetHandle]] = defaultdict(list)
        for handle in calibrated:
            by_visit[int(handle.dataId["visit"])].append(handle)
        warps = [self._warp_visit(by_visit[visit], wcs, shape) for visit in sorted(by_visit)]
        image, variance, fwhm, rejected = average(
            warps, clip_sigma=self.config.clip_sigma, clip_contrast=self.config.clip_contrast
        )
        empty = ~np.isfinite(image)
        if empty.all():
            raise NoWorkFound(f"no pixel of {len(calibrated)} images falls on patch {patch}")
        mask = np.where(empty, np.uint8(MaskBit.NO_DATA), np.uint8(0))
        saturated = np.any([warp.saturated for warp in warps], axis=0)
        mask[saturated] |= np.uint8(MaskBit.SATURATED)
        self.metadata["n_images"] = len(calibrated)
        self.metadata["n_rejected_pixels"] = rejected
        self.metadata["covered_fraction"] = float(1 - empty.mean())
        header = wcs.to_header()
        header["BUNIT"], header["BAND"], header["PATCH"] = "nJy", band, patch
        return Struct(
            coadd=CcdImage(
                np.where(empty, 0, image).astype(np.float32),
                np.where(empty, 0, variance).astype(np.float32),
                mask,
                header,
                np.where(empty, 0, fwhm).astype(np.float32),
            )
        )

    @staticmethod
    def _warp_visit(handles: Sequence[DeferredDatasetHandle], wcs: WCS, shape: tuple[int, int]) -> Warp:
        visit = Warp(
            image=np.full(shape, np.nan),
            variance=np.zeros(shape),
            weight=np.zeros(shape),
            saturated=np.zeros(shape, dtype=np.bool_),
            psf_fwhm_px=np.zeros(shape),
        )
        for handle in handles:
            warp(handle.get(), wcs, visit)
        return visit


def warp(ccd: CcdImage, wcs: WCS, onto: Warp) -> None:
    """Resample one detector onto a patch.

    Cubic interpolation keeps the PSF whatever the sub-pixel shift. Variances
    are interpolated linearly: sums over several pixels then have the right
    errors, although neighbouring pixels are correlated.

    Parameters
    ----------
    ccd
        The calibrated image.
    wcs
        WCS of the patch.
    onto
        Where the pixels go; changed in place.
    """
    window = _overlap(ccd, wcs, onto.image.shape)
    if window is None:
        return
    rows, columns = window
    target = wcs.deepcopy()
    target.wcs.crpix -= (columns.start, rows.start)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    hidden = ccd.has(MaskBit.BAD | MaskBit.COSMIC_RAY)
    planes = np.stack([ccd.variance, hidden, ccd.has(MaskBit.SATURATED)]).astype(np.float32)
    image, _ = reproject_interp((ccd.image, ccd.wcs), target, shape, order="bicubic", roundtrip_coords=False)
    (variance, bad, saturated), _ = reproject_interp(
        (planes, ccd.wcs), target, shape, order="bilinear", roundtrip_coords=False
    )
    good = np.isfinite(image) & np.isfinite(variance) & (bad < 0.01)
    # One weight for the whole image: weights that knew a pixel's own photons would favour faint ones.
    weight = 1.0 / float(np.median(ccd.variance))
    onto.image[window] = np.where(good, image, onto.image[window])
    onto.variance[window] = np.where(good, variance, onto.variance[window])
    onto.weight[window] = np.where(good, weight, onto.weight[window])
    onto.psf_fwhm_px[window] = np.where(good, ccd.header["PSFFWHM"], onto.psf_fwhm_px[window])
    onto.saturated[window] |= np.nan_to_num(saturated) > 0.01


def average(
    warps: Sequence[Warp], *, clip_sigma: float, clip_contrast: float
) -> tuple[FloatArray, FloatArray, FloatArray, int]:
    """Average visits, weighted and without outliers.

    Parameters
    ----------
    warps
        The n visits.
    clip_sigma, clip_contrast
        A pixel is an outlier if it is farther from the median than
        ``clip_sigma`` standard deviations plus ``clip_contrast`` times the
        signal around. Of two visits the fainter is believed: cosmic rays
        only add.

    Returns
    -------
    image, variance, psf_fwhm_px : `numpy.ndarray`
        The average, its variance, and the FWHM of its PSF; NaN where no
        visit has a pixel.
    n_rejected : `int`
        Number of outliers.
    """
    images = np.stack([warp.image for warp in warps])
    variances = np.stack([warp.variance for warp in warps])
    weights = np.stack([warp.weight for warp in warps])
    seen = weights > 0
    filled = np.where(seen, images, np.inf)
    order = np.sort(filled, axis=0)
    n_seen = seen.sum(axis=0)
    # The lower median: of an even number of visits the mean of the middle two may hold the outlier.
    middle = np.take_along_axis(order, (np.maximum(n_seen - 1, 0) // 2)[np.newaxis], axis=0)[0]
    middle = np.where(n_seen > 0, middle, 0.0)
    signal = ndimage.maximum_filter(np.maximum(middle, 0.0), size=3)
    limit = clip_sigma * np.sqrt(variances) + clip_contrast * signal
    with np.errstate(invalid="ignore"):
        outlier = seen & (n_seen >= 2) & (np.abs(images - middle) > limit)
    weights = np.where(outlier, 0.0, weights)
    total = weights.sum(axis=0)
    total = np.where(total > 0, total, np.nan)
    image = np.where(weights > 0, weights * images, 0.0).sum(axis=0) / total
    variance = (weights**2 * variances).sum(axis=0) / total**2
    # The FWHM of a sum of similar profiles is, to first order in their differences, the mean of theirs.
    fwhm = (weights * np.stack([warp.psf_fwhm_px for warp in warps])).sum(axis=0) / total
    return image, variance, fwhm, int(outlier.sum())


def _overlap(ccd: CcdImage, wcs: WCS, shape: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Return the part of a patch that a detector may cover, or None."""
    rows, columns = ccd.image.shape
    corners = ccd.wcs.all_pix2world([0, columns, columns, 0], [0, 0, rows, rows], 0)
    x, y = wcs.all_world2pix(*corners, 0)
    low_x, high_x = max(int(x.min()) - 1, 0), min(int(x.max()) + 2, shape[1])
    low_y, high_y = max(int(y.min()) - 1, 0), min(int(y.max()) + 2, shape[0])
    if low_x >= high_x or low_y >= high_y:
        return None
    return slice(low_y, high_y), slice(low_x, high_x)
