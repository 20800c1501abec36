"""What is behind the quanta of a round, on disk: jobs decide about retries with the budgets that are left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgexec.books.linefile import file_error
from qgexec.books.rundir import write_aside
from qgexec.errors import RunDirError
from qgexec.regularfile import read_regular
from qgexec.scheduling.policy import Account, Cause
from qgexec.scheduling.troubles import Past
from qgexec.storedvalues import UNFIT, check_types, parse_json

__all__ = ["PAST_VERSION", "read_pasts", "write_pasts"]

PAST_VERSION = 1
"""Version of ``past.json``. 1: the first."""

_FORMAT = "qgexec-past"


def write_pasts(path: Path, pasts: Mapping[int, Past]) -> None:
    """Write what is behind some quanta, by index.

    Raises
    ------
    qgexec.errors.RunDirError
        It cannot be written.
    """
    quanta = {str(index): _to_json(past) for index, past in pasts.items()}
    text = json.dumps({"format": _FORMAT, "version": PAST_VERSION, "quanta": quanta}) + "\n"
    write_aside(path, lambda file: file.write(text.encode("ascii")))


def read_pasts(path: Path) -> dict[int, Past]:
    """Return what `write_pasts` wrote.

    Raises
    ------
    qgexec.errors.RunDirError
        It is missing, damaged, or of a newer version.
    """
    try:
        values = parse_json(read_regular(path))
        if values["format"] != _FORMAT:
            raise ValueError(f"its format is {values['format']!r}")
        if values["version"] > PAST_VERSION:
            raise RunDirError(
                f"{path} is of version {values['version']}, but this qgexec reads up to {PAST_VERSION}",
                hint="Use a newer qgexec.",
            )
        return {int(index): _from_json(past) for index, past in values["quanta"].items()}
    except OSError as error:
        raise file_error("read", path, error, RunDirError) from error
    except UNFIT as error:
        raise RunDirError(f"{path} is damaged: {error}", hint="Bring it back from a copy.") from error


def _to_json(past: Past) -> list[Any]:
    charged = [[None if cause is None else cause.value, key, n] for (cause, key), n in past.charged.items()]
    return [past.n_attempts, past.n_out_of_memory, charged]


def _from_json(values: list[Any]) -> Past:
    n_attempts, n_out_of_memory, charged = values
    accounts: dict[Account, int] = {
        (None if cause is None else Cause(cause), key): int(n) for cause, key, n in charged
    }
    past = Past(n_attempts, accounts, n_out_of_memory)
    check_types(past)
    return past
