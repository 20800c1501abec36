"""Owns the catalogue: objects found on all bands together, measured in each, once per tract."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from astropy.table import Column, Table, vstack
from lsst.daf.butler import DeferredDatasetHandle
from lsst.pex.config import Field, ListField
from lsst.pipe.base import NoWorkFound, PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import InitOutput, Input, Output
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from qgexec.demo import measure
from qgexec.demo.astrometry import tangent_offsets_arcsec
from qgexec.demo.images import CcdImage, MaskBit
from qgexec.demo.layout import BANDS
from qgexec.demo.psf import MoffatPsf

__all__ = ["CatalogueConfig", "CatalogueTask", "make_object_schema", "unique_objects"]

FloatArray = NDArray[np.floating]


class CatalogueConnections(PipelineTaskConnections, dimensions=("skymap", "tract")):
    """What `CatalogueTask` reads and writes."""

    object_schema = InitOutput(
        doc="Empty table with the columns of ``objects``, their units and descriptions.",
        name="object_schema",
        storageClass="ArrowAstropy",
    )
    coadds = Input(
        doc="Coadds of all patches and bands of the tract.",
        name="coadd",
        storageClass="CcdImage",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
    )
    objects = Output(
        doc="Objects of the tract.",
        name="objects",
        storageClass="ArrowAstropy",
        dimensions=("skymap", "tract"),
    )


class CatalogueConfig(PipelineTaskConfig, pipelineConnections=CatalogueConnections):
    """Configuration of `CatalogueTask`."""

    bands = ListField[str](doc="Bands to measure.", default=list(BANDS))
    threshold = Field[float](doc="Signal-to-noise ratio of the faintest objects.", default=5.0)
    fwhm_guess_px = Field[float](doc="FWHM of stars before it is measured.", default=3.0)
    psf_star_snr = Field[float](doc="Signal-to-noise ratio of the faintest stars for the PSF.", default=60.0)
    max_psf_stars = Field[int](doc="Number of stars for the PSF, the brightest first.", default=30)
    min_psf_stars = Field[int](doc="A patch with fewer is left out.", default=3)
    aperture_radius_px = Field[float](doc="Radius of the aperture for extended objects.", default=6.0)
    correction_radius_px = Field[float](doc="Aperture that contains the light of a star.", default=9.0)
    min_size = Field[float](doc="Size, relative to the PSF, of the smallest objects.", default=0.75)
    max_star_size = Field[float](doc="Size, relative to the PSF, of the largest stars.", default=1.08)
    same_object_arcsec = Field[float](doc="Objects of two patches that are nearer are one.", default=0.8)


class CatalogueTask(PipelineTask):
    """Find objects on the sum of all bands, and measure them at the same place in every band.

    Parameters
    ----------
    **kwargs
        Passed to the base class.
    """

    ConfigClass: ClassVar[type[PipelineTaskConfig]] = CatalogueConfig
    _DefaultName: ClassVar[str] = "catalogue"
    config: CatalogueConfig

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.object_schema = make_object_schema(list(self.config.bands))

    def run(self, coadds: Sequence[DeferredDatasetHandle]) -> Struct:
        """Make the catalogue of one tract.

        Parameters
        ----------
        coadds
            Handles of the coadds; one patch at a time is held in memory.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``objects``: table with the columns of `make_object_schema`.

        Raises
        ------
        lsst.pipe.base.NoWorkFound
            If no patch can be measured.
        """
        by_patch: dict[int, dict[str, DeferredDatasetHandle]] = defaultdict(dict)
        for handle in coadds:
            by_patch[int(handle.dataId["patch"])][str(handle.dataId["band"])] = handle
        tables = []
        for patch, handles in sorted(by_patch.items()):
            if missing := set(self.config.bands) - set(handles):
                self.log.warning("Patch %d has no coadd in %s; left out.", patch, ", ".join(sorted(missing)))
                continue
            images = {band: handles[band].get() for band in self.config.bands}
            table = self._measure_patch(patch, images)
            if table is not None:
                tables.append(table)
        if not tables:
            raise NoWorkFound("no patch has enough stars in all bands")
        everything = vstack(tables, metadata_conflicts="silent")
        kept = unique_objects(everything, self.config.same_object_arcsec)
        objects = everything[kept][self.object_schema.colnames]
        objects["id"] = np.arange(1, len(objects) + 1)
        for name in objects.colnames:
            objects[name].unit = self.object_schema[name].unit
            objects[name].description = self.object_schema[name].description
        self.metadata["n_objects"] = len(objects)
        self.metadata["n_duplicates"] = len(everything) - len(objects)
        self.metadata["n_stars"] = int(objects["is_star"].sum())
        self.log.info("%d objects, %d of them stars.", len(objects), self.metadata["n_stars"])
        return Struct(objects=objects)

    def _measure_patch(self, patch: int, images: Mapping[str, CcdImage]) -> Table | None:
        """Find and measure the objects of one patch; None if it has too few stars."""
        combined = _combine_bands(list(images.values()))
        no_data = combined.has(MaskBit.NO_DATA | MaskBit.SATURATED)
        psf = MoffatPsf(self.config.fwhm_guess_px, 3.0)
        for _ in range(2):
            x, y, saturated, snr = self._find(combined, no_data, psf)
            stars = self._choose_psf_stars(combined, snr, x, y, saturated, no_data)
            if len(stars) < self.config.min_psf_stars:
                self.log.warning("Patch %d has only %d clean stars; left out.", patch, len(stars))
                return None
            scale = _psf_scale(combined, x, y)
            psf = measure.fit_moffat(
                combined.image, combined.variance, x[stars], y[stars], guess=psf, scale=scale[stars]
            )
        fluxes = measure.fit_psf_fluxes(combined.image, combined.variance, no_data, x, y, psf, scale=scale)
        sizes = measure.size_ratios(combined.image, x, y, psf, scale=scale)
        # Noise on the flanks of a bright star is significant until the star has been taken away; and
        # nothing in the sky is sharper than the PSF, but a cosmic ray is.
        real = (fluxes.snr > self.config.threshold) & ((sizes > self.config.min_size) | saturated)
        star_positions = x[stars], y[stars]
        x, y, saturated = x[real], y[real], saturated[real]
        wcs = images[self.config.bands[0]].wcs
        ra, dec = wcs.all_pix2world(x, y, 0)
        rows, columns = combined.image.shape
        table = Table({"id": np.zeros(len(x), dtype=np.int64), "patch": np.full(len(x), patch)})
        table["ra_deg"], table["dec_deg"], table["is_saturated"] = ra, dec, saturated
        table["edge_px"] = np.min([x, y, columns - 1 - x, rows - 1 - y], axis=0)
        table["snr"] = fluxes.snr[real]
        table["size_ratio"] = sizes[real]
        table["is_star"] = table["size_ratio"] < self.config.max_star_size
        for band, image in images.items():
            self._measure_band(table, band, image, (x, y), star_positions, psf)
        return table

    def _find(
        self, combined: CcdImage, no_data: NDArray[np.bool_], psf: MoffatPsf
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_], FloatArray]:
        """Return positions, which are saturated, and signal-to-noise ratios; each of shape (n,)."""
        snr = measure.matched_filter_snr(combined.image, combined.variance, no_data, psf.sigma_px)
        x, y, saturated = measure.find_sources(
            snr,
            combined.has(MaskBit.SATURATED),
            threshold=self.config.threshold,
            separation_px=2 * psf.fwhm_px,
        )
        peak = snr[_pixel(y, snr.shape[0]), _pixel(x, snr.shape[1])]
        centred = measure.windowed_centroids(combined.image, x, y, psf.sigma_px)
        x, y = np.where(saturated, (x, y), centred)
        return x, y, saturated, peak

    def _choose_psf_stars(
        self,
        combined: CcdImage,
        snr: FloatArray,
        x: FloatArray,
        y: FloatArray,
        saturated: NDArray[np.bool_],
        no_data: NDArray[np.bool_],
    ) -> NDArray[np.intp]:
        """Pick the brightest clean objects that are as small as most: stars."""
        sizes = measure.size_ratios(combined.image, x, y, MoffatPsf(self.config.fwhm_guess_px, 3.0))
        good = (snr > self.config.psf_star_snr) & ~saturated
        good &= measure.aperture_fluxes(no_data.astype(float), x, y, 3 * self.config.fwhm_guess_px) == 0
        if good.any():
            good &= np.abs(sizes - np.median(sizes[good])) < 0.1
        order = np.argsort(-snr)
        return np.asarray(order[good[order]][: self.config.max_psf_stars])

    def _measure_band(
        self,
        table: Table,
        band: str,
        image: CcdImage,
        positions: tuple[FloatArray, FloatArray],
        stars: tuple[FloatArray, FloatArray],
        guess: MoffatPsf,
    ) -> None:
        """Add the fluxes of one band, at the positions that were found on all bands together."""
        x, y = positions
        bad = image.has(MaskBit.NO_DATA | MaskBit.SATURATED)
        psf = measure.fit_moffat(
            image.image, image.variance, *stars, guess=guess, scale=_psf_scale(image, *stars)
        )
        fluxes = measure.fit_psf_fluxes(
            image.image, image.variance, bad, x, y, psf, scale=_psf_scale(image, x, y)
        )
        brightest = cKDTree(np.stack(positions, axis=1)).query(np.stack(stars, axis=1)[:10])[1]
        factor = measure.aperture_correction(
            fluxes.residual,
            bad,
            x[brightest],
            y[brightest],
            fluxes.flux[brightest],
            self.config.correction_radius_px,
        )
        radius = self.config.aperture_radius_px
        table[f"psf_flux_{band}_njy"] = fluxes.flux * factor
        table[f"psf_flux_err_{band}_njy"] = fluxes.flux_err * factor
        table[f"aperture_flux_{band}_njy"] = measure.aperture_fluxes(image.image, x, y, radius)
        variance = measure.aperture_fluxes(image.variance, x, y, radius)
        table[f"aperture_flux_err_{band}_njy"] = np.sqrt(np.maximum(variance, 0.0))


def make_object_schema(bands: Sequence[str]) -> Table:
    """Describe the table of objects.

    Parameters
    ----------
    bands
        Names of the bands.

    Returns
    -------
    schema : `astropy.table.Table`
        No rows; every column with its type, unit and description.
    """
    columns = [
        Column(name="id", dtype=np.int64, description="Number of the object in its tract."),
        Column(name="patch", dtype=np.int64, description="Patch that it was measured on."),
        Column(name="ra_deg", dtype=float, unit="deg", description="Right ascension (ICRS)."),
        Column(name="dec_deg", dtype=float, unit="deg", description="Declination (ICRS)."),
        Column(name="snr", dtype=float, description="Signal-to-noise ratio, all bands together."),
        Column(name="size_ratio", dtype=float, description="Size relative to the PSF; 1 for a star."),
        Column(name="is_star", dtype=bool, description="No larger than a star."),
        Column(name="is_saturated", dtype=bool, description="Saturated in at least one exposure."),
    ]
    kinds = {"psf_flux": "Flux as a point source", "aperture_flux": "Flux in an aperture"}
    for band in bands:
        for kind, text in kinds.items():
            columns += [
                Column(name=f"{kind}_{band}_njy", dtype=float, unit="nJy", description=f"{text}, {band}."),
                Column(name=f"{kind}_err_{band}_njy", dtype=float, unit="nJy", description="Its error."),
            ]
    return Table(columns)


def unique_objects(objects: Table, radius_arcsec: float) -> NDArray[np.bool_]:
    """Choose one of the objects that were found on two overlapping patches.

    Parameters
    ----------
    objects
        Table with ``ra_deg``, ``dec_deg``, ``patch`` and ``edge_px``, the
        distance from the edge of the patch; n rows.
    radius_arcsec
        Objects of different patches that are nearer are the same.

    Returns
    -------
    kept : `numpy.ndarray`
        True for the objects that remain: those farther from the edge of
        their patch. Shape (n,).
    """
    ra, dec = np.asarray(objects["ra_deg"]), np.asarray(objects["dec_deg"])
    patch, edge = np.asarray(objects["patch"]), np.asarray(objects["edge_px"])
    plane = tangent_offsets_arcsec(ra, dec, float(ra.mean()), float(dec.mean()))
    pairs = cKDTree(plane).query_pairs(radius_arcsec, output_type="ndarray")
    pairs = pairs[patch[pairs[:, 0]] != patch[pairs[:, 1]]]
    first_is_inner = edge[pairs[:, 0]] >= edge[pairs[:, 1]]
    kept = np.ones(len(objects), dtype=np.bool_)
    kept[np.where(first_is_inner, pairs[:, 1], pairs[:, 0])] = False
    return kept


def _combine_bands(images: Sequence[CcdImage]) -> CcdImage:
    """Add bands, each weighted by its inverse variance; a pixel must be good in all."""
    covered = [~image.has(MaskBit.NO_DATA) for image in images]
    weights = [
        1.0 / float(np.median(image.variance[seen])) if seen.any() else 0.0
        for image, seen in zip(images, covered, strict=True)
    ]
    total = sum(weights) or 1.0
    mask = np.bitwise_or.reduce([image.mask for image in images])
    return CcdImage(
        image=np.sum([w / total * i.image for w, i in zip(weights, images, strict=True)], axis=0),
        variance=np.sum(
            [(w / total) ** 2 * i.variance for w, i in zip(weights, images, strict=True)], axis=0
        ),
        mask=mask,
        header=images[0].header,
        psf_fwhm_px=np.sum([w / total * _fwhm_map(i) for w, i in zip(weights, images, strict=True)], axis=0),
    )


def _fwhm_map(image: CcdImage) -> NDArray[np.float32]:
    assert image.psf_fwhm_px is not None, "A coadd knows its PSF everywhere."
    return image.psf_fwhm_px


def _psf_scale(image: CcdImage, x: FloatArray, y: FloatArray) -> FloatArray:
    """Return the size of the PSF at positions, relative to what is usual in the image; shape (n,)."""
    fwhm = _fwhm_map(image)
    local = fwhm[_pixel(y, fwhm.shape[0]), _pixel(x, fwhm.shape[1])]
    usual = np.median(fwhm[fwhm > 0])
    return np.asarray(np.where(local > 0, local, usual) / usual)


def _pixel(position: FloatArray, size: int) -> NDArray[np.intp]:
    return np.clip(np.rint(position), 0, size - 1).astype(np.intp)
