"""Whatever happens to a graph, `qgexec run` leaves and reports what `pipetask run` leaves and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.peer.cases import CASES, Case
from tests.kit.peer.dumps import first_difference, metadata_counts, without_formats
from tests.kit.peer.reports import as_summary, in_order
from tests.peer.conftest import Left

MODELS = ("inprocess", "pool")

PARAMETERS = [
    pytest.param(
        case,
        case,
        id=case.name,
        marks=[
            *([pytest.mark.postgres] if case.repository == "PostgreSQL" else []),
            *([] if case.soon else [pytest.mark.thorough]),
        ],
    )
    for case in CASES
]


@pytest.mark.parametrize(("case", "left"), PARAMETERS, indirect=["left"], scope="module")
@pytest.mark.parametrize("model", MODELS)
def test_same_as_pipetask(case: Case, left: dict[str, Left], model: str, tmp_path: Path) -> None:
    """Collections, dataset types, datasets, their records, files, caveats, reports are the same."""
    theirs, ours = left["pipetask"], left[model]
    assert theirs.exit_codes == tuple(
        step.exit_code if step.pipetask_exit_code is None else step.pipetask_exit_code for step in case.steps
    ), theirs.printed
    assert metadata_counts(theirs.dump) == dict(sorted(case.succeeded.items())), theirs.printed
    assert ours.exit_codes == tuple(step.exit_code for step in case.steps), ours.printed
    assert_same_outputs(theirs, ours, formats=case.same_formats)
    assert_same_reports(theirs, ours, tmp_path)


def assert_same_outputs(theirs: Left, ours: Left, *, formats: bool) -> None:
    """Say what differs first, and what qgexec printed."""
    dumps = (theirs.dump, ours.dump)
    difference = first_difference(*(dumps if formats else map(without_formats, dumps)))
    assert difference is None, f"{difference}\n\nqgexec said:\n{ours.printed}"


def assert_same_reports(theirs: Left, ours: Left, folder: Path) -> None:
    """Either report of the repository says the same of either's, and so do the run directories."""
    expected = in_order(json.loads(theirs.summary.model_dump_json()))
    for summary in (
        json.loads(ours.summary.model_dump_json()),
        as_summary(theirs.report, folder),
        as_summary(ours.report, folder),
    ):
        difference = first_difference(expected, in_order(summary))
        assert difference is None, difference
    caveats = {task.label: task.caveats for task in ours.report.tasks}
    for label, task in theirs.summary.tasks.items():
        told = ours.tasks[label]
        counts = (told.n_quanta, told.succeeded + told.skipped, told.failed, told.blocked, told.caveats)
        assert (label, *counts) == (
            label,
            task.n_expected,
            task.n_successful,
            task.n_failed,
            task.n_blocked,
            caveats[label],
        )
