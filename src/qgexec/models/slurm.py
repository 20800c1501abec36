"""Leaves the quanta to Slurm, as job arrays; what a batch system has in common is `qgexec.models.batch`."""

from __future__ import annotations

from qgexec.batch.slurm import SlurmSystem
from qgexec.config.batchsettings import BatchSettings
from qgexec.models.batch import BatchModel

__all__ = ["Slurm"]


class Slurm(BatchModel):
    """Leave quanta to Slurm, as job arrays.

    Parameters
    ----------
    settings
        What jobs are given besides what their quanta ask for.
    closing
        Number of the round whose closing job this process is.
    """

    def __init__(self, settings: BatchSettings | None = None, *, closing: int | None = None) -> None:
        super().__init__(SlurmSystem(), settings, closing=closing)
