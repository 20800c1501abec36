"""Tasks for the tests of benches: one that misbehaves as it is told, and two around a composite dataset."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from lsst.daf.butler.tests import MetricsExample
from lsst.pipe.base import (
    AnnotatedPartialOutputsError,
    InputQuantizedConnection,
    OutputQuantizedConnection,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    QuantumContext,
    RepeatableQuantumError,
    Struct,
    connectionTypes,
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


class MeasureConnections(PipelineTaskConnections, dimensions=("visit", "detector")):
    raw = connectionTypes.Input(
        name="raw_mock", storageClass="_mock_StructuredDataDict", dimensions=("visit", "detector"), doc="raw"
    )
    metrics = connectionTypes.Output(
        name="metrics", storageClass="MetricsPair", dimensions=("visit", "detector"), doc="metrics"
    )


class MeasureConfig(PipelineTaskConfig, pipelineConnections=MeasureConnections):
    pass


class MeasureTask(PipelineTask):
    """Writes a composite."""

    ConfigClass = MeasureConfig
    _DefaultName = "measure"

    def run(self, raw: Any) -> Struct:
        detector = raw.data_id["detector"]
        return Struct(metrics=MetricsExample({"detector": detector}, {"half": detector / 2}, [detector] * 3))


class DigestConnections(PipelineTaskConnections, dimensions=("visit", "detector")):
    summary = connectionTypes.Input(
        name="metrics.summary",
        storageClass="StructuredDataDict",
        dimensions=("visit", "detector"),
        doc="part",
    )
    metrics = connectionTypes.Input(
        name="metrics", storageClass="MetricsPair", dimensions=("visit", "detector"), doc="whole"
    )
    digest = connectionTypes.Output(
        name="digest", storageClass="StructuredDataDict", dimensions=("visit", "detector"), doc="digest"
    )


class DigestConfig(PipelineTaskConfig, pipelineConnections=DigestConnections):
    pass


class DigestTask(PipelineTask):
    """Reads a composite, and one of its components."""

    ConfigClass = DigestConfig
    _DefaultName = "digest"

    def run(self, summary: dict[str, Any], metrics: MetricsExample) -> Struct:
        assert metrics.summary == summary
        assert metrics.data is not None
        return Struct(digest={"sum": sum(metrics.data), **summary})
