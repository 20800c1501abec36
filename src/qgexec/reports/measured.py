"""What was measured of quanta, as compact arrays, and how it is spread; knows neither events nor tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Measured", "Spread"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How an amount is spread over the quanta of a task."""

    p50: float
    """Median: half of the quanta have no more."""
    p95: float
    """95 of 100 have no more."""
    max: float
    n: int
    """Quanta of which it is known."""

    @classmethod
    def of(cls, values: npt.NDArray[np.floating[Any]]) -> Spread | None:
        """Return the spread of some values, NaN for what is unknown; `None` where all of them are.

        The percentiles are values that occurred: nothing is interpolated.
        """
        known = values[~np.isnan(values)]
        if not len(known):
            return None
        p50, p95 = np.percentile(known, (50, 95), method="inverted_cdf").tolist()
        return cls(p50, p95, float(known.max()), len(known))


@dataclass(slots=True)
class Measured:
    """What was measured of each quantum, as 32-bit numbers of shape ``(n,)``; NaN where it is unknown."""

    cpu_s: npt.NDArray[np.float32]
    """CPU time of the attempt that succeeded."""
    wall_s: npt.NDArray[np.float32]
    """Its wall time."""
    peak_rss_bytes: npt.NDArray[np.float32]
    """Largest peak resident set size of any attempt."""

    @classmethod
    def nothing(cls, n_quanta: int) -> Measured:
        """Return that nothing was measured."""
        return cls(*(np.full(n_quanta, np.nan, dtype=np.float32) for _ in range(3)))

    def copy(self) -> Measured:
        """Return a copy."""
        return Measured(self.cpu_s.copy(), self.wall_s.copy(), self.peak_rss_bytes.copy())
