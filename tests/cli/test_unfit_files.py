"""Commands that are given FIFOs, devices and files beyond all measure: one message, and no waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kit.butler.repos import MockRepository
from tests.kit.commands.qgexec import Result, call, one_message
from tests.kit.runs.handbooks import HandBooks, write_mixed
from tests.kit.runs.unfitfiles import UNFIT


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A run directory with something in it."""
    made = HandBooks(tmp_path / "run")
    write_mixed(made)
    settings = made.run_dir.settings_file
    settings.write_text(settings.read_text().replace("/graph.qg", __file__))  # one that is there
    return tmp_path / "run"


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("command", ["status", "report", "collect", "cancel"])
@pytest.mark.parametrize("name", ["run.json", "plan.npz", "journal/0001.jsonl"])
def test_in_a_run_directory(name: str, command: str, kind: str, books: Path) -> None:
    """The file is named, by those who read and by those who act."""
    path = books / name
    path.unlink()
    UNFIT[kind](path)
    one_message(call(command, books), f"cannot read {path}: it is ", kind)


@pytest.mark.parametrize("kind", UNFIT)
def test_snapshot(kind: str, books: Path) -> None:
    """What only saves time is done without."""
    before = call("status", books)
    (books / "snapshot.npz").unlink(missing_ok=True)
    UNFIT[kind](books / "snapshot.npz")
    assert call("status", books) == before


def test_no_end_of_line(books: Path) -> None:
    """A journal that ends in a hole of a terabyte is read as far as it is one, and the line is named."""
    path = books / "journal" / "0001.jsonl"
    os.truncate(path, 1 << 39)
    one_message(call("status", books), f"{path}:", "longer than")
    path.write_bytes(b"")
    os.truncate(path, 1 << 39)
    one_message(call("status", books), f"{path}:1: not the header")


def test_link_in_a_folder_of_others(books: Path, tmp_path: Path) -> None:
    """What a reader leaves for the next one is written through no link that lies there."""
    import socket

    (tmp_path / "mine").write_text("mine")
    aside = books / f".snapshot.npz.{socket.gethostname()}-{os.getpid()}.tmp"
    aside.symlink_to(tmp_path / "mine")
    assert call("report", books).code == 1
    assert (tmp_path / "mine").read_text() == "mine"


class TestFilesThatAreNamed:
    """Files of options."""

    @pytest.fixture(params=["FIFO", "device"])
    def path(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        path = tmp_path / "file"
        UNFIT[request.param](path)
        return path

    def test_graph(self, path: Path, repository: MockRepository, folder: Path) -> None:
        for suffix in (".qg", ".qgraph"):
            graph = path.rename(path.with_suffix(suffix))
            one_message(call("run", "-b", repository.root, "-g", graph), str(graph), "not a regular file")
            planned = call("plan", "-b", repository.root, "-g", graph)
            assert (planned.code, planned.err) == (2, "")
            assert "not a regular file" in " ".join(planned.out.split())
            path = graph

    def test_pipeline(self, path: Path, repository: MockRepository) -> None:
        pipeline = path.rename(path.with_suffix(".yaml"))
        one_message(_build("-p", pipeline), str(pipeline), "not a regular file")
        given = ("-p", repository.graph.with_name("pipeline.yaml"), "-C", f"isr:{pipeline}")
        one_message(_build(*given), str(pipeline), "not a regular file")

    @pytest.mark.parametrize("option", ["--resources", "-@", "--data-id-table"])
    def test_others(self, path: Path, option: str, building: list[object], folder: Path) -> None:
        one_message(call("run", *building, option, path), str(path), "not a regular file")

    def test_repository(self, path: Path, repository: MockRepository, folder: Path) -> None:
        (path.parent / "repo").mkdir()
        configuration = path.rename(path.parent / "repo" / "butler.yaml")
        for name in (configuration, configuration.parent):
            said = call("run", "-b", name, "-g", repository.graph)
            one_message(said, str(configuration), "not a regular file")


def _build(*options: object) -> Result:
    return call("build", *options, "--show", "pipeline")
