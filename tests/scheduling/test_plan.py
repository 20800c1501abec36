"""`qgexec.scheduling.plan`: enumeration, edges both ways, look-ups, storage, and what is refused."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from typing import Any

import numpy as np
import pytest

from qgexec.errors import GraphError
from qgexec.quantum import QuantumNode
from qgexec.scheduling.dataids import DataIds
from qgexec.scheduling.plan import Plan, find_quanta
from qgexec.testing import make_plan, plan_of


def _names(plan: Plan) -> list[str]:
    return [plan.label(index) for index in range(len(plan))]


def _same(one: Plan, other: Plan) -> bool:
    first, second = one.to_arrays(), other.to_arrays()
    return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)


def _build(**changes: Any) -> Plan:
    columns: dict[str, Any] = {
        "labels": {"isr": ("instrument", "detector"), "final": ("instrument",)},
        "label_codes": [0, 0, 1],
        "quantum_ids": b"".join(uuid.UUID(int=number).bytes for number in (7, 8, 9)),
        "data_ids": DataIds.pack([["Cam", 1], ["Cam", 2], ["Cam"]]),
        "predecessors": [0, 1],
        "successors": [2, 2],
    }
    return Plan.from_edges(**(columns | changes))


def test_order_given_is_kept_when_topological() -> None:
    """An order that is topological already is not touched, whatever a heap would do."""
    plan = make_plan("a b -> c; c -> d; e")
    assert _names(plan) == ["a", "b", "c", "d", "e"]


def test_other_orders_are_sorted_by_first_given() -> None:
    """Otherwise the quantum given first among those that can come next comes next."""
    plan = make_plan("d; c -> d; b; a -> c")
    assert _names(plan) == ["b", "a", "c", "d"]
    assert [list(plan.prerequisites(index)) for index in range(4)] == [[], [], [1], [2]]


def test_edges_both_ways() -> None:
    """Prerequisites and successors are ascending and each other's mirror image."""
    plan = make_plan("a b -> c d; c d -> e; a -> e")
    assert [list(plan.prerequisites(index)) for index in range(5)] == [[], [], [0, 1], [0, 1], [0, 2, 3]]
    assert [list(plan.successors(index)) for index in range(5)] == [[2, 3, 4], [2, 3], [4], [4], []]
    assert list(plan.prerequisite_counts()) == [0, 0, 2, 2, 3]


def test_edges_given_twice_count_once() -> None:
    """An edge that is given more than once is one edge."""
    plan = plan_of(["a", "b"], [(0, 1), (0, 1), (0, 1)])
    assert list(plan.prerequisites(1)) == [0]
    assert list(plan.successors(0)) == [1]


def test_node_says_all_about_a_quantum() -> None:
    """A node holds index, ID, label, data ID by dimension, and prerequisites."""
    plan = _build()
    assert plan[2] == QuantumNode(2, uuid.UUID(int=9), "final", {"instrument": "Cam"}, (0, 1))
    assert plan[1].data_id == {"instrument": "Cam", "detector": 2}
    assert list(plan) == [plan[0], plan[1], plan[2]]
    assert plan.describe(1) == str(plan[1]) == "isr{instrument: 'Cam', detector: 2}"


@pytest.mark.parametrize("index", [-1, 3])
def test_node_outside_the_plan(index: int) -> None:
    """There are no negative indices, and none behind the last."""
    with pytest.raises(IndexError, match="no quantum"):
        _build()[index]


def test_data_ids_hold_any_text_and_number() -> None:
    """Data-ID values are integers or any text, and come back as they were."""
    values: list[list[int | str]] = [["R22_S11", -3], ['a "b" \\ [c]', 2**62], ["böse ☃", 0], []]
    packed = DataIds.pack(values)
    assert [packed[position] for position in range(4)] == values
    assert len(packed) == 4


def test_counts_by_label_also_of_empty_tasks() -> None:
    """A task without quanta is counted too, in the order of the labels."""
    plan = _build(labels={"isr": ("instrument", "detector"), "final": ("instrument",), "never": ()})
    assert plan.count_by_label() == {"isr": 2, "final": 1, "never": 0}
    assert plan.labels == ("isr", "final", "never")


def test_index_of_every_id() -> None:
    """Every quantum is found by its ID, also where IDs begin or end alike or with zeros."""
    numbers = [0, 1, 256, 1 << 120, (1 << 120) + 1, (1 << 128) - 1, (1 << 127) + (5 << 8)]
    ids = [uuid.UUID(int=number) for number in numbers]
    plan = Plan.from_edges(
        labels={"a": ()},
        label_codes=[0] * len(ids),
        quantum_ids=b"".join(quantum_id.bytes for quantum_id in ids),
        data_ids=DataIds.pack([[]] * len(ids)),
        predecessors=[],
        successors=[],
    )
    assert [plan.index_of(quantum_id) for quantum_id in ids] == list(range(len(ids)))
    assert [plan.quantum_id(index) for index in range(len(ids))] == ids
    for stranger in (2, (1 << 128) - 2):
        with pytest.raises(LookupError, match="no quantum has the ID"):
            plan.index_of(uuid.UUID(int=stranger))


def test_find_many_quanta_at_once() -> None:
    """Positions come in the order of what is wanted; nothing wanted is nothing found."""
    ids = [uuid.UUID(int=number).bytes for number in (5, 1 << 100, 3)]
    assert find_quanta(b"".join(ids), ids[2] + ids[0] + ids[2]).tolist() == [2, 0, 2]
    assert find_quanta(b"".join(ids), b"").tolist() == []
    assert find_quanta(b"", b"").tolist() == []


@pytest.mark.parametrize("known", [b"", uuid.UUID(int=7).bytes])
def test_find_unknown_quantum(known: bytes) -> None:
    """An ID that is not there is named."""
    with pytest.raises(GraphError, match=str(uuid.UUID(int=9))):
        find_quanta(known, known + uuid.UUID(int=9).bytes)


def test_path_lengths() -> None:
    """The longest path counts quanta, itself included."""
    plan = make_plan("a -> b -> c; a -> c; d")
    assert list(plan.path_lengths()) == [3, 2, 1, 1]


def test_mark_descendants_once() -> None:
    """Descendants are marked once, however many ways lead to them."""
    plan = make_plan("a b -> c; c -> d e; d e -> f; g")
    marks = bytearray(len(plan))
    assert sorted(plan.mark_descendants(0, marks, 1)) == [2, 3, 4, 5]
    assert plan.mark_descendants(1, marks, 1) == []
    assert list(marks) == [0, 0, 1, 1, 1, 1, 0]


def test_source_is_handed_to_nodes() -> None:
    """Nodes read quantum and task node from the plan's source; without one they say so."""

    class Source:
        def quantum(self, quantum_id: uuid.UUID) -> str:
            return f"quantum {quantum_id}"

        def task_node(self, task_label: str) -> str:
            return f"task {task_label}"

    plan = make_plan("a")
    with_source = plan.with_source(Source())
    assert with_source[0].task_node == "task a"
    assert with_source[0].quantum() == f"quantum {plan.quantum_id(0)}"
    assert _same(with_source, plan)
    with pytest.raises(LookupError, match="no graph file"):
        plan[0].quantum()


def test_more_edges_enumerate_anew() -> None:
    """Extra edges may change the order; every quantum keeps its ID and data ID."""
    plan = make_plan("a:1 a:2 a:3 -> b")
    ids = [plan.quantum_id(index) for index in range(4)]
    turned = plan.with_edges([(ids[2], ids[1]), (ids[1], ids[0]), (ids[1], ids[0])])
    assert [turned.data_id(index)["detector"] for index in range(4)] == [3, 2, 1, 0]
    assert [turned.index_of(quantum_id) for quantum_id in ids] == [2, 1, 0, 3]
    assert list(turned.prerequisites(3)) == [0, 1, 2]
    assert _same(plan.with_edges([]), plan)


def test_more_edges_refused() -> None:
    """Extra edges to unknown quanta, and such as close a circle, are refused; the plan stays as it was."""
    plan = make_plan("a -> b")
    before = plan.to_arrays()
    with pytest.raises(GraphError, match="which the graph does not have"):
        plan.with_edges([(plan.quantum_id(0), uuid.UUID(int=1))])
    with pytest.raises(GraphError, match="in a circle"):
        plan.with_edges([(plan.quantum_id(1), plan.quantum_id(0))])
    assert all(np.array_equal(before[key], value) for key, value in plan.to_arrays().items())


def test_cycle_is_named() -> None:
    """The message shows one cycle along its edges, with labels and data IDs, and nothing beside it."""
    with pytest.raises(GraphError) as raised:
        make_plan("x -> a:1 -> b:2 -> c:3 -> a:1; c:3 -> y")
    text = raised.value.message
    circle = text.partition(": ")[2].split(" -> ")
    assert circle[0] == circle[-1]
    assert sorted(circle[:-1]) == ["a{detector: 1}", "b{detector: 2}", "c{detector: 3}"]
    assert [name[0] for name in circle] in (list("abca"), list("bcab"), list("cabc"))
    assert raised.value.hint


def test_long_cycle_is_cut() -> None:
    """A cycle of a hundred quanta is not printed in full."""
    edges = [(number, (number + 1) % 100) for number in range(100)]
    with pytest.raises(GraphError, match="-> 94 more ->"):
        plan_of([f"a:{number}" for number in range(100)], edges)


def test_quantum_that_waits_for_itself() -> None:
    """The smallest cycle is one too."""
    with pytest.raises(GraphError, match=r"circle: a\{detector: 0\} -> a\{detector: 0\}"):
        plan_of(["a"], [(0, 0)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantum_ids": uuid.UUID(int=7).bytes * 3}, f"the same ID, {uuid.UUID(int=7)}"),
        ({"quantum_ids": bytes(48)}, f"the same ID, {uuid.UUID(int=0)}"),
        ({"quantum_ids": bytes(40)}, "do not match"),
        ({"data_ids": DataIds.pack([])}, "do not match"),
        ({"successors": [2, 3]}, "names quantum 3, but the graph has only 3"),
        ({"predecessors": [0, -1]}, "names quantum -1"),
        ({"predecessors": [0]}, "do not make edges"),
        ({"label_codes": [0, 0, 2]}, "do not fit 2 task labels"),
    ],
)
def test_input_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    """Columns and edges that contradict each other are refused with what is wrong."""
    with pytest.raises(GraphError, match=message):
        _build(**changes)


def test_empty_plan() -> None:
    """A graph without quanta is a plan without quanta."""
    plan = plan_of([])
    assert len(plan) == 0
    assert list(plan) == []
    assert list(plan.path_lengths()) == []
    assert len(Plan.from_arrays(plan.to_arrays())) == 0


def test_stored_plan_comes_back() -> None:
    """A plan from stored arrays is the same plan; none of them needs pickle."""
    plan = _build()
    arrays = plan.to_arrays()
    assert all(array.dtype.kind in "ui" for array in arrays.values())
    again = Plan.from_arrays({key: array.copy() for key, array in arrays.items()})
    assert list(again) == list(plan)
    assert _same(again, plan)
    assert [list(again.successors(index)) for index in range(3)] == [[2], [2], []]


def _header(**changes: Any) -> dict[str, Any]:
    header = json.loads(_build().to_arrays()["header"].tobytes()) | changes
    return {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (_header(version=2), "of version 2; this qgexec reads version 1"),
        (_header(format="other"), "not a stored plan"),
        ({"header": np.frombuffer(b"[1", dtype=np.uint8)}, "not a stored plan"),
        ({"successor_targets": np.array([1, 3], dtype=np.int32)}, "not in the order of their edges"),
        ({"successor_targets": np.array([0, 2], dtype=np.int32)}, "not in the order of their edges"),
        ({"successor_targets": np.array([2], dtype=np.int32)}, "do not fit its quanta"),
        ({"successor_offsets": np.array([0, 2], dtype=np.int32)}, "do not fit its quanta"),
        ({"label_codes": np.array([0, 0], dtype=np.uint16)}, "do not match"),
    ],
)
def test_stored_arrays_that_are_damaged(changes: dict[str, Any], message: str) -> None:
    """Stored arrays that are no plan, of another version, or contradict each other are refused."""
    with pytest.raises(GraphError, match=message):
        Plan.from_arrays(_build().to_arrays() | changes)


@pytest.mark.parametrize("key", sorted(_build().to_arrays()))
def test_stored_arrays_that_are_missing(key: str) -> None:
    """Every array is needed."""
    arrays = _build().to_arrays()
    del arrays[key]
    with pytest.raises(GraphError, match="stored plan"):
        Plan.from_arrays(arrays)


def test_memory_per_quantum() -> None:
    """A plan of 100,000 quanta and 300,000 edges keeps under 150 bytes a quantum."""
    n_quanta = 100_000
    generator = np.random.default_rng(1)
    ends = np.sort(generator.integers(0, n_quanta, (2, 310_000)), axis=0)
    ends = ends[:, ends[0] < ends[1]]
    ids = generator.bytes(16 * n_quanta)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        plan = Plan.from_edges(
            labels={"a": ("instrument", "exposure", "detector")},
            label_codes=np.zeros(n_quanta, dtype=np.uint16),
            quantum_ids=ids[:],
            data_ids=DataIds.pack(("LSSTCam", 2025010100000 + i // 100, i % 100) for i in range(n_quanta)),
            predecessors=ends[0],
            successors=ends[1],
        )
        plan.index_of(plan.quantum_id(0))
        kept = tracemalloc.get_traced_memory()[0] - before + len(ids)
    finally:
        tracemalloc.stop()
    assert kept / n_quanta < 150


def test_keys_are_the_same_in_all_graphs() -> None:
    """Quanta have other IDs and indices in each; label and data ID tell them apart."""
    one, other = make_plan("a:1 a:2 -> b"), make_plan("b; a:2 a:1")
    assert set(one.quantum_keys()) == set(other.quantum_keys())
    assert len(set(one.quantum_keys())) == 3
