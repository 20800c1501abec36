"""Small real repositories of mock datasets, and graphs over them: SQLite, JSON files, upstream's mock tasks.

The standard pipeline has the shapes that matter: one-to-one, gathered, a
prerequisite that many quanta share, and an init-output that a later task
reads::

    raw (visit, detector) -> isr -> calibrate -> summary (visit) -> final (instrument)
    flat (detector) -> isr;  isr's schema (init) -> calibrate

With 2 visits and 4 detectors: 8 + 8 + 2 + 1 = 19 quanta.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import Butler, Config
from lsst.pipe.base.pipeline_graph import PipelineGraph
from lsst.pipe.base.tests.mocks import (
    DirectButlerRepo,
    DynamicConnectionConfig,
    DynamicTestPipelineTask,
    DynamicTestPipelineTaskConfig,
)

from tests.kit.butler.quick import make_upstream_quick

make_upstream_quick()

N_QUANTA = 19
"""Quanta in the standard pipeline's graph."""

ONE_PAIR = "instrument = 'Cam1' AND visit = 1 AND detector IN (1, 2)"
N_QUANTA_OF_A_PAIR = 6
"""The data IDs of a smaller graph, and the quanta in it."""

OUTPUT_RUN = "u/someone/out/20260101T000000Z"
OUTPUT = "u/someone/out"
INPUT_CHAIN = "input_chain"
INPUT_RUN = "input_run"


@dataclass(frozen=True, slots=True)
class MockRepository:
    """A repository of its own for one test, with the standard graph saved beside it."""

    root: Path
    """Repository root."""

    graph: Path
    """Graph with datastore records: OUTPUT and OUTPUT_RUN from INPUT_CHAIN."""

    bare_graph: Path
    """The same graph without datastore records."""

    def butler(self, **kwargs: Any) -> Butler:
        """Open a butler on it; the caller closes it (``with``)."""
        return Butler.from_config(str(self.root), **kwargs)

    def dump(self) -> dict[str, object]:
        """Return everything that a forgotten write would change."""
        return dump_repository(self.root)


def connection(name: str, dimensions: Iterable[str] = (), **kwargs: Any) -> DynamicConnectionConfig:
    """Return one connection of a mock task."""
    make: Callable[..., DynamicConnectionConfig] = DynamicConnectionConfig
    return make(dataset_type_name=name, dimensions=list(dimensions), **kwargs)


def task_config(**kwargs: Any) -> DynamicTestPipelineTaskConfig:
    """Return a mock task's configuration with these fields (``fail_condition``, ``int_value``...)."""
    make: Callable[[], DynamicTestPipelineTaskConfig] = DynamicTestPipelineTaskConfig
    config = make()
    for key, value in kwargs.items():
        setattr(config, key, value)
    return config


def add_standard_tasks(
    repo: DirectButlerRepo,
    configs: Mapping[str, DynamicTestPipelineTaskConfig] | None = None,
    task_classes: Mapping[str, type[DynamicTestPipelineTask]] | None = None,
) -> None:
    """Add isr, calibrate, summary and final to the repository's pipeline graph.

    Parameters
    ----------
    repo
        Repository whose pipeline graph is extended.
    configs
        Configurations by label (see `task_config`).
    task_classes
        Task classes by label, where not upstream's dynamic mock task.
    """
    configs = configs or {}
    task_classes = task_classes or {}

    def add(label: str, dimensions: list[str], **connections: Any) -> None:
        repo.add_task(
            label,
            task_class=task_classes.get(label, DynamicTestPipelineTask),
            config=configs.get(label),
            dimensions=dimensions,
            **connections,
        )

    detector = ["visit", "detector"]
    add(
        "isr",
        detector,
        inputs={"raw": connection("raw_mock", detector)},
        prerequisite_inputs={"flat": connection("flat_mock", ["detector"])},
        outputs={"exposure": connection("post_isr", detector)},
        init_outputs={"schema": connection("isr_schema")},
    )
    add(
        "calibrate",
        detector,
        inputs={"exposure": connection("post_isr", detector)},
        outputs={"calibrated": connection("calibrated", detector)},
        init_inputs={"schema": connection("isr_schema")},
    )
    add(
        "summary",
        ["visit"],
        inputs={"calibrated": connection("calibrated", detector, multiple=True)},
        outputs={"summary": connection("visit_summary_mock", ["visit"])},
    )
    add(
        "final",
        ["instrument"],
        inputs={"summaries": connection("visit_summary_mock", ["visit"], multiple=True)},
        outputs={"report": connection("final_report", ["instrument"])},
    )


@contextmanager
def open_repository(
    root: Path, *, config: Config | None = None, dimensions: Config | None = None, create: bool = True
) -> Iterator[DirectButlerRepo]:
    """Make a repository with instrument, visits, detectors, tracts and patches; it stays after the context.

    Parameters
    ----------
    root
        Folder; made when missing.
    config
        Butler configuration to begin with (datastores, registry).
    dimensions
        Dimension universe, where not the default one.
    create
        `False` where ``Butler.makeRepo`` has been called already.
    """
    if create:
        own_root = config is not None and ("datastore", "root") in config
        Butler.makeRepo(str(root), config=config, dimensionConfig=dimensions, forceConfigRoot=not own_root)
    with Butler.from_config(str(root), writeable=True) as butler:
        yield DirectButlerRepo(butler, "base.yaml", "spatial.yaml", use_import_collections_as_input=False)


def save_graph(
    repo: DirectButlerRepo,
    path: Path,
    *,
    output: str | None = OUTPUT,
    output_run: str = OUTPUT_RUN,
    records: bool = True,
    register: bool = True,
    where: str = "",
) -> Path:
    """Build the graph of the repository's pipeline graph and save it.

    Parameters
    ----------
    repo
        Repository with tasks added.
    path
        File to write, ``.qg`` or ``.qgraph``.
    output, output_run
        Collections of the graph's header.
    records
        Attach the datastore records of overall inputs.
    register
        Register the dataset types of intermediates and outputs.
    where
        Data IDs that it is about; all by default.
    """
    builder = repo.make_quantum_graph_builder(output_run=output_run, register_output_dataset_types=register)
    builder.where = where
    builder.finish(output=output, attach_datastore_records=records).write(str(path))
    return path


def make_template(folder: Path, *, where: str = "") -> MockRepository:
    """Make the standard repository and graphs in a folder, to be copied for each test."""
    template = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    with open_repository(template.root) as repo:
        add_standard_tasks(repo)
        save_graph(repo, template.graph, register=False, where=where)
        save_graph(repo, template.bare_graph, records=False, register=False, where=where)
    return template


def copy_template(template: MockRepository, folder: Path) -> MockRepository:
    """Copy a template: a few milliseconds instead of a second."""
    shutil.copytree(template.root.parent, folder, dirs_exist_ok=True)
    return MockRepository(folder / "repo", folder / template.graph.name, folder / template.bare_graph.name)


def pipeline_yaml(pipeline_graph: PipelineGraph, path: Path) -> Path:
    """Write a pipeline file whose tasks and configurations are those of a pipeline graph."""
    lines = ["description: mock pipeline", "tasks:"]
    for label, node in pipeline_graph.tasks.items():
        file = path.with_name(f"{path.stem}_{label}.py")
        config: Any = node.config
        config.save(str(file))
        lines += [
            f"  {label}:",
            f"    class: {node.task_class_name}",
            "    config:",
            f"      - file: {file}",
        ]
    path.write_text("\n".join(lines) + "\n")
    return path


def dump_repository(root: Path) -> dict[str, object]:
    """Return collections with their types and members, dataset types, datasets and files."""
    with Butler.from_config(str(root)) as butler:
        infos = butler.collections.query_info("*", include_doc=True, include_parents=False)
        collections = {info.name: (info.type.name, tuple(info.children), info.doc) for info in infos}
        dataset_types = sorted(str(t) for t in butler.registry.queryDatasetTypes())
        datasets = sorted(
            (ref.datasetType.name, str(ref.dataId), ref.run, str(ref.id))
            for ref in butler.query_all_datasets("*", find_first=False, limit=None)
        )
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return {
        "collections": collections,
        "dataset types": dataset_types,
        "datasets": datasets,
        "files": [f for f in files if not f.endswith(("-journal", "-wal", "-shm"))],
    }
