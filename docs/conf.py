"""How the site is built of these pages; `make docs` does it, and takes warnings for errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qgexec
from qgexec.cli.reference import reference_pages

project = "qgexec"
author = "the authors of qgexec"
version = release = qgexec.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.mermaid",
]

# Markdown: the pages read well on a code forge, too, which has no directives but these few.
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]
highlight_language = "bash"  # an indented block is a command; all others name their language

# Docstrings are numpydoc. Names between single backticks are looked up, here and in no inventory of
# somebody else's: a build needs no network.
default_role = "py:obj"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_type_aliases = {"Event": "Event", "Model": "Model"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = f"qgexec {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "header_links_before_dropdown": 6,
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "tutorial": []}
html_show_sourcelink = False
copyright = author  # noqa: A001 -- the name is Sphinx's


def setup(app: Any) -> None:
    """Write the option reference before the pages are read."""
    app.connect("autodoc-process-signature", _no_signature_of_seams)
    folder = Path(__file__).with_name("commands")
    folder.mkdir(exist_ok=True)
    pages = reference_pages()
    for name, text in pages.items():
        page = folder / name
        # A page that is the same is not built again.
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
    for page in folder.glob("*.md"):
        if page.name not in pages:
            page.unlink()


def _no_signature_of_seams(
    _app: object, what: str, _name: str, value: Any, *_: object
) -> tuple[str, None] | None:
    """Nobody makes an instance of a Protocol: that it takes any arguments is of no use to a reader."""
    return ("", None) if what == "class" and getattr(value, "_is_protocol", False) else None
