"""qgexec as a service of BPS: ``wmsServiceClass: qgexec.bps.QgexecService``.

Only this package knows `lsst.ctrl.bps`. What it starts are commands of `qgexec`, as a user would type them.
"""

from qgexec.bps.clustering import auto, by_task, chunks
from qgexec.bps.service import QgexecService

__all__ = ["QgexecService", "auto", "by_task", "chunks"]
