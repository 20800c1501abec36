"""Checks files that upstream is to open: where they are local, none of them is waited for."""

from __future__ import annotations

from pathlib import Path

from lsst.resources import ResourcePath, ResourcePathExpression

from qgexec.regularfile import check_regular

__all__ = ["check_local"]


def check_local(file: ResourcePathExpression) -> None:
    """Check that a file is a regular one, if it is local and there; upstream says what else is wrong with it.

    Raises
    ------
    qgexec.regularfile.UnfitFileError
        It is a FIFO, a device or a socket, or too large.
    """
    uri = ResourcePath(file, forceAbsolute=False, forceDirectory=False)
    if uri.isLocal and Path(uri.ospath).exists() and not Path(uri.ospath).is_dir():
        check_regular(Path(uri.ospath))
