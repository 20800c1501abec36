"""Fixtures for tests of every floor."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from tests.kit.butler.repos import MockRepository
    from tests.kit.commands.qgexec import Moods
    from tests.kit.processes.postgres import PostgresServer

# How long an example takes depends on what else the machine does; a test must not.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--share``."""
    parser.addoption(
        "--share", metavar="K/N", default="0/1", help="Of what is thorough: each N-th case, from the K-th on."
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave like cases to `make test-thorough`, or to others; begin with the files that take long."""
    _leave_like_cases(items)
    first, step = map(int, config.getoption("share").split("/"))
    if step > 1:
        _keep_share(config, items, first % step, step)
    items.sort(key=_place)


def _leave_like_cases(items: list[pytest.Item]) -> None:
    """Mark as thorough all but each n-th case of tests that are marked so."""
    positions: Counter[str] = Counter()
    for item in items:
        mark = item.get_closest_marker("every")
        if mark is not None:
            test = item.nodeid.partition("[")[0]
            if positions[test] % mark.args[0]:
                item.add_marker("thorough")
            positions[test] += 1


def _keep_share(config: pytest.Config, items: list[pytest.Item], first: int, step: int) -> None:
    """Deselect thorough tests but for each so-many-th case: that on several models is one case."""
    cases: dict[object, int] = {}
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("thorough"):
            place = cases.setdefault(_case(item), len(cases))
            (kept if place % step == first else left).append(item)
        else:
            kept.append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def _case(item: pytest.Item) -> object:
    """Return what a test has in common with the same one on another model."""
    indices = getattr(getattr(item, "callspec", None), "indices", {})
    return item.nodeid.partition("[")[0], *(sorted((k, i) for k, i in indices.items() if k != "model"))


_LONG = ("sites", "tests", "peer", "bps", "demo", "docs", "models", "cli", "rubin")
"""Folders whose files take long, in the order in which they begin: a long one begun last is waited for."""


def _place(item: pytest.Item) -> int:
    folder = item.path.parent.name
    return _LONG.index(folder) if folder in _LONG else len(_LONG)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape what UTF-8 cannot hold in what tests have logged: their reports travel between processes."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Say what was skipped, and why: each reason says what to install."""
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()))
    for reason, n_tests in reasons.most_common():
        terminalreporter.write_line(f"{n_tests} skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file can grow beyond so many bytes: as on a full disk, for root too."""

    @contextmanager
    def limited(n_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session", autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs of tests are listed in a folder of this session's own, not in that of who runs them."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QGEXEC_STATE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """The standard repository; tests must not write to it."""
    from tests.kit.butler.repos import make_template

    return make_template(tmp_path_factory.mktemp("template"))


@pytest.fixture
def repository(template: MockRepository, tmp_path: Path) -> MockRepository:
    """A copy of the standard repository of the test's own."""
    from tests.kit.butler.repos import copy_template

    return copy_template(template, tmp_path / "data")


@pytest.fixture
def moods(template: MockRepository) -> Iterator[Moods]:
    """Tells the quanta of all copies of a template with moody tasks what to do."""
    from tests.kit.commands.qgexec import Moods

    moods = Moods(template.root.parents[1])
    yield moods
    moods.let_go()
    moods.close()


@contextmanager
def _postgres() -> Iterator[PostgresServer]:
    from tests.kit.processes.postgres import find_programs, start_server

    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (apt-get install postgresql)")
    with start_server(programs) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this session's own."""
    with _postgres() as server:
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this module's own, to be stopped and started."""
    with _postgres() as server:
        yield server
