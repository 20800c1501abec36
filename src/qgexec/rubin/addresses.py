"""Files by path or address, wherever they are: what keeps one from being reached is one error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsst.resources import ResourcePath

from qgexec.errors import GraphError, QgexecError

__all__ = ["local_copy", "locate_file", "reaching"]

_LONGEST_REASON = 300
"""Characters; libraries of object stores tell all that they have tried."""


def locate_file(given: str | Path | ResourcePath) -> ResourcePath:
    """Return a graph file's address.

    Raises
    ------
    qgexec.errors.GraphError
        It is none that upstream knows.
    """
    with reaching(given):
        return ResourcePath(given, forceDirectory=False)


@contextmanager
def local_copy(uri: ResourcePath) -> Iterator[Path]:
    """Give a graph file as a local one, which is removed afterwards if it is a copy.

    Raises
    ------
    qgexec.errors.GraphError
        It does not exist, or cannot be reached.
    """
    copy = uri.as_local()
    name = uri.ospath if uri.isLocal and uri.scheme in ("", "file") else uri
    with reaching(name):
        local = copy.__enter__()
        if not Path(local.ospath).exists():
            raise FileNotFoundError(name)
    try:
        yield Path(local.ospath)
    finally:
        copy.__exit__(None, None, None)


@contextmanager
def reaching(file: str | Path | ResourcePath) -> Iterator[None]:
    """Say in one sentence why a graph file cannot be reached, where a library may raise anything for that.

    Raises
    ------
    qgexec.errors.GraphError
        It cannot be, or does not exist.
    """
    try:
        yield
    except (QgexecError, UnicodeEncodeError):  # of a name without encoding: it is said which one
        raise
    except FileNotFoundError as error:
        raise GraphError(f"graph file {file} does not exist", hint="Check the address.") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise GraphError(
            f"graph file {file} cannot be reached: {reason:.{_LONGEST_REASON}}",
            hint="Check the address, what you may read there (credentials, endpoint), and the network.",
        ) from error
