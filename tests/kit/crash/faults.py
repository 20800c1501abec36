"""What goes wrong in a driver, its workers or its ingester: prepared in the driver before it begins."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qgexec.books import linefile
from qgexec.books.journal import Journal
from qgexec.events import Event
from qgexec.quantum import Attempt
from qgexec.rubin.workbench import Workbench
from tests.kit.processes.forks import replace
from tests.kit.processes.kills import die
from tests.kit.tasks.moods import MoodyTask

Fault = Callable[[], None]
"""Called in a driver's process before it begins: prepares what goes wrong, there or in its workers."""


def at_record(number: int, moment: str) -> Fault:
    """Have the driver killed ``before`` its so many-th record is written, ``within`` it, or ``after``."""
    return _at_append(lambda n, _event: n == number, moment)


def at_kind(kind: type[Event], moment: str) -> Fault:
    """Have the driver killed at its first record of a kind."""
    return _at_append(lambda _n, event: isinstance(event, kind), moment)


def _at_append(is_it: Callable[[int, Event], bool], moment: str) -> Fault:
    def prepare() -> None:
        append, write = Journal.append, os.write
        n = 0

        def tearing(descriptor: int, data: bytes) -> int:
            write(descriptor, data[: len(data) // 2])
            die()
            return 0

        def deadly(journal: Journal, event: Event) -> None:
            nonlocal n
            n += 1
            if not is_it(n, event):
                append(journal, event)
                return
            if moment == "before":
                die()
            if moment == "within":
                replace(linefile, "os", SimpleNamespace(**vars(os) | {"write": tearing}))
            append(journal, event)
            die()

        replace(Journal, "append", deadly)

    return prepare


def at_call(
    owner: Any, name: str, moment: str = "before", *, number: int = 1, act: Callable[[], None] = die
) -> Fault:
    """Have a process killed at its so many-th call of a function.

    Parameters
    ----------
    owner, name
        A class or module, and the function's name there.
    moment
        ``before`` the call, or ``after`` it.
    number
        Counted in each process from 1.
    act
        Done then, if not to die.
    """

    def prepare() -> None:
        function = getattr(owner, name)
        n = 0

        @functools.wraps(function)
        def deadly(*args: Any, **kwargs: Any) -> Any:
            nonlocal n
            n += 1
            now = n == number
            if now and moment == "before":
                act()
            result = function(*args, **kwargs)
            if now and moment == "after":
                act()
            return result

        replace(owner, name, deadly)

    return prepare


def die_once(mark: Path) -> None:
    """Kill this process, unless the mark says that one was killed already."""
    if is_first(mark):
        die()


def is_first(mark: Path) -> bool:
    """Make a mark; say whether it was not there."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def in_quantum(label: str, *stages: Fault, mark: Path) -> Fault:
    """Have faults prepared as a task's quantum begins, in the process that executes it: one for each attempt.

    Parameters
    ----------
    label
        The task's.
    stages
        The fault of the first attempt, of the second, ...; later ones are left alone.
    mark
        Counts attempts: files whose names begin like this.
    """

    def prepare() -> None:
        execute = Workbench.execute

        def deadly(bench: Workbench, attempt: Attempt) -> Event:
            if attempt.task_label == label:
                for n, stage in enumerate(stages):
                    if is_first(mark.with_name(f"{mark.name}.{n}")):
                        stage()
                        break
            return execute(bench, attempt)

        replace(Workbench, "execute", deadly)

    return prepare


def nothing() -> None:
    """Leave all as it is."""


def together(*faults: Fault) -> Fault:
    """Prepare several faults."""

    def prepare() -> None:
        for fault in faults:
            fault()

    return prepare


def in_task(**actions: Callable[[], None]) -> Fault:
    """Have something done in a quantum of a task, by label, before its first put."""

    def prepare() -> None:
        before = MoodyTask.before_put

        def mood(task: MoodyTask) -> None:
            if before is not None:
                before(task)
            actions.get(task.getName(), nothing)()

        MoodyTask.before_put = staticmethod(mood)

    return prepare


def raising(error: BaseException, mark: Path | None = None) -> Callable[[], None]:
    """Return an action that raises, once where a mark is given."""

    def act() -> None:
        if mark is None or is_first(mark):
            raise error

    return act


def killed(mark: Path) -> Callable[[], None]:
    """Return an action that kills the process, once."""
    return functools.partial(die_once, mark)


def stuck(mark: Path) -> Callable[[], None]:
    """Return an action that waits for a signal, once."""

    def act() -> None:
        if is_first(mark):
            signal.pause()

    return act
