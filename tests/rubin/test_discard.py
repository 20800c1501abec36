"""Ingester.discard: what is removed, what stays; against real repositories."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lsst.daf.butler.registry.sql_registry import SqlRegistry

from qgexec.errors import IngestError, RunDirError, UsageError
from qgexec.rubin.graphfile import read_plan
from tests.kit.butler.benchwork import Run, Site, attempts, prepare_outputs, registered
from tests.kit.butler.composites import CACHED
from tests.kit.butler.repos import OUTPUT_RUN, MockRepository, copy_template
from tests.kit.butler.sites import CHAINED, make_composite, make_moody
from tests.kit.processes.kills import die, dies

ISR = ("isr",)


@pytest.fixture
def site(template: MockRepository, tmp_path: Path) -> Site:
    """A site of the test's own, outputs prepared, with a run directory."""
    site = Site(copy_template(template, tmp_path / "data"), tmp_path / "run")
    prepare_outputs(site.repository)
    site.keep_books()
    return site


def state(site: Site) -> dict[str, Any]:
    return {**site.repository.dump(), "readable": sorted(registered(site.repository))}


def file_of(site: Site, run: Run, index: int, dataset_type: str) -> Path:
    """Return the file of an output."""
    wanted = next(row[2] for row in run.details[index]["outputs"] if row[0] == dataset_type)
    for data in run.details[index]["records"].values():
        for of_class in data["records"].values():
            if wanted in of_class:
                ((record, *_),) = of_class[wanted].values()
                return Path(site.repository.root / record["path"])
    raise LookupError(dataset_type)


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
def test_all_that_the_registry_does_not_know(make: Any, tmp_path: Path) -> None:
    """Files of outputs that were not taken in are gone, wherever the datastore had put them; nothing else."""
    site = Site(copy_template(make(tmp_path / "template"), tmp_path / "data"), tmp_path / "run")
    site.keep_books()
    before = state(site)
    run = site.run()
    assert state(site) != before
    site.discard(list(run.outcomes))
    assert state(site) == before
    site.discard(list(run.outcomes))
    assert state(site) == before


@pytest.mark.thorough
def test_other_quanta_are_left_alone(site: Site) -> None:
    """Only what these quanta would have written is removed."""
    run = site.run(ISR)
    gone, *others = run.outcomes
    site.ingest([run.details[index] for index in others])
    before = state(site)
    site.discard([gone])
    site.discard([])
    after = state(site)
    assert after["datasets"] == before["datasets"]
    assert after["readable"] == before["readable"]
    assert len(after["files"]) == len(before["files"]) - 3


def test_what_is_registered_as_it_is_stays(site: Site) -> None:
    """Outputs that the registry knows with these files, of an extended RUN, are not touched."""
    run = site.run(ISR)
    site.ingest(list(run.details.values()))
    before = state(site)
    site.discard(list(run.outcomes))
    assert state(site) == before


@pytest.mark.thorough
@pytest.mark.parametrize("harm", ["gone", "other"])
def test_registered_but_not_as_it_is(site: Site, harm: str) -> None:
    """What an attempt removed, or wrote anew, of what the registry knows leaves the registry too."""
    run = site.run(ISR)
    site.ingest(list(run.details.values()))
    before = state(site)
    index = next(iter(run.outcomes))
    path = file_of(site, run, index, "post_isr")
    if harm == "gone":
        path.unlink()
    else:
        path.write_text(path.read_text() + " ")
    site.discard(list(run.outcomes))
    after = state(site)
    assert len(after["datasets"]) == len(before["datasets"]) - 1
    assert len(after["readable"]) == len(before["readable"]) - 1
    assert not path.exists()
    site.discard(list(run.outcomes))
    assert state(site) == after


@pytest.mark.thorough
def test_other_content_of_the_same_size(tmp_path: Path) -> None:
    """Where the datastore keeps checksums, a file of the same size is not taken for the one recorded."""
    template = make_moody(tmp_path / "template", CACHED)
    site = Site(copy_template(template, tmp_path / "data"), tmp_path / "run")
    site.keep_books()
    run = site.run(ISR)
    site.ingest(list(run.details.values()))
    before = state(site)
    path = file_of(site, run, next(iter(run.outcomes)), "post_isr")
    path.write_text(path.read_text()[:-1] + " ")
    site.discard(list(run.outcomes))
    assert len(state(site)["datasets"]) == len(before["datasets"]) - 1


def test_temporary_files(site: Site) -> None:
    """What was left of writing an output goes, and nothing that belongs to one with a similar name."""
    run = site.run(ISR)
    site.ingest(list(run.details.values()))
    before = state(site)
    index = next(iter(run.outcomes))
    path = file_of(site, run, index, "post_isr")
    ours = path.with_name(f"abcdefgh01234_6z{path.stem}.tmp.json")
    not_ours = [
        path.with_name(f"abcdefgh01234_6za{path.stem}.tmp.json"),
        path.with_name(f"abcdefgh01234_6z{path.stem}1.tmp.json"),
        path.with_name(f"{path.stem}.tmp.json"),
    ]
    for each in (ours, *not_ours):
        each.write_text("{")
    site.discard([index])
    assert not ours.exists()
    for each in not_ours:
        each.unlink()
    assert state(site) == before


@pytest.mark.thorough
def test_what_is_older_than_the_run_stays(site: Site) -> None:
    """In a RUN that existed, files from before the run are none of its attempts', registered or not."""
    run = site.run(ISR)
    known, unknown, *_ = run.outcomes
    site.ingest([run.details[known]])
    path = file_of(site, run, known, "isr_log")
    path.write_text(path.read_text() + " ")
    files = site.repository.dump()
    site.discard(list(run.outcomes), run_began_at=time.time() + 1)
    assert site.repository.dump() == files
    site.discard([unknown])
    assert site.repository.dump() != files


def test_killed_in_between(site: Site) -> None:
    """An ingester killed after it changed the registry, before it removed files, leaves work for the next."""
    run = site.run(ISR)
    site.ingest(list(run.details.values()))
    chosen = list(run.outcomes)
    for index in chosen[:2]:
        file_of(site, run, index, "post_isr").unlink()
        path = file_of(site, run, index, "isr_log")
        path.write_text(path.read_text() + " ")

    def discard() -> None:
        ingester = site.ingester()
        import qgexec.rubin.discard as module

        module.remove_files = lambda *args, **kwargs: die()  # type: ignore[assignment, attr-defined]
        ingester.discard(chosen)

    dies(discard)
    site.discard(chosen)
    after = state(site)
    n_isr = sum(row[0] in ("post_isr", "isr_log", "isr_metadata") for row in after["datasets"])
    assert n_isr == 3 * len(chosen) - 4
    assert sum("isr_log" in name for name in after["files"]) == len(chosen) - 2


@pytest.mark.thorough
def test_in_a_process_that_knows_nothing_yet(site: Site) -> None:
    """An ingester's process has imported no tasks, nor what comes with them, when it is told to clean up."""
    before = state(site)
    run = site.run(ISR)
    code = (
        "import sys; from qgexec.rubin.ingest import IngesterOpener\n"
        "ingester = IngesterOpener(*sys.argv[1:3], run_dir=sys.argv[3])()\n"
        "ingester.discard([int(each) for each in sys.argv[4:]])\n"
    )
    where = [str(site.repository.root), OUTPUT_RUN, str(site.run_dir)]
    command = [sys.executable, "-c", code, *where, *map(str, run.outcomes)]
    subprocess.run(command, check=True, timeout=120)
    assert state(site) == before


def test_without_run_directory(site: Site, tmp_path: Path) -> None:
    """Without a run directory, or with one that is none, it is a clear error that changes nothing."""
    run = site.run(ISR)
    before = state(site)
    for run_dir, error in (("", UsageError), (str(tmp_path / "none"), RunDirError)):
        opener = site.ingester_opener()
        ingester = type(opener)(opener.repository, opener.output_run, run_dir=run_dir)()
        with pytest.raises(error):
            ingester.discard(list(run.outcomes))
        ingester.close()
    assert state(site) == before


@pytest.mark.thorough
def test_registry_that_refuses(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the registry refuses, what it knows and its files stay as they are."""
    run = site.run(ISR)
    site.ingest(list(run.details.values()))
    path = file_of(site, run, next(iter(run.outcomes)), "isr_log")
    path.write_text(path.read_text() + " ")
    before = site.repository.dump()
    ingester = site.ingester()

    def refuse(registry: SqlRegistry, refs: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(SqlRegistry, "removeDatasets", refuse)
    with pytest.raises(IngestError, match=r"8 quanta left .* could not be removed .* no space"):
        ingester.discard(list(run.outcomes))
    ingester.close()
    assert site.repository.dump() == before
    assert path.exists()


def test_attempts_of_another_number(site: Site) -> None:
    """An attempt after one that was cleaned up begins as the first did."""
    plan = read_plan(site.repository.graph)
    attempt = attempts(plan, ISR)[0]
    with site.bench() as bench:
        bench.execute(attempt)
    site.discard([attempt.index])
    with site.bench() as bench:
        event = bench.execute(type(attempt)(attempt.index, 2, attempt.quantum_id, "isr"))
    site.ingest([site.detail(event)])
    assert len([name for name in registered(site.repository) if name.startswith("isr_log")]) == 1
