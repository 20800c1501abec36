"""Fixtures for tests of what executes quanta."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.butler.benchwork import Site
from tests.kit.butler.repos import MockRepository, copy_template
from tests.kit.butler.sites import make_moody


@pytest.fixture(scope="session")
def moody_template(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """A repository with moody tasks, outputs prepared; not to be written to."""
    return make_moody(tmp_path_factory.mktemp("moody"))


@pytest.fixture
def site(moody_template: MockRepository, tmp_path: Path) -> Site:
    """A moody site of the test's own."""
    return Site(copy_template(moody_template, tmp_path / "data"), tmp_path / "run")
