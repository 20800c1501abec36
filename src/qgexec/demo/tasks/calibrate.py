"""Owns the calibration of single frames: sky background, PSF, astrometry, photometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from astropy.io import fits
from astropy.stats import mad_std, sigma_clip
from astropy.table import Column, Table, vstack
from astropy.wcs import WCS
from lsst.daf.butler import DeferredDatasetHandle
from lsst.pex.config import Field
from lsst.pipe.base import (
    AlgorithmError,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    Struct,
)
from lsst.pipe.base.connectionTypes import InitOutput, Input, Output, PrerequisiteInput
from numpy.typing import NDArray
from photutils.background import Background2D
from scipy import ndimage

from qgexec.demo import measure
from qgexec.demo.astrometry import AstrometricFit, AstrometryError, fit_astrometry
from qgexec.demo.images import CcdImage, MaskBit
from qgexec.demo.psf import MoffatPsf

__all__ = ["CalibrateConfig", "CalibrateTask", "CalibrationError", "make_source_schema"]

NJY_ZERO_POINT_MAG = 31.4
"""AB magnitude of 1 nJy."""

CCD_VISIT = ("instrument", "visit", "detector")
Array = NDArray[Any]


class CalibrationError(AlgorithmError):
    """The frame cannot be calibrated: too few stars, or none where the reference catalogue has them.

    Parameters
    ----------
    message
        What is missing.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self._message = message

    @property
    def metadata(self) -> dict[str, str]:
        """What the executor writes into the quantum's metadata."""
        return {"reason": self._message}


class CalibrateConnections(PipelineTaskConnections, dimensions=CCD_VISIT):
    """What `CalibrateTask` reads and writes."""

    source_schema = InitOutput(
        doc="Empty table with the columns of ``sources``, their units and descriptions.",
        name="source_schema",
        storageClass="ArrowAstropy",
    )
    post_isr = Input(
        doc="Images of the exposures that make up the visit.",
        name="post_isr",
        storageClass="CcdImage",
        dimensions=("instrument", "exposure", "detector"),
        multiple=True,
    )
    reference = PrerequisiteInput(
        doc="Reference catalogue, in the pieces of the sky that overlap the detector.",
        name="demo_refcat",
        storageClass="ArrowAstropy",
        dimensions=("htm7",),
        multiple=True,
        deferLoad=True,
    )
    calibrated = Output(
        doc="Background-subtracted image in nJy with a fitted WCS.",
        name="calibrated",
        storageClass="CcdImage",
        dimensions=CCD_VISIT,
    )
    sources = Output(
        doc="Sources of the image.", name="sources", storageClass="ArrowAstropy", dimensions=CCD_VISIT
    )


class CalibrateConfig(PipelineTaskConfig, pipelineConnections=CalibrateConnections):
    """Configuration of `CalibrateTask`."""

    background_box_px = Field[int](doc="Size of the boxes in which the background is constant.", default=64)
    threshold = Field[float](doc="Signal-to-noise ratio of the faintest sources.", default=5.0)
    fwhm_guess_px = Field[float](doc="FWHM of stars before it is measured.", default=3.0)
    psf_star_snr = Field[float](doc="Signal-to-noise ratio of the faintest stars for the PSF.", default=50.0)
    max_psf_stars = Field[int](doc="Number of stars for the PSF, the brightest first.", default=30)
    min_psf_stars = Field[int](doc="Fewer stars for the PSF are an error.", default=3)
    fit_snr = Field[float](doc="Signal-to-noise ratio of the faintest stars that are fitted.", default=15.0)
    pointing_error_arcsec = Field[float](doc="How far the header's WCS may be off.", default=20.0)
    aperture_radius_px = Field[float](doc="Aperture that contains the light of a star.", default=9.0)
    max_aperture_stars = Field[int](doc="Number of stars for the aperture correction.", default=10)
    model_error_mag = Field[float](doc="Error floor of PSF fluxes.", default=0.005)


@dataclass(frozen=True, slots=True)
class _Sources:
    """Sources of one frame; arrays of shape (n,)."""

    x: Array
    y: Array
    saturated: NDArray[np.bool_]


class CalibrateTask(PipelineTask):
    """Subtract the background, find and measure sources, and fit position and brightness to a catalogue.

    Parameters
    ----------
    **kwargs
        Passed to the base class.
    """

    ConfigClass: ClassVar[type[PipelineTaskConfig]] = CalibrateConfig
    _DefaultName: ClassVar[str] = "calibrate"
    config: CalibrateConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # An attribute named as an init-output connection is what the framework writes.
        self.source_schema = make_source_schema()

    def run(self, post_isr: Sequence[CcdImage], reference: Sequence[DeferredDatasetHandle]) -> Struct:
        """Calibrate one detector of one visit.

        Parameters
        ----------
        post_isr
            The image; visits of this camera consist of one exposure each.
        reference
            Handles of the pieces of the reference catalogue.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``calibrated`` (`CcdImage`) and ``sources``
            (`astropy.table.Table`).

        Raises
        ------
        CalibrationError
            If there are too few stars.
        """
        (exposure,) = post_isr
        catalogue = vstack([handle.get() for handle in reference], metadata_conflicts="silent")
        bad = exposure.has(MaskBit.BAD | MaskBit.COSMIC_RAY | MaskBit.SATURATED)
        image = self._subtract_background(exposure, bad)
        found, psf_stars, psf = self._find(image, exposure, bad)
        fluxes = measure.fit_psf_fluxes(image, exposure.variance, bad, found.x, found.y, psf)
        usable = (fluxes.snr > self.config.fit_snr) & ~found.saturated
        fluxes = self._correct_aperture(found, psf_stars, fluxes, bad)
        astrometry = self._fit_astrometry(found, usable, catalogue, exposure)
        zero_point = self._fit_zero_point(fluxes, astrometry, catalogue[f"mag_{exposure.header['BAND']}"])
        self.metadata["n_sources"] = len(found.x)
        self.metadata["seeing_fwhm_px"] = psf.fwhm_px
        self.metadata["psf_beta"] = psf.beta
        njy = 10 ** (0.4 * (NJY_ZERO_POINT_MAG - zero_point))
        sizes = measure.size_ratios(image, found.x, found.y, psf)
        sources = self._make_table(found, fluxes, njy, sizes, astrometry.wcs, exposure.header)
        header = _calibrated_header(exposure.header, astrometry, zero_point, psf)
        return Struct(
            calibrated=CcdImage(
                (image * njy).astype(np.float32),
                (exposure.variance * njy**2).astype(np.float32),
                exposure.mask,
                header,
            ),
            sources=sources,
        )

    def _subtract_background(self, exposure: CcdImage, bad: NDArray[np.bool_]) -> Array:
        """Subtract the sky, in a second pass without the pixels that the first found to be sources."""
        box = self.config.background_box_px
        image = exposure.image - Background2D(exposure.image, box, mask=bad).background
        snr = measure.matched_filter_snr(image, exposure.variance, bad, self.config.fwhm_guess_px / 2)
        sources = ndimage.binary_dilation(snr > 3, iterations=4)
        background = Background2D(exposure.image, box, mask=bad | sources, exclude_percentile=90).background
        self.metadata["background_electrons"] = float(np.median(background))
        return np.asarray(exposure.image - background)

    def _find(
        self, image: Array, exposure: CcdImage, bad: NDArray[np.bool_]
    ) -> tuple[_Sources, NDArray[np.intp], MoffatPsf]:
        """Find sources with a guessed PSF, measure the PSF on some of them, and find again."""
        psf = MoffatPsf(self.config.fwhm_guess_px, 3.0)
        for _ in range(2):
            snr = measure.matched_filter_snr(image, exposure.variance, bad, psf.sigma_px)
            x, y, saturated = measure.find_sources(
                snr,
                exposure.has(MaskBit.SATURATED),
                threshold=self.config.threshold,
                separation_px=2 * psf.fwhm_px,
            )
            x, y = np.where(saturated, (x, y), measure.windowed_centroids(image, x, y, psf.sigma_px))
            chosen = self._choose_psf_stars(image, snr, x, y, saturated, bad)
            psf = measure.fit_moffat(image, exposure.variance, x[chosen], y[chosen], guess=psf)
        self.metadata["n_psf_stars"] = len(chosen)
        return _Sources(x, y, saturated), chosen, psf

    def _choose_psf_stars(
        self, image: Array, snr: Array, x: Array, y: Array, saturated: Array, bad: NDArray[np.bool_]
    ) -> NDArray[np.intp]:
        """Pick the brightest clean sources that are as small as most: stars."""
        column = np.clip(np.rint(x).astype(int), 0, image.shape[1] - 1)
        row = np.clip(np.rint(y).astype(int), 0, image.shape[0] - 1)
        brightness = snr[row, column]
        sizes = measure.size_ratios(image, x, y, MoffatPsf(self.config.fwhm_guess_px, 3.0))
        good = (brightness > self.config.psf_star_snr) & ~saturated
        good &= measure.aperture_fluxes(bad.astype(float), x, y, 2 * self.config.fwhm_guess_px) == 0
        if good.sum() < self.config.min_psf_stars:
            raise CalibrationError(f"only {good.sum()} clean stars for the PSF")
        good &= np.abs(sizes - np.median(sizes[good])) < 3 * max(float(mad_std(sizes[good])), 0.02)
        order = np.argsort(-brightness)
        return np.asarray(order[good[order]][: self.config.max_psf_stars])

    def _correct_aperture(
        self, found: _Sources, stars: NDArray[np.intp], fluxes: measure.PsfFluxes, bad: NDArray[np.bool_]
    ) -> measure.PsfFluxes:
        brightest = stars[: self.config.max_aperture_stars]
        factor = measure.aperture_correction(
            fluxes.residual,
            bad,
            found.x[brightest],
            found.y[brightest],
            fluxes.flux[brightest],
            self.config.aperture_radius_px,
        )
        self.metadata["aperture_correction"] = factor
        return replace(fluxes, flux=fluxes.flux * factor, flux_err=fluxes.flux_err * factor)

    def _fit_astrometry(
        self, found: _Sources, usable: NDArray[np.bool_], catalogue: Table, exposure: CcdImage
    ) -> AstrometricFit:
        try:
            fit = fit_astrometry(
                found.x[usable],
                found.y[usable],
                np.asarray(catalogue["ra_deg"]),
                np.asarray(catalogue["dec_deg"]),
                exposure.wcs,
                search_radius_arcsec=self.config.pointing_error_arcsec,
            )
        except AstrometryError as error:
            raise CalibrationError(str(error)) from error
        self.metadata["n_astrometry_stars"] = len(fit.source_index)
        self.metadata["astrometry_scatter_mas"] = fit.scatter_mas
        return AstrometricFit(
            fit.wcs, np.flatnonzero(usable)[fit.source_index], fit.reference_index, fit.scatter_mas
        )

    def _fit_zero_point(
        self, fluxes: measure.PsfFluxes, astrometry: AstrometricFit, reference_mag: Column
    ) -> float:
        """Return the AB magnitude of one electron: the clipped, weighted mean over reference stars."""
        flux, error = (v[astrometry.source_index] for v in (fluxes.flux, fluxes.flux_err))
        offsets = np.asarray(reference_mag)[astrometry.reference_index] + 2.5 * np.log10(flux)
        weight = 1.0 / ((1.0857 * error / flux) ** 2 + self.config.model_error_mag**2)
        kept = ~np.ma.getmaskarray(sigma_clip(offsets, sigma=3.5, stdfunc=mad_std))
        scatter = float(mad_std(offsets[kept]))
        self.metadata["n_zero_point_stars"] = int(kept.sum())
        self.metadata["zero_point_mag"] = zero_point = float(np.average(offsets[kept], weights=weight[kept]))
        self.metadata["zero_point_scatter_mmag"] = 1000 * scatter
        self.log.info(
            "Zero point %.3f mag (scatter %.1f mmag), astrometric scatter %.0f mas, %d stars.",
            zero_point,
            1000 * scatter,
            astrometry.scatter_mas,
            int(kept.sum()),
        )
        return zero_point

    def _make_table(
        self,
        found: _Sources,
        fluxes: measure.PsfFluxes,
        njy: float,
        sizes: Array,
        wcs: WCS,
        header: fits.Header,
    ) -> Table:
        """Return the sources with the columns, units and descriptions of the schema."""
        n = len(found.x)
        ra, dec = wcs.all_pix2world(found.x, found.y, 0)
        columns = {
            "visit": np.full(n, header["EXPID"]),
            "detector": np.full(n, header["DETECTOR"]),
            "band": np.full(n, header["BAND"]),
            "x_px": found.x,
            "y_px": found.y,
            "ra_deg": ra,
            "dec_deg": dec,
            "psf_flux_njy": fluxes.flux * njy,
            "psf_flux_err_njy": fluxes.flux_err * njy,
            "size_ratio": sizes,
            "is_saturated": found.saturated,
        }
        table = Table(columns)[self.source_schema.colnames]
        for name in table.colnames:
            table[name].unit = self.source_schema[name].unit
            table[name].description = self.source_schema[name].description
        return table


def make_source_schema() -> Table:
    """Describe the table of sources.

    Returns
    -------
    schema : `astropy.table.Table`
        No rows; every column with its type, unit and description.
    """
    return Table(
        [
            Column(name="visit", dtype=np.int64, description="Number of the visit."),
            Column(name="detector", dtype=np.int64, description="Number of the CCD."),
            Column(name="band", dtype="U1", description="Band of the filter."),
            Column(name="x_px", dtype=float, unit="pix", description="Column, counted from 0."),
            Column(name="y_px", dtype=float, unit="pix", description="Row, counted from 0."),
            Column(name="ra_deg", dtype=float, unit="deg", description="Right ascension (ICRS)."),
            Column(name="dec_deg", dtype=float, unit="deg", description="Declination (ICRS)."),
            Column(name="psf_flux_njy", dtype=float, unit="nJy", description="Flux of a point source."),
            Column(name="psf_flux_err_njy", dtype=float, unit="nJy", description="Its standard error."),
            Column(name="size_ratio", dtype=float, description="Size relative to the PSF; 1 for a star."),
            Column(name="is_saturated", dtype=bool, description="The full well was reached."),
        ]
    )


def _calibrated_header(
    raw: fits.Header, astrometry: AstrometricFit, zero_point: float, psf: MoffatPsf
) -> fits.Header:
    header = astrometry.wcs.to_header()
    for key in ("INSTRUME", "OBSID", "EXPID", "DETECTOR", "FILTER", "BAND", "DATE-OBS", "EXPTIME"):
        header[key] = raw[key]
    header["BUNIT"] = "nJy"
    header["MAGZERO"] = (zero_point, "[mag] AB magnitude of one electron")
    header["PSFFWHM"] = (psf.fwhm_px, "[pix] FWHM of the fitted Moffat profile")
    header["PSFBETA"] = (psf.beta, "its exponent")
    return header
