"""`qgexec.scheduling.outlook`: how long a plan takes in thought."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec.quantum import Resources
from qgexec.scheduling.outlook import outlook
from qgexec.testing import make_plan, plan_of

GIB = 1 << 30


def _asking(**requests: Resources) -> Callable[[str], Resources]:
    return lambda label: requests.get(label, Resources())


def test_a_chain_takes_its_length() -> None:
    """However many cores there are."""
    found = outlook(make_plan("a -> b; b -> c"), {"a": 1.0, "b": 2.0, "c": 4.0}, _asking(), cores=8)
    assert (found.total_s, found.critical_path_s, found.wall_s) == (7.0, 7.0, 7.0)
    assert found.critical_path == ("a", "b", "c")


def test_side_by_side() -> None:
    """As many at a time as there are cores; the long path begins first."""
    plan = plan_of(["a:1", "a:2", "a:3", "b"], [(2, 3)])
    durations = {"a": 1.0, "b": 5.0}
    assert [outlook(plan, durations, _asking(), cores=n).wall_s for n in (1, 2, 3)] == [8.0, 6.0, 6.0]


def test_cores_and_memory_that_quanta_ask_for() -> None:
    """Those that ask for more wait for it, or get all there is."""
    plan = plan_of(["a:1", "a:2", "b:1", "b:2"])
    durations = {"a": 1.0, "b": 1.0}
    wide = _asking(a=Resources(cores=2), b=Resources(cores=9))
    assert outlook(plan, durations, wide, cores=4).wall_s == 3.0
    large = _asking(a=Resources(memory_bytes=3 * GIB), b=Resources(memory_bytes=99 * GIB))
    assert outlook(plan, durations, large, cores=4, memory_bytes=4 * GIB).wall_s == 4.0
    assert outlook(plan, durations, large, cores=4).wall_s == 1.0


def test_no_quanta() -> None:
    """Nothing takes no time."""
    found = outlook(plan_of([]), {}, _asking(), cores=2)
    assert (found.total_s, found.critical_path_s, found.critical_path, found.wall_s) == (0.0, 0.0, (), 0.0)


@given(st.data())
def test_bounds(data: st.DataObject) -> None:
    """Neither shorter than the longest path or the work shared by all cores, nor longer than on one."""
    n = data.draw(st.integers(1, 15))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda pair: pair[0] < pair[1])
    edges = data.draw(st.lists(pairs, max_size=2 * n, unique=True)) if n > 1 else []
    durations = {f"t{i}": data.draw(st.floats(0.0, 10.0)) for i in range(n)}
    cores = data.draw(st.integers(1, 4))
    found = outlook(plan_of(list(durations), edges), durations, _asking(), cores=cores)
    least = max(found.critical_path_s, found.total_s / cores)
    assert least - 1e-9 <= found.wall_s <= found.total_s + 1e-9
    # Graham's bound for list scheduling, SIAM J. Appl. Math. 17 (1969) 416.
    assert found.wall_s <= found.total_s / cores + found.critical_path_s * (1 - 1 / cores) + 1e-9
    assert found.critical_path_s == pytest.approx(sum(durations[label] for label in found.critical_path))
