"""Tasks for both sides: one that misbehaves as the environment says, two with their own storage classes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pydantic
from lsst.daf.butler.tests import MetricsExample
from lsst.pipe.base import (
    AnnotatedPartialOutputsError,
    InputQuantizedConnection,
    NoWorkFound,
    OutputQuantizedConnection,
    PipelineTask,
    QuantumContext,
    RepeatableQuantumError,
    Struct,
    connectionTypes,
)
from lsst.pipe.base.tests.mocks import DynamicTestPipelineTask

from tests.kit.butler import composites

__all__ = [
    "DigestConfig",
    "DigestTask",
    "MeasureConfig",
    "MeasureTask",
    "Mood",
    "MoodyTask",
    "Pairs",
    "environment",
]

_VARIABLE = "PEER_MOODS"


@dataclass(frozen=True, slots=True)
class Mood:
    """What a task does wrong, when, and for which quanta."""

    label: str
    """Task label."""

    moment: str
    """``construction``, ``before`` any put, ``between`` the first put and the second, or ``after`` all."""

    deed: str
    """A key of `_DEEDS`."""

    data_id: Mapping[str, int] | None = None
    """Only quanta with these values; `None` for all."""


def environment(moods: Iterable[Mood]) -> dict[str, str]:
    """Return the environment in which tasks have these moods."""
    return {_VARIABLE: json.dumps([asdict(mood) for mood in moods])}


def _act(task: PipelineTask, moment: str, data_id: Mapping[str, Any]) -> None:
    for simple in json.loads(os.environ.get(_VARIABLE, "[]")):
        mood = Mood(**simple)
        if (mood.label, mood.moment) != (task.getName(), moment):
            continue
        if all(data_id[key] == value for key, value in (mood.data_id or {}).items()):
            task.log.warning("about to be in a mood: %s", mood.deed)
            _DEEDS[mood.deed](task)


class UnpicklableError(Exception):
    """An exception that no other process can be sent."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.handle = lambda: None


def _raise(error: BaseException) -> Any:
    raise error


def _report_partial(task: PipelineTask) -> None:
    error = RepeatableQuantumError("only half of it")
    raise AnnotatedPartialOutputsError.annotate(error, task, log=task.log) from error


_DEEDS = {
    "raise": lambda _: _raise(ValueError("in a bad mood")),
    "raise unpicklable": lambda _: _raise(UnpicklableError("in a worse mood")),
    "find no work": lambda _: _raise(NoWorkFound("nothing to do")),
    "report partial outputs": _report_partial,
    "exit": lambda _: sys.exit(3),
}


class MoodyTask(DynamicTestPipelineTask):
    """Upstream's mock task, with moods."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _act(self, "construction", {})

    def runQuantum(  # noqa: N802
        self,
        butlerQC: QuantumContext,  # noqa: N803
        inputRefs: InputQuantizedConnection,  # noqa: N803
        outputRefs: OutputQuantizedConnection,  # noqa: N803
    ) -> None:
        assert butlerQC.quantum.dataId is not None
        data_id = dict(butlerQC.quantum.dataId.mapping)
        put = butlerQC.put

        def put_and_act(*args: Any, **kwargs: Any) -> None:
            put(*args, **kwargs)
            _act(self, "between", data_id)

        setattr(butlerQC, "put", put_and_act)  # noqa: B010  mypy would not have it otherwise
        _act(self, "before", data_id)
        in_order: Any = sorted(outputRefs)  # upstream's order is a set's: another one in another process
        super().runQuantum(butlerQC, inputRefs, in_order)
        _act(self, "after", data_id)


class Pairs(pydantic.BaseModel):
    """What the `PeerPairs` storage class holds; `PeerDict` and `PeerList` hold the same otherwise."""

    names: list[str]
    values: list[float]

    @staticmethod
    def from_dict(pairs: dict[str, float]) -> Pairs:
        return Pairs(names=list(pairs), values=list(pairs.values()))

    @staticmethod
    def from_list(pairs: list[tuple[str, float]]) -> Pairs:
        return Pairs.from_dict(dict(pairs))

    def to_dict(self) -> dict[str, float]:
        return dict(zip(self.names, self.values, strict=True))

    def to_list(self) -> list[tuple[str, float]]:
        return list(self.to_dict().items())


def list_to_dict(pairs: list[tuple[str, float]]) -> dict[str, float]:
    return dict(pairs)


def dict_to_list(pairs: dict[str, float]) -> list[tuple[str, float]]:
    return list(pairs.items())


class MeasureConnections(composites.MeasureConnections, dimensions=("visit", "detector")):
    pairs = connectionTypes.Output(
        name="pairs", storageClass="PeerPairs", dimensions=("visit", "detector"), doc="the writer's type"
    )


class MeasureConfig(composites.MeasureConfig, pipelineConnections=MeasureConnections):
    pass


class MeasureTask(composites.MeasureTask):
    """Writes a composite, and pairs as an object."""

    ConfigClass = MeasureConfig

    def run(self, raw: Any) -> Struct:
        detector = raw.data_id["detector"]
        pairs = Pairs(names=["one", "two"], values=[1.0 * detector, 2.0 * detector])
        return Struct(metrics=super().run(raw).metrics, pairs=pairs)


class DigestConnections(composites.DigestConnections, dimensions=("visit", "detector")):
    pairs = connectionTypes.Input(
        name="pairs", storageClass="PeerList", dimensions=("visit", "detector"), doc="the reader's type"
    )


class DigestConfig(composites.DigestConfig, pipelineConnections=DigestConnections):
    pass


class DigestTask(composites.DigestTask):
    """Reads a composite, one of its components, and pairs as a list."""

    ConfigClass = DigestConfig

    def run(  # type: ignore[override]  # a task's inputs are its own
        self, summary: dict[str, Any], metrics: MetricsExample, pairs: list[tuple[str, float]]
    ) -> Struct:
        assert isinstance(pairs, list)
        return Struct(digest={**super().run(summary, metrics).digest, "pairs": dict(pairs)})
