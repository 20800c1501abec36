"""Owns what BPS's section `ordering` means: order between quanta that do not need each other's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qgexec.clustering.rules import ClusterRules
from qgexec.config.values import Layers, Value, listed, section_of
from qgexec.config.yamlfile import Node, resolve
from qgexec.errors import UsageError
from qgexec.scheduling.ordergroup import OrderGroup

__all__ = ["ORDERING", "ORDER_KEYS", "ordering_of", "read_ordering"]

ORDERING = "ordering"

ORDER_KEYS = frozenset(
    {"labels", "dimensions", "equalDimensions", "findDependencyMethod"}
    | {"implementation", "ordering_type", "blocking"}
)
"""Keys of an entry of the section."""


def read_ordering(section: Mapping[str, Node], rules: ClusterRules, layers: Layers) -> tuple[OrderGroup, ...]:
    """Return the groups of a section `ordering`.

    Parameters
    ----------
    section
        Its entries by name.
    rules
        Whose named clusters stand for their tasks.
    layers
        Where variables are looked for.

    Raises
    ------
    qgexec.errors.UsageError
        An entry makes no sense, or asks for what is not done here: the message begins with file and line.
    """
    groups: list[OrderGroup] = []
    for name, node in section.items():
        group = _Entry(name, node, layers).read(rules)
        for other in groups:
            if both := sorted(set(group.labels) & set(other.labels)):
                raise UsageError(
                    f"{node.place}: ordering {name} and {other.name} both have {', '.join(both)}",
                    hint="Leave it out of one of them.",
                )
        groups.append(group)
    return tuple(groups)


class _Entry:
    """Reads one entry."""

    def __init__(self, name: str, node: Node, layers: Layers) -> None:
        self._name, self._node = name, node
        self._layers: Layers = [node.section, *layers]

    def read(self, rules: ClusterRules) -> OrderGroup:
        """Return what the entry says."""
        method = self._one_of("findDependencyMethod", "source", "sink", default="")
        self._one_of("ordering_type", "sort")
        self._check_blocking()
        labels = [
            label
            for name in self._words("labels")
            for label in (rules.clusters[name].pipetasks if name in rules.clusters else (name,))
        ]
        return OrderGroup(
            name=self._name,
            labels=tuple(labels),
            dimensions=tuple(self._words("dimensions")),
            equal_dimensions=tuple(self._pairs()),
            find_dependency_method=method or None,
        )

    def _check_blocking(self) -> None:
        """Refuse order in which what comes after a failure goes on: an edge of the graph ends it."""
        implementation = self._one_of("implementation", "group", "noop")
        blocking = self._one_of("blocking", "false", "true")
        if implementation == "group" and blocking != "true":
            raise UsageError(
                f"{self._node.place}: ordering {self._name} is not blocking (BPS's default): what is later "
                "would be executed also after an earlier failure, which is not done here",
                hint=f"Write `blocking: true` below {self._name}: what comes after a quantum that failed "
                "then waits until that has succeeded. Or leave the section out.",
            )

    def _one_of(self, key: str, *known: str, default: str | None = None) -> str:
        """Return a word out of those that are known, by default the first."""
        node = self._node.section.get(key)
        if node is None or node.content is None:
            return known[0] if default is None else default
        word = str(resolve(node, self._layers))
        if word.lower() not in known:
            expected = " or ".join(known)
            raise Value(f"ordering: {self._name}: {key}", node, word).refused(expected, known[0])
        return word.lower()

    def _items(self, key: str) -> Iterator[tuple[Node, str]]:
        node = self._node.section.get(key)
        for item in [] if node is None or node.content is None else listed(node):
            for word in str(resolve(item, self._layers)).split(","):
                if word.strip():
                    yield item, word.strip()

    def _words(self, key: str) -> list[str]:
        words = [word for _, word in self._items(key)]
        if not words:
            raise UsageError(
                f"{self._node.place}: ordering {self._name} has no {key}",
                hint="Write for example `labels: associate` and `dimensions: visit`.",
            )
        return words

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for node, word in self._items("equalDimensions"):
            one, colon, other = (name.strip() for name in word.partition(":"))
            if not (one and colon and other) or ":" in other:
                raise Value("equalDimensions", node, word).refused(
                    "two dimensions with a colon between", "visit:exposure"
                )
            yield one, other


def ordering_of(top: Mapping[str, Node], payload: Mapping[str, Node]) -> Mapping[str, Node]:
    """Return the section, which BPS looks for in `payload` first."""
    return section_of(payload if ORDERING in payload else top, ORDERING)
