"""Owns what the keys of a BPS configuration mean here: from files to a `qgexec.config.runconfig.RunConfig`.

Of one key in several sections that counts which BPS would take: ``payload``, then ``cluster: <name>``, if
the task is in that named cluster, then ``pipetask: <label>``, then ``site: <computeSite>``, then
``cloud: <computeCloud>``, then the top level.
BPS's own defaults are not read: only what is written in a file is a request.
"""

from __future__ import annotations

import math
import shlex
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from qgexec.clustering.rules import Algorithm, ClusterRules
from qgexec.config.batchfile import (
    CLUSTER_KEYS,
    JOB_KEYS,
    JOB_KEYS_OF_TASKS,
    WALLTIME,
    Sections,
    is_empty_cluster,
    read_batch,
    read_rules,
)
from qgexec.config.bpskeys import BATCH_KEYS
from qgexec.config.environment import ENVIRONMENT
from qgexec.config.orderfile import ORDER_KEYS, ORDERING, ordering_of, read_ordering
from qgexec.config.runconfig import ISOLATIONS, RunConfig, TaskSettings
from qgexec.config.values import Layers, Reader, Value, first, listed, mebibytes, one, seconds, section_of
from qgexec.config.yamlfile import Node, Place, merged, read_yaml, resolve, variables_in
from qgexec.errors import UsageError

__all__ = ["RETRY_KEYS", "TASK_KEYS", "read_config"]


def read_config(paths: Iterable[str | Path], *, site: str | None = None) -> RunConfig:
    """Read files with resources, retries and what batch jobs are given, as BPS has them.

    Parameters
    ----------
    paths
        The files; where two say the same thing the later one counts.
    site
        The section below ``site:`` that holds, whatever they say of ``computeSite``.

    Returns
    -------
    config
        With all keys that mean nothing in ``unknown``.

    Raises
    ------
    qgexec.errors.UsageError
        A file cannot be read, or a value makes no sense: the message begins with file and line. Or
        there is no such site.
    """
    roots = [read_yaml(path) for path in paths]
    if not roots and site is None:
        return RunConfig()
    roots = roots or [Node({}, Place("", 0))]
    root = roots[0]
    for later in roots[1:]:
        root = merged(root, later)
    return _interpret(root if site is None else _at_site(root, site))


def _at_site(root: Node, site: str) -> Node:
    """Return the configuration with another site chosen."""
    known = sorted(section_of(root.section, "site"))
    if site not in known:
        there = f"Known are: {', '.join(known)}." if known else "No file has a section `site`."
        raise UsageError(f"there is no site {site!r} in the configuration", hint=there)
    return replace(root, content={**root.section, "computeSite": Node(site, root.place)})


def _cores(value: Value) -> int:
    return value.whole(1, "a number of cores", "4")


def _times(value: Value) -> int:
    return value.whole(0, "a number of retries", "2")


def _factor(value: Value) -> float:
    number = value.number()
    if not 0 < number < math.inf:
        raise value.refused("a factor (1 for no growth)", "2")
    return number


def _yes_or_no(value: Value) -> bool:
    known = {"true": True, "false": False}
    answer = known.get(str(value.scalar).lower())
    if answer is None:
        raise value.refused("true or false", "true")
    return answer


def _isolation(value: Value) -> str:
    if value.scalar not in ISOLATIONS:
        raise value.refused(" or ".join(ISOLATIONS), "process")
    return str(value.scalar)


def _table(read_key: Callable[[str], str | int | None], expected: str) -> Reader:
    """Return the reader of a key with a table of retries."""

    def reader(name: str, node: Node, layers: Layers) -> Any:
        if node.content is None:
            return None
        table = {}
        for text, number in node.section.items():
            key = read_key(text)
            if key is None:
                raise UsageError(f"{number.place}: {name}: {text} is not {expected}")
            table[key] = _times(Value(f"{name}: {text}", number, resolve(number, layers)))
        return table

    return reader


def _exit_codes(name: str, node: Node, layers: Layers) -> list[int] | None:
    """Read one exit code, or a list of them."""
    if node.content is None:
        return None
    values = [Value(name, code, resolve(code, layers)) for code in listed(node)]
    return [value.whole(0, "an exit code or a list of them", "[1, 2]") for value in values]


def _exception(text: str) -> str | None:
    return text if all(part.isidentifier() for part in text.split(".")) else None


def _exit_code(text: str) -> int | None:
    return int(text) if text.isdecimal() and int(text) < 256 else None


def _signal(text: str) -> int | None:
    if text.isdecimal():
        return int(text) if 1 <= int(text) <= 64 else None
    return next((int(known) for known in signal.Signals if known.name == text), None)


_READERS: dict[str, tuple[str, Reader]] = {
    "requestCpus": ("cores", one(_cores)),
    "requestMemory": ("memory_bytes", one(mebibytes)),
    "requestMemoryMax": ("memory_max_bytes", one(mebibytes)),
    "memoryLimit": ("memory_limit_bytes", one(mebibytes)),
    "memoryMultiplier": ("memory_multiplier", one(_factor)),
    "enforceMemory": ("enforce_memory", one(_yes_or_no)),
    "requestWalltime": ("timeout_s", one(seconds)),
    "numberOfRetries": ("n_retries", one(_times)),
    "retryUnlessExit": ("retry_unless_exit", _exit_codes),
    "isolation": ("isolation", one(_isolation)),
    "keepProcesses": ("keep_processes", one(_yes_or_no)),
}
"""Keys that mean something here: their names in `TaskSettings`, and what reads them."""

_RETRIES = "retries"

RETRY_KEYS: dict[str, tuple[str, Reader]] = {
    "lost": ("lost", one(_times)),
    "outOfMemory": ("out_of_memory", one(_times)),
    "timeLimit": ("timed_out", one(_times)),
    "exceptions": ("exceptions", _table(_exception, "the name of an exception, as OSError")),
    "exitCodes": ("exit_codes", _table(_exit_code, "an exit code from 0 to 255")),
    "signals": ("signals", _table(_signal, "the name of a signal, as SIGSEGV, or its number")),
}
"""Keys of the section `retries`, likewise."""

_TASK_OPTIONS = "extraRunQuantumOptions"

TASK_KEYS = frozenset({*_READERS, _RETRIES, _TASK_OPTIONS})
"""Keys of a task, and of all, that mean something here."""


def _interpret(root: Node) -> RunConfig:
    top, payload = root.section, section_of(root.section, "payload")
    sections = Sections(top, payload, _part(top, "site", "computeSite"), _part(top, "cloud", "computeCloud"))
    rules = read_rules(sections)
    common = _said(sections.general)
    own_sections = _own_sections(top, rules)
    tasks = {}
    for label, own in own_sections.items():
        layers = sections.of_task(*own)
        # What stands elsewhere is another value for this task if a variable in it is the task's own.
        said = {key: value for key, value in _said(layers).items() if value != common.get(key)}
        uncovered = [{key: node for key, node in each.items() if key not in payload} for each in own]
        tasks[label] = said | _said(uncovered, layers)
    return RunConfig(
        cast("TaskSettings", common),
        {label: cast("TaskSettings", said) for label, said in tasks.items()},
        read_batch(sections, rules, own_sections),
        read_ordering(ordering_of(top, payload), rules, sections.general),
        tuple(_unknown(root, rules)),
    )


def _own_sections(top: Mapping[str, Node], rules: ClusterRules) -> dict[str, list[Mapping[str, Node]]]:
    """Return by task label the sections that are for it alone: that of its cluster, then its own."""
    tasks = {label: node.section for label, node in section_of(top, "pipetask").items()}
    entries: dict[str, Mapping[str, Node]] = {}
    if rules.effective is Algorithm.DIMENSIONS:
        for name, cluster in rules.clusters.items():
            entry = dict(top["cluster"].section[name].section)
            entry.pop(WALLTIME, None)
            entries |= dict.fromkeys(cluster.pipetasks, entry)
    return {label: [entries.get(label, {}), tasks.get(label, {})] for label in {**tasks, **entries}}


def _part(top: Mapping[str, Node], key: str, chooser: str) -> Mapping[str, Node]:
    """Return the section of the site or cloud that the file chooses."""
    if key not in top or chooser not in top:
        return {}
    section = section_of(top[key].section, str(resolve(top[chooser], [top])))
    # The sites of BPS's Parsl plug-in have single values under these names, which mean something else.
    return {
        name: node
        for name, node in section.items()
        if name not in (_RETRIES, ENVIRONMENT) or node.content is None or isinstance(node.content, Mapping)
    }


def _said(sections: Layers, layers: Layers | None = None) -> dict[str, Any]:
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
        if (node := first(sections, key)) is not None:
            said[name] = read(key, node, layers)
    retries = [section_of(section, _RETRIES) for section in sections]
    for key, (name, read) in RETRY_KEYS.items():
        if (node := first(retries, key)) is not None:
            said[name] = read(f"{_RETRIES}: {key}", node, layers)
    if (node := first(sections, _TASK_OPTIONS)) is not None:
        said["other_options"] = _not_taken(node, said.get("cores"))
    return said


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


def _unknown(root: Node, rules: ClusterRules) -> Iterator[str]:
    """Yield the name of each key that means nothing, and where it is."""
    used = variables_in(root)
    top = root.section
    tasks = _sections_in(top, "pipetask")
    known, known_of_task = (BATCH_KEYS | TASK_KEYS | keys for keys in (JOB_KEYS, JOB_KEYS_OF_TASKS))
    yield from _sites_missing(top)
    for node in _sections_in(top, ORDERING):
        keys = ORDER_KEYS | used
        yield from (
            _described(key, value.place, keys) for key, value in node.section.items() if key not in keys
        )
    site = _part(top, "site", "computeSite")
    places = [(top, known), (site if "class" not in site else {}, known)]
    for section, keys in (*places, *((node.section, known_of_task) for node in tasks)):
        for key, value in section.items():
            if key in JOB_KEYS - keys:
                yield f"{key} ({value.place}; not taken for a single task)"
            elif key not in keys | used:
                yield _described(key, value.place, keys)
        yield from _unknown_retries(section)
    yield from _unknown_of_final_job(section_of(top, "finalJob"), known)
    clusters = _sections_in(top, "cluster")
    for name, node in section_of(top, "cluster").items():
        yield from _unknown_of_cluster(name, node, used, rules)
    sections = (top[key] for key in ("pipetask", "cluster") if key in top)
    for node in (root, *tasks, *clusters, *sections):
        for key, place in node.repeated:
            yield f"{key} ({place}; it stood there before, this one counts)"


def _unknown_of_final_job(section: Mapping[str, Node], known: Collection[str]) -> Iterator[str]:
    for key, value in section.items():
        if key == ENVIRONMENT:
            yield f"finalJob: {key} ({value.place}; the final job is given that of all jobs)"
        elif key not in known and get_close_matches(key, ["requestMemory"], 1, cutoff=0.8):
            yield _described(key, value.place, ["requestMemory"])


def _unknown_retries(section: Mapping[str, Node]) -> Iterator[str]:
    for key, value in section_of(section, _RETRIES).items():
        if key not in RETRY_KEYS:
            yield _described(key, value.place, RETRY_KEYS)


def _sites_missing(top: Mapping[str, Node]) -> Iterator[str]:
    """Yield the site and the cloud that are chosen, where no section is theirs: nothing of others counts."""
    for key, chooser in (("site", "computeSite"), ("cloud", "computeCloud")):
        known = sorted(section_of(top, key))
        name = str(resolve(top[chooser], [top]) or "") if chooser in top else ""
        if known and name and name not in known:
            there = f"no section `{name}` below `{key}`, which has {', '.join(known)}"
            yield f"{chooser} ({top[chooser].place}; {there})"


def _unknown_of_cluster(name: str, node: Node, used: Collection[str], rules: ClusterRules) -> Iterator[str]:
    section, taken = node.section, TASK_KEYS | {ENVIRONMENT}
    if is_empty_cluster(node):
        yield f"cluster {name} ({node.place}; it names no tasks, so it holds for none)"
        return
    for key in ("partitionMaxClusters", "partitionMaxSize"):
        if key in section and "partitionDimensions" not in section:
            yield f"{key} ({section[key].place}; only with partitionDimensions)"
    for key, value in section.items():
        if key in taken and rules.effective is not Algorithm.DIMENSIONS:
            yield f"{key} ({value.place}; of a named cluster, and the algorithm is {rules.effective.value})"
        elif key in (BATCH_KEYS | JOB_KEYS) - taken:
            yield f"{key} ({value.place}; not taken for a single cluster)"
        elif key not in CLUSTER_KEYS | taken and key not in used:
            yield _described(key, value.place, CLUSTER_KEYS | taken)
    yield from _unknown_retries(section)


def _sections_in(top: Mapping[str, Node], key: str) -> list[Node]:
    return [node for node in section_of(top, key).values() if isinstance(node.content, Mapping)]


def _described(key: str, place: Place, known: Iterable[str]) -> str:
    if key == "bpsGenerateConfig":
        return f"{key} ({place}; it would run code: write out what it makes)"
    similar = get_close_matches(key, known, 1, cutoff=0.8)
    return f"{key} ({place}; is it {similar[0]}?)" if similar else f"{key} ({place})"
