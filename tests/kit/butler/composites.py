"""Datastores of several kinds, and two tasks: one writes a composite, one reads it and a part of it."""

from __future__ import annotations

from typing import Any

from lsst.daf.butler.tests import MetricsExample
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct, connectionTypes

__all__ = [
    "CACHED",
    "COMPOSITE",
    "DigestConfig",
    "DigestConnections",
    "DigestTask",
    "MeasureConfig",
    "MeasureConnections",
    "MeasureTask",
    "chained",
]


def chained(*rejected: str) -> str:
    """Return the configuration of two datastores in a chain, the first of which does not take these types."""
    return f"""
datastore:
  cls: lsst.daf.butler.datastores.chainedDatastore.ChainedDatastore
  datastores:
    - datastore: {{cls: lsst.daf.butler.datastores.inMemoryDatastore.InMemoryDatastore}}
    - datastore:
        cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
        root: <butlerRoot>/first
        records: {{table: first_records}}
        constraints: {{reject: [{", ".join(rejected)}]}}
    - datastore:
        cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
        root: <butlerRoot>/second
        records: {{table: second_records}}
"""


CACHED = """
datastore:
  cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
  checksum: true
  cached: {default: true, expiry: {mode: files, threshold: 3}}
"""
"""Copies are kept, and checksums made."""

COMPOSITE = """
storageClasses:
  MetricsPair:
    pytype: lsst.daf.butler.tests.MetricsExample
    delegate: lsst.daf.butler.tests.MetricsDelegate
    components: {summary: StructuredDataDict, output: StructuredDataDict, data: StructuredDataList}
datastore:
  cls: lsst.daf.butler.datastores.fileDatastore.FileDatastore
  formatters: {StructuredDataList: lsst.daf.butler.formatters.json.JsonFormatter}
  composites:
    disassembled: {MetricsPair: true}
"""
"""Composites are written in parts."""


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
