"""`qgexec.books.trust`: whose run directories are acted upon, with real owners and modes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qgexec.books.journal import Journal
from qgexec.books.trust import check_trusted, is_trusted
from qgexec.errors import UntrustedError
from tests.kit.runs.handbooks import HandBooks

ACTED_UPON = ("", "run.json", "plan.npz", "journal", "journal/0001.jsonl", "batch/0001/round.json")
NOBODY = 65534

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def books() -> Iterator[Path]:
    """A run directory where every user can see it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "run"
        HandBooks(path)
        (path / "batch" / "0001").mkdir(parents=True)
        (path / "batch" / "0001" / "round.json").touch()
        yield path


@contextmanager
def being(user: int) -> Iterator[None]:
    """Be another user for a while."""
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


def test_ones_own(books: Path) -> None:
    """What is mine, and what is not there, is trusted; what the group may write, too."""
    check_trusted(books)
    check_trusted(books / "nothing")
    for path in (books, *books.rglob("*")):
        path.chmod(path.stat().st_mode | 0o020)
    assert is_trusted(books)


@pytest.mark.parametrize("name", ACTED_UPON)
def test_everybody_may_write(name: str, books: Path) -> None:
    """The path is named, and what takes the right away; who is told to trust everybody does."""
    path = books / name
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(UntrustedError) as raised:
        check_trusted(books)
    assert f"{path} can be written by everybody" in raised.value.message
    assert f"chmod o-w {path}" in raised.value.hint
    check_trusted(books, trust_owner=True)
    if path.is_dir():
        path.chmod(0o1777)
        assert is_trusted(books)


@only_root
@pytest.mark.parametrize("name", ACTED_UPON)
@pytest.mark.parametrize("link", [False, True])
def test_another_user(name: str, link: bool, books: Path) -> None:
    """The path and the user are named, were it only the link that is theirs."""
    path = books / name
    if link:
        target = path.rename(books.with_name("target"))
        path.symlink_to(target)
        os.lchown(path, 12345, -1)
    else:
        os.chown(path, 12345, -1)
    with pytest.raises(UntrustedError) as raised:
        check_trusted(books)
    assert f"{path} belongs to user number 12345" in raised.value.message
    assert f"qgexec resume {books} --trust-owner" in raised.value.hint
    assert f"qgexec status {books}" in raised.value.hint
    check_trusted(books, trust_owner=True)


@only_root
def test_the_superuser_is_trusted(books: Path) -> None:
    """By others; the superuser trusts nobody else."""
    with being(NOBODY):
        assert is_trusted(books)
    os.chown(books, NOBODY, -1)
    assert not is_trusted(books)
    with being(NOBODY):
        assert is_trusted(books)


@only_root
@pytest.mark.parametrize("name", ["snapshot.npz", "cancel", "notes.txt"])
def test_what_others_may_leave(name: str, books: Path) -> None:
    """Colleagues of the group look at a run, end it, and leave notes: that is nothing to act upon."""
    (books / name).touch()
    os.chown(books / name, 12345, -1)
    assert is_trusted(books)


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def _as_given(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("begin", [lambda path: None, _as_given])
def test_without_a_umask(begin: Callable[[Path], None], no_umask: None, tmp_path: Path) -> None:
    """A run directory is never made so that everybody may write to it: its owner goes on with it."""
    begin(tmp_path / "run")
    made = HandBooks(tmp_path / "run")
    made.journal.close()
    Journal.create(made.run_dir.journal, after=1).close()
    assert is_trusted(tmp_path / "run")
    assert (tmp_path / "run" / "journal").stat().st_mode & 0o777 == 0o775
