"""The Python that the pages print is executed, block after block, as a reader of the page would do it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qgexec.cli.main import cli
from qgexec.errors import ModelError
from qgexec.processes import forked
from tests.kit.butler.repos import N_QUANTA, OUTPUT_RUN, MockRepository, copy_template
from tests.kit.checkout import CHECKOUT
from tests.kit.docs.pages import Block, all_blocks

RUN_BY_THE_TUTORIAL = "docs/tutorial.md"

PAGES = sorted({block.page for block in all_blocks("python")} - {RUN_BY_THE_TUTORIAL})

NEEDS_SLURM = 'model="slurm"'
"""What can be executed up to the batch system only."""

EXECUTES = "pool", "OneByOne()"
"""In the code of blocks after which all quanta are done."""

MODULE = """\
from lsst.pipe.base.quantum_graph_executor import QuantumExecutor


class MyExecutor(QuantumExecutor):
    def __init__(self, folder):
        self.folder = folder

    def execute(self, task_node, quantum, quantum_id=None):
        raise NotImplementedError
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the modules that pages speak of; no batch system is to be found."""
    here = tmp_path / "here"
    (here / "package").mkdir(parents=True)
    (here / "package" / "module.py").write_text(MODULE)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", str(here))
    monkeypatch.syspath_prepend(here)
    monkeypatch.syspath_prepend(CHECKOUT / "examples")
    yield here
    for name in ("package.module", "package", "write_scripts"):
        sys.modules.pop(name, None)
    forked.shut_down()


def renew(template: MockRepository, folder: Path, number: int) -> MockRepository:
    """Let ``REPO`` and ``graph.qg`` be a new repository, as `qgexec init` leaves it, and its graph."""
    repository = copy_template(template, folder.parent / f"data{number}")
    for name, target in (("REPO", repository.root), ("graph.qg", repository.graph)):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)
    cli.main(["init", "-b", "REPO", "-g", "graph.qg", "--register-dataset-types"], standalone_mode=False)
    return repository


def execute(block: Block, names: dict[str, Any]) -> None:
    """Execute a block; a traceback names page and line."""
    code = compile("\n" * block.line + block.text, CHECKOUT / block.page, "exec")
    if NEEDS_SLURM not in block.text:
        exec(code, names)
        return
    with pytest.raises(ModelError, match="no Slurm here"):
        exec(code, names)


def n_done(repository: MockRepository) -> int:
    """Return how many quanta have their metadata in the output RUN."""
    with repository.butler(collections=OUTPUT_RUN) as butler:
        return sum(
            len(butler.query_datasets(f"{label}_metadata", explain=False, limit=None))
            for label in ("isr", "calibrate", "summary", "final")
        )


@pytest.mark.every(2)
@pytest.mark.parametrize("page", PAGES)
def test_python(page: str, template: MockRepository, folder: Path) -> None:
    """Each block does what it says, in the names that those before it have made."""
    from write_scripts import ScriptWriter  # type: ignore[import-not-found]  # the fixture finds it

    names: dict[str, Any] = {"__name__": "page", "ScriptWriter": ScriptWriter}
    for number, block in enumerate(block for block in all_blocks("python") if block.page == page):
        repository = renew(template, folder, number)
        execute(block, names)
        executes = any(f"model={model}" in block.text.replace('"', "") for model in EXECUTES)
        assert n_done(repository) == (N_QUANTA if executes else 0), block
    writes = any("ScriptWriter" in block.text for block in all_blocks("python") if block.page == page)
    assert len(list((folder / "scripts").glob("*.sh"))) == (N_QUANTA if writes else 0)
