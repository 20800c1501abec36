"""Owns how single values of settings are read: numbers, sizes, times, texts; knows no key."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qgexec.config.yamlfile import Node, Scalar, resolve
from qgexec.errors import UsageError

__all__ = [
    "Layers",
    "Reader",
    "Value",
    "first",
    "listed",
    "mebibytes",
    "one",
    "seconds",
    "section_of",
    "text",
]

_MIB = 2**20
"""Bytes in what BPS calls a MB: its 2048 are documented as 2 GiB, and HTCondor counts so."""

Layers = Sequence[Mapping[str, Node]]
"""Sections in which a key is looked for, the first that has it counts."""


@dataclass(frozen=True, slots=True)
class Value:
    """A value that is read: where it stands, by which name, and its text with all variables replaced."""

    name: str
    node: Node
    scalar: Scalar

    def refused(self, expected: str, example: str) -> UsageError:
        """Return the error to raise."""
        return UsageError(
            f"{self.node.place}: {self.name} is {self.scalar!r}, which is not {expected}",
            hint=f"Write for example `{self.name.rpartition(': ')[2]}: {example}`.",
        )

    def number(self) -> float:
        """Return it as a number; not a number where it is none."""
        if isinstance(self.scalar, bool) or self.scalar is None:
            return math.nan
        try:
            return float(self.scalar)
        except (ValueError, OverflowError):
            return math.nan

    def whole(self, least: int, expected: str, example: str) -> int:
        """Return it as a whole number."""
        number = self.number()
        if not (least <= number < math.inf and number == int(number)):
            raise self.refused(expected, example)
        return int(number)


def mebibytes(value: Value) -> int:
    """Read an amount of memory, bytes."""
    return _MIB * value.whole(1, "a whole number of MB (1 MB is 1024 * 1024 bytes here, as in BPS)", "4096")


def seconds(value: Value) -> float:
    """Read a time, seconds."""
    number = value.number()
    if isinstance(value.scalar, str) and re.fullmatch(r"\d+(:[0-5]?\d){1,2}", value.scalar):
        number = 0.0
        for part in value.scalar.split(":"):
            number = 60 * number + int(part)
    if not 0 < number < math.inf:
        raise value.refused("a time in seconds (or hours:minutes:seconds)", "3600")
    return number


Reader = Callable[[str, Node, Layers], Any]
"""Reads what stands under a key, for which it is given the key's name and where to look for variables."""


def one(read: Callable[[Value], Any]) -> Reader:
    """Return the reader of a key with one value."""

    def reader(name: str, node: Node, layers: Layers) -> Any:
        return None if node.content is None else read(Value(name, node, resolve(node, layers)))

    return reader


def text(value: Value) -> str | None:
    """Read a text; an empty one is none."""
    return str(value.scalar) or None


def listed(node: Node) -> Sequence[Node]:
    """Return the items of a list; of one value, that."""
    content = node.content
    if isinstance(content, Sequence) and not isinstance(content, str):
        return content
    return [node]


def section_of(of: Mapping[str, Node], key: str) -> Mapping[str, Node]:
    """Return the section below a key; nothing where there is none."""
    return of[key].section if key in of else {}


def first(sections: Layers, key: str) -> Node | None:
    """Return what stands under a key in the first section that has it."""
    return next((section[key] for section in sections if key in section), None)
