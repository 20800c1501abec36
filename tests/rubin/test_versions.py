"""update_versions: what a run's packages dataset says after software changed; against real repositories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lsst.utils.packages import Packages

from qgexec.errors import InitOutputsError, RepositoryError
from qgexec.rubin import versions
from qgexec.rubin.graphfile import prepare_graph
from qgexec.rubin.preexec import Preparation, prepare_run
from qgexec.rubin.versions import update_versions
from tests.kit.butler.benchwork import Site, prepare_outputs
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository, copy_template
from tests.kit.processes.kills import die, dies


@pytest.fixture
def site(template: MockRepository, tmp_path: Path) -> Site:
    """A site of the test's own, outputs prepared."""
    site = Site(copy_template(template, tmp_path / "data"), tmp_path / "run")
    prepare_outputs(site.repository)
    return site


Change = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Change:
    """Makes packages have other versions from now on; `None` for those that are not there any more."""
    real = Packages.fromSystem()

    def change(**changes: str | None) -> None:
        packages = Packages({**real, **changes})
        for name, version in changes.items():
            if version is None:
                del packages[name]
        monkeypatch.setattr(Packages, "fromSystem", lambda *_: Packages(packages))

    change()
    return change


def packages_of(site: Site) -> Any:
    with site.repository.butler(collections=OUTPUT_RUN) as butler:
        return butler.get("packages")


def update(site: Site, *, strict: bool = False) -> tuple[str, ...]:
    return update_versions(str(site.repository.root), site.repository.graph, strict=strict)


def file_of(site: Site) -> Path:
    (path,) = (path for path in site.repository.root.rglob("packages*") if path.is_file())
    return path


def test_same_software(site: Site, installed: Change) -> None:
    """Where nothing changed nothing is written."""
    update(site)
    before, written_at = site.repository.dump(), file_of(site).stat().st_mtime_ns
    assert update(site, strict=True) == ()
    assert site.repository.dump() == before
    assert file_of(site).stat().st_mtime_ns == written_at


def test_changed_versions_are_named_and_taken_over(site: Site, installed: Change) -> None:
    """New versions and new packages are in the same dataset then, and what is gone stays in it."""
    was = packages_of(site)
    before: Any = site.repository.dump()
    installed(numpy="99.1", lsst_new="1.0", zstandard=None)
    assert update(site) == (f"numpy 99.1, was {was['numpy']}",)
    assert packages_of(site) == {**was, **Packages.fromSystem()}
    assert packages_of(site)["zstandard"] == was["zstandard"]
    assert site.repository.dump() == before
    assert update(site) == ()


def test_strict(site: Site, installed: Change) -> None:
    """Where changed versions are to be refused they are named, and nothing is written; new packages pass."""
    was = packages_of(site)
    installed(numpy="99.1", lsst_new="1.0")
    before = file_of(site).read_bytes()
    with pytest.raises(InitOutputsError, match=f"numpy 99.1, was {was['numpy']}") as caught:
        update(site, strict=True)
    assert "--strict-versions" in caught.value.hint
    assert file_of(site).read_bytes() == before
    installed(lsst_new="1.0")
    assert update(site, strict=True) == ()
    assert packages_of(site)["lsst_new"] == "1.0"


def test_run_without_versions(repository: MockRepository, tmp_path: Path, installed: Change) -> None:
    """A run that was started without package versions goes on without."""
    graph = prepare_graph(repository.graph, tmp_path, None)
    prepare_run(str(repository.root), graph, Preparation(register_dataset_types=True, versions=False))
    before = repository.dump()
    assert update_versions(str(repository.root), repository.graph, strict=True) == ()
    assert repository.dump() == before


def test_killed_in_between(site: Site, installed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the file was written, before the registry was: the next update puts the registry right."""
    was = packages_of(site)
    installed(numpy="99.1.2.3.4.5")
    with monkeypatch.context() as patch:
        patch.setattr(versions, "export_records", lambda *_: die())
        dies(lambda: update(site))
    with pytest.raises(Exception, match="size"):
        packages_of(site)
    assert update(site) == ()
    assert packages_of(site) == {**was, "numpy": "99.1.2.3.4.5"}


@pytest.mark.every(3)
@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", None], ids=["empty", "zeros", "gone"])
def test_after_a_power_cut(site: Site, installed: Change, content: bytes | None) -> None:
    """A file that is damaged or gone is written anew with the versions of now."""
    path = file_of(site)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert update(site, strict=True) == ()
    assert packages_of(site) == Packages.fromSystem()


@pytest.mark.thorough
def test_registry_that_refuses(site: Site, installed: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be written that is one clear error."""

    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(versions, "export_records", refuse)
    with pytest.raises(RepositoryError, match="no space left"):
        update(site)
