"""Names what the demonstration repository consists of; imports nothing heavy, so that a command line may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = [
    "BANDS",
    "CALIBRATION_COLLECTION",
    "CALIBRATION_RUN",
    "DEFAULTS_COLLECTION",
    "INSTRUMENT",
    "OUTPUT_COLLECTION",
    "PHYSICAL_FILTERS",
    "PIPELINE",
    "RAW_COLLECTION",
    "REFERENCE_COLLECTION",
    "SKYMAP",
    "SKYMAP_COLLECTION",
    "TRUTH_COLLECTION",
    "DemoRepository",
]

INSTRUMENT = "DemoCam"
SKYMAP = "demo_sky"
BANDS = ("g", "r")
PHYSICAL_FILTERS: Mapping[str, str] = MappingProxyType({band: f"{band}_demo" for band in BANDS})
"""Name of the piece of glass, keyed by the band that it passes."""

RAW_COLLECTION = f"{INSTRUMENT}/raw/all"
CALIBRATION_RUN = f"{INSTRUMENT}/calib/masters"
CALIBRATION_COLLECTION = f"{INSTRUMENT}/calib"
REFERENCE_COLLECTION = "refcats"
SKYMAP_COLLECTION = "skymaps"
DEFAULTS_COLLECTION = f"{INSTRUMENT}/defaults"
"""The CHAINED collection that holds all that a reduction may see."""

TRUTH_COLLECTION = f"{INSTRUMENT}/truth"
"""What was simulated; deliberately no part of the defaults, so that no task can read it."""

OUTPUT_COLLECTION = f"{INSTRUMENT}/runs/demo"
"""The CHAINED collection that the demonstration reduction writes, unless it is told otherwise."""

PIPELINE = Path(__file__).with_name("pipeline.yaml")
"""The pipeline definition that reduces the demonstration repository."""


@dataclass(frozen=True, slots=True)
class DemoRepository:
    """A demonstration repository on disk, and what a graph builder must be told about it."""

    root: Path
    """The repository's root directory."""

    input_collection: str
    """Collection to search for inputs."""

    pipeline: Path
    """The pipeline definition file."""

    instrument: str
    """Name of the instrument."""

    skymap: str
    """Name of the sky map."""

    truth_path: Path
    """File (Parquet) that lists what was simulated."""

    @property
    def data_query(self) -> str:
        """The data ID expression that a quantum graph of this repository needs (`str`)."""
        return f"instrument='{self.instrument}' AND skymap='{self.skymap}'"
