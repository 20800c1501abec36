"""Repositories of several kinds for the tests of benches: moody tasks, chains, checksums, composites."""

from __future__ import annotations

from pathlib import Path

from lsst.daf.butler import Config

from tests.kit.butler.benchwork import prepare_outputs
from tests.kit.butler.composites import (
    COMPOSITE,
    DigestConfig,
    DigestTask,
    MeasureConfig,
    MeasureTask,
    chained,
)
from tests.kit.butler.repos import MockRepository, add_standard_tasks, open_repository, save_graph
from tests.kit.tasks.moods import MoodyTask

CHAINED = chained("final_report")


def make_moody(folder: Path, config: str = "") -> MockRepository:
    """Make the standard repository with tasks that have moods."""
    repository = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    with open_repository(repository.root, config=Config.fromString(config) if config else None) as repo:
        add_standard_tasks(repo, task_classes={"isr": MoodyTask, "calibrate": MoodyTask})
        save_graph(repo, repository.graph)
    prepare_outputs(repository)
    return repository


def make_composite(folder: Path) -> MockRepository:
    """Make a repository that disassembles composites."""
    repository = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    with open_repository(folder / "repo", config=Config.fromString(COMPOSITE)) as repo:
        repo.pipeline_graph.add_task("measure", MeasureTask, MeasureConfig())
        repo.pipeline_graph.add_task("digest", DigestTask, DigestConfig())
        save_graph(repo, repository.graph)
    prepare_outputs(repository)
    return repository
