"""Owns what the keys of a BPS configuration mean here: from files to a `qgexec.config.runconfig.RunConfig`.

Of one key in several sections that counts which BPS would take: ``payload``, then
``pipetask: <label>``, then ``site: <computeSite>``, then ``cloud: <computeCloud>``, then the top level.
BPS's own defaults are not read: only what is written in a file is a request.
"""

from __future__ import annotations

import math
import re
import shlex
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from qgexec.config.bpskeys import BATCH_KEYS
from qgexec.config.runconfig import RunConfig, TaskSettings
from qgexec.config.yamlfile import Node, Place, Scalar, merged, read_yaml, resolve, variables_in
from qgexec.errors import UsageError

__all__ = ["read_config"]

_MIB = 2**20
"""Bytes in what BPS calls a MB: its 2048 are documented as 2 GiB, and HTCondor counts so."""

_Layers = Sequence[Mapping[str, Node]]
"""Sections in which a key is looked for, the first that has it counts."""


def read_config(paths: Iterable[str | Path]) -> RunConfig:
    """Read files with resources and retries, as BPS has them.

    Parameters
    ----------
    paths
        The files; where two say the same thing the later one counts.

    Returns
    -------
    config
        With all keys that mean nothing in ``unknown``.

    Raises
    ------
    qgexec.errors.UsageError
        A file cannot be read, or a value makes no sense: the message begins with file and line.
    """
    roots = [read_yaml(path) for path in paths]
    if not roots:
        return RunConfig()
    root = roots[0]
    for later in roots[1:]:
        root = merged(root, later)
    return _interpret(root)


@dataclass(frozen=True, slots=True)
class _Value:
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


def _cores(value: _Value) -> int:
    return value.whole(1, "a number of cores", "4")


def _mebibytes(value: _Value) -> int:
    return _MIB * value.whole(1, "a whole number of MB (1 MB is 1024 * 1024 bytes here, as in BPS)", "4096")


def _times(value: _Value) -> int:
    return value.whole(0, "a number of retries", "2")


def _factor(value: _Value) -> float:
    number = value.number()
    if not 0 < number < math.inf:
        raise value.refused("a factor (1 for no growth)", "2")
    return number


def _yes_or_no(value: _Value) -> bool:
    known = {"true": True, "false": False}
    answer = known.get(str(value.scalar).lower())
    if answer is None:
        raise value.refused("true or false", "true")
    return answer


def _seconds(value: _Value) -> float:
    number = value.number()
    if isinstance(value.scalar, str) and re.fullmatch(r"\d+(:[0-5]?\d){1,2}", value.scalar):
        number = 0.0
        for part in value.scalar.split(":"):
            number = 60 * number + int(part)
    if not 0 < number < math.inf:
        raise value.refused("a time in seconds (or hours:minutes:seconds)", "3600")
    return number


_Reader = Callable[[str, Node, _Layers], Any]
"""Reads what stands under a key, for which it is given the key's name and where to look for variables."""


def _one(read: Callable[[_Value], Any]) -> _Reader:
    """Return the reader of a key with one value."""

    def reader(name: str, node: Node, layers: _Layers) -> Any:
        return None if node.content is None else read(_Value(name, node, resolve(node, layers)))

    return reader


def _table(read_key: Callable[[str], str | int | None], expected: str) -> _Reader:
    """Return the reader of a key with a table of retries."""

    def reader(name: str, node: Node, layers: _Layers) -> Any:
        if node.content is None:
            return None
        table = {}
        for text, number in node.section.items():
            key = read_key(text)
            if key is None:
                raise UsageError(f"{number.place}: {name}: {text} is not {expected}")
            table[key] = _times(_Value(f"{name}: {text}", number, resolve(number, layers)))
        return table

    return reader


def _exit_codes(name: str, node: Node, layers: _Layers) -> list[int] | None:
    """Read one exit code, or a list of them."""
    if node.content is None:
        return None
    several = isinstance(node.content, Sequence) and not isinstance(node.content, str)
    codes = cast("Sequence[Node]", node.content) if several else [node]
    values = [_Value(name, code, resolve(code, layers)) for code in codes]
    return [value.whole(0, "an exit code or a list of them", "[1, 2]") for value in values]


def _exception(text: str) -> str | None:
    return text if all(part.isidentifier() for part in text.split(".")) else None


def _exit_code(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) < 256 else None


def _signal(text: str) -> int | None:
    if text.isdecimal():
        return int(text) if 1 <= int(text) <= 64 else None
    return next((int(known) for known in signal.Signals if known.name == text), None)


_READERS: dict[str, tuple[str, _Reader]] = {
    "requestCpus": ("cores", _one(_cores)),
    "requestMemory": ("memory_bytes", _one(_mebibytes)),
    "requestMemoryMax": ("memory_max_bytes", _one(_mebibytes)),
    "memoryLimit": ("memory_limit_bytes", _one(_mebibytes)),
    "memoryMultiplier": ("memory_multiplier", _one(_factor)),
    "enforceMemory": ("enforce_memory", _one(_yes_or_no)),
    "requestWalltime": ("timeout_s", _one(_seconds)),
    "numberOfRetries": ("n_retries", _one(_times)),
    "retryUnlessExit": ("retry_unless_exit", _exit_codes),
}
"""Keys that mean something here: their names in `TaskSettings`, and what reads them."""

_RETRIES = "retries"

_RETRY_READERS: dict[str, tuple[str, _Reader]] = {
    "lost": ("lost", _one(_times)),
    "outOfMemory": ("out_of_memory", _one(_times)),
    "timeLimit": ("timed_out", _one(_times)),
    "exceptions": ("exceptions", _table(_exception, "the name of an exception, as OSError")),
    "exitCodes": ("exit_codes", _table(_exit_code, "an exit code from 0 to 255")),
    "signals": ("signals", _table(_signal, "the name of a signal, as SIGSEGV, or its number")),
}
"""Keys of the section `retries`, likewise."""

_TASK_OPTIONS = "extraRunQuantumOptions"

_OUR_KEYS = frozenset({*_READERS, _RETRIES, _TASK_OPTIONS})


def _interpret(root: Node) -> RunConfig:
    top, payload = root.section, _section(root.section, "payload")
    general = [_part(top, "site", "computeSite"), _part(top, "cloud", "computeCloud"), top]
    common = _said([payload, *general])
    tasks = {}
    for label, node in _section(top, "pipetask").items():
        own = node.section
        layers = [payload, own, *general]
        # What stands elsewhere is another value for this task if a variable in it is the task's own.
        said = {key: value for key, value in _said(layers).items() if value != common.get(key)}
        uncovered = {key: value for key, value in own.items() if key not in payload}
        tasks[label] = said | _said([uncovered], layers)
    return RunConfig(
        cast("TaskSettings", common),
        {label: cast("TaskSettings", said) for label, said in tasks.items()},
        unknown=tuple(_unknown(root)),
    )


def _section(of: Mapping[str, Node], key: str) -> Mapping[str, Node]:
    return of[key].section if key in of else {}


def _part(top: Mapping[str, Node], key: str, chooser: str) -> Mapping[str, Node]:
    """Return the section of the site or cloud that the file chooses."""
    if key not in top or chooser not in top:
        return {}
    return _section(top[key].section, str(resolve(top[chooser], [top])))


def _said(sections: _Layers, layers: _Layers | None = None) -> dict[str, Any]:
    """Return what these sections say, by the names in `TaskSettings`.

    Parameters
    ----------
    sections
        Where keys are looked for, the first that has one counts.
    layers
        Where variables are looked for, if not there.
    """
    layers = sections if layers is None else layers
    said: dict[str, Any] = {}
    for key, (name, read) in _READERS.items():
        if (node := _first(sections, key)) is not None:
            said[name] = read(key, node, layers)
    retries = [_section(section, _RETRIES) for section in sections]
    for key, (name, read) in _RETRY_READERS.items():
        if (node := _first(retries, key)) is not None:
            said[name] = read(f"{_RETRIES}: {key}", node, layers)
    if (node := _first(sections, _TASK_OPTIONS)) is not None:
        said["other_options"] = _not_taken(node, said.get("cores"))
    return said


def _first(sections: _Layers, key: str) -> Node | None:
    return next((section[key] for section in sections if key in section), None)


def _not_taken(node: Node, cores: int | None) -> str | None:
    """Return a task's own options but for those that say what `requestCpus` and `-j` say already."""
    try:
        words = shlex.split(str(node.content or ""))
    except ValueError:
        return str(node.content)
    left: list[str] = []
    while words:
        word = words.pop(0)
        if words and (
            word == "-j" or (word in ("-n", "--cores-per-quantum") and words[0] == str(cores or 1))
        ):
            words.pop(0)
        else:
            left.append(word)
    return shlex.join(left) or None


def _unknown(root: Node) -> Iterator[str]:
    """Yield the name of each key that means nothing, and where it is."""
    used = variables_in(root)
    top = root.section
    tasks = [node for node in _section(top, "pipetask").values() if isinstance(node.content, Mapping)]
    for node in (root, *tasks):
        for key, value in node.section.items():
            if key not in BATCH_KEYS | _OUR_KEYS | used:
                yield _described(key, value.place, BATCH_KEYS | _OUR_KEYS)
        for key, value in _section(node.section, _RETRIES).items():
            if key not in _RETRY_READERS:
                yield _described(key, value.place, _RETRY_READERS)
    for node in (root, *tasks, *(top[key] for key in ("pipetask",) if key in top)):
        for key, place in node.repeated:
            yield f"{key} ({place}; it stood there before, this one counts)"


def _described(key: str, place: Place, known: Iterable[str]) -> str:
    if key == "bpsGenerateConfig":
        return f"{key} ({place}; it would run code: write out what it makes)"
    similar = get_close_matches(key, known, 1, cutoff=0.8)
    return f"{key} ({place}; is it {similar[0]}?)" if similar else f"{key} ({place})"
