"""Tests of `qgexec.books.linefile`: real files, and disks that are really full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from qgexec.books.linefile import LineFile, check_header, json_line
from qgexec.errors import JournalError

RoomFor = Callable[[int], AbstractContextManager[None]]

HEADER = {"format": "test", "version": 1}


def test_lines_are_appended_whole(tmp_path: Path) -> None:
    """Each line is in the file when `write` returns."""
    file = LineFile(tmp_path / "x", HEADER)
    file.write(b"one\n")
    file.write(b"two\n")
    assert (tmp_path / "x").read_bytes() == json_line(HEADER) + b"one\ntwo\n"
    assert file.end() == (tmp_path / "x").stat().st_size
    file.close()


def test_an_existing_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A file has one writer, who created it."""
    (tmp_path / "x").write_bytes(b"another's")
    with pytest.raises(JournalError, match=r"cannot create .*x: File exists"):
        LineFile(tmp_path / "x", HEADER)
    assert (tmp_path / "x").read_bytes() == b"another's"


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    """The file is named, and the reason."""
    with pytest.raises(JournalError, match=r"cannot create .*no/x: No such file"):
        LineFile(tmp_path / "no" / "x", HEADER)


def test_where_the_header_does_not_fit_no_file_is_left(tmp_path: Path, room_for: RoomFor) -> None:
    """A full disk at the start leaves the folder as it was."""
    with room_for(10), pytest.raises(JournalError, match="cannot write"):
        LineFile(tmp_path / "x", HEADER)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_fit", range(6))
def test_a_line_that_does_not_fit_leaves_nothing(tmp_path: Path, room_for: RoomFor, n_fit: int) -> None:
    """However much of it the disk took, the file ends after the last whole line and takes lines again."""
    file = LineFile(tmp_path / "x", HEADER)
    file.write(b"first\n")
    before = (tmp_path / "x").read_bytes()
    with room_for(len(before) + n_fit), pytest.raises(JournalError) as caught:
        file.write(b"second\n")
    assert os.strerror(errno.EFBIG) in str(caught.value)
    assert "Free space" in caught.value.hint
    assert (tmp_path / "x").read_bytes() == before
    file.write(b"third\n")
    file.close()
    assert (tmp_path / "x").read_bytes() == before + b"third\n"


def test_what_could_not_be_repaired_is_repaired_before_the_next_line(
    tmp_path: Path, room_for: RoomFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the torn line cannot be cut off nothing is appended behind it."""
    file = LineFile(tmp_path / "x", HEADER)
    before = (tmp_path / "x").read_bytes()

    def refuse(fd: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "ftruncate", refuse)
        with room_for(len(before) + 3), pytest.raises(JournalError, match="cannot write"):
            file.write(b"second\n")
        assert (tmp_path / "x").read_bytes() == before + b"sec"
        with pytest.raises(JournalError, match="cannot repair"):
            file.write(b"third\n")
        assert (tmp_path / "x").read_bytes() == before + b"sec"
    file.write(b"third\n")
    file.close()
    assert (tmp_path / "x").read_bytes() == before + b"third\n"


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path, room_for: RoomFor) -> None:
    """The last newline is found however far back it is."""
    file = LineFile(tmp_path / "x", HEADER)
    before = (tmp_path / "x").read_bytes()
    with room_for(len(before) + 200_000), pytest.raises(JournalError):
        file.write(b"x" * 300_000 + b"\n")
    assert (tmp_path / "x").read_bytes() == before
    file.close()


def test_after_a_failed_sync_nothing_more_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what is on the disk then, and a later sync would not tell."""
    file = LineFile(tmp_path / "x", HEADER)

    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdatasync", refuse)
        with pytest.raises(JournalError, match=r"cannot sync .*Input/output error"):
            file.sync()
    with pytest.raises(JournalError, match="takes no more lines"):
        file.write(b"more\n")
    file.close()
    assert (tmp_path / "x").read_bytes() == json_line(HEADER)


def test_a_file_that_was_closed_in_passing_goes_on(tmp_path: Path) -> None:
    """Whoever closes all descriptors costs nothing; what has its number then is left alone."""
    file = LineFile(tmp_path / "lines", HEADER)
    os.close(file._fd or -1)
    other = os.open("/", os.O_RDONLY)
    file.write(b"one\n")
    assert file.end() == (tmp_path / "lines").stat().st_size
    os.close(file._fd or -1)
    file.close()
    assert (tmp_path / "lines").read_bytes().endswith(b"}\none\n")
    os.fstat(other)
    os.close(other)


def test_another_file_in_its_place_is_not_written(tmp_path: Path) -> None:
    """Where the file was closed in passing, and is not there any more, that is said."""
    file = LineFile(tmp_path / "lines", HEADER)
    os.close(file._fd or -1)
    (tmp_path / "lines").rename(tmp_path / "moved")
    with pytest.raises(JournalError, match="cannot open"):
        file.write(b"one\n")
    file.close()


def test_a_closed_file_takes_nothing_and_closes_again(tmp_path: Path) -> None:
    """Closing twice is fine; writing then is an error and not a write to some other file."""
    file = LineFile(tmp_path / "x", HEADER)
    file.close()
    file.close()
    with pytest.raises(JournalError, match="is closed"):
        file.write(b"more\n")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b'{"format":"test"}',
        b'{"format":"else","version":1}',
        b'{"format":"test","version":0}',
    ],
)
def test_what_is_no_header_is_refused(line: bytes) -> None:
    """The error names file and line."""
    with pytest.raises(JournalError, match="/somewhere:1: not the header of a test file"):
        check_header(line, "test", 1, Path("/somewhere"))


def test_a_newer_version_is_refused() -> None:
    """It says which version it is, and what to do."""
    with pytest.raises(
        JournalError, match="test version 3, but this qgexec reads versions up to 2"
    ) as caught:
        check_header(b'{"format":"test","version":3}', "test", 2, Path("/somewhere"))
    assert "newer" in caught.value.hint
