"""Nothing is lost: whatever is killed, whenever, `resume` ends in what an undisturbed run leaves."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.endstate import EndState
from qgexec.books.journal import read_events
from tests.kit.butler.repos import MockRepository
from tests.kit.crash.cases import (
    BEFORE,
    CASES,
    CONFIG,
    DAMAGES,
    EXTENDED,
    INGESTER,
    KINDS,
    N_RECORDS,
    POWER_CUTS,
    QUANTUM,
    RECORDS,
    RESUMED,
    VERSIONS,
    trouble,
    two_in_the_air,
)
from tests.kit.crash.sites import (
    Case,
    Site,
    begin,
    check_end,
    judge,
    make_site,
    make_small,
)
from tests.kit.crash.starts import STARTS
from tests.kit.processes.forks import KILLED

# The first test of a group plays all of its cases; each of these has limits of its own.
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """A repository that nobody writes to."""
    return make_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def sites(small: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> list[Site]:
    """Two places for cases to play in, at the same time."""
    return [make_site(small, tmp_path_factory.mktemp("case")) for _ in range(2)]


@pytest.fixture(scope="module")
def undisturbed(sites: list[Site]) -> EndState:
    """What a run leaves in which nothing happens."""
    site = sites[0]
    site.restore()
    assert begin(site) == 0
    state, problems = site.end()
    assert problems == []
    assert {counts[1] for counts in state.counts.values()} == {1}
    return state


@pytest.fixture(scope="module")
def crashed(sites: list[Site]) -> None:
    """Have copies of both places whose drivers were killed with two quanta in the air."""
    for site in sites:
        site.restore()
        assert begin(site, "pool", two_in_the_air(site)) == KILLED
        site.save("crashed")


def selected(request: pytest.FixtureRequest) -> list[str]:
    """Return the names of the cases that this session is to run."""
    return [
        item.callspec.params.get("name", "") for item in request.session.items if hasattr(item, "callspec")
    ]


def checked(case: Case, undisturbed: EndState, *, done_once: bool = True) -> Case:
    """Return a case that ends with a look at what is left."""

    def play(site: Site) -> None:
        case(site)
        check_end(site, undisturbed, done_once=done_once)

    return play


@pytest.fixture(scope="module")
def verdicts(
    request: pytest.FixtureRequest, sites: list[Site], undisturbed: EndState, crashed: None
) -> dict[str, str]:
    """Return what is wrong with each case that is asked for: they are played two at a time."""
    known = CASES | STARTS
    wanted = [name for name in selected(request) if name in known]
    cases = {name: checked(known[name], undisturbed, done_once=name not in POWER_CUTS) for name in wanted}
    return judge(cases, sites)


@pytest.fixture(scope="module")
def verdicts_extended(
    request: pytest.FixtureRequest, small: MockRepository, tmp_path_factory: Any
) -> dict[str, str]:
    """Return the same of cases in a RUN that there was before."""
    wanted = [name for name in selected(request) if name in EXTENDED]
    verdicts: dict[str, str] = {}
    for kind, (before, options) in BEFORE.items():
        sites = [
            make_site(small, tmp_path_factory.mktemp("case"), before=before, **options) for _ in range(2)
        ]
        site = sites[0]
        site.restore()
        assert begin(site, **options) == 0
        undisturbed, problems = site.end()
        assert problems == []
        cases = {name: checked(EXTENDED[name], undisturbed) for name in wanted if name.startswith(kind)}
        verdicts |= judge(cases, sites)
    return verdicts


@pytest.mark.every(40)
@pytest.mark.parametrize("name", RECORDS)
def test_driver_killed_at_every_record(verdicts: dict[str, str], name: str) -> None:
    """A driver killed before, within or after any record loses nothing but what was in the air."""
    assert not verdicts[name], verdicts[name]


def test_these_are_all_records(sites: list[Site]) -> None:
    """The run that is killed at each of its records has that many."""
    site = sites[0]
    site.restore()
    assert begin(site, fault=trouble(site), config=CONFIG) == 1
    assert len(list(read_events(site.run_dir / "journal"))) == N_RECORDS


@pytest.mark.every(20)
@pytest.mark.parametrize("name", STARTS)
def test_driver_killed_as_it_prepares(verdicts: dict[str, str], name: str) -> None:
    """A driver killed before its run began leaves nothing that the same command, or resume, stumbles over."""
    assert not verdicts[name], verdicts[name]


@pytest.mark.parametrize("name", ["before the first record"])
def test_driver_killed_before_the_first_record(verdicts: dict[str, str], name: str) -> None:
    """A driver killed when the run directory is whole and the journal empty loses nothing at all."""
    assert not verdicts[name], verdicts[name]


@pytest.mark.every(30)
@pytest.mark.parametrize("name", KINDS)
def test_driver_of_a_pool_killed_at_every_kind_of_record(verdicts: dict[str, str], name: str) -> None:
    """So does the driver of a pool, whose workers and ingester end with it."""
    assert not verdicts[name], verdicts[name]


@pytest.mark.every(20)
@pytest.mark.parametrize("name", QUANTUM)
def test_killed_at_every_stage_of_a_quantum(verdicts: dict[str, str], name: str) -> None:
    """Whoever executes a quantum may die at any stage of it: what is whole counts, all else is removed."""
    assert not verdicts[name], verdicts[name]


@pytest.mark.thorough
@pytest.mark.parametrize("name", EXTENDED)
def test_killed_where_outputs_were_before(verdicts_extended: dict[str, str], name: str) -> None:
    """In a RUN that existed, clobbering and skipping mean the same as in a run in which nobody dies."""
    assert not verdicts_extended[name], verdicts_extended[name]


@pytest.mark.every(12)
@pytest.mark.parametrize("name", INGESTER)
def test_ingester_killed(verdicts: dict[str, str], name: str) -> None:
    """Whoever takes outputs into the registry, or removes what is left, may die before, in or after that."""
    assert not verdicts[name], verdicts[name]


@pytest.mark.every(30)
@pytest.mark.parametrize("name", RESUMED | VERSIONS)
def test_resume_killed_twice(verdicts: dict[str, str], name: str) -> None:
    """The driver that resumes may be killed wherever it is, and so may the one that resumes after it."""
    assert not verdicts[name], verdicts[name]


@pytest.mark.every(12)
@pytest.mark.parametrize("name", POWER_CUTS)
def test_power_cut(verdicts: dict[str, str], name: str) -> None:
    """What a power cut has taken is found by its size, or by its detail, and run again."""
    assert not verdicts[name], verdicts[name]


@pytest.mark.every(6)
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_journal(verdicts: dict[str, str], name: str) -> None:
    """What a changed line spoke of is looked up in the outputs; late lines are no part of the run."""
    assert not verdicts[name], verdicts[name]
