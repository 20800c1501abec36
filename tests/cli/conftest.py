"""Fixtures: a repository whose quanta are told what to do, and the command that runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lsst.pipe.base.pipeline_graph import PipelineGraph

from qgexec.processes import forked
from tests.kit.butler.repos import (
    INPUT_CHAIN,
    MockRepository,
    add_standard_tasks,
    copy_template,
    open_repository,
    pipeline_yaml,
    save_graph,
)
from tests.kit.commands.qgexec import Command
from tests.kit.tasks.moodytask import MoodyTask, moody_config

LABELS = ("isr", "calibrate", "summary", "final")


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockRepository]:
    """The standard repository with moody tasks, and their pipeline file; tests must not write to it."""
    folder = tmp_path_factory.mktemp("template")
    template = MockRepository(folder / "repo", folder / "graph.qg", folder / "bare.qg")
    config = {label: moody_config(folder.parent) for label in LABELS}
    with open_repository(template.root) as repo:
        add_standard_tasks(repo, config, dict.fromkeys(LABELS, MoodyTask))
        save_graph(repo, template.graph, register=False)
        save_graph(repo, template.bare_graph, records=False, register=False)
        graph: PipelineGraph = repo.pipeline_graph
        pipeline_yaml(graph, folder / "pipeline.yaml")
    yield template
    forked.shut_down()


@pytest.fixture
def repository(template: MockRepository, tmp_path: Path) -> MockRepository:
    """A copy of the standard repository of the test's own."""
    return copy_template(template, tmp_path / "data")


@pytest.fixture
def building(repository: MockRepository) -> list[object]:
    """Options to build the standard graph with."""
    pipeline = repository.graph.with_name("pipeline.yaml")
    return ["-b", repository.root, "-p", pipeline, "-i", INPUT_CHAIN, "-o", "u/me"]


@pytest.fixture
def folder(repository: MockRepository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside the repository, to be the current one: run directories appear there."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands of their own in the folder; whatever is left of them is killed at the end."""
    commands: list[Command] = []

    def start(*arguments: object, **options: Any) -> Command:
        commands.append(Command(arguments, folder, **options))
        return commands[-1]

    yield start
    for command in commands:
        command.end()
