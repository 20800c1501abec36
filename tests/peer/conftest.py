"""Fixtures: the server, the repositories, and what each side left, once for each case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
from lsst.pipe.base.quantum_provenance_graph import Summary

from qgexec.reports.fold import TaskReport
from qgexec.reports.repository import ReadCaveats, RepositoryReport
from qgexec.reports.several import read_several
from tests.kit.butler.repos import OUTPUT, OUTPUT_RUN
from tests.kit.peer.cases import Case, Step
from tests.kit.peer.dumps import Dump, dump
from tests.kit.peer.programs import Command
from tests.kit.peer.reports import ours, theirs
from tests.kit.peer.repositories import ON_SERVER, Template, make_template
from tests.kit.peer.tasks import environment

SIDES = {
    "pipetask": ("pipetask", "-j", "1"),
    "inprocess": ("qgexec", "-j", "1", "--model", "inprocess"),
    "pool": ("qgexec", "-j", "2", "--model", "pool"),
}
"""The programs that are compared, and what makes each run as it is to."""


Templates = Callable[[str], Template]
"""Returns a repository by its name; made when first asked for, and not to be written to."""


@pytest.fixture(scope="session")
def templates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """The repositories that cases start from."""

    @cache
    def get(name: str) -> Template:
        server = request.getfixturevalue("postgres_server") if name in ON_SERVER else None
        return make_template(name, tmp_path_factory.mktemp(name.replace(" ", "_")), server)

    return get


@dataclass(frozen=True, slots=True)
class Left:
    """What one side left."""

    exit_codes: tuple[int, ...]
    """Of each step."""

    dump: Dump
    """Of the repository."""

    printed: str
    """By all steps."""

    summary: Summary
    """What `pipetask report` says of the repository."""

    report: RepositoryReport
    """What `qgexec report` says of the repository."""

    tasks: dict[str, TaskReport]
    """What `qgexec report` says of the run directories; empty for pipetask."""


@pytest.fixture(scope="module")
def left(
    request: pytest.FixtureRequest,
    templates: Templates,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Left]:
    """What each side left of a case, by the side's name; they run at the same time on copies of their own."""
    case: Case = request.param
    template = templates(case.repository)
    folders = {side: tmp_path_factory.mktemp(side) for side in SIDES}
    roots = {side: template.copy(folder) for side, folder in folders.items()}
    codes: dict[str, list[int]] = {side: [] for side in SIDES}
    for number, step in enumerate(case.steps):
        make = partial(_command, case, step, number, template)
        running = {side: make(side, folders[side], roots[side]).start(anew=case.programs) for side in SIDES}
        for side, command in running.items():
            codes[side].append(command.wait())
    return {
        side: _left(tuple(codes[side]), folders[side], roots[side], template.graph(case.graph))
        for side in SIDES
    }


def _left(codes: tuple[int, ...], folder: Path, root: Path, graph: Path) -> Left:
    run_dirs = sorted(folder.glob("run[0-9]"))
    tasks = read_several(run_dirs).tasks if run_dirs else ()
    return Left(
        codes,
        dump(root),
        (folder / "log").read_text(),
        theirs(root, [graph], read_caveats=ReadCaveats.EXHAUSTIVE.value),
        ours(root, [graph], read_caveats=ReadCaveats.EXHAUSTIVE),
        {task.label: task for task in tasks},
    )


def _command(
    case: Case, step: Step, number: int, template: Template, side: str, folder: Path, root: Path
) -> Command:
    program, *processes = SIDES["pipetask" if step.by_pipetask else side]
    arguments = ["run", "-b", str(root), "-g", str(template.graph(case.graph)), *processes, *step.options]
    if program == "pipetask" or not case.collections_from_graph:
        arguments += ["-i", template.inputs, "-o", OUTPUT, "--output-run", OUTPUT_RUN]
    if program == "qgexec" and "--init-only" not in step.options:
        arguments += ["--run-dir", str(folder / f"run{number}")]
    return Command(program, arguments, folder, folder / "log", environment(step.moods))
