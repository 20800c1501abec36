"""`benchmarks.endstate`: what must not be is found, each kind of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.endstate import read_work
from tests.kit.butler.repos import OUTPUT_RUN
from tests.kit.crash.sites import Site, begin, make_site, make_small


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A place in which a run was executed; `restore` brings that back."""
    site = make_site(make_small(tmp_path_factory.mktemp("small")), tmp_path_factory.mktemp("done"))
    assert begin(site) == 0
    site.save("executed")
    return site


def _file(site: Site) -> Path:
    (path,) = (site.repository / OUTPUT_RUN / "post_isr").rglob("*.json")
    return path


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes() + b" "), "bytes, not"),
        (lambda path: os.truncate(path, 5), "cannot be read"),
        (lambda path: path.with_name("other.json").write_bytes(b"{}"), "other.json is nobody's"),
    ],
    ids=["missing", "too long", "too short", "orphan"],
)
def test_harm_is_found(done: Site, harm: Callable[[Path], object], problem: str) -> None:
    """A file that is missing, of another size than recorded, damaged, or nobody's is a problem."""
    done.bring_back(done.pristine.with_name("executed"))
    before, problems = done.end()
    assert problems == []
    harm(_file(done))
    after, problems = done.end()
    assert any(problem in each for each in problems)
    assert before.differences(before) == []
    assert before.differences(after)


def test_content_is_compared(done: Site) -> None:
    """Another content of the same size is a difference; the order of an object's members is none."""
    done.bring_back(done.pristine.with_name("executed"))
    before, _ = done.end()
    path = _file(done)
    path.write_bytes(path.read_bytes().replace(b'"post_isr"', b'"post_irs"', 1))
    after, _ = done.end()
    assert [each.split()[1] for each in before.differences(after)] == ["post_isr"]


def test_work(done: Site) -> None:
    """Attempts and successes are counted over the journal."""
    done.bring_back(done.pristine.with_name("executed"))
    work = read_work(done.run_dir)
    assert (set(work.attempts.values()), set(work.done.values()), work.n_repeated) == ({1}, {1}, 0)
