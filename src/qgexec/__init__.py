"""Execute a Rubin/LSST QuantumGraph: one graph, one command, one report, on any execution model.

The Python face is `GraphExecutor`; a client's own execution model implements
`ExecutionModel`, or just has one ``execute(quanta)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["ExecutionModel", "GraphExecutor", "QgexecError", "QuantumNode", "__version__"]

if TYPE_CHECKING:
    from qgexec.api import GraphExecutor
    from qgexec.errors import QgexecError
    from qgexec.models.base import ExecutionModel
    from qgexec.quantum import QuantumNode

_HOMES = {
    "ExecutionModel": "qgexec.models.base",
    "GraphExecutor": "qgexec.api",
    "QgexecError": "qgexec.errors",
    "QuantumNode": "qgexec.quantum",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: lsst takes seconds."""
    if name in _HOMES:
        from importlib import import_module  # noqa: PLC0415 - `qgexec --help` must not pay for lsst

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
