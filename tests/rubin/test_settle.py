"""settle: attempts killed at every stage, and what a power cut leaves; against real repositories."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lsst.pipe.base import NoWorkFound

from qgexec.events import AttemptReturned, AttemptSucceeded
from qgexec.quantum import Attempt
from qgexec.rubin.graphfile import read_plan
from qgexec.rubin.settle import InTheAir, missing_outputs, settle
from tests.kit.butler.benchwork import Site, attempts, registered
from tests.kit.butler.composites import CACHED
from tests.kit.butler.repos import MockRepository, copy_template
from tests.kit.butler.sites import CHAINED, make_composite, make_moody
from tests.kit.processes.kills import STAGES, die_in_put, dies
from tests.kit.tasks.moods import mood, partial, raising


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> MockRepository:
    """A repository with moody tasks, outputs prepared; not to be written to."""
    return make_moody(tmp_path_factory.mktemp("moody"))


@pytest.fixture
def site(moody: MockRepository, tmp_path: Path) -> Site:
    """A moody site of the test's own, with a run directory."""
    return make_site(moody, tmp_path)


def make_site(template: MockRepository, folder: Path) -> Site:
    site = Site(copy_template(template, folder / "data"), folder / "run")
    site.keep_books()
    return site


@pytest.fixture(scope="module")
def undisturbed(moody: MockRepository, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the first quantum leaves in a repository, executed once and ingested."""
    site = make_site(moody, tmp_path_factory.mktemp("undisturbed"))
    with site.bench() as bench:
        site.ingest([site.detail(bench.execute(first(site)))])
    return state(site)


def first(site: Site) -> Attempt:
    return attempts(read_plan(site.repository.graph), ("isr",))[0]


def second_attempt(attempt: Attempt) -> Attempt:
    return Attempt(attempt.index, 2, attempt.quantum_id, attempt.task_label)


def state(site: Site) -> dict[str, Any]:
    return {**site.repository.dump(), "readable": sorted(registered(site.repository))}


def run_settle(site: Site, *in_the_air: InTheAir, **options: Any) -> list[AttemptSucceeded | AttemptReturned]:
    plan = read_plan(site.repository.graph)
    unfinished = options.pop("unfinished", ())
    return settle(site.opener(), site.ingester_opener(**options), plan, in_the_air, unfinished)


@pytest.mark.every(9)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("put", [1, 2, 3], ids=["output", "metadata", "log"])
def test_killed_anywhere(site: Site, undisturbed: dict[str, Any], put: int, stage: str) -> None:
    """Complete where its log was renamed, else removed and run again: all is as if nothing had happened."""
    before = state(site)
    attempt, opener, now = first(site), site.opener(), time.time()

    def execute() -> None:
        bench = opener("driver")
        die_in_put(put, stage)
        bench.execute(attempt)

    dies(execute)
    (event,) = run_settle(site, InTheAir(attempt.index, 1, now))
    if put == 3 and stage == "renamed":
        assert isinstance(event, AttemptSucceeded)
    else:
        assert isinstance(event, AttemptReturned)
        assert state(site) == before
        with site.bench() as bench:
            event = bench.execute(second_attempt(attempt))  # type: ignore[assignment]
    site.ingest([site.detail(event)])
    assert state(site) == undisturbed


@pytest.mark.every(9)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("put", [1, 2, 3], ids=["output", "metadata", "log"])
def test_next_attempt_cleans_up_itself(site: Site, undisturbed: dict[str, Any], put: int, stage: str) -> None:
    """Where only a worker was lost nobody settles: what the next attempt leaves is as if nothing happened."""
    attempt, opener = first(site), site.opener()

    def execute() -> None:
        bench = opener("driver")
        die_in_put(put, stage)
        bench.execute(attempt)

    dies(execute)
    with site.bench() as bench:
        event = bench.execute(second_attempt(attempt))
    assert isinstance(event, AttemptSucceeded)
    site.ingest([site.detail(event)])
    assert state(site) == undisturbed


@pytest.mark.every(4)
@pytest.mark.parametrize(
    "make",
    [
        make_moody,
        lambda folder: make_moody(folder, CHAINED),
        lambda folder: make_moody(folder, CACHED),
        make_composite,
    ],
    ids=["files", "chained", "checksums", "disassembled"],
)
def test_rebuilt_as_it_was(make: Callable[[Path], MockRepository], tmp_path: Path) -> None:
    """What is rebuilt from the files of complete attempts is what their worker would have said."""
    site = make_site(make(tmp_path / "template"), tmp_path / "site")
    began = time.time()
    run = site.run()
    events = run_settle(site, *(InTheAir(index, 1, began) for index in run.outcomes))
    assert len(events) == len(run.outcomes) > 0
    for event in events:
        assert isinstance(event, AttemptSucceeded)
        ours, theirs = event.outcome, run.outcomes[event.index]
        detail, expected = site.detail(event), run.details[event.index]
        assert sorted(detail["outputs"]) == sorted(expected["outputs"])
        assert by_id(detail) == by_id(expected)
        assert detail["replaces"]
        assert (ours.caveats, ours.host, ours.status) == (theirs.caveats, theirs.host, theirs.status)
        assert theirs.started_at <= ours.started_at <= ours.ended_at <= theirs.ended_at
        assert 0 <= ours.cpu_s <= theirs.cpu_s + 0.02
        assert ours.peak_rss_bytes is not None
        assert ours.peak_rss_bytes > 10_000_000
    site.ingest([site.detail(event) for event in events])
    registered(site.repository)


def by_id(detail: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """Return a detail's records without the order in which they were written."""
    return {
        (store, dataset_id, table): sorted(map(str, infos))
        for store, data in detail["records"].items()
        for of_class in data["records"].values()
        for dataset_id, tables in of_class.items()
        for table, infos in tables.items()
    }


@pytest.mark.parametrize(
    "moods",
    [{"before_put": raising(NoWorkFound("nothing"))}, {"after_put": partial}],
    ids=["no work", "partial"],
)
def test_caveats(site: Site, moods: dict[str, Any]) -> None:
    """Caveats of a complete attempt are those in its metadata; outputs that it did not put are absent."""
    began = time.time()
    with mood(**moods):
        run = site.run(("isr",), raise_on_partial_outputs=False)
    index, outcome = next(iter(run.outcomes.items()))
    (event,) = run_settle(site, InTheAir(index, 1, began))
    assert isinstance(event, AttemptSucceeded)
    assert event.outcome.caveats == outcome.caveats != 0
    n_outputs = len(site.detail(event)["outputs"])
    assert len(site.detail(event).get("absent", ())) == 3 - n_outputs


def test_failed_attempt_is_not_complete(site: Site) -> None:
    """An attempt that failed leaves a log and outputs but no metadata: they are removed."""
    before = state(site)
    began = time.time()
    with mood(after_put=raising(ValueError("no"))):
        run = site.run(("isr",))
    events = run_settle(site, *(InTheAir(index, 1, began) for index in run.outcomes))
    assert {type(event) for event in events} == {AttemptReturned}
    assert state(site) == before


def files_of(site: Site, *parts: str) -> list[Path]:
    return sorted(
        path
        for path in site.repository.root.rglob("*.json")
        if all(part in str(path.relative_to(site.repository.root)) for part in parts)
    )


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.every(6)
@pytest.mark.parametrize("harm", [empty, Path.unlink], ids=["empty", "gone"])
@pytest.mark.parametrize("what", ["post_isr", "isr_metadata", "isr_log"])
def test_power_cut(site: Site, what: str, harm: Callable[[Path], None]) -> None:
    """An attempt of which metadata, log or output is gone or empty was not complete; all of it is removed."""
    before = state(site)
    began = time.time()
    run = site.run(("isr",))
    index = next(iter(run.outcomes))
    name = next(row for row in run.details[index]["outputs"] if row[0] == what)
    path = Path(paths(run.details[index])[name[2]])
    harm(site.repository.root / path)
    events = run_settle(site, InTheAir(index, 1, began))
    assert isinstance(events[0], AttemptReturned)
    others = run_settle(site, unfinished=[i for i in run.outcomes if i != index])
    assert others == []
    assert state(site) == before


def paths(detail: dict[str, Any]) -> dict[str, str]:
    return {
        dataset_id: infos[0]["path"]
        for data in detail["records"].values()
        for of_class in data["records"].values()
        for dataset_id, tables in of_class.items()
        for infos in tables.values()
    }


@pytest.mark.thorough
def test_part_of_a_chain(tmp_path: Path) -> None:
    """An attempt whose log is in one datastore of a chain and not yet in the next is not complete."""
    site = make_site(make_moody(tmp_path / "template", CHAINED), tmp_path / "site")
    before = state(site)
    began = time.time()
    run = site.run(("isr",))
    for path in files_of(site, "FileDatastore_2", "isr_log"):
        path.unlink()
    events = run_settle(site, *(InTheAir(index, 1, began) for index in run.outcomes))
    assert {type(event) for event in events} == {AttemptReturned}
    assert state(site) == before


def test_what_was_there_before_is_not_complete_and_stays(site: Site) -> None:
    """In a RUN that existed, what an attempt did not come to touch is not taken for its own, and stays."""
    run = site.run(("isr",))
    site.ingest(list(run.details.values()))
    before = state(site)
    began = time.time()
    in_the_air = [InTheAir(index, 1, began) for index in run.outcomes]
    events = run_settle(site, *in_the_air, run_began_at=began)
    assert {type(event) for event in events} == {AttemptReturned}
    assert state(site) == before


def test_again_before_anything_was_recorded(site: Site) -> None:
    """A driver killed before it recorded what was settled: the next one settles the same."""
    began = time.time()
    run = site.run(("isr",))
    chosen = [InTheAir(index, 1, began) for index in run.outcomes][:2]
    Path(
        site.repository.root
        / paths(run.details[chosen[1].index])[run.details[chosen[1].index]["outputs"][1][2]]
    ).unlink()
    one, two = (run_settle(site, *chosen) for _ in range(2))
    assert (
        [type(event) for event in one]
        == [type(event) for event in two]
        == [AttemptSucceeded, AttemptReturned]
    )
    assert site.detail(one[0]) == site.detail(two[0])


def test_nothing_in_the_air(site: Site) -> None:
    """Without attempts in the air nothing is opened, and no segment made."""
    site.repository.graph.unlink()
    assert settle(site.opener(), site.ingester_opener(), None, []) == []  # type: ignore[arg-type]
    assert list((site.run_dir / "segments").iterdir()) == []


def test_missing_outputs(site: Site) -> None:
    """Quanta whose files are gone or of another size are found; those that are whole are not."""
    run = site.run(("isr",))
    gone, short, *whole = run.outcomes
    files = {
        index: [site.repository.root / path for path in paths(run.details[index]).values()]
        for index in run.outcomes
    }
    files[gone][0].unlink()
    empty(files[short][-1])
    assert missing_outputs(site.opener(), run.details) == sorted([gone, short])
    assert missing_outputs(site.opener(), {index: run.details[index] for index in whole}) == []
    assert missing_outputs(site.opener(), {}) == []
    assert missing_outputs(site.opener(), {gone: {"traceback": "..."}}) == []
