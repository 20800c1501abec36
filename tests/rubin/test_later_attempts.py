"""Workbench at attempts that are not the first: what is removed before, what stays, what is said of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from lsst.pipe.base import NoWorkFound

from qgexec.quantum import OutcomeStatus
from qgexec.rubin.graphfile import read_plan
from tests.kit.butler.benchwork import Site, attempts, later, numbered, registered, remembered
from tests.kit.butler.repos import OUTPUT_RUN
from tests.kit.butler.sites import CHAINED, make_moody
from tests.kit.tasks.moods import complaining, mood, raising

ISR = ("isr",)


def files_of(site: Site) -> dict[str, int]:
    """Return the output RUN's files and when they were written."""
    root = site.repository.root
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*.json")
        if OUTPUT_RUN in str(path)
    }


@pytest.mark.parametrize("config", ["", CHAINED], ids=["file", "chained"])
def test_after_a_failure(config: str, tmp_path: Path) -> None:
    """An attempt after one that failed leaves what a first one does; its log has the failure's in it."""
    site = Site(make_moody(tmp_path / "data", config), tmp_path / "run")
    plan = read_plan(site.repository.graph)
    attempt, other = attempts(plan, ISR)[:2]
    with site.bench() as bench:
        expected = site.detail(bench.execute(other))
        with mood(after_put=complaining("the first time")):
            failed = site.detail(bench.execute(attempt))
        assert {row[0] for row in failed["outputs"]} == {"post_isr", "isr_log"}
        site.ingest([failed])
        again = site.detail(bench.execute(later(attempt)))
        assert remembered(bench) == []
    assert {row[0] for row in again["outputs"]} == {row[0] for row in expected["outputs"]}
    assert again["records"].keys() == expected["records"].keys()
    assert again["replaces"]
    site.ingest([again, expected])
    found = registered(site.repository)
    assert len([name for name in found if name.split("@")[0].split()[0] in ("post_isr", "isr_log")]) == 4
    with site.repository.butler(collections=[OUTPUT_RUN]) as butler:
        (ref,) = [ref for ref in butler.query_datasets("isr_log") if ref.id.hex in str(again["outputs"])]
        ((earlier,), (unrelated,)) = (
            butler.get(ref).extra["previous_attempts"],
            [
                butler.get(r).extra.get("previous_attempts") or []
                for r in butler.query_datasets("isr_log")
                if r != ref
            ],
        )
    assert earlier["exception"]["message"] == "the first time"
    assert unrelated == []


@pytest.mark.thorough
def test_outputs_that_are_not_made_again(site: Site) -> None:
    """What an earlier attempt of the run had put, and the next one does not, is named as absent."""
    plan = read_plan(site.repository.graph)
    attempt = attempts(plan, ISR)[0]
    with site.bench() as bench:
        with mood(after_put=complaining("no")):
            site.ingest([site.detail(bench.execute(attempt))])
        with mood(before_put=raising(NoWorkFound("not this time"))):
            again = site.detail(bench.execute(later(attempt)))
    assert len(again["absent"]) == 1
    site.ingest([again])
    assert not [name for name in registered(site.repository) if name.startswith("post_isr")]


@pytest.mark.every(2)
@pytest.mark.parametrize("content", [b"", b"\0" * 100])
def test_damaged_log_of_an_earlier_attempt(site: Site, content: bytes) -> None:
    """A log that a power cut left without content is not taken over, and in nobody's way."""
    plan = read_plan(site.repository.graph)
    attempt = attempts(plan, ISR)[0]
    with site.bench() as bench:
        with mood(after_put=complaining("no")):
            bench.execute(attempt)
        (path,) = (path for path in site.repository.root.rglob("*isr_log*.json"))
        path.write_bytes(content)
        event = bench.execute(later(attempt))
    assert event.outcome.status is OutcomeStatus.SUCCEEDED  # type: ignore[union-attr]
    site.ingest([site.detail(event)])
    registered(site.repository)


@pytest.mark.every(4)
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({}, OutcomeStatus.FAILED),
        ({"skip_existing": True}, OutcomeStatus.SKIPPED),
        ({"clobber_outputs": True}, OutcomeStatus.SUCCEEDED),
        ({"skip_existing": True, "clobber_outputs": True}, OutcomeStatus.SKIPPED),
    ],
    ids=["extend", "skip", "clobber", "both"],
)
def test_what_was_there_before_the_run_is_the_users(
    site: Site, options: dict[str, bool], status: OutcomeStatus
) -> None:
    """In a RUN that existed, the options decide about older outputs, whatever the attempt's number is."""
    site.run(ISR)
    before = files_of(site)
    attempt = attempts(read_plan(site.repository.graph), ISR)[0]
    for number in (1, 2):
        with site.bench(run_is_new=False, run_began_at=time.time(), **options) as bench:
            event = bench.execute(numbered(attempt, number))
        assert event.outcome.status is status  # type: ignore[union-attr]
        assert (files_of(site) == before) == (status is not OutcomeStatus.SUCCEEDED)


@pytest.mark.every(3)
@pytest.mark.parametrize("options", [{}, {"skip_existing": True}, {"clobber_outputs": True}], ids=str)
def test_remains_of_the_run_itself_are_in_nobodys_way(site: Site, options: dict[str, bool]) -> None:
    """In a RUN that existed, what earlier attempts of this run left is removed, and never skipped for."""
    began = time.time()
    attempt = attempts(read_plan(site.repository.graph), ISR)[0]
    with site.bench(run_is_new=False, run_began_at=began, **options) as bench:
        for number in (1, 2, 3):
            # The second and third as after a worker that was lost just before it said that it had succeeded.
            event = bench.execute(numbered(attempt, number))
            assert event.outcome.status is OutcomeStatus.SUCCEEDED  # type: ignore[union-attr]
    site.ingest([site.detail(event)])
    registered(site.repository)
