"""Owns the quality plots of a tract: what a reduction can know of itself, without knowing the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from astropy.stats import mad_std
from astropy.table import Table, vstack
from lsst.daf.butler import DeferredDatasetHandle
from lsst.pex.config import Field
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct
from lsst.pipe.base.connectionTypes import InitInput, Input, Output

from qgexec.demo import plots
from qgexec.demo.astrometry import match_sky
from qgexec.demo.skygrid import SkyGrid

__all__ = ["QualityConfig", "QualityTask"]

TRACT = ("skymap", "tract")
SOURCE_COLUMNS = frozenset({"visit", "band", "ra_deg", "dec_deg", "psf_flux_njy", "psf_flux_err_njy"})
OBJECT_COLUMNS = frozenset({"ra_deg", "dec_deg", "is_star", "is_saturated", "size_ratio", "snr"})


class QualityConnections(PipelineTaskConnections, dimensions=TRACT):
    """What `QualityTask` reads and writes."""

    source_schema = InitInput(
        doc="Columns of ``sources``.", name="source_schema", storageClass="ArrowAstropy"
    )
    object_schema = InitInput(
        doc="Columns of ``objects``.", name="object_schema", storageClass="ArrowAstropy"
    )
    sky_map = Input(
        doc="Geometry of tracts and patches.", name="skyMap", storageClass="SkyGrid", dimensions=("skymap",)
    )
    objects = Input(
        doc="Objects of the tract.", name="objects", storageClass="ArrowAstropy", dimensions=TRACT
    )
    sources = Input(
        doc="Sources of the single frames.",
        name="sources",
        storageClass="ArrowAstropy",
        dimensions=("instrument", "visit", "detector"),
        multiple=True,
    )
    coadds = Input(
        doc="Coadds of the tract.",
        name="coadd",
        storageClass="CcdImage",
        dimensions=("skymap", "tract", "patch", "band"),
        multiple=True,
        deferLoad=True,
    )
    astrometry_plot = Output(
        doc="Repeatability of positions.", name="astrometry_plot", storageClass="Plot", dimensions=TRACT
    )
    photometry_plot = Output(
        doc="Repeatability of magnitudes.", name="photometry_plot", storageClass="Plot", dimensions=TRACT
    )
    colour_plot = Output(
        doc="Colours, depth and sizes.", name="colour_plot", storageClass="Plot", dimensions=TRACT
    )
    picture = Output(doc="Picture of the tract.", name="picture", storageClass="Plot", dimensions=TRACT)


class QualityConfig(PipelineTaskConfig, pipelineConnections=QualityConnections):
    """Configuration of `QualityTask`."""

    match_radius_arcsec = Field[float](doc="Sources this near to an object are that object.", default=0.6)
    bright_snr = Field[float](doc="Signal-to-noise ratio of stars whose scatter is quoted.", default=100.0)


class QualityTask(PipelineTask):
    """Compare single frames with the catalogue, and draw both.

    Parameters
    ----------
    initInputs
        The schemas of sources and objects.
    **kwargs
        Passed to the base class.

    Raises
    ------
    ValueError
        If a column that is to be drawn is in none of the schemas: before
        any quantum has run, not hours later.
    """

    ConfigClass: ClassVar[type[PipelineTaskConfig]] = QualityConfig
    _DefaultName: ClassVar[str] = "quality"
    config: QualityConfig

    def __init__(
        self,
        *,
        initInputs: Mapping[str, Any],  # noqa: N803 - upstream's name
        **kwargs: Any,
    ) -> None:
        super().__init__(initInputs=dict(initInputs), **kwargs)
        for name, needed in (("source_schema", SOURCE_COLUMNS), ("object_schema", OBJECT_COLUMNS)):
            if missing := needed - set(initInputs[name].colnames):
                raise ValueError(f"{name} lacks {', '.join(sorted(missing))}")

    def run(
        self,
        sky_map: SkyGrid,
        objects: Table,
        sources: Sequence[Table],
        coadds: Sequence[DeferredDatasetHandle],
    ) -> Struct:
        """Draw the plots of one tract.

        Parameters
        ----------
        sky_map
            Geometry of the patches.
        objects
            The catalogue.
        sources
            One table per frame.
        coadds
            Handles of the coadds.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            Four figures, named as the output connections.
        """
        pairs = self._match(objects, vstack(list(sources), metadata_conflicts="silent"))
        bright = pairs[pairs["snr"] > self.config.bright_snr]
        for axis in ("east", "north"):
            self.metadata[f"repeatability_{axis}_mas"] = float(mad_std(bright[f"{axis}_mas"]))
        self.metadata["repeatability_mmag"] = float(mad_std(bright["delta_mmag"]))
        self.log.info(
            "Single frames against the catalogue: %.1f mas east, %.1f mas north, %.1f mmag.",
            self.metadata["repeatability_east_mas"],
            self.metadata["repeatability_north_mas"],
            self.metadata["repeatability_mmag"],
        )
        mosaics = self._mosaics(sky_map, coadds)
        return Struct(
            astrometry_plot=plots.draw_astrometry(bright),
            photometry_plot=plots.draw_photometry(pairs, self.config.bright_snr),
            colour_plot=plots.draw_catalogue(objects),
            picture=plots.draw_picture(mosaics, sky_map.tract_wcs()),
        )

    def _match(self, objects: Table, sources: Table) -> Table:
        """Return one row per source that is a star of the catalogue: what it differs in."""
        stars = objects[objects["is_star"] & ~objects["is_saturated"]]
        parts = []
        for visit in np.unique(sources["visit"]):
            seen = sources[(sources["visit"] == visit) & ~sources["is_saturated"]]
            band = str(seen["band"][0])
            i, j = match_sky(
                seen["ra_deg"],
                seen["dec_deg"],
                stars["ra_deg"],
                stars["dec_deg"],
                self.config.match_radius_arcsec,
            )
            one, truth = seen[i], stars[j]
            flux = np.asarray(truth[f"psf_flux_{band}_njy"])
            usable = (flux > 0) & (one["psf_flux_njy"] > 0)
            one, truth, flux = one[usable], truth[usable], flux[usable]
            cos_dec = np.cos(np.deg2rad(truth["dec_deg"]))
            parts.append(
                Table(
                    {
                        "visit": one["visit"],
                        "band": one["band"],
                        "mag": 31.4 - 2.5 * np.log10(flux),
                        "snr": one["psf_flux_njy"] / one["psf_flux_err_njy"],
                        "east_mas": 3.6e6 * (one["ra_deg"] - truth["ra_deg"]) * cos_dec,
                        "north_mas": 3.6e6 * (one["dec_deg"] - truth["dec_deg"]),
                        "delta_mmag": -2500 * np.log10(np.asarray(one["psf_flux_njy"]) / flux),
                    }
                )
            )
        return vstack(parts, metadata_conflicts="silent")

    @staticmethod
    def _mosaics(sky_map: SkyGrid, coadds: Sequence[DeferredDatasetHandle]) -> dict[str, plots.FloatArray]:
        """Put the patches of every band together, without their borders."""
        inner, border = sky_map.patch_inner_px, sky_map.patch_border_px
        shape = (sky_map.n_patches_y * inner, sky_map.n_patches_x * inner)
        mosaics: dict[str, plots.FloatArray] = {}
        for handle in coadds:
            mosaic = mosaics.setdefault(str(handle.dataId["band"]), np.zeros(shape))
            column, row = sky_map.cell(int(handle.dataId["patch"]))
            pixels = handle.get().image[border : border + inner, border : border + inner]
            mosaic[row * inner : (row + 1) * inner, column * inner : (column + 1) * inner] = pixels
        return mosaics
