"""The site is built by sphinx without a warning."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.kit.docs.pages import DOCS, pages

NEEDED = ("sphinx", "myst_parser", "numpydoc", "pydata_sphinx_theme", "sphinx_copybutton", "sphinxcontrib")


@pytest.mark.thorough
@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="the extra [docs] is not installed")
def test_build(tmp_path: Path) -> None:
    """Every page is there; a link, an anchor or a docstring that is wrong fails the build."""
    folder = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        tmp_path / "trees",
        DOCS,
        folder,
    ]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    made = {str(path.relative_to(folder).with_suffix(".md")) for path in folder.rglob("*.html")}
    assert {page.removeprefix("docs/") for page in pages() if page != "README.md"} <= made
    assert "GraphExecutor" in (folder / "api" / "execute.html").read_text()
