"""`qgexec.config.yamlfile`: includes, merging, variables and places of what is read from YAML."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec.config.yamlfile import Node, Place, merged, read_yaml, resolve, variables_in
from qgexec.errors import UsageError


def _file(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def _plain(node: Node) -> Any:
    match node.content:
        case dict() as section:
            return {key: _plain(value) for key, value in section.items()}
        case list() as nodes:
            return [_plain(value) for value in nodes]
        case scalar:
            return scalar


_PLACE = Place("x.yaml", 1)


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        return Node({key: _node(item) for key, item in value.items()}, _PLACE)
    return Node(value, _PLACE)


class TestReading:
    """What a file holds."""

    def test_values_and_places(self, tmp_path: Path) -> None:
        """Plain values become Python's, the rest stays text, and each knows the line of its key."""
        path = _file(tmp_path, "# comment\na: 4\nb: {c: 2.5, d: yes}\ne:\nf: [2025-01-01, x]\n")
        root = read_yaml(path)
        assert _plain(root) == {"a": 4, "b": {"c": 2.5, "d": True}, "e": None, "f": ["2025-01-01", "x"]}
        assert [str(node.place) for node in root.section.values()] == [f"{path}:{n}" for n in (2, 3, 4, 5)]

    def test_empty(self, tmp_path: Path) -> None:
        """A file of comments is an empty section."""
        assert _plain(read_yaml(_file(tmp_path, "# nothing\n"))) == {}

    def test_keys_are_text(self, tmp_path: Path) -> None:
        """A number may be a key: its text is."""
        assert _plain(read_yaml(_file(tmp_path, "3: 1\nnull: 2\n"))) == {"3": 1, "null": 2}

    def test_anchors_and_merge_keys(self, tmp_path: Path) -> None:
        """An anchor may be used in many places, and be the base of a section."""
        root = read_yaml(_file(tmp_path, "a: &base {x: 1, y: 2}\nb: *base\nc:\n  <<: *base\n  y: 3\n"))
        assert _plain(root) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}
        assert not root.section["c"].repeated

    def test_many_aliases_are_cheap(self, tmp_path: Path) -> None:
        """Aliases of aliases are not multiplied out."""
        lines = ["a0: &a0 {x: '{v}'}"]
        lines += [f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}" for n in range(1, 60)]
        assert variables_in(read_yaml(_file(tmp_path, "\n".join(lines)))) == {"v"}

    def test_many_merges_are_cheap(self, tmp_path: Path) -> None:
        """Sections that are merged into one another many times are not multiplied out."""
        lines = ["a0: &a0 {x: 0, y: 1}"]
        lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}], y: {n}}}" for n in range(1, 30)]
        assert _plain(read_yaml(_file(tmp_path, "\n".join(lines))).section["a29"]) == {"x": 0, "y": 29}

    def test_a_section_that_is_merged_into_itself(self, tmp_path: Path) -> None:
        """It has its own keys."""
        assert _plain(read_yaml(_file(tmp_path, "a: &a\n  <<: *a\n  x: 1\n"))) == {"a": {"x": 1}}

    def test_repeated_keys(self, tmp_path: Path) -> None:
        """The last of a key that stands twice counts, and the section says so."""
        path = _file(tmp_path, "a: 1\nb: 2\na: 3\n")
        root = read_yaml(path)
        assert _plain(root) == {"a": 3, "b": 2}
        assert root.repeated == (("a", Place(str(path), 3)),)

    @pytest.mark.parametrize(
        ("text", "where"),
        [
            ("a: [1\nb: 2\n", 2),
            ("a: 1\n\tb: 2\n", 2),
            ("a: b: c\n", 1),
            ("a: *nowhere\n", 1),
            ("x: 1\na: !include b.yaml\n", 2),
            ("a: !!python/object/apply:os.getcwd []\n", 1),
            ("a: !!python/name:os.getcwd\n", 1),
            ("a: !!set {x, y}\n", 1),
            ("- a\n- b\n", 1),
            ("just text\n", 1),
            ("? [a, b]\n: 1\n", 1),
            ("x: 1\na: &a\n  b: *a\n", 3),
            ("--- \na: 1\n---\nb: 1\n", 3),
        ],
    )
    def test_what_is_no_plain_yaml(self, tmp_path: Path, text: str, where: int) -> None:
        """It is refused with file and line."""
        path = _file(tmp_path, text)
        with pytest.raises(UsageError) as raised:
            read_yaml(path)
        assert raised.value.message.startswith(f"{path}:{where}: ")

    def test_what_cannot_be_read(self, tmp_path: Path) -> None:
        """A file that is missing, a folder, not UTF-8 or nested beyond reason is refused by its name."""
        (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
        (tmp_path / "control.yaml").write_bytes(b"a: \x01\n")
        _file(tmp_path, "[" * 100_000, "deep.yaml")
        os.mkfifo(tmp_path / "fifo.yaml")
        (tmp_path / "zeros.yaml").symlink_to("/dev/zero")
        (tmp_path / "huge.yaml").touch()
        os.truncate(tmp_path / "huge.yaml", 1 << 40)
        for name in (
            "missing.yaml",
            ".",
            "bytes.yaml",
            "control.yaml",
            "deep.yaml",
            "fifo.yaml",
            "zeros.yaml",
        ):
            with pytest.raises(UsageError) as raised:
                read_yaml(tmp_path / name)
            assert str(tmp_path) in raised.value.message
        with pytest.raises(UsageError, match="it is larger than 1 MiB"):
            read_yaml(tmp_path / "huge.yaml")


class TestIncludes:
    """`includeConfigs`."""

    def test_what_includes_is_on_top(self, tmp_path: Path) -> None:
        """Of included files the last counts, and what stands in the file itself counts more."""
        _file(tmp_path, "a: 1\nb: 1\nc: 1\ns: {x: 1}\n", "one.yaml")
        _file(tmp_path, "b: 2\nc: 2\ns: {y: 2}\n", "two.yaml")
        root = read_yaml(_file(tmp_path, "c: 3\nincludeConfigs: [one.yaml, two.yaml]\n", "top.yaml"))
        assert _plain(root) == {"a": 1, "b": 2, "c": 3, "s": {"x": 1, "y": 2}}
        assert Path(root.section["b"].place.file).name == "two.yaml"

    def test_in_a_section(self, tmp_path: Path) -> None:
        """What is included in a section is laid under that section."""
        _file(tmp_path, "x: 1\ny: 1\n", "one.yaml")
        root = read_yaml(_file(tmp_path, "s:\n  includeConfigs: one.yaml\n  y: 2\n"))
        assert _plain(root) == {"s": {"x": 1, "y": 2}}

    def test_where_it_is_looked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The current folder comes before that of the file; the environment may name the folder."""
        here = tmp_path / "here"
        _file(here, "a: here\n", "one.yaml")
        _file(tmp_path, "a: there\n", "one.yaml")
        path = _file(tmp_path, "includeConfigs: one.yaml\n")
        assert _plain(read_yaml(path)) == {"a": "there"}
        monkeypatch.chdir(here)
        assert _plain(read_yaml(path)) == {"a": "here"}
        monkeypatch.setenv("PIPE_DIR", str(tmp_path))
        path = _file(tmp_path, "includeConfigs:\n  - ${PIPE_DIR}/one.yaml\n")
        assert _plain(read_yaml(path)) == {"a": "there"}

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("absent.yaml", "absent.yaml"),
            ("${NOT_SET_ANYWHERE}/one.yaml", "NOT_SET_ANYWHERE"),
            ("{a: 1}", "one value"),
            ("a.yaml", "includes itself"),
        ],
    )
    def test_what_cannot_be_included(self, tmp_path: Path, name: str, problem: str) -> None:
        """A missing file, folder or variable, or the file itself: refused, saying what it is."""
        path = _file(tmp_path, f"x: 1\nincludeConfigs:\n  - {name}\n")
        with pytest.raises(UsageError, match=problem) as raised:
            read_yaml(path)
        assert str(path) in raised.value.message


class TestVariables:
    """``{name}`` and ``${NAME}``."""

    def test_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Variables may refer to variables; the first layer that has one counts."""
        monkeypatch.setenv("SCALE", "7")
        layers = [_node({"a": "<{b}>"}).section, _node({"a": "no", "b": "{c}", "c": 5}).section]
        assert resolve(_node("{a} ${SCALE} $SCALE {b}"), layers) == "<5> 7 7 5"

    @pytest.mark.parametrize("value", [4, 2.5, True, None, "text", "50% of {} { a }"])
    def test_others_stay(self, value: Any) -> None:
        """What refers to nothing stays as it is."""
        assert resolve(_node(value), []) == value

    @pytest.mark.parametrize("text", ["{absent}", "${NOT_SET_ANYWHERE}", "{loop}", "{section}"])
    def test_refused(self, text: str) -> None:
        """A variable that has no value is an error at the line where it is used or defined."""
        layer = _node({"loop": "x{pool}", "pool": "{loop}", "section": {"a": 1}}).section
        with pytest.raises(UsageError, match=r"^x\.yaml:1: "):
            resolve(_node(text), [layer])

    @pytest.mark.parametrize("deepest", ["", "x", "x" * 60_000])
    def test_keys_that_name_one_another_many_times(self, deepest: str) -> None:
        """What ten keys, each naming the next ten times, stand for is not worked out, however short it is."""
        layer = _node({f"k{n}": f"{{k{n + 1}}}" * 10 for n in range(10)} | {"k10": deepest}).section
        with pytest.raises(UsageError, match=r"^x\.yaml:1: "):
            resolve(_node("{k0}"), [layer])

    def test_long_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As much as an environment has in a variable is taken, and no more."""
        monkeypatch.setenv("LONG", "x" * 65_535)
        assert resolve(_node("${LONG}:"), []) == "x" * 65_535 + ":"
        with pytest.raises(UsageError, match="longer than 64 KiB"):
            resolve(_node("${LONG}::"), [])

    def test_a_long_chain(self) -> None:
        """Keys of which each names the next are followed fifty times."""
        layer = _node({f"k{n}": f"{{k{n + 1}}}" for n in range(10_000)} | {"k10000": 7}).section
        assert resolve(_node("{k9960}"), [layer]) == "7"
        with pytest.raises(UsageError, match="too many"):
            resolve(_node("{k0}"), [layer])


_trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in _leaves(value, (*path, key)).items()}
    return {path: tree}


class TestMerging:
    """One file over another."""

    @given(_trees, _trees)
    def test_all_that_is_said_above_counts(self, below: Any, above: Any) -> None:
        """Every value of the upper tree is in the result, and nothing that is in neither."""
        both = _leaves(_plain(merged(_node(below), _node(above))))
        upper, lower = _leaves(above), _leaves(below)
        assert all(both[path] == value for path, value in upper.items() if value is not None)
        assert all(both[path] in (upper.get(path), lower.get(path)) for path in both)

    def test_anchors_are_not_multiplied_out(self, tmp_path: Path) -> None:
        """Two files whose sections stand in a million places each are laid over one another."""
        lines = ["a0: &a0 {x: 0}"]
        lines += [f"a{n}: &a{n} {{p: *a{n - 1}, q: *a{n - 1}}}" for n in range(1, 60)]
        root = read_yaml(_file(tmp_path, "\n".join(lines)))
        assert variables_in(merged(root, read_yaml(_file(tmp_path, "\n".join(lines), "b.yaml")))) == set()

    @given(_trees)
    def test_nothing_changes_nothing(self, tree: Any) -> None:
        """Empty sections above or below take and add nothing."""
        assert _plain(merged(_node(tree), _node({}))) == tree
        assert _plain(merged(_node({}), _node(tree))) == tree
        assert _plain(merged(_node(tree), _node(None))) == tree
