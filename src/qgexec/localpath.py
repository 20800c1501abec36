"""Paths of this machine, told from addresses of other places."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qgexec.errors import UsageError

__all__ = ["local_path"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def local_path(given: str | Path, what: str) -> Path:
    """Return a path that may have been given as an address, ``file://...``.

    Parameters
    ----------
    given
        What was given.
    what
        What it is to be: ``the run directory``.

    Raises
    ------
    qgexec.errors.UsageError
        It is the address of another place.
    """
    text = str(given)
    if not isinstance(given, str) or not _ADDRESS.match(text):
        return Path(given)
    address = urlsplit(text)
    if address.scheme.lower() == "file" and address.netloc in ("", "localhost"):
        return Path(unquote(address.path))
    raise UsageError(
        f"{what} must be on a file system of this machine, and {text} is not",
        hint="Give a path. What lies elsewhere can be copied here first.",
    )
