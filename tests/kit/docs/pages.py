"""Owns what the pages of the documentation hold: code, links and headings; judges none of it."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from qgexec.cli.reference import reference_pages
from tests.kit.checkout import CHECKOUT

DOCS = CHECKOUT / "docs"

INDENTED = "bash"
"""What an indented block is: commands. Everything else names its language."""

_PARSER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of code, and where it stands."""

    page: str
    """Path of the page, from the checkout."""

    line: int
    """Line of the page at which it begins, from 1."""

    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True)
class Link:
    """A link, and the page that has it."""

    page: str
    target: str


@cache
def pages() -> dict[str, str]:
    """Return the text of all pages by path from the checkout, those made of the commands included."""
    files = {CHECKOUT / "README.md", *DOCS.rglob("*.md")} - {*(DOCS / "commands").glob("*")}
    texts = {str(path.relative_to(CHECKOUT)): path.read_text() for path in sorted(files)}
    return texts | {f"docs/commands/{name}": text for name, text in reference_pages().items()}


@cache
def _tokens(page: str) -> list[Token]:
    return _PARSER.parse(pages()[page])


def blocks(page: str) -> Iterator[Block]:
    """Yield the pieces of code of a page, fenced or indented, in order."""
    for token in _tokens(page):
        if token.type in {"fence", "code_block"}:
            assert token.map is not None
            language = token.info.strip() if token.type == "fence" else INDENTED
            yield Block(page, token.map[0] + 1, language, token.content)


def all_blocks(*languages: str) -> list[Block]:
    """Return the pieces of code of all pages that are in these languages."""
    return [block for page in pages() for block in blocks(page) if block.language in languages]


def _inline(page: str) -> Iterator[Token]:
    for token in _tokens(page):
        yield from token.children or ()


def inline_code(page: str) -> list[str]:
    """Return what stands between backticks within the text of a page."""
    return [" ".join(token.content.split()) for token in _inline(page) if token.type == "code_inline"]


def target_of(page: str, path: str) -> str:
    """Return the path, from the checkout, of what a page calls so."""
    return os.path.normpath(Path(page).parent / path)


def links(page: str) -> list[Link]:
    """Return the links of a page."""
    targets = (str(token.attrGet("href")) for token in _inline(page) if token.type == "link_open")
    return [Link(page, target) for target in targets]


def anchors(page: str) -> set[str]:
    """Return the names of the headings of a page, as the site and code forges make them."""
    tokens = _tokens(page)
    titles = [
        "".join(child.content for child in after.children or ())
        for token, after in pairwise(tokens)
        if token.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}
