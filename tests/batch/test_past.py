"""What is behind quanta, written down for jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qgexec.batch.past import PAST_VERSION, read_pasts, write_pasts
from qgexec.errors import RunDirError
from qgexec.scheduling.policy import Account, Cause
from qgexec.scheduling.troubles import Past

_ACCOUNTS: st.SearchStrategy[Account] = st.tuples(
    st.none() | st.sampled_from(Cause), st.none() | st.text() | st.integers(0, 300)
)
_PASTS = st.builds(
    Past, st.integers(0, 20), st.dictionaries(_ACCOUNTS, st.integers(1, 9), max_size=4), st.integers(0, 5)
)


@given(st.dictionaries(st.integers(0, 10**7), _PASTS, max_size=5))
def test_pasts_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, pasts: dict[int, Past]
) -> None:
    """Whatever attempts were charged to."""
    path = tmp_path_factory.mktemp("past") / "past.json"
    write_pasts(path, pasts)
    assert read_pasts(path) == pasts


def test_version_1(tmp_path: Path) -> None:
    """The first version is read for good."""
    path = tmp_path / "past.json"
    text = '{"format": "qgexec-past", "version": 1, "quanta": {"7": [2, 1, [%s, [null, null, 1]]]}}'
    text %= '["raised", "OSError", 1]'
    path.write_text(text)
    accounts: dict[Account, int] = {(Cause.RAISED, "OSError"): 1, (None, None): 1}
    assert read_pasts(path) == {7: Past(2, accounts, 1)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format": "something"}',
        '{"format": "qgexec-past", "version": 1}',
        '{"format": "qgexec-past", "version": 1, "quanta": {"x": [0, 0, []]}}',
        '{"format": "qgexec-past", "version": 1, "quanta": {"1": [0, 0]}}',
        '{"format": "qgexec-past", "version": 1, "quanta": {"1": [1, 0, [["bad luck", null, 1]]]}}',
    ],
)
def test_damaged(tmp_path: Path, text: str) -> None:
    """It is said which file is damaged, and what to do."""
    path = tmp_path / "past.json"
    path.write_text(text)
    with pytest.raises(RunDirError, match=r"past\.json is damaged") as caught:
        read_pasts(path)
    assert caught.value.hint == "Bring it back from a copy."


def test_missing_and_newer(tmp_path: Path) -> None:
    """Each has a message of its own."""
    path = tmp_path / "past.json"
    with pytest.raises(RunDirError, match="cannot read"):
        read_pasts(path)
    path.write_text(json.dumps({"format": "qgexec-past", "version": PAST_VERSION + 1, "quanta": {}}))
    with pytest.raises(RunDirError, match=f"is of version {PAST_VERSION + 1}, but this qgexec reads up to"):
        read_pasts(path)
