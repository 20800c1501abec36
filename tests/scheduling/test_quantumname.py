"""Tests of `qgexec.scheduling.quantumname`."""

from __future__ import annotations

import uuid

import numpy as np
import pytest

from qgexec.errors import UsageError
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.plan import Plan
from qgexec.scheduling.quantumname import find_quantum, matching_quanta

DATA_IDS = [("Cam", v, d, "r") for v in (10, 11) for d in (1, 2, 3)]
IDS = [uuid.UUID(int=1000 + i) for i in range(8)]
PLAN = Plan.from_edges(
    labels={
        "isr": ("instrument", "visit", "detector", "band"),
        "coadd": ("skymap", "tract"),
        "idle": ("visit",),
    },
    label_codes=[0] * 6 + [1] * 2,
    quantum_ids=b"".join(quantum_id.bytes for quantum_id in IDS),
    data_ids=DataIds.pack([*DATA_IDS, ("rings, v1", 1), ("rings, v1", 12)]),
    predecessors=np.array([], dtype=int),
    successors=np.array([], dtype=int),
)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("3", 3),
        (" 0 ", 0),
        (str(IDS[4]), 4),
        (IDS[4].hex, 4),
        (f"{{{str(IDS[4]).upper()}}}", 4),
        ("isr{instrument: 'Cam', visit: 11, detector: 2, band: 'r'}", 4),
        ("isr{visit: 11, detector: 2}", 4),
        ('isr { visit:11,detector : "2" }', 4),
        ("isr(visit=11, detector=2)", 4),
        ("isr{visit=11,detector=2", 4),
        ("isr{'visit': 11, 'detector': 2}", 4),
        ("coadd{skymap: 'rings, v1', tract: 12}", 7),
        ("coadd{tract: 1}", 6),
    ],
)
def test_forms(name: str, index: int) -> None:
    """Index, UUID, or label and as much of the data ID as is needed, with any spaces, quotes and braces."""
    assert find_quantum(PLAN, name) == index


@pytest.mark.parametrize("index", range(len(PLAN)))
def test_as_reports_print_it(index: int) -> None:
    """Whatever a report says can be given back."""
    assert find_quantum(PLAN, PLAN.describe(index)) == index
    assert find_quantum(PLAN, str(PLAN[index])) == index


@pytest.mark.parametrize(
    ("name", "said", "advice"),
    [
        ("8", "There is no quantum 8", "0 to 7"),
        (str(uuid.UUID(int=5)), "No quantum of this run has the ID", "another graph"),
        ("irs{visit: 10}", "has no task 'irs'", "Is it isr?"),
        ("zzz", "has no task 'zzz'", "isr, coadd, idle"),
        ("isr", "6 quanta of task isr", "0: isr{instrument: 'Cam', visit: 10, detector: 1, band: 'r'}"),
        ("isr{visit: 10}", "3 quanta of task isr", "Name one of them"),
        ("isr{visit: 12, detector: 3}", "no quantum with that data ID", "detector: 3"),
        ("isr{exposure: 12}", "have no exposure", "instrument, visit, detector, band"),
        ("idle", "has no quanta", ""),
        ("isr{visit 10}", "names no quantum", "label{key: value"),
        ("", "names no quantum", "index"),
        ("-1", "has no task '-1'", ""),
    ],
)
def test_refused(name: str, said: str, advice: str) -> None:
    """The error says what is wrong, and what is nearest."""
    with pytest.raises(UsageError) as caught:
        find_quantum(PLAN, name)
    assert said in caught.value.message
    assert advice in caught.value.hint


def test_many_are_cut_short() -> None:
    """Five are named, the rest is counted; of a wrong one the nearest come first."""
    with pytest.raises(UsageError) as caught:
        find_quantum(PLAN, "isr")
    assert len(caught.value.hint.splitlines()) == 7
    assert "and 1 more" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        find_quantum(PLAN, "isr{visit: 11, detector: 9}")
    assert [line.split(":")[0].strip() for line in caught.value.hint.splitlines()[1:4]] == ["3", "4", "5"]


@pytest.mark.parametrize(
    ("name", "indices"),
    [
        ("isr", [0, 1, 2, 3, 4, 5]),
        ("isr{visit: 11}", [3, 4, 5]),
        ("{visit: 10, detector: 2}", [1]),
        ("{instrument: Cam}", [0, 1, 2, 3, 4, 5]),
        ("coadd(tract=12)", [7]),
        ("4", [4]),
        (str(IDS[6]), [6]),
    ],
)
def test_all_that_are_meant(name: str, indices: list[int]) -> None:
    """What is left out may be anything, the task too."""
    assert matching_quanta(PLAN, name) == indices


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("isr{visit: 99}", "no quantum with that data ID"),
        ("isr{tract: 1}", "have no tract"),
        ("{tract: 99}", "No quantum has {tract: 99} in its data ID"),
        ("{}", "names no quantum"),
        ("", "names no quantum"),
        ("idle", "has no quanta"),
        ("8", "no quantum 8"),
    ],
)
def test_none_is_meant(name: str, said: str) -> None:
    """It is said what there is."""
    with pytest.raises(UsageError, match=said):
        matching_quanta(PLAN, name)
