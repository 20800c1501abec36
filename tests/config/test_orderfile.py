"""`qgexec.config.orderfile`: what the section `ordering` says, and what of it is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import RunConfig
from qgexec.errors import UsageError
from qgexec.scheduling.ordergroup import OrderGroup


def _config(folder: Path, text: str) -> RunConfig:
    path = folder / "a.yaml"
    path.write_text(text)
    return read_config([path])


def test_an_entry(tmp_path: Path) -> None:
    """Labels may be of tasks and of named clusters; JSON gives back what was said; a later file counts."""
    config = _config(
        tmp_path,
        "cluster: {images: {pipetasks: 'isr,calibrate', dimensions: visit}}\n"
        "ordering:\n  ap:\n    labels: images,{last}\n    last: associate\n    dimensions: visit,detector\n"
        "    equalDimensions: visit:exposure\n    findDependencyMethod: source\n    blocking: true\n"
        "  after: {labels: [a, b], dimensions: tract, implementation: noop}\n",
    )
    assert config.ordering == (
        OrderGroup(
            name="ap",
            labels=("isr", "calibrate", "associate"),
            dimensions=("visit", "detector"),
            equal_dimensions=(("visit", "exposure"),),
            find_dependency_method="source",
        ),
        OrderGroup(name="after", labels=("a", "b"), dimensions=("tract",)),
    )
    assert config.unknown == ()
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))).ordering == config.ordering
    assert RunConfig().updated(config).updated(RunConfig()).ordering == config.ordering


def test_in_payload(tmp_path: Path) -> None:
    """As ctrl_bps looks for it: in `payload` first."""
    entry = "{labels: isr, dimensions: visit, blocking: true}"
    config = _config(tmp_path, f"ordering: {{a: {entry}}}\npayload: {{ordering: {{b: {entry}}}}}")
    assert [group.name for group in config.ordering] == ["b"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("labels: isr, dimensions: visit", "ordering a is not blocking"),
        ("labels: isr, dimensions: visit, implementation: group, blocking: false", "is not blocking"),
        ("labels: isr, blocking: true", "ordering a has no dimensions"),
        ("dimensions: visit, blocking: true", "ordering a has no labels"),
        (
            "labels: isr, dimensions: visit, blocking: maybe",
            "blocking is 'maybe', which is not false or true",
        ),
        ("labels: isr, dimensions: visit, implementation: x", "implementation is 'x', which is not group or"),
        ("labels: isr, dimensions: visit, blocking: true, ordering_type: x", "ordering_type is 'x'"),
        (
            "labels: isr, dimensions: v, blocking: true, findDependencyMethod: x",
            "is 'x', which is not source",
        ),
        ("labels: isr, dimensions: v, blocking: true, equalDimensions: v", "equalDimensions is 'v'"),
        ("labels: b, dimensions: v, blocking: true", "ordering b and a both have b"),
    ],
)
def test_refused(tmp_path: Path, entry: str, message: str) -> None:
    """What makes no sense, or is not done here, with file and line and what to write."""
    second = "  b: {labels: 'b,c', dimensions: v, blocking: true}\n"
    with pytest.raises(UsageError, match=message) as raised:
        _config(tmp_path, f"ordering:\n  a: {{{entry}}}\n{second}")
    assert raised.value.message.startswith(f"{tmp_path}/a.yaml:")
    assert raised.value.hint


def test_unknown_keys(tmp_path: Path) -> None:
    """They are named."""
    text = "ordering:\n  a: {label: isr, labels: isr, dimensions: visit, implementation: noop}\n"
    assert _config(tmp_path, text).unknown == (f"label ({tmp_path}/a.yaml:2; is it labels?)",)
