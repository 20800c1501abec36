"""Owns what a CCD does to light: response, dark current, bias, read-out; and its calibrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from qgexec.demo.camera import CCD_SHAPE, DETECTORS, OVERSCAN_COLUMNS, Detector
from qgexec.demo.images import CcdImage
from qgexec.demo.layout import BANDS

__all__ = ["CcdElectronics", "make_electronics"]

N_BIAS_FRAMES = 25
N_DARK_FRAMES = 15
DARK_FRAME_S = 120.0
N_FLAT_FRAMES = 25
FLAT_ELECTRONS = 25_000.0
OVERSCAN_LEVEL_ADU = 1000.0
VIGNETTING = 0.30
"""Fraction of the light that is lost in the farthest corner of the focal plane."""

Frame = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CcdElectronics:
    """The true properties of one CCD, which only its calibration frames reveal."""

    detector: Detector
    """Which CCD this is."""

    bias_adu: Frame
    """Counts of an unexposed pixel above the overscan level, shape `CCD_SHAPE`."""

    dark_electrons_per_s: Frame
    """Dark current, hot pixels included, shape `CCD_SHAPE`."""

    flat: Mapping[str, Frame]
    """Relative response, vignetting included, keyed by band; shape `CCD_SHAPE`."""

    def read_out(self, electrons: Frame, rng: np.random.Generator) -> NDArray[np.uint16]:
        """Turn collected charge into a raw frame.

        Parameters
        ----------
        electrons
            Charge, shape `CCD_SHAPE`; noise of photons and dark current
            included.
        rng
            Source of the read noise and of the electronics' drift.

        Returns
        -------
        raw : `numpy.ndarray`
            Counts with the overscan columns, ``uint16``.
        """
        rows, columns = CCD_SHAPE
        raw = rng.standard_normal((rows, columns + OVERSCAN_COLUMNS)) * (
            self.detector.read_noise_electrons / self.detector.gain
        )
        # The amplifier settles while a frame is read: every exposure has a level and a slope of its own.
        level, slope = OVERSCAN_LEVEL_ADU + rng.normal(0.0, 8.0), rng.normal(0.0, 3.0)
        raw += (level + slope * np.linspace(-1.0, 1.0, rows) ** 2)[:, np.newaxis]
        charge = _bleed(electrons, self.detector.full_well_electrons)
        raw[:, :columns] += charge / self.detector.gain + self.bias_adu
        return np.clip(np.rint(raw), 0, 65535).astype(np.uint16)

    def master_bias(self, seed: int) -> CcdImage:
        """Average many bias frames (ADU, overscan subtracted).

        The mean of n frames is drawn as one frame with 1/n of the variance:
        the same statistics at a fraction of the cost.
        """
        variance = (self.detector.read_noise_electrons / self.detector.gain) ** 2 / N_BIAS_FRAMES
        rng = self._rng(seed, 1)
        return _master(self.bias_adu, np.full(CCD_SHAPE, variance), rng, unit="adu")

    def master_dark(self, seed: int) -> CcdImage:
        """Average many dark frames (electrons per second)."""
        dark = self.dark_electrons_per_s
        read_variance = self.detector.read_noise_electrons**2
        variance = (dark * DARK_FRAME_S + read_variance) / N_DARK_FRAMES / DARK_FRAME_S**2
        return _master(dark, variance, self._rng(seed, 2), unit="electron/s")

    def master_flat(self, band: str, seed: int) -> CcdImage:
        """Average many dome flats (relative to the centre of the focal plane)."""
        flat = self.flat[band]
        variance = flat / FLAT_ELECTRONS / N_FLAT_FRAMES
        return _master(flat, variance, self._rng(seed, 3 + BANDS.index(band)), unit="")

    def _rng(self, seed: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, 4, self.detector.id, purpose])


def make_electronics(detector: Detector, seed: int) -> CcdElectronics:
    """Manufacture a CCD: draw its defects from the seed.

    Parameters
    ----------
    detector
        Which CCD.
    seed
        Seed of the foundry.

    Returns
    -------
    electronics : `CcdElectronics`
        The CCD's true properties.
    """
    rng = np.random.default_rng([seed, 5, detector.id])
    rows, columns = CCD_SHAPE
    y, x = np.mgrid[0:rows, 0:columns]
    bias = 4.0 * x / columns + rng.normal(0.0, 2.0, columns)[np.newaxis, :]
    dark = 0.05 + 0.3 * np.exp(-(x + y) / 60.0)
    dark.flat[rng.choice(dark.size, 60, replace=False)] = rng.uniform(3.0, 60.0, 60)
    return CcdElectronics(
        detector=detector,
        bias_adu=bias,
        dark_electrons_per_s=dark,
        flat={band: _make_flat(detector, rng) for band in BANDS},
    )


def _make_flat(detector: Detector, rng: np.random.Generator) -> Frame:
    rows, columns = CCD_SHAPE
    y, x = np.mgrid[0:rows, 0:columns]
    x0, y0 = detector.origin_px
    corner2 = max(sum(value**2 for value in other.origin_px) for other in DETECTORS)
    vignetting = 1.0 - VIGNETTING * ((x + x0) ** 2 + (y + y0) ** 2) / corner2
    flat = vignetting * (1.0 + 0.01 * rng.standard_normal(CCD_SHAPE))
    flat *= rng.uniform(0.92, 1.05) * (1.0 + rng.normal(0.0, 0.01) * x / columns)
    flat.flat[rng.choice(flat.size, 40, replace=False)] *= 0.05
    flat[rng.integers(0, rows // 2) :, rng.integers(columns)] *= 0.02
    return np.asarray(flat)


def _master(truth: Frame, variance: Frame, rng: np.random.Generator, *, unit: str) -> CcdImage:
    image = truth + np.sqrt(variance) * rng.standard_normal(truth.shape)
    return CcdImage(
        image=image.astype(np.float32),
        variance=variance.astype(np.float32),
        mask=np.zeros(truth.shape, dtype=np.uint8),
        header=fits.Header({"BUNIT": unit}),
    )


def _bleed(electrons: Frame, full_well: float) -> Frame:
    """Let the charge that a pixel cannot hold spill along its column, half of it either way."""
    charge = electrons.copy()
    for column in np.flatnonzero((charge > full_well).any(axis=0)):
        excess = np.maximum(charge[:, column] - full_well, 0.0) / 2
        held = np.minimum(charge[:, column], full_well)
        held = _spill(held, excess, full_well)
        charge[:, column] = _spill(held[::-1], excess[::-1], full_well)[::-1]
    return charge


def _spill(held: Frame, excess: Frame, full_well: float) -> Frame:
    filled = held.tolist()
    carried = 0.0
    for row, extra in enumerate(excess.tolist()):
        carried += extra
        taken = min(carried, full_well - filled[row])
        filled[row] += taken
        carried -= taken
    return np.array(filled)
