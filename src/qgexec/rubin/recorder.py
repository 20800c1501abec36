"""Turns the execution of a quantum into an event: measured, log streamed, detail written; runs nothing."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import traceback
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from lsst.pipe.base import QuantumSuccessCaveats
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult
from lsst.utils.introspection import get_full_type_name

from qgexec.books.journal import SegmentWriter, segment_path
from qgexec.errors import QuantumTimeUp, RunDirError, RunInterrupted
from qgexec.events import AttemptFailed, AttemptLost, AttemptSkipped, AttemptSucceeded, Event
from qgexec.plaintext import encodable
from qgexec.processes.apart import Answer, do_apart, end_if_child
from qgexec.processes.forked import describe_exit
from qgexec.quantum import Attempt, ExceptionSummary, Outcome, OutcomeStatus
from qgexec.rubin.detail import Detail
from qgexec.rubin.logsetup import given_logging
from qgexec.rubin.meter import Meter, Usage
from qgexec.rubin.opener import Books
from qgexec.rubin.quantumlog import StreamedLog, pipetask_logging

__all__ = ["MESSAGE_LENGTH", "Recorder", "summarise"]

MESSAGE_LENGTH = 500
"""Characters of an exception's message that go into its summary."""

_EVENTS: dict[OutcomeStatus, type[AttemptSucceeded | AttemptSkipped | AttemptFailed]] = {
    OutcomeStatus.SUCCEEDED: AttemptSucceeded,
    OutcomeStatus.SKIPPED: AttemptSkipped,
    OutcomeStatus.FAILED: AttemptFailed,
}


@dataclass(frozen=True, slots=True)
class _Ending:
    status: OutcomeStatus
    caveats: int = 0
    exception: ExceptionSummary | None = None
    traceback: str = ""
    message: str = ""
    """What was raised says so, in full."""
    error: BaseException | None = None
    """Only for a debugger: it keeps all that the quantum had in memory."""

    def detail(self) -> Detail:
        """Return what the outcome has no room for."""
        detail: Detail = {}
        if self.traceback:
            detail["traceback"] = self.traceback
        if len(self.message) > MESSAGE_LENGTH:
            detail["message"] = self.message
        return detail


class Recorder:
    """Keeps the books of one bench, for its life.

    Parameters
    ----------
    books
        Where to write.
    name
        Name of the segment; no other process uses it.

    Raises
    ------
    qgexec.errors.RunDirError
        A file cannot be created.
    """

    def __init__(self, books: Books, name: str) -> None:
        self._logs = Path(books.logs)
        self._host = socket.gethostname()
        self._pid = os.getpid()
        self._meter = Meter()
        self._is_idle = True
        self._debugger = books.debugger
        with contextlib.ExitStack() as stack:
            path = self._logs / f"{name}.log"
            try:
                self._log = StreamedLog(path)
            except OSError as error:
                raise RunDirError(
                    f"cannot write the log file {path}: {error.strerror}",
                    hint="Check that the run directory exists and may be written.",
                ) from error
            stack.callback(self._close_log)
            if books.logging is not None:
                stack.enter_context(given_logging(books.logging))  # it takes away what handlers there are
            logging.getLogger().addHandler(self._log)
            stack.callback(logging.getLogger().removeHandler, self._log)
            if books.log_level is not None:
                stack.enter_context(pipetask_logging(books.log_level))
            path = segment_path(Path(books.segments), books.epoch, name)
            self._segment = SegmentWriter(path, syncs=books.syncs_segments)
            stack.callback(self._segment.close)
            self._open = stack.pop_all()

    def close(self) -> None:
        """Close the files and leave logging as it was; may be called twice.

        Files that nobody will ask for are removed: a log whose quantum has ended, a segment without details.
        """
        self._open.close()

    def _close_log(self) -> None:
        if self._is_idle:
            self._log.discard()
        else:
            self._log.close()

    def record(
        self,
        attempt: Attempt,
        execute: Callable[[], QuantumExecutionResult | None],
        outputs: Callable[[OutcomeStatus], Detail],
    ) -> Event:
        """Execute and say what came of it; about 0.2 ms beside the two calls.

        Parameters
        ----------
        attempt
            What is executed.
        execute
            Executes it. Whatever it raises, other than `qgexec.errors.RunInterrupted` and
            `qgexec.errors.QuantumTimeUp`, is the quantum's failure.
        outputs
            Tells afterwards what it left; a failure where this fails.

        Raises
        ------
        qgexec.errors.RunInterrupted
            The user has ended the run, in whose own process the quantum ran; nothing is recorded.
        qgexec.errors.QuantumTimeUp
            The quantum's time was up; its log is kept, nothing else recorded.
        qgexec.errors.RunDirError
            The detail or the log cannot be written.
        """
        self._is_idle = False
        try:
            event = self._record(attempt, execute, outputs)
        except QuantumTimeUp:
            self._keep_log(attempt)
            raise
        self._is_idle = True
        return event

    def _record(
        self,
        attempt: Attempt,
        execute: Callable[[], QuantumExecutionResult | None],
        outputs: Callable[[OutcomeStatus], Detail],
    ) -> Event:
        self._log.restart(f"{attempt.task_label} quantum {attempt.quantum_id} attempt {attempt.number}")
        self._meter.start()
        if attempt.isolated and self._debugger is None:
            answer = do_apart(lambda: _to_json(*self._carry_out(execute, outputs)[:2]))
            usage = replace(self._meter.read(), peak_rss_bytes=answer.peak_rss_bytes)
            if answer.value is None:
                return self._lost(attempt, usage, answer)
            ending, detail = _from_json(*answer.value)
        else:
            ending, detail, usage = self._carry_out(execute, outputs)
        if ending.status is OutcomeStatus.FAILED:
            self._keep_log(attempt)
        outcome = Outcome(
            index=attempt.index,
            attempt=attempt.number,
            status=ending.status,
            started_at=usage.started_at,
            ended_at=usage.ended_at,
            cpu_s=usage.cpu_s,
            peak_rss_bytes=usage.peak_rss_bytes,
            host=self._host,
            pid=self._pid,
            caveats=ending.caveats,
            exception=ending.exception,
            detail=self._segment.append(detail) if detail else None,
        )
        return _EVENTS[ending.status](usage.ended_at, outcome)

    def _carry_out(
        self, execute: Callable[[], QuantumExecutionResult | None], outputs: Callable[[OutcomeStatus], Detail]
    ) -> tuple[_Ending, Detail, Usage]:
        """Execute, and look at what is there afterwards."""
        ending = _end(execute, keep_error=self._debugger is not None)
        usage = self._meter.read()
        if self._debugger is not None and ending.error is not None:
            importlib.import_module(self._debugger).post_mortem(ending.error.__traceback__)
        detail = ending.detail()
        try:
            detail |= outputs(ending.status)
        except Exception as error:  # noqa: BLE001  a quantum whose outputs cannot be listed has not succeeded
            ending = _failure(error)
            detail = ending.detail()
        return ending, detail, usage

    def _lost(self, attempt: Attempt, usage: Usage, answer: Answer) -> AttemptLost:
        """Return the end of an attempt whose own process has died."""
        self._keep_log(attempt)
        reason = f"its process {describe_exit(answer.exit_code)}"
        return AttemptLost(usage.ended_at, attempt.index, attempt.number, reason, answer.exit_code)

    def _keep_log(self, attempt: Attempt) -> None:
        self._log.keep(self._logs / f"{attempt.index}.{attempt.number}.log")


def _end(execute: Callable[[], QuantumExecutionResult | None], *, keep_error: bool) -> _Ending:
    pid = os.getpid()
    try:
        result = execute()
    except (RunInterrupted, QuantumTimeUp):
        end_if_child(pid)
        raise
    except BaseException as error:  # noqa: BLE001  a task's sys.exit, or NoWorkFound where upstream does not expect it
        end_if_child(pid, error)
        return replace(_failure(error), error=error if keep_error else None)
    end_if_child(pid)
    if result is not None and getattr(result, "skipped_existing", None):
        return _Ending(OutcomeStatus.SKIPPED)
    return _Ending(OutcomeStatus.SUCCEEDED, caveats=_caveats(result))


def _to_json(ending: _Ending, detail: Detail) -> list[Any]:
    exception = None if ending.exception is None else astuple(ending.exception)
    return [ending.status.value, ending.caveats, exception, detail]


def _from_json(
    status: str, caveats: int, exception: list[Any] | None, detail: Detail
) -> tuple[_Ending, Detail]:
    summary = None if exception is None else ExceptionSummary(*exception)
    return _Ending(OutcomeStatus(status), caveats, summary), detail


def _caveats(result: Any) -> int:
    """Return upstream's flags; 0 where a client's executor says nothing of them."""
    if getattr(result, "adjusted_no_work", None):
        return QuantumSuccessCaveats.from_adjust_quantum_no_work().value
    try:
        return int(result.task_metadata["quantum"]["caveats"])
    except (AttributeError, LookupError, TypeError, ValueError):
        return 0


def _failure(error: BaseException) -> _Ending:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001  formatting runs the exception's own code
        text = "".join(traceback.format_tb(error.__traceback__)) + get_full_type_name(error) + "\n"
    return _Ending(
        OutcomeStatus.FAILED,
        exception=summarise(error),
        traceback=encodable(text),
        message=encodable(_message(error)),
    )


def summarise(error: BaseException) -> ExceptionSummary:
    """Return an exception in two lines, whatever its own code does when it is asked."""
    exit_code = getattr(error, "EXIT_CODE", None)
    return ExceptionSummary(
        type=get_full_type_name(error),
        message=encodable(_message(error))[:MESSAGE_LENGTH],
        where=_where(error.__traceback__),
        exit_code=exit_code if isinstance(exit_code, int) else None,
    )


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"called sys.exit({'' if error.code is None else repr(error.code)})"
    try:
        return str(error)
    except Exception as worse:  # noqa: BLE001  any code may be behind str()
        return f"(its message cannot be had: str() raised {type(worse).__name__})"


def _where(trace: TracebackType | None) -> str:
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} {code.co_qualname}"
