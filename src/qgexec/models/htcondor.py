"""Leaves the quanta to HTCondor."""

from __future__ import annotations

from qgexec.batch.htcondor import HTCondorSystem
from qgexec.config.batchsettings import BatchSettings
from qgexec.models.batch import BatchModel

__all__ = ["HTCondor"]


class HTCondor(BatchModel):
    """Jobs of an HTCondor pool, ordered by DAGMan; they go on without a driver.

    Parameters
    ----------
    settings
        What jobs are given besides what their quanta ask for.
    closing
        Number of the round whose other jobs are known to have ended, for this process is its closing job.
    """

    def __init__(self, settings: BatchSettings | None = None, *, closing: int | None = None) -> None:
        super().__init__(HTCondorSystem(), settings, closing=closing)
