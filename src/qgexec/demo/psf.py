"""Owns the Moffat profile, the shape that the atmosphere gives to a star."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MoffatPsf"]


@dataclass(frozen=True, slots=True)
class MoffatPsf:
    """A round Moffat (1969) profile of unit flux, sampled at pixel centres."""

    fwhm_px: float
    """Full width at half maximum in pixels."""

    beta: float
    """Exponent; the smaller, the more light in the wings. Above 1."""

    @property
    def gamma_px(self) -> float:
        """The scale radius in pixels."""
        return float(self.fwhm_px / (2.0 * np.sqrt(2.0 ** (1.0 / self.beta) - 1.0)))

    @property
    def sigma_px(self) -> float:
        """Standard deviation in pixels of the Gaussian with the same FWHM."""
        return float(self.fwhm_px / 2.3548)

    @property
    def noise_pixels(self) -> float:
        """Number of pixels whose background noise an optimal flux contains, 1 / sum(PSF^2)."""
        beta = self.beta
        return float(np.pi * self.gamma_px**2 * (2 * beta - 1) / (beta - 1) ** 2)

    def evaluate(
        self, radius2_px2: NDArray[np.floating], scale: NDArray[np.floating] | float = 1.0
    ) -> NDArray[np.float64]:
        """Return the fraction of the flux per pixel.

        Parameters
        ----------
        radius2_px2
            Squared distances from the centre in square pixels; any shape.
        scale
            Stretches the profile, flux conserved; broadcast.

        Returns
        -------
        fraction : `numpy.ndarray`
            Same shape.
        """
        gamma2 = (self.gamma_px * np.asarray(scale)) ** 2
        norm = (self.beta - 1.0) / (np.pi * gamma2)
        return np.asarray(norm * (1.0 + radius2_px2 / gamma2) ** -self.beta, dtype=np.float64)

    def radius_px(self, fraction: float) -> float:
        """Return the radius at which the profile has fallen to ``fraction`` of the flux per pixel."""
        gamma2 = self.gamma_px**2
        peak = (self.beta - 1.0) / (np.pi * gamma2)
        return float(np.sqrt(gamma2 * max((peak / fraction) ** (1.0 / self.beta) - 1.0, 0.0)))
