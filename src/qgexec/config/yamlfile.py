"""Owns how YAML files of settings are read: includes, merging, variables, and where each value stands.

It knows nothing of what the keys mean. Only plain values are read: no tag in a file makes an object.

The rules are those of BPS: ``includeConfigs`` may stand in any section, what it names is laid under that
section, the last of several files on top; ``{name}`` is the value of another key; ``${NAME}`` comes
from the environment. In a section ``environment`` ``${NAME}`` in a value of NAME is what is laid under it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from qgexec.errors import UsageError
from qgexec.localpath import local_path
from qgexec.regularfile import YAML_BYTES, read_regular

__all__ = ["Node", "Place", "Scalar", "chained", "merged", "read_yaml", "resolve", "variables_in"]

Scalar = str | int | float | bool | None
"""A value that is neither a section nor a list."""

_INCLUDE = "includeConfigs"

_CHAINED = "environment"
"""Name of the sections whose values may refer to what is laid under them."""

_LONGEST = 1 << 16
"""Characters of a value that grows by what is laid under it."""

_PREFIX = "tag:yaml.org,2002:"

_CONVERTED = frozenset(_PREFIX + name for name in ("int", "float", "bool", "null"))
"""Tags of scalars that become Python values; others stay the text that they are."""

_TEXT = frozenset(_PREFIX + name for name in ("str", "timestamp", "value", "merge"))

_MOST_CHARACTERS = 65536
"""Longest value with its variables replaced; an environment variable may have twice as many."""

_MOST_VARIABLES = 1000
"""Most variables that are replaced for one value, those in the values of others included."""

_DEEPEST = 50
"""Most keys of which each names the next."""

_REFERENCE = re.compile(r"\$\{(?P<env>\w+)\}|\$(?P<bare>\w+)|\{(?P<name>\w+)\}")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file."""

    file: str
    """Path as it was given or included."""

    line: int
    """From 1."""

    key: str = ""
    """What stands before the colon there; nothing for an item of a list, or a whole file."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    @property
    def with_key(self) -> str:
        """The line, and the key if there is one."""
        return f"{self}: {self.key}" if self.key else str(self)


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a file, and where it stands."""

    content: Mapping[str, Node] | Sequence[Node] | Scalar
    """A section by its keys, a list, or a scalar."""

    place: Place
    """For values under a key: the line of the key."""

    repeated: tuple[tuple[str, Place], ...] = ()
    """Keys that stand in this section more than once; the last counts, as everywhere in YAML."""

    @property
    def section(self) -> Mapping[str, Node]:
        """What stands in it, by key; nothing if the key has no value.

        Raises
        ------
        qgexec.errors.UsageError
            It is no section.
        """
        if self.content is None:
            return {}
        if not isinstance(self.content, Mapping):
            raise UsageError(
                f"{self.place.with_key}: a section with keys should stand here",
                hint="Write one `key: value` a line, indented below.",
            )
        return self.content


def read_yaml(path: str | Path) -> Node:
    """Read a file and all that it includes.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    node
        Its root, a section.

    Raises
    ------
    qgexec.errors.UsageError
        A file cannot be read, is no YAML, holds something else than plain values, or includes itself.
    """
    return _read(local_path(path, "a file of settings"), ())


def merged(below: Node, above: Node) -> Node:
    """Lay one node over another: sections key by key all the way down, everything else is replaced.

    An empty section takes nothing away.
    """
    return _merged(below, above, {})


def _merged(below: Node, above: Node, done: dict[tuple[int, int], Node]) -> Node:
    """Lay one node over another, each pair once: anchors may put the same sections in a million places."""
    if not isinstance(below.content, Mapping):
        return above
    if above.content is None:
        return below
    if not isinstance(above.content, Mapping):
        return above
    pair = id(below), id(above)
    if pair not in done:
        content = dict(below.content)
        for key, node in above.content.items():
            later = _chained_to(content[key], node) if key in content and key == _CHAINED else node
            content[key] = _merged(content[key], later, done) if key in content else later
        done[pair] = Node(content, above.place, below.repeated + above.repeated)
    return done[pair]


def _chained_to(below: Node, above: Node) -> Node:
    earlier, later = below.content, above.content
    if not isinstance(earlier, Mapping) or not isinstance(later, Mapping):
        return above
    content = {
        name: chained(name, earlier[name], node) if name in earlier else node for name, node in later.items()
    }
    return replace(above, content=content)


def chained(name: str, before: Node, node: Node) -> Node:
    """Return a variable's value with an earlier one in place of ``${name}``, if both are texts."""
    if not isinstance(before.content, str) or not isinstance(node.content, str):
        return node
    text = node.content.replace(f"${{{name}}}", before.content)
    if len(text) > _LONGEST:
        raise UsageError(
            f"{node.place}: {name} grows to {len(text)} characters, and none may have more than {_LONGEST}",
            hint=f"Write ${{{name}}} once in it, or not at all.",
        )
    return replace(node, content=text)


def resolve(node: Node, layers: Sequence[Mapping[str, Node]], *, keeps_unset: bool = False) -> Scalar:
    """Return a scalar with its variables replaced.

    Parameters
    ----------
    node
        A scalar.
    layers
        Sections in which the value of ``{name}`` is looked for, the first that has it counts.
    keeps_unset
        A variable of the environment that is not set stays as ``${NAME}``.

    Raises
    ------
    qgexec.errors.UsageError
        It is no scalar, or a variable is not defined, is no scalar, or is defined by itself.
    """
    return _Resolution(layers, keeps_unset=keeps_unset).value(node, ())


def variables_in(node: Node) -> frozenset[str]:
    """Return the names of all variables that values in this node refer to."""
    return frozenset(
        match["name"] for text in _texts(node) for match in _REFERENCE.finditer(text) if match["name"]
    )


def _texts(root: Node) -> Iterator[str]:
    seen: set[int] = set()  # an anchor may be used in many places
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        match node.content:
            case str(text):
                yield text
            case Mapping() as section:
                waiting += section.values()
            case Sequence() as nodes:
                waiting += nodes


class _Resolution:
    """Replaces the variables of one value, and those in the values that it names, within bounds."""

    def __init__(self, layers: Sequence[Mapping[str, Node]], *, keeps_unset: bool) -> None:
        self._layers = layers
        self._keeps_unset = keeps_unset
        self._n_variables = 0

    def value(self, node: Node, asked: tuple[str, ...]) -> Scalar:
        """Return a scalar with its variables replaced, for these keys, of which each names the next."""
        value = node.content
        if not isinstance(value, str | int | float | None):
            raise UsageError(
                f"{node.place.with_key}: one value should stand here, not several",
                hint="Write `key: value` in one line.",
            )
        if not isinstance(value, str):
            return value
        parts, end, length = [], 0, 0
        for match in _REFERENCE.finditer(value):
            parts += [value[end : match.start()], self._replacement(match, node.place, asked)]
            end = match.end()
            length += len(parts[-2]) + len(parts[-1])
            self._check(node.place, length)
        parts.append(value[end:])
        self._check(node.place, length + len(parts[-1]))
        return "".join(parts)

    def _check(self, place: Place, length: int) -> None:
        if length > _MOST_CHARACTERS:
            raise UsageError(
                f"{place.with_key}: with its variables replaced the value is longer than "
                f"{_MOST_CHARACTERS // 1024} KiB",
                hint="Look at the keys that it names, and at those that they name.",
            )

    def _replacement(self, match: re.Match[str], place: Place, asked: tuple[str, ...]) -> str:
        self._n_variables += 1
        if self._n_variables > _MOST_VARIABLES or len(asked) > _DEEPEST:
            raise UsageError(
                f"{place.with_key}: the keys that are named here, and those that they name, are too many",
                hint=f"At most {_MOST_VARIABLES} variables make one value, {_DEEPEST} of them by each other.",
            )
        if match["name"] is None:
            name = match["env"] or match["bare"]
            return f"${{{name}}}" if self._keeps_unset and name not in os.environ else _environ(name, place)
        return _text(self._look_up(match["name"], place, asked))

    def _look_up(self, name: str, place: Place, asked: tuple[str, ...]) -> Scalar:
        if name in asked:
            raise UsageError(
                f"{place}: {{{name}}} is defined by itself", hint="Give one of the keys a value."
            )
        for layer in self._layers:
            if name in layer:
                return self.value(layer[name], (*asked, name))
        raise UsageError(
            f"{place}: there is no key {name} for {{{name}}}",
            hint=f"Define it in the file (`{name}: ...`); a variable of the environment is written "
            f"${{{name}}}.",
        )


def _text(value: Scalar) -> str:
    return "" if value is None else str(value)


def _environ(name: str, place: Place) -> str:
    try:
        return os.environ[name]
    except KeyError:
        raise UsageError(
            f"{place}: the environment variable {name} is not set",
            hint=f"Set it (export {name}=...), or write what it stands for.",
        ) from None


def _read(path: Path, including: tuple[Path, ...]) -> Node:
    chain = (*including, Path(os.path.realpath(path)))  # unlike resolve(), it takes a loop of links
    if chain[-1] in including:
        raise UsageError(f"{path} includes itself", hint=f"Take it out of {_INCLUDE}.")
    try:
        loader = yaml.SafeLoader(read_regular(path, YAML_BYTES).decode("utf-8"))
        loader.name = str(path)
        try:
            root = loader.get_single_node()
            place = Place(str(path), 1)
            node = Node({}, place) if root is None else _Conversion(loader, chain).node(root, place)
        finally:
            loader.dispose()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            hint="Name a file that exists and that you may read; what a program prints is to be saved first.",
        ) from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply to be read") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise _no_yaml(path, error) from error
    if not isinstance(node.content, Mapping):
        raise UsageError(
            f"{node.place}: this is no file of settings", hint="It should have one `key: value` a line."
        )
    return node


def _no_yaml(path: Path, error: UnicodeDecodeError | yaml.YAMLError) -> UsageError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    place = Place(str(path), mark.line + 1) if mark is not None else path
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return UsageError(
        f"{place}: this is not YAML: {reason}",
        hint="Look at this line and the one before: indentation (no tabs), colons, quotes.",
    )


class _Conversion:
    """Makes our nodes of the parser's, each once however often an anchor is used."""

    def __init__(self, loader: yaml.SafeLoader, chain: tuple[Path, ...]) -> None:
        self._loader = loader
        self._chain = chain
        self._done: dict[int, Node] = {}
        self._begun: set[int] = set()
        self._flat: set[int] = set()

    def node(self, node: yaml.Node, place: Place) -> Node:
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._begun:
            raise UsageError(f"{place}: a section contains itself", hint="Take the alias (*name) out.")
        self._begun.add(id(node))
        match node:
            case yaml.MappingNode(tag=tag) if tag == _PREFIX + "map":
                converted = self._section(node, place)
            case yaml.SequenceNode(tag=tag) if tag == _PREFIX + "seq":
                converted = Node([self.node(item, self._place(item)) for item in node.value], place)
            case yaml.ScalarNode(tag=tag) if tag in _CONVERTED:
                converted = Node(self._scalar(node), place)
            case yaml.ScalarNode(tag=tag) if tag in _TEXT:
                converted = Node(node.value, place)
            case _:
                raise UsageError(
                    f"{self._place(node)}: {node.tag} is not read from settings",
                    hint=f"Write a plain value; to include a file use {_INCLUDE}.",
                )
        self._done[id(node)] = converted
        return converted

    def _place(self, node: yaml.Node) -> Place:
        return Place(str(node.start_mark.name), node.start_mark.line + 1)

    def _scalar(self, node: yaml.ScalarNode) -> Scalar:
        try:
            value = self._loader.construct_object(node)
        except ValueError:
            return str(node.value)
        assert isinstance(value, int | float | bool | None)
        return value

    def _section(self, node: yaml.MappingNode, place: Place) -> Node:
        names = [self._name(key) for key, _ in node.value]
        first = {name: number for number, name in reversed([*enumerate(names)])}
        repeated = tuple(
            (name, self._place(key))
            for number, (name, (key, _)) in enumerate(zip(names, node.value, strict=True))
            if first[name] != number
        )
        self._merge_keys(node)
        content = {
            (name := self._name(key)): self.node(value, replace(self._place(key), key=name))
            for key, value in node.value
        }
        own = Node(content, place, repeated)
        includes = content.pop(_INCLUDE, None)
        if includes is None:
            return own
        below = Node({}, place)
        for included in _listed(includes):
            below = merged(below, self._included(included))
        return merged(below, own)

    def _merge_keys(self, node: yaml.MappingNode) -> None:
        """Put what ``<<`` names into a section, each key once: it may name the same a thousand times."""
        if id(node) in self._flat:
            return
        self._flat.add(id(node))
        for key, value in node.value:
            if key.tag == _PREFIX + "merge":
                for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(each, yaml.MappingNode):
                        self._merge_keys(each)
        self._loader.flatten_mapping(node)
        names = (key.value if isinstance(key, yaml.ScalarNode) else id(key) for key, _ in node.value)
        node.value = list(dict(zip(names, node.value, strict=True)).values())

    def _name(self, key: yaml.Node) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise UsageError(f"{self._place(key)}: a key should be a name", hint="Write `key: value`.")
        return str(key.value)

    def _included(self, node: Node) -> Node:
        """Read a file that is included.

        It is looked for in the current folder, then beside the file that includes it, as BPS does.
        """
        name = _text(resolve(node, ()))
        candidates = (Path(name), self._chain[-1].parent / name)
        path = next((path for path in candidates if path.is_file()), None)
        if path is None:
            raise UsageError(
                f"{node.place}: there is no file {name or '(empty)'} to include",
                hint="Looked for in the current folder and beside the file that includes it.",
            )
        return _read(path, self._chain)


def _listed(node: Node) -> Sequence[Node]:
    content = node.content
    return content if isinstance(content, Sequence) and not isinstance(content, str) else [node]
