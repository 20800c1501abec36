"""Reads metadata and logs that quanta left, straight from the datastore, in threads; decides nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import datetime
from typing import Any, Self

from lsst.daf.butler import Butler, ButlerLogRecords, DatasetRef, MissingDatasetTypeError
from lsst.pipe.base import TaskMetadata

from qgexec.errors import RepositoryError
from qgexec.rubin.graphoutputs import GraphOutputs
from qgexec.rubin.supply import Supply
from qgexec.rubin.verdicts import RunFound, Usage

__all__ = ["LeftBehind"]

_PROVENANCE = "run_provenance"
"""Dataset type of upstream's provenance graph; with it, metadata and logs may be inside of it."""

_METADATA_STORAGE_CLASS = "TaskMetadata"

Get = Callable[..., Any]


class LeftBehind:
    """Reads what the quanta of one graph left.

    Parameters
    ----------
    butler
        A butler on the repository.
    repository
        Its root, configuration file or alias.
    graph
        The graph.
    use_qbb
        Ask the datastore where a dataset must be, rather than the registry where it is.
    n_threads
        How many read at the same time, each with a datastore of its own.
    """

    def __init__(
        self, butler: Butler, repository: str, graph: GraphOutputs, *, use_qbb: bool, n_threads: int
    ) -> None:
        self._butler = butler
        self._repository = repository
        self._graph = graph
        self._use_qbb = use_qbb and not _has_provenance(butler, graph.output_run)
        self._pool = ThreadPoolExecutor(n_threads)
        self._own = threading.local()
        self._supplies: list[Supply] = []

    def read_metadata(self, runs: Sequence[RunFound]) -> None:
        """Fill in caveats, exception and usage of quanta that succeeded; about 1 ms each."""
        label = self._graph.plan.label
        refs = self._refs(runs, lambda run: self._graph.metadata_types[label(run.index)])
        for run, metadata in zip(runs, self._pool.map(self._read_metadata, refs), strict=True):
            with suppress(LookupError):
                run.usage = _usage_of(metadata["quantum"])
            with suppress(LookupError):
                run.caveats = int(metadata["quantum"]["caveats"])
            with suppress(LookupError):
                run.exception = _exception_of(metadata[label(run.index)]["failure"])

    def read_logs(self, runs: Sequence[RunFound]) -> None:
        """Fill in errors, exception and usage of quanta that failed; some ms each."""
        label = self._graph.plan.label
        refs = self._refs(runs, lambda run: self._graph.log_types[label(run.index)])
        for run, (records, trouble) in zip(runs, self._pool.map(self._read_log, refs), strict=True):
            if records is None:
                run.errors = (trouble,)
                continue
            run.errors = tuple(r.message for r in records if r.levelno >= logging.ERROR)
            # Upstream keeps there what has no metadata dataset to be in.
            extra: dict[str, Any] = getattr(records, "extra", None) or {}
            if (exception := extra.get("exception")) is not None:
                run.exception = {
                    "type": exception["type_name"],
                    "message": exception["message"],
                    "metadata": exception.get("metadata", {}),
                }
            with suppress(LookupError, ValueError):  # of an older version, or none was written
                run.usage = _usage_of(TaskMetadata.model_validate(extra["metadata"])["quantum"])

    def _refs(self, runs: Sequence[RunFound], type_of: Callable[[RunFound], str]) -> list[DatasetRef]:
        """Return datasets of these quanta, in their order; expanded type by type."""
        by_type: dict[str, list[int]] = {}
        for place, run in enumerate(runs):
            by_type.setdefault(type_of(run), []).append(place)
        refs: dict[int, DatasetRef] = {}
        for dataset_type, places in by_type.items():
            outputs = [self._graph.output_of(runs[place].index, dataset_type) for place in places]
            found = self._graph.refs([output for output in outputs if output is not None])
            refs.update(zip(places, found, strict=True))
        return [refs[place] for place in range(len(runs))]

    def _read_metadata(self, ref: DatasetRef) -> TaskMetadata:
        try:
            metadata: TaskMetadata = self._get()(ref, storageClass=_METADATA_STORAGE_CLASS)
        except Exception as error:  # whatever formatters and file systems raise
            raise RepositoryError(
                f"the registry has {ref.datasetType.name} {ref.dataId} in {ref.run}, but it cannot be read: "
                f"{type(error).__name__}: {error}",
                hint="Were files removed? --read-caveats none does not read any.",
            ) from error
        return metadata

    def _read_log(self, ref: DatasetRef) -> tuple[ButlerLogRecords | None, str]:
        try:
            return self._get()(ref), ""
        except Exception as error:  # noqa: BLE001 - one log that is damaged must not hide all others
            where = f"{ref.datasetType.name} {ref.dataId} in {ref.run}"
            return None, f"the log {where} cannot be read: {type(error).__name__}"

    def _get(self) -> Get:
        """Return what reads a dataset in this thread."""
        get: Get | None = getattr(self._own, "get", None)
        if get is None:
            get = self._own.get = self._open()
        return get

    def _open(self) -> Get:
        if not self._use_qbb:
            return self._butler.clone().get
        graph = self._graph.pipeline_graph
        types = {node.name: node.dataset_type for node in graph.dataset_types.values()}
        supply = Supply(self._repository, graph.universe, types)
        self._supplies.append(supply)

        def get(ref: DatasetRef, **kwargs: Any) -> Any:
            with closing(supply.butler_of((ref.id,), ())) as butler:
                return butler.get(ref, **kwargs)

        return get

    def close(self) -> None:
        """Let go of everything."""
        self._pool.shutdown(cancel_futures=True)
        for supply in self._supplies:
            supply.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exception_of(failure: TaskMetadata) -> dict[str, Any]:
    """Return what a task that wrote partial outputs has said of its exception."""
    details = failure["metadata"].to_dict() if "metadata" in failure else {}
    plain = {key: value for key, value in details.items() if isinstance(value, float | int | str | bool)}
    return {"type": failure["type"], "message": failure["message"], "metadata": plain}


def _usage_of(metadata: TaskMetadata) -> Usage:
    """Return what was measured; LookupError where some of it was not written."""
    began, ended = (datetime.fromisoformat(metadata[f"{moment}Utc"]) for moment in ("prep", "end"))
    peak = metadata.get("endMaxResidentSetSize")
    return Usage(
        wall_s=(ended - began).total_seconds(),
        cpu_s=round(metadata["endCpuTime"] - metadata["prepCpuTime"], 6),
        peak_rss_bytes=None if peak is None else int(peak),
    )


def _has_provenance(butler: Butler, run: str) -> bool:
    try:
        return butler.find_dataset(_PROVENANCE, collections=run) is not None
    except MissingDatasetTypeError:
        return False
