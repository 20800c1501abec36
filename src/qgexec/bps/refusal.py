"""How errors leave the service: as one message of the ``bps`` command, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from qgexec.errors import QgexecError

__all__ = ["Refusal", "refusing"]


class Refusal(click.ClickException):
    """What was asked of the service cannot be done: ``bps`` prints the message and exits with 2."""

    exit_code = 2


@contextmanager
def refusing() -> Iterator[None]:
    """Turn errors of qgexec into refusals."""
    try:
        yield
    except QgexecError as error:
        raise Refusal(str(error)) from error
