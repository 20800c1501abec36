"""`qgexec.regularfile`: what is read, and what is not even waited for."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qgexec.regularfile import UnfitFileError, check_regular, open_regular, read_regular
from tests.kit.runs.unfitfiles import UNFIT


def test_regular(tmp_path: Path) -> None:
    """A file is read, also through a link; the descriptor is not handed on to other programs."""
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 3) == b"abc"
    with open_regular(tmp_path / "file") as file:
        assert not os.get_inheritable(file.fileno())
        assert file.read() == b"abc"
    check_regular(tmp_path / "file", 3)


@pytest.mark.parametrize("kind", UNFIT)
def test_unfit(kind: str, tmp_path: Path) -> None:
    """What is no regular file, or too large, is refused at once, and no descriptor is left open."""
    path = tmp_path / "file"
    UNFIT[kind](path)
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for act in (open_regular, read_regular, check_regular):
        with pytest.raises(UnfitFileError, match=kind):
            act(path)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_socket_folder_nothing(tmp_path: Path) -> None:
    """Others are the errors that they always were, but for a socket."""
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(tmp_path / "socket"))
    for act in (read_regular, check_regular):
        with pytest.raises(UnfitFileError, match="a socket"):
            act(tmp_path / "socket")
        with pytest.raises(IsADirectoryError):
            act(tmp_path)
        with pytest.raises(FileNotFoundError):
            act(tmp_path / "nothing")
