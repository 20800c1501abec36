"""Which quanta go into one batch job: the rules as they were asked for, not yet applied to any plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

__all__ = ["ClusterRules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRules:
    """How quanta are clustered."""

    def to_json(self) -> dict[str, Any]:
        """Return the rules by their names, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave."""
        return cls(**values)
