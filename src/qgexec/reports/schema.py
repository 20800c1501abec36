"""Owns where the published JSON schema of reports is, which is data of this package."""

from __future__ import annotations

from importlib import resources

__all__ = ["report_schema"]


def report_schema() -> str:
    """Return the schema of what `qgexec report --json` prints, as JSON text (JSON Schema, draft 2020-12)."""
    return resources.files("qgexec.reports").joinpath("report.schema.json").read_text("utf-8")
