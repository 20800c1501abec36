"""What is to be ordered, as BPS's section `ordering` says it; numbers of quanta are another module's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

__all__ = ["OrderGroup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderGroup:
    """One entry of BPS's section ``ordering``."""

    name: str
    labels: tuple[str, ...]
    """Of the tasks whose quanta it orders."""
    dimensions: tuple[str, ...]
    """By whose values."""
    equal_dimensions: tuple[tuple[str, str], ...] = ()
    """Pairs of which one stands for the other where a task has only that."""
    find_dependency_method: str | None = None
    """``source`` or ``sink``: whose values quanta have that follow others, or are followed by them."""

    def to_json(self) -> dict[str, Any]:
        """Return the entry by the names of its fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave."""
        equal = tuple((one, other) for one, other in values.get("equal_dimensions", ()))
        labels, dimensions = tuple(values["labels"]), tuple(values["dimensions"])
        return cls(**{**values, "labels": labels, "dimensions": dimensions, "equal_dimensions": equal})
