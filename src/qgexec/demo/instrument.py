"""Owns what the butler knows of the demonstration camera itself: its filters and detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lsst.pipe.base import Instrument
from lsst.utils.introspection import get_full_type_name

from qgexec.demo.camera import DETECTORS
from qgexec.demo.layout import INSTRUMENT, PHYSICAL_FILTERS

if TYPE_CHECKING:
    from lsst.daf.butler import Registry

__all__ = ["VISIT_SYSTEM", "DemoCam"]

VISIT_SYSTEM = 0
"""The only visit system: each exposure is a visit by itself."""


class DemoCam(Instrument):
    """A camera of six small CCDs that exists in simulation only."""

    @classmethod
    def getName(cls) -> str:  # noqa: N802 - upstream's name
        """Return the name of the instrument in data IDs."""
        return INSTRUMENT

    def register(self, registry: Registry, *, update: bool = False) -> None:
        """Insert the instrument's dimension records; see the base class."""
        with registry.transaction():
            registry.syncDimensionData(
                "instrument",
                {
                    "name": INSTRUMENT,
                    "class_name": get_full_type_name(self),
                    "detector_max": len(DETECTORS),
                    "exposure_max": 100_000,
                    "visit_max": 100_000,
                    "visit_system": VISIT_SYSTEM,
                },
                update=update,
            )
            registry.syncDimensionData(
                "visit_system",
                {"instrument": INSTRUMENT, "id": VISIT_SYSTEM, "name": "one-to-one"},
                update=update,
            )
            for band, name in PHYSICAL_FILTERS.items():
                registry.syncDimensionData(
                    "physical_filter", {"instrument": INSTRUMENT, "name": name, "band": band}, update=update
                )
            for detector in DETECTORS:
                registry.syncDimensionData(
                    "detector",
                    {
                        "instrument": INSTRUMENT,
                        "id": detector.id,
                        "full_name": detector.name,
                        "name_in_raft": detector.name,
                        "raft": "C",
                        "purpose": "SCIENCE",
                    },
                    update=update,
                )

    def getRawFormatter(self, dataId: Any) -> type[Any]:  # noqa: N802, N803 - upstream's names
        """Return the class that reads raw frames."""
        from qgexec.demo.formatters import RawCcdFormatter  # noqa: PLC0415 - needs astropy, the records do not

        return RawCcdFormatter
