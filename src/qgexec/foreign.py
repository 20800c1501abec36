"""Owns how code of others is kept from ending this process; knows not what it is called for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_exit"]


@contextmanager
def no_exit() -> Iterator[None]:
    """Make a `RuntimeError` of a `SystemExit` in a block that imports or calls what others wrote.

    A module may call `sys.exit` as it is imported: what it was imported for has failed then, and has
    to be told as any other failure, not by an exit code of its choice.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"it would end the program (SystemExit: {error.code})") from error
