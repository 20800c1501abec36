"""A task for the tests of benches that misbehaves as it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from lsst.pipe.base import (
    AnnotatedPartialOutputsError,
    InputQuantizedConnection,
    OutputQuantizedConnection,
    QuantumContext,
    RepeatableQuantumError,
)
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask

Mood = Callable[["MoodyTask"], None]


class MoodyTask(DynamicTestPipelineTask):
    """Upstream's mock task; a test puts something between its lines."""

    at_construction: ClassVar[Mood | None] = None
    before_put: ClassVar[Mood | None] = None
    after_put: ClassVar[Mood | None] = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if (mood := type(self).at_construction) is not None:
            mood(self)

    def runQuantum(  # noqa: N802
        self,
        butlerQC: QuantumContext,  # noqa: N803
        inputRefs: InputQuantizedConnection,  # noqa: N803
        outputRefs: OutputQuantizedConnection,  # noqa: N803
    ) -> None:
        if (mood := type(self).before_put) is not None:
            mood(self)
        super().runQuantum(butlerQC, inputRefs, outputRefs)
        if (mood := type(self).after_put) is not None:
            mood(self)


@contextlib.contextmanager
def mood(**moods: Mood) -> Iterator[None]:
    """Set moods by place; all tasks are good again afterwards."""
    for place, each in moods.items():
        setattr(MoodyTask, place, staticmethod(each))
    try:
        yield
    finally:
        for place in moods:
            setattr(MoodyTask, place, None)


def raising(error: BaseException | type[BaseException]) -> Mood:
    """Return a mood that raises."""

    def act(task: MoodyTask) -> None:
        raise error

    return act


def complaining(text: str) -> Mood:
    """Return a mood that logs a warning, then raises."""

    def act(task: MoodyTask) -> None:
        task.log.warning(text)
        raise ValueError(text)

    return act


def partial(task: MoodyTask) -> None:
    """Report partial outputs, as upstream wants it."""
    error = RepeatableQuantumError("only half of it")
    raise AnnotatedPartialOutputsError.annotate(error, task, log=task.log) from error


class UnprintableError(Exception):
    """An exception with neither text nor pickle."""

    def __init__(self) -> None:
        super().__init__()
        self.handle = lambda: None

    def __str__(self) -> str:
        raise RuntimeError("no text")
