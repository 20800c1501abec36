"""Every page: commands are read by the programs' own options, YAML by our readers, links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path
from types import FunctionType

import pytest

import qgexec
from qgexec.config import batchfile, bpsfile
from qgexec.config.bpsfile import read_config
from qgexec.models.registry import GROUP
from tests.kit.checkout import CHECKOUT
from tests.kit.docs.commandlines import GROUPS, check, command_lines, known_options
from tests.kit.docs.pages import (
    Block,
    Link,
    all_blocks,
    anchors,
    blocks,
    inline_code,
    links,
    pages,
    target_of,
)

READ_ELSEWHERE = {
    "python": "test_snippets.py and test_tutorial.py execute it",
    "mermaid": "tests/scheduling/test_states.py compares it with the tables",
    "{toctree}": "test_every_page_is_in_the_tree_once",
    "{eval-rst}": "test_public_names_are_documented",
    "{literalinclude} report.schema.json": "tests/reports/test_schema.py holds reports against it",
}
"""Languages that other tests, or tests further down, read."""

UNREADABLE = {
    "docs/report.md": "tables of a run that there never was; tests/reports has their columns",
    "docs/clustering.md": "messages, cut short; tests/config has their words",
    "docs/resources.md": "a message, cut short; tests/config has its words",
    "docs/slurm.md": "what --dry-run prints, cut short; tests/batch/test_slurm.py has its words",
    "docs/tutorial.md": "test_tutorial.py compares it with what is printed",
    "docs/commands": "usage, made of the command itself",
}
"""Pages with blocks of text that is neither command nor code, and why this module does not read them."""

SHELLS_OWN = {
    "chmod": "takes a right from a file that is not there",
    "kill": "sends a signal to a process that is not there",
    "export": "is the shell's",
    "jq": "is a program of somebody else's",
    "cp": "test_tutorial.py runs it",
    "truncate": "test_tutorial.py runs it",
    "find": "test_tutorial.py runs it",
    "mkdir": "test_pipetask_name.py runs it",
    "ln": "test_pipetask_name.py runs it",
}
"""Programs that no test can hold a command against, and why."""

OPTIONS_OF_SLURM = "docs/slurm.md"
"""The page whose text speaks of the options of sbatch, which is a program of somebody else's."""

READ_BY_BPS = "docs/bps.md"
"""The page whose YAML is for ctrl_bps: tests/bps/test_bpsdocs.py reads it."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which files that commands name are made, the current one."""
    monkeypatch.setenv("DRP_PIPE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_says_what_it_is() -> None:
    """There is a test for its language, or a reason why there is none."""
    read = {"bash", "yaml", "toml", *READ_ELSEWHERE}
    for page in pages():
        for block in blocks(page):
            if block.language == "text":
                assert page in UNREADABLE or str(Path(page).parent) in UNREADABLE, f"{block}: not checked"
            else:
                assert block.language in read, f"{block}: in no language that is checked: {block.language!r}"
    for place in UNREADABLE:
        assert any(page.startswith(place) for page in pages()), f"{place} is gone"


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_commands(block: Block, folder: Path) -> None:
    """Each is one that its program would take, with every option and argument."""
    lines = list(command_lines(block.text))
    assert lines, "a block of commands without any"
    for words in lines:
        match words:
            case [program, *_] if program in GROUPS:
                check(words, in_full=True)
            case ["pip", "install", requirement]:
                assert set(_extras(requirement)) <= _known_extras()
            case ["make", target]:
                assert re.search(rf"^{target}:", (CHECKOUT / "Makefile").read_text(), flags=re.MULTILINE)
            case _:
                assert words[0] in SHELLS_OWN, f"{words[0]}: no program that is known here"


def _commands_in_the_text() -> set[str]:
    named = {code for page in pages() for code in inline_code(page)}
    return {code for code in named if code.partition(" ")[0] in GROUPS}


@pytest.mark.parametrize("command", sorted(_commands_in_the_text()))
def test_commands_in_the_text(command: str) -> None:
    """Those that are named in passing have options that exist; what they leave out is not asked for."""
    check(shlex.split(command), in_full=False)


def test_options_in_the_text() -> None:
    """Each is one of some command's: no option is spoken of that is gone."""
    text = " ".join(code for page in pages() if page != OPTIONS_OF_SLURM for code in inline_code(page))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", text))
    assert len(named) > 100
    assert named - known_options() == set()


@pytest.mark.parametrize("line", ["qgexec run --no-such-option", "qgexec walk", "pipetask run --graph-fixup"])
def test_wrong_commands_are_found(line: str, folder: Path) -> None:
    """A page with an option or command that does not exist fails."""
    with pytest.raises(Exception, match=r"(?i)no such option|no command|requires an argument"):
        check(shlex.split(line), in_full=True)


@pytest.mark.parametrize(
    "block", [block for block in all_blocks("yaml") if block.page != READ_BY_BPS], ids=str
)
def test_yaml(block: Block, folder: Path) -> None:
    """Our reader takes it, and knows every key."""
    for name in re.findall(r"\$\{DRP_PIPE_DIR\}/(\S+)", block.text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("requestMemory: 4096\n")
    (folder / "page.yaml").write_text(block.text)
    assert read_config([folder / "page.yaml"]).unknown == ()


@pytest.mark.parametrize("block", all_blocks("toml"), ids=str)
def test_toml(block: Block) -> None:
    """It is a part of pyproject.toml that makes a model known."""
    assert GROUP in tomllib.loads(block.text)["project"]["entry-points"]


def test_links() -> None:
    """Each leads to a file that is there and, in a page, to a heading."""
    found = [link for page in pages() for link in links(page)]
    assert len(found) > 100
    assert [link for link in found if not _leads_somewhere(link)] == []


def _leads_somewhere(link: Link) -> bool:
    if link.target.startswith(("https://", "http://")):
        return True  # somebody else's pages are not looked at: tests need no network
    file, _, anchor = link.target.partition("#")
    target = target_of(link.page, file) if file else link.page
    if target not in pages():
        return not anchor and (CHECKOUT / target).exists()
    return not anchor or anchor in anchors(target)


def test_every_page_is_in_the_tree_once() -> None:
    """Whoever begins at the index finds every page, at one place."""
    found: Counter[str] = Counter()
    for block in all_blocks("{toctree}"):
        for line in block.text.splitlines():
            if line and not line.startswith(":"):
                name = re.sub(r"^.*<(.+)>$", r"\1", line)
                found[target_of(block.page, f"{name}.md")] += 1
    assert found == Counter(page for page in pages() if page not in {"README.md", "docs/index.md"})


def test_configuration_page_has_every_key() -> None:
    """Those of the readers' own tables, and no others."""
    cells = re.findall(r"^\| \[?`([^`]+)`", pages()["docs/configuration.md"], flags=re.MULTILINE)
    ours = {*bpsfile.TASK_KEYS, *batchfile.JOB_KEYS, *batchfile.CLUSTER_KEYS, "includeConfigs", "ordering"}
    retries = {f"retries: {key}" for key in bpsfile.RETRY_KEYS}
    assert Counter(cells) == Counter(ours - {"finalJob"} | retries | {"finalJob: requestMemory"})


def test_public_names_are_documented() -> None:
    """The modules of the table are those of the API's pages; each class and function has a docstring."""
    table = re.findall(r"^\| \[`([^`]+)`\]", pages()["docs/api/index.md"], flags=re.MULTILINE)
    found = [
        name for block in all_blocks("{eval-rst}") for name in re.findall(r"automodule:: (\S+)", block.text)
    ]
    assert Counter(table) == Counter([*found, "qgexec"])
    modules = [importlib.import_module(name) for name in found]
    for module in modules:
        assert module.__all__
        for name in module.__all__:
            value = getattr(module, name)
            assert value.__doc__ or not isinstance(value, type | FunctionType), (
                f"{module.__name__}.{name} has no docstring"
            )
    everything = {name for module in modules for name in module.__all__}
    assert {name for name in qgexec.__all__ if not name.startswith("__")} <= everything


def _extras(requirement: str) -> list[str]:
    found = re.fullmatch(r"qgexec(?:\[([\w,]+)\])?", requirement)
    assert found, requirement
    return found[1].split(",") if found[1] else []


def _known_extras() -> set[str]:
    return {*tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]}
