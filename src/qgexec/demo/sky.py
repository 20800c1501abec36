"""Owns the truth: which stars and galaxies there are, and what a reference survey would know of them.

Nothing here knows of cameras. Everything is a function of the seed.
"""

from __future__ import annotations

import numpy as np
from astropy.table import Table

__all__ = ["FIELD_DEC_DEG", "FIELD_RA_DEG", "FIELD_SIZE_ARCSEC", "make_reference_catalogue", "make_sky"]

FIELD_RA_DEG = 150.1
FIELD_DEC_DEG = 2.2
FIELD_SIZE_ARCSEC = (860.0, 640.0)
"""Extent of the simulated sky in right ascension (on the sky) and declination."""

N_STARS = 1350
N_GALAXIES = 850
STAR_MAG_RANGE = (13.5, 24.5)
GALAXY_MAG_RANGE = (17.5, 24.5)

REFERENCE_MAG_RANGE = (14.8, 20.5)
REFERENCE_POSITION_ERROR_MAS = 10.0
REFERENCE_MAG_ERROR = 0.008


def make_sky(seed: int) -> Table:
    """Draw the stars and galaxies of the demonstration field.

    Parameters
    ----------
    seed
        Seed of the random numbers.

    Returns
    -------
    sky : `astropy.table.Table`
        One row per object: ``id``, ``ra_deg``, ``dec_deg``, ``is_star``, AB
        magnitudes ``mag_g`` and ``mag_r``, and for galaxies (an exponential
        disc) ``half_light_arcsec``, ``axis_ratio`` and ``angle_rad``.
    """
    rng = np.random.default_rng([seed, 1])
    n = N_STARS + N_GALAXIES
    is_star = np.arange(n) < N_STARS
    x_arcsec = rng.uniform(-0.5, 0.5, n) * FIELD_SIZE_ARCSEC[0]
    y_arcsec = rng.uniform(-0.5, 0.5, n) * FIELD_SIZE_ARCSEC[1]
    dec = FIELD_DEC_DEG + y_arcsec / 3600
    mag_r = np.where(
        is_star,
        _power_law_magnitudes(rng, n, STAR_MAG_RANGE, slope=0.12),
        _power_law_magnitudes(rng, n, GALAXY_MAG_RANGE, slope=0.30),
    )
    # Two humps, as in every star field: the turn-off of the halo, and the M dwarfs of the disc.
    star_colour = np.where(rng.random(n) < 0.55, rng.normal(0.45, 0.12, n), rng.normal(1.35, 0.10, n))
    colour = np.where(is_star, star_colour, rng.normal(0.75, 0.25, n))
    half_light = 0.9 * 10 ** (-0.08 * (mag_r - 20)) * rng.lognormal(0.0, 0.25, n)
    sky = Table(
        {
            "id": np.arange(1, n + 1),
            "ra_deg": FIELD_RA_DEG + x_arcsec / 3600 / np.cos(np.deg2rad(dec)),
            "dec_deg": dec,
            "is_star": is_star,
            "mag_g": mag_r + colour,
            "mag_r": mag_r,
            "half_light_arcsec": np.where(is_star, 0.0, half_light),
            "axis_ratio": np.where(is_star, 1.0, rng.uniform(0.35, 1.0, n)),
            "angle_rad": rng.uniform(0.0, np.pi, n),
        }
    )
    sky["ra_deg"].unit = sky["dec_deg"].unit = "deg"
    sky["half_light_arcsec"].unit = "arcsec"
    return sky


def make_reference_catalogue(sky: Table, seed: int) -> Table:
    """Observe the brighter stars as an all-sky survey would.

    Parameters
    ----------
    sky
        The truth, from `make_sky`.
    seed
        Seed of the survey's measurement errors.

    Returns
    -------
    catalogue : `astropy.table.Table`
        ``id``, ``ra_deg``, ``dec_deg``, ``position_err_mas`` (per axis),
        ``mag_g``, ``mag_r`` and ``mag_err``.
    """
    rng = np.random.default_rng([seed, 2])
    mag = np.asarray(sky["mag_r"])
    bright = sky["is_star"] & (mag > REFERENCE_MAG_RANGE[0]) & (mag < REFERENCE_MAG_RANGE[1])
    catalogue = sky[bright]["id", "ra_deg", "dec_deg", "mag_g", "mag_r"]
    n = len(catalogue)
    error_deg = REFERENCE_POSITION_ERROR_MAS / 3.6e6
    catalogue["ra_deg"] += rng.normal(0.0, error_deg, n) / np.cos(np.deg2rad(catalogue["dec_deg"]))
    catalogue["dec_deg"] += rng.normal(0.0, error_deg, n)
    for column in ("mag_g", "mag_r"):
        catalogue[column] += rng.normal(0.0, REFERENCE_MAG_ERROR, n)
    catalogue["position_err_mas"] = np.full(n, REFERENCE_POSITION_ERROR_MAS)
    catalogue["mag_err"] = np.full(n, REFERENCE_MAG_ERROR)
    return catalogue


def _power_law_magnitudes(
    rng: np.random.Generator, n: int, mag_range: tuple[float, float], *, slope: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Draw magnitudes with number counts dN/dm proportional to 10^(slope m)."""
    low, high = 10 ** (slope * np.array(mag_range))
    return np.log10(rng.uniform(low, high, n)) / slope
