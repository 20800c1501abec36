"""How a person names quanta: by index, UUID, or task label and data ID as reports print them."""

from __future__ import annotations

import difflib
import heapq
import re
import uuid
from collections.abc import Iterator, Mapping

from qgexec.errors import UsageError
from qgexec.scheduling.plan import Plan

__all__ = ["find_quantum", "matching_quanta"]

_SHOWN = 5

_LABELLED = re.compile(r"\s*(?P<label>[^\s{}()]+?)?\s*(?:[{(](?P<pairs>.*?)[})]?)?\s*", re.DOTALL)
_PAIR = re.compile(
    r"\s*['\"]?(?P<key>\w+)['\"]?\s*[:=]\s*(?:'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<bare>[^,'\"]*?))\s*(?:,|$)"
)


def find_quantum(plan: Plan, name: str) -> int:
    """Return the index of the quantum that is meant.

    Parameters
    ----------
    plan
        The quanta.
    name
        Its index, its UUID, or ``label{key: value, ...}``; quotes, spaces and braces do not matter,
        and keys that are not needed to tell it from the others may be left out.

    Raises
    ------
    qgexec.errors.UsageError
        There is no such quantum, or there are several; names the nearest. About 2 us for each quantum
        of the task.
    """
    if (index := _by_number(plan, name)) is not None:
        return index
    label, wanted = _label_and_pairs(plan, name)
    if label is None:
        raise _unreadable(name)
    return _only_one(plan, label, wanted)


def matching_quanta(plan: Plan, name: str) -> list[int]:
    """Return the indices of all quanta that are meant, ascending.

    Parameters
    ----------
    plan
        The quanta.
    name
        As for `find_quantum`, where keys that are left out may have any value; or only a task label, for all
        its quanta; or only ``{key: value, ...}``, for those of any task whose data IDs have these values.

    Raises
    ------
    qgexec.errors.UsageError
        There are none. About 2 us for each quantum that may be meant.
    """
    if (index := _by_number(plan, name)) is not None:
        return [index]
    label, wanted = _label_and_pairs(plan, name)
    if label is not None:
        found = [index for index in _of_task(plan, label) if _fits(plan, index, wanted)]
        return found or [_only_one(plan, label, wanted)]  # which says what there is
    if not wanted:
        raise _unreadable(name)
    found = [index for index in range(len(plan)) if _fits(plan, index, wanted)]
    if not found:
        raise UsageError(
            f"No quantum has {name.strip()} in its data ID.",
            hint="See how reports name them: 'label{key: value, ...}'.",
        )
    return found


def _by_number(plan: Plan, name: str) -> int | None:
    """Return the quantum that an index or a UUID names; `None` where it is neither."""
    text = name.strip()
    if re.fullmatch(r"\d+", text) and len(text) < 32:
        return _checked_index(plan, int(text))
    if (quantum_id := _as_uuid(text)) is None:
        return None
    try:
        return plan.index_of(quantum_id)
    except LookupError:
        raise UsageError(
            f"No quantum of this run has the ID {quantum_id}.",
            hint="Is it from another graph? Name the quantum by its index, or as label{key: value, ...}.",
        ) from None


def _label_and_pairs(plan: Plan, name: str) -> tuple[str | None, dict[str, str]]:
    match = _LABELLED.fullmatch(name.strip())
    if match is None:
        raise _unreadable(name)
    label = _checked_label(plan, match["label"]) if match["label"] else None
    return label, _pairs(name, match["pairs"] or "")


def _fits(plan: Plan, index: int, wanted: Mapping[str, str]) -> bool:
    data_id = plan.data_id(index) if wanted else {}
    return all(key in data_id and str(data_id[key]) == value for key, value in wanted.items())


def _checked_index(plan: Plan, index: int) -> int:
    if index >= len(plan):
        raise UsageError(f"There is no quantum {index}.", hint=f"Indices go from 0 to {len(plan) - 1}.")
    return index


def _as_uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _unreadable(name: str) -> UsageError:
    return UsageError(
        f"{name!r} names no quantum.",
        hint="Give its index, its UUID, or its name as the report prints it: 'label{key: value, ...}'.",
    )


def _checked_label(plan: Plan, label: str) -> str:
    if label in plan.labels:
        return label
    near = difflib.get_close_matches(label, plan.labels, n=_SHOWN, cutoff=0.5)
    raise UsageError(
        f"This run has no task {label!r}.",
        hint=f"Is it {' or '.join(near)}?" if near else f"Its tasks are {', '.join(plan.labels)}.",
    )


def _pairs(name: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    place = 0
    while text[place:].strip(" ,"):
        match = _PAIR.match(text, place)
        if match is None:
            raise _unreadable(name)
        found[match["key"]] = next(
            value for value in match.group("single", "double", "bare") if value is not None
        )
        place = match.end()
    return found


def _only_one(plan: Plan, label: str, wanted: Mapping[str, str]) -> int:
    indices = list(_of_task(plan, label))
    if not indices:
        raise UsageError(f"Task {label} has no quanta in this run.")
    known = plan.data_id(indices[0])
    if unknown := [key for key in wanted if key not in known]:
        raise UsageError(
            f"The data IDs of task {label} have no {', '.join(unknown)}.",
            hint=f"They have {', '.join(known)}: {plan.describe(indices[0])}",
        )
    fits = {index: _n_equal(plan, index, wanted) for index in indices}
    found = [index for index, n_equal in fits.items() if n_equal == len(wanted)]
    if len(found) == 1:
        return found[0]
    shown = [f"  {index}: {plan.describe(index)}" for index in found[:_SHOWN]]
    if found:
        if len(found) > _SHOWN:
            shown.append(f"  and {len(found) - _SHOWN} more")
        raise UsageError(
            f"{len(found)} quanta of task {label} are meant by that.",
            hint="\n".join(["Name one of them, by its index:", *shown]),
        )
    nearest = heapq.nlargest(_SHOWN, fits, key=lambda index: (fits[index], -index))
    shown = [f"  {index}: {plan.describe(index)}" for index in nearest]
    raise UsageError(
        f"Task {label} has no quantum with that data ID.", hint="\n".join(["The nearest are:", *shown])
    )


def _of_task(plan: Plan, label: str) -> Iterator[int]:
    wanted = plan.labels.index(label)
    return (index for index, code in enumerate(plan.label_codes) if code == wanted)


def _n_equal(plan: Plan, index: int, wanted: Mapping[str, str]) -> int:
    data_id = plan.data_id(index)
    return sum(str(data_id[key]) == value for key, value in wanted.items())
