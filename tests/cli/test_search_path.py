"""`--config-search-path`: defaults of the repository's configuration, looked for in other folders first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.butler.repos import N_QUANTA, OUTPUT_RUN, MockRepository
from tests.kit.commands.pipetask import pipetask
from tests.kit.commands.qgexec import Moods, call, datasets, one_message

TEMPLATES = """
datastore:
  templates:
    default: "elsewhere/{run}/{datasetType}.{component:?}/{datasetType}_{instrument:?}_{detector:?}_{visit:?}"
"""
"""Where datasets are put to: what the repository's own configuration leaves open."""


@pytest.fixture
def defaults(folder: Path) -> Path:
    """A folder with defaults of the file datastore."""
    (folder / "defaults/datastores").mkdir(parents=True)
    (folder / "defaults/datastores/fileDatastore.yaml").write_text(TEMPLATES)
    return Path("defaults")


def _files(repository: MockRepository, pattern: str) -> set[str]:
    found = repository.root.rglob(pattern)
    return {path.relative_to(repository.root).as_posix() for path in found if path.is_file()}


def test_same_places(repository: MockRepository, defaults: Path) -> None:
    """`init` writes to the files that `pipetask pre-exec-init-qbb` writes to with the same option."""
    where = ["--config-search-path", defaults]
    theirs = pipetask("pre-exec-init-qbb", repository.root, repository.graph, *where)
    assert theirs.code == 0
    written = _files(repository, "elsewhere/**/*")
    assert any("isr_config" in name for name in written)
    for name in written:
        (repository.root / name).unlink()
    given = ["-b", repository.root, "-g", repository.graph, "--register-dataset-types"]
    ours = call("init", *given, *where)
    assert ours.code == 0, ours.err
    assert _files(repository, "elsewhere/**/*") == written


def test_whole_run(repository: MockRepository, defaults: Path, moods: Moods) -> None:
    """Outputs are there and can be read, and `resume` from another folder needs nothing said again."""
    moods.set({"isr 1,1": "raise"})
    given = ["-b", repository.root, "-g", repository.graph, "--register-dataset-types", "--run-dir", "books"]
    assert call("run", *given, "--config-search-path", f"nowhere,{defaults}").code == 1
    moods.set({})
    there = Path("books").absolute()
    Path("other").mkdir()
    os.chdir("other")
    result = call("resume", there)
    assert result.code == 0, result.err
    assert len(datasets(repository, "post_isr")) == 8
    assert len(_files(repository, "elsewhere/**/post_isr*")) == 8
    assert not _files(repository, f"{OUTPUT_RUN}/**/*")
    assert str(N_QUANTA) in call("report", there).out


def test_misuse(repository: MockRepository, defaults: Path) -> None:
    """What cannot be read is named."""
    (defaults / "datastores/fileDatastore.yaml").write_text("[")
    given = ["-b", repository.root, "-g", repository.graph, "--config-search-path", defaults]
    for command in ("run", "init"):
        one_message(call(command, *given), "cannot be read", "--config-search-path defaults")
    one_message(call("run", "-b", "no/such", *given[2:]), "no/such")
    assert not Path("qgexec-runs").exists()
