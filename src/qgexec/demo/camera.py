"""Owns the demonstration camera and its observing plan: six CCDs, where they look, and when; no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from astropy.wcs import WCS

from qgexec.demo.layout import BANDS
from qgexec.demo.sky import FIELD_DEC_DEG, FIELD_RA_DEG
from qgexec.demo.skygrid import tangent_wcs

__all__ = [
    "CCD_SHAPE",
    "DAY_OBS",
    "DETECTORS",
    "OVERSCAN_COLUMNS",
    "PIXEL_SCALE_ARCSEC",
    "Detector",
    "Exposure",
    "Pointing",
    "plan_exposures",
]

PIXEL_SCALE_ARCSEC = 0.4
CCD_SHAPE = (512, 512)
"""Rows and columns of the part of a CCD that sees light."""

OVERSCAN_COLUMNS = 32
"""Columns that are read after the last real pixel: they hold the bias level of their row, and no light."""

GAP_PX = 25
FOCAL_PLANE_COLUMNS = 3
FOCAL_PLANE_ROWS = 2

DAY_OBS = 20260115
EXPOSURE_S = 30.0
READOUT_S = 2.0
FIRST_EXPOSURE_START = datetime(2026, 1, 16, 3, 0, 0, tzinfo=UTC)

DITHER_ARCSEC = 22.0
"""Exposures of one band are shifted by so much, so that none leaves a gap where another has one."""

SKY_ELECTRONS = {"g": 150.0, "r": 260.0}
ZERO_POINT_MAG = {"g": 28.9, "r": 29.0}
"""AB magnitude of a source that gives one electron in an exposure, in a clear night."""


@dataclass(frozen=True, slots=True)
class Pointing:
    """Where the telescope looks, in truth or according to its encoders."""

    ra_deg: float
    """Right ascension of the optical axis."""

    dec_deg: float
    """Declination of the optical axis."""

    rotation_deg: float = 0.0
    """Rotation of the focal plane."""

    pixel_scale_arcsec: float = PIXEL_SCALE_ARCSEC
    """Size of a pixel on the sky; changes with focus."""


@dataclass(frozen=True, slots=True)
class Detector:
    """One CCD of the camera."""

    id: int
    """Number, from 0."""

    gain: float
    """Electrons per ADU."""

    read_noise_electrons: float
    """Noise of one read of one pixel."""

    full_well_electrons: float = 60_000.0
    """Charge that a pixel can hold."""

    @property
    def cell(self) -> tuple[int, int]:
        """Column and row in the focal plane."""
        row, column = divmod(self.id, FOCAL_PLANE_COLUMNS)
        return column, row

    @property
    def name(self) -> str:
        """Name such as ``C12``: column 1, row 2, counted from 0."""
        return "C{}{}".format(*self.cell)

    @property
    def origin_px(self) -> tuple[float, float]:
        """Focal plane position (x, y) of pixel (0, 0), in pixels from the optical axis."""
        rows, columns = CCD_SHAPE
        column, row = self.cell
        return (
            column * (columns + GAP_PX) - 0.5 * (FOCAL_PLANE_COLUMNS * (columns + GAP_PX) - GAP_PX - 1),
            row * (rows + GAP_PX) - 0.5 * (FOCAL_PLANE_ROWS * (rows + GAP_PX) - GAP_PX - 1),
        )

    def wcs(self, pointing: Pointing) -> WCS:
        """Return this detector's WCS when the telescope looks at ``pointing``."""
        x, y = self.origin_px
        return tangent_wcs(
            pointing.ra_deg, pointing.dec_deg, (-x, -y), pointing.pixel_scale_arcsec, pointing.rotation_deg
        )


DETECTORS = tuple(
    Detector(id=i, gain=1.45 + 0.03 * ((5 * i) % 6), read_noise_electrons=5.0 + 0.3 * ((i * i) % 5))
    for i in range(FOCAL_PLANE_COLUMNS * FOCAL_PLANE_ROWS)
)


@dataclass(frozen=True, slots=True)
class Exposure:
    """One exposure: what was asked for, and what the telescope and the weather made of it."""

    id: int
    """Number of the exposure, and of the visit that it makes up."""

    band: str
    """The filter's band."""

    requested: Pointing
    """Where the telescope believes to look; goes into the raw headers."""

    actual: Pointing
    """Where it looks: a few arc seconds beside, slightly rotated, slightly out of focus."""

    seeing_arcsec: float
    """FWHM of a star."""

    sky_electrons: float
    """Brightness of the sky, per pixel and exposure."""

    zero_point_mag: float
    """AB magnitude of a source that gives one electron, clouds included."""

    start: datetime
    """When the shutter opened (UTC)."""

    exposure_s: float = EXPOSURE_S
    """For how long."""

    @property
    def end(self) -> datetime:
        """When the shutter closed (UTC)."""
        return self.start + timedelta(seconds=self.exposure_s)

    @property
    def dark_s(self) -> float:
        """Time in which dark current was collected."""
        return self.exposure_s + READOUT_S

    @property
    def obs_id(self) -> str:
        """Name of the observation."""
        return f"DC_{DAY_OBS}_{self.id:05d}"


def plan_exposures(seed: int, visits_per_band: int) -> list[Exposure]:
    """Plan a night: dithered exposures of one field, the bands in turn.

    Parameters
    ----------
    seed
        Seed of the weather and of the telescope's errors.
    visits_per_band
        Number of exposures in each band.

    Returns
    -------
    exposures : `list` [`Exposure`]
        In the order in which they are taken.
    """
    return [
        _plan_exposure(seed, number, band=BANDS[number % len(BANDS)], dither=number // len(BANDS))
        for number in range(visits_per_band * len(BANDS))
    ]


def _plan_exposure(seed: int, number: int, *, band: str, dither: int) -> Exposure:
    rng = np.random.default_rng([seed, 3, number])
    # The golden angle spreads any number of dithers evenly.
    angle = 2.39996 * dither + 0.6
    ra_offset, dec_offset = DITHER_ARCSEC * np.array([np.cos(angle), np.sin(angle)])
    requested = Pointing(
        FIELD_RA_DEG + ra_offset / 3600 / np.cos(np.deg2rad(FIELD_DEC_DEG)), FIELD_DEC_DEG + dec_offset / 3600
    )
    error_arcsec = rng.normal(0.0, 3.0, 2)
    actual = Pointing(
        requested.ra_deg + error_arcsec[0] / 3600,
        requested.dec_deg + error_arcsec[1] / 3600,
        rotation_deg=rng.normal(0.0, 0.03),
        pixel_scale_arcsec=PIXEL_SCALE_ARCSEC * (1.0 + rng.normal(0.0, 2e-4)),
    )
    return Exposure(
        id=number + 1,
        band=band,
        requested=requested,
        actual=actual,
        seeing_arcsec=rng.uniform(1.0, 1.35),
        sky_electrons=SKY_ELECTRONS[band] * rng.uniform(0.9, 1.15),
        zero_point_mag=ZERO_POINT_MAG[band] + 2.5 * np.log10(rng.uniform(0.88, 1.0)),
        start=FIRST_EXPOSURE_START + number * timedelta(seconds=EXPOSURE_S + READOUT_S + 8.0),
    )
