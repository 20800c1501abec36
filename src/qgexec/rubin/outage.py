"""Databases that do not answer for a while: which errors pass, and trying again; knows no datasets."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

__all__ = ["Patience", "is_full", "is_gone", "is_locked"]

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 5.0

_SQLITE_BUSY_CODES = frozenset({5, 6})
"""SQLITE_BUSY and SQLITE_LOCKED, https://www.sqlite.org/rescode.html."""

_POSTGRES_BUSY_CODES = frozenset({"40001", "40P01", "55P03"})
"""Serialization failure, deadlock, lock not available:
https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

_POSTGRES_GONE_CODES = frozenset({"53300", "57P01", "57P02", "57P03"})
"""Too many connections, shut down by an administrator or a crash, cannot connect now (same page)."""

_SQLITE_FULL_CODE = 13
_POSTGRES_FULL_CODE = "53100"

_POSTGRES_CONNECTION_CLASS = "08"

_REFUSED_FOR_GOOD = ("authentication", "does not exist", "permission denied", "pg_hba.conf")
"""In the words of a server that will not say another thing in a minute; they come without a code."""


class Patience:
    """Tries what a database refuses for the moment again, for a while.

    Parameters
    ----------
    patience_s
        How long, seconds.
    sleep, clock
        How to wait; seconds.
    """

    def __init__(
        self, patience_s: float, *, sleep: Callable[[float], None], clock: Callable[[], float]
    ) -> None:
        self.patience_s = patience_s
        self._sleep = sleep
        self._clock = clock

    def retry(self, action: Callable[[], _T], *, disconnect: Callable[[], None]) -> _T:
        """Do something that may be done again after it failed, until it is done or the time is over.

        Parameters
        ----------
        action
            What to do.
        disconnect
            Called before another try with a database that has gone away.

        Raises
        ------
        Exception
            What the action raised last; at once where time would not change it.
        """
        until = self._clock() + self.patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return action()
            except Exception as error:
                gone = is_gone(error)
                if not (gone or is_locked(error)) or self._clock() + pause_s > until:
                    raise
                if pause_s == _FIRST_PAUSE_S:
                    self.warn(error, gone=gone)
            if gone:
                disconnect()
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def warn(self, error: Exception, *, gone: bool) -> None:
        """Say, once, what is waited for."""
        _logger.warning(
            "The registry %s; trying again for %.0f s: %s",
            "cannot be reached" if gone else "is locked by another process",
            self.patience_s,
            next((str(each.orig).strip() for each in _database_errors(error)), error),
        )


def in_words(error: Exception) -> str:
    """Return what an error and the database say, without the statement and values that SQLAlchemy adds."""
    found = next(_database_errors(error), None)
    if found is None or found.orig is None:
        return f"{type(error).__name__}: {error}"
    database = str(found.orig).strip()
    if found is error:
        return f"{type(found.orig).__name__}: {database}"
    return f"{type(error).__name__}: {str(error).partition('[SQL:')[0].strip()} ({database})"


def is_locked(error: BaseException) -> bool:
    """Tell whether a database is reached, but kept by others for the moment."""
    return any(_is_busy(each) for each in _database_errors(error))


def is_full(error: BaseException) -> bool:
    """Tell whether a database has no room on its disk."""
    return any(_has_no_room(each) for each in _database_errors(error))


def is_gone(error: BaseException) -> bool:
    """Tell whether a database cannot be reached, or ended the connection, as when it is started anew."""
    return any(_has_gone(each) for each in _database_errors(error))


def _database_errors(error: BaseException | None) -> Iterator[DBAPIError]:
    """Yield the errors of a database among an error and what led to it: upstream and SQLAlchemy wrap them."""
    while error is not None:
        if isinstance(error, DBAPIError):
            yield error
        error = error.__cause__ or error.__context__


def _is_busy(error: DBAPIError) -> bool:
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    if sqlite_code is not None:
        return sqlite_code & 0xFF in _SQLITE_BUSY_CODES  # the low byte is the primary code
    return _sqlstate(error) in _POSTGRES_BUSY_CODES


def _has_no_room(error: DBAPIError) -> bool:
    sqlite_code = getattr(error.orig, "sqlite_errorcode", None)
    return sqlite_code == _SQLITE_FULL_CODE or _sqlstate(error) == _POSTGRES_FULL_CODE


def _has_gone(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error) or not isinstance(error, OperationalError | InterfaceError):
        return False
    state = _sqlstate(error)
    if state is not None:
        return state in _POSTGRES_GONE_CODES or state.startswith(_POSTGRES_CONNECTION_CLASS)
    return not any(words in str(error.orig) for words in _REFUSED_FOR_GOOD)


def _sqlstate(error: DBAPIError) -> str | None:
    """Return PostgreSQL's code, from psycopg 3 or its predecessor; `None` where no server gave one."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
