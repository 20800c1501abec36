"""`qgexec.rubin.fulldisk`: which errors are a full repository's; with a real datastore."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lsst.daf.butler.datastore import Datastore

from qgexec.errors import RepositoryFullError
from qgexec.rubin.fulldisk import check_room
from tests.kit.butler.benchwork import Site, prepare_outputs
from tests.kit.butler.repos import MockRepository, copy_template
from tests.kit.processes.disks import fill, small_disk


@pytest.fixture
def datastore(repository: MockRepository, tmp_path: Path) -> Iterator[Datastore]:
    """The datastore of a repository on a disk that has room."""
    with Site(repository, tmp_path).bench() as bench:
        yield bench.supply.datastore


def error(code: int, *names: str) -> OSError:
    return OSError(code, os.strerror(code), *names)


def wrapped(cause: BaseException) -> BaseException:
    """What a task makes of it, and what its log makes of that."""
    outer = RuntimeError("the log could not be written")
    outer.__context__ = ValueError("no image")
    outer.__context__.__cause__ = cause
    return outer


@pytest.mark.parametrize("wrap", [lambda each: each, wrapped])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_file_of_the_datastore(
    datastore: Datastore, repository: MockRepository, code: int, wrap: Callable[[OSError], BaseException]
) -> None:
    """A file below its root finds no room, or the quota is used up: named, whatever was raised on top."""
    caused = error(code, str(repository.root / "run" / "image.fits"))
    with pytest.raises(RepositoryFullError, match=rf"{repository.root} is full: {os.strerror(code)}"):
        check_room(datastore, wrap(caused))


@pytest.mark.parametrize(
    "other",
    [
        error(errno.ENOSPC, "/scratch/me/image.fits"),
        error(errno.EDQUOT),
        error(errno.EIO, "{root}/run/image.fits"),
        error(errno.ENOSPC, "{root}-of-another/image.fits"),
        RuntimeError("cfitsio: No space left on device: /scratch/me/image.fits"),
        ValueError("no image"),
    ],
    ids=repr,
)
def test_all_else(datastore: Datastore, repository: MockRepository, other: Exception) -> None:
    """Other folders, other errors: the quantum's or its machine's affair."""
    if isinstance(other, OSError) and other.filename:
        other.filename = other.filename.format(root=repository.root)
    check_room(datastore, other)
    check_room(datastore, wrapped(other))


def test_put_that_finds_no_room(template: MockRepository, tmp_path: Path) -> None:
    """What is written by a put has no name in its error: it is the datastore's all the same."""
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        site = Site(copy_template(template, disk / "data"), tmp_path)
        prepare_outputs(site.repository)
        fill(disk / "ballast")
        with pytest.raises(RepositoryFullError, match=rf"{disk}/.* is full: .*\n.*Make room there"):
            site.run(labels=["isr"])
