"""Whatever happens to a graph, `qgexec run` leaves in the repository what `pipetask run` leaves."""

from __future__ import annotations

import pytest

from .cases import CASES, Case
from .conftest import Left
from .dumps import first_difference, metadata_counts, without_formats

MODELS = ("inprocess", "pool")

PARAMETERS = [
    pytest.param(
        case,
        case,
        id=case.name,
        marks=[pytest.mark.postgres] if case.repository == "PostgreSQL" else [],
    )
    for case in CASES
]


@pytest.mark.parametrize(("case", "left"), PARAMETERS, indirect=["left"], scope="module")
@pytest.mark.parametrize("model", MODELS)
def test_same_as_pipetask(case: Case, left: dict[str, Left], model: str) -> None:
    """Collections, dataset types, datasets, their contents and datastore records, and files are the same."""
    theirs, ours = left["pipetask"], left[model]
    assert theirs.exit_codes == tuple(
        step.exit_code if step.pipetask_exit_code is None else step.pipetask_exit_code for step in case.steps
    ), theirs.printed
    assert metadata_counts(theirs.dump) == dict(sorted(case.succeeded.items())), theirs.printed
    assert ours.exit_codes == tuple(step.exit_code for step in case.steps), ours.printed
    assert_same(theirs, ours, formats=case.same_formats)


def assert_same(theirs: Left, ours: Left, *, formats: bool) -> None:
    """Say what differs first, and what qgexec printed."""
    dumps = (theirs.dump, ours.dump)
    difference = first_difference(*(dumps if formats else map(without_formats, dumps)))
    assert difference is None, f"{difference}\n\nqgexec said:\n{ours.printed}"
