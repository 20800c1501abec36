"""Holds reports against the published schema, and more strictly: with no key that it does not know."""

from __future__ import annotations

import json
from typing import Any

from jsonschema import Draft202012Validator

from qgexec.reports.schema import report_schema

__all__ = ["assert_valid", "schema"]


def schema() -> dict[str, Any]:
    """Return the schema as it is published."""
    found: dict[str, Any] = json.loads(report_schema())
    return found


def assert_valid(report: Any) -> None:
    """Assert that a report is what the schema says, key by key."""
    report = json.loads(json.dumps(report, allow_nan=False))
    for each in (schema(), _strict(schema())):
        Draft202012Validator.check_schema(each)
        Draft202012Validator(each).validate(report)


def _strict(value: Any) -> Any:
    """Return a schema in which objects have no other properties than those that are described."""
    if isinstance(value, list):
        return [_strict(item) for item in value]
    if not isinstance(value, dict):
        return value
    strict = {key: _strict(item) for key, item in value.items()}
    if "$ref" not in value and isinstance(value.get("properties"), dict) and value.get("type") == "object":
        strict["additionalProperties"] = False
    return strict
