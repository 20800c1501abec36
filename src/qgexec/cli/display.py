"""What is seen while a run goes on: a moving bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

import click

from qgexec.events import AttemptFailed, Event, FailureEvent, RunEnded, RunStarted
from qgexec.plaintext import few, printable
from qgexec.reports.failures import reason_of
from qgexec.reports.progress import Progress, ProgressView
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.states import State

__all__ = ["Display"]

_REDRAW_S = 0.2
_LINE_S = 10.0
_FAILURES_SHOWN = 10


class Display:
    """Shows on stderr how far a run is.

    Parameters
    ----------
    on_terminal
        Draw a moving bar; `None` asks stderr.
    survives
        What the execution model has in hand goes on without this process.
    """

    def __init__(self, *, on_terminal: bool | None = None, survives: bool = False) -> None:
        self._survives = survives
        moving = sys.stderr.isatty() if on_terminal is None else on_terminal
        self._face: _Face = _Bar() if moving else _Lines()
        self._observer: _Observer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._face.close()

    def observe(self, plan: Plan, counts: Mapping[str, Mapping[State, int]]) -> Callable[[Event], None]:
        """Return an observer of the events of one run, whose quanta are in these states by now."""
        self._observer = _Observer(plan, self._face, Progress(plan, counts))
        return self._observer

    def show_now(self) -> None:
        """Print one line of progress at once; made to be called from a signal handler."""
        self._face.say(self._observer.in_words() if self._observer else "nothing has been started yet")

    def interrupted(self, count: int) -> None:
        """Say what a Ctrl-C does; called from the signal handler."""
        if self._survives:
            if count == 1:
                self._face.say("Interrupted: leaving; what was submitted goes on without this process.")
        elif count == 1:
            self._face.say(
                "Interrupted: waiting for the quanta that run; press Ctrl-C again to end them now."
            )
        else:
            self._face.say("Interrupted again: ending the quanta that run.")


class _Observer:
    """Folds events into progress, and has it drawn a few times a second."""

    def __init__(self, plan: Plan, face: _Face, progress: Progress) -> None:
        self._plan = plan
        self._face = face
        self._progress = progress
        self._next_draw = 0.0
        self._n_failures = 0

    def __call__(self, event: Event) -> None:
        self._progress.apply(event)
        if isinstance(event, FailureEvent):
            self._say_failure(event)
        elif isinstance(event, RunStarted):
            self._face.say(f"{event.n_quanta} quanta on execution model {event.model}")
        now = time.monotonic()
        if now >= self._next_draw or isinstance(event, RunEnded):
            self._next_draw = now + self._face.interval_s
            self._face.draw(self._progress.view(time.time()))

    def in_words(self) -> str:
        """Return how far the run is, in a line."""
        return _in_words(self._progress.view(time.time()))

    def _say_failure(self, event: FailureEvent) -> None:
        self._n_failures += 1
        if self._n_failures <= _FAILURES_SHOWN:
            cause = reason_of(event).partition("\n")[0]
            if isinstance(event, AttemptFailed) and event.outcome.exception is not None:
                cause = f"{event.outcome.exception.type}: {cause}"
            what = f"attempt {event.attempt} failed, another follows" if event.retried else "failed"
            self._face.say(printable(f"{self._plan.describe(event.index)} {what}: {cause}"))
        elif self._n_failures == _FAILURES_SHOWN + 1:
            self._face.say("further failures are in the report")


def _in_words(view: ProgressView) -> str:
    total = view.total
    parts = [f"{total.done}/{total.total} succeeded"]
    parts += [
        f"{count} {word}"
        for word, count in (
            ("running", total.running),
            ("of them skipped", total.skipped),
            ("failed", total.failed),
            ("blocked", total.blocked),
            ("retried", total.retried),
        )
        if count
    ]
    if view.rate_per_s and total.ended < total.total:
        parts.append(f"{view.rate_per_s:.3g}/s")
        if view.eta_s is not None:
            parts.append(_time_left(view.eta_s, view.unmeasured))
    return ", ".join(parts)


def _time_left(seconds: float, unmeasured: Sequence[str]) -> str:
    if not unmeasured:
        return f"{_clock(seconds)} left"
    return f"at least {_clock(seconds)} left ({few(unmeasured)} not measured yet)"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class _Face(Protocol):
    interval_s: float

    def draw(self, view: ProgressView) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Plain lines, for files and batch logs."""

    interval_s = _LINE_S

    def __init__(self) -> None:
        self._last = ""

    def draw(self, view: ProgressView) -> None:
        if (words := _in_words(view)) != self._last:
            self._last = words
            click.echo(words, err=True)

    def say(self, text: str) -> None:
        click.echo(text, err=True)

    def close(self) -> None:
        """Nothing to end."""


class _Bar:
    """One moving bar, with messages scrolling above it."""

    interval_s = _REDRAW_S

    def __init__(self) -> None:
        # rich takes longer to import than all the rest of the command line; only a terminal pays for it.
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(stderr=True)
        self._column = BarColumn(bar_width=None)
        self._bar = RichProgress(
            self._column,
            TextColumn("{task.description}"),
            console=self._console,
            auto_refresh=False,  # no thread: the loop draws, and the workers keep both cores
            transient=False,
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def draw(self, view: ProgressView) -> None:
        total = view.total
        if total.failed:
            self._column.complete_style = "red"
        self._bar.update(
            self._task,
            total=total.total,
            completed=total.done,
            description=_in_words(view),
            refresh=True,
        )

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._bar.stop()
