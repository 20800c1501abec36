"""Has upstream remember what it finds out anew for each butler and each run, though it never changes here."""

from __future__ import annotations

import functools
import io
import pickle
from importlib.metadata import packages_distributions
from types import SimpleNamespace
from typing import Any

import yaml
from lsst.daf.butler import _config
from lsst.utils import packages

_PACKAGED = "resource://"
"""Configuration files there are the same for all tests."""


def make_upstream_quick() -> None:
    """Remember parsed configuration files, and the installed distributions: half of a small run."""
    vars(packages)["packages_distributions"] = functools.cache(packages_distributions)
    _config.yaml = SimpleNamespace(**vars(yaml) | {"load": _load})


def _load(stream: Any, Loader: Any) -> Any:  # noqa: N803 - its name there
    if isinstance(stream, io.BytesIO) and getattr(stream, "name", "").startswith(_PACKAGED):
        return pickle.loads(_parse(stream.name, stream.getvalue(), Loader))
    return yaml.load(stream, Loader=Loader)


@functools.cache
def _parse(name: str, content: bytes, loader: Any) -> bytes:
    stream = io.BytesIO(content)
    stream.name = name
    return pickle.dumps(yaml.load(stream, Loader=loader))
