"""Options about resources and retries, and the configuration that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from qgexec.cli import options
from qgexec.config.runconfig import RunConfig

_taken: list[dict[str, Any]] = []


@click.command()
@options.execution
@options.resources
def _command(**given: Any) -> None:
    config = options.run_config(given)
    _taken.append(given | {"config": config})


def _call(*arguments: object) -> Result:
    _taken.clear()
    return CliRunner().invoke(_command, list(map(str, arguments)))


def _config(*arguments: object) -> RunConfig:
    result = _call(*arguments)
    assert result.exit_code == 0, result.output
    config = _taken[0]["config"]
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (["--retries", 0], {"n_retries": 0}),
        (["--retries", 3], {"n_retries": 3}),
        (["--enforce-memory"], {"enforce_memory": True}),
        (["--no-enforce-memory"], {"enforce_memory": False}),
        (["--memory-multiplier", 1.5], {"memory_multiplier": 1.5}),
        (["--memory-multiplier", 1], {"memory_multiplier": 1.0}),
        (["--memory-limit", "100GB"], {"memory_limit_bytes": 10**11}),
        (["--memory-per-quantum", "4GiB"], {"memory_bytes": 2**32}),
        (["--memory-per-quantum", 4000], {"memory_bytes": 4 * 10**9}),
        (["-n", 1], {"cores": 1}),
        (["-n", 4], {"cores": 4}),
        (["--timeout", 60], {"timeout_s": 60.0}),
        (["--max-failures", "5%", "--grace", 9], {}),
    ],
)
def test_settings(arguments: list[object], settings: dict[str, object]) -> None:
    """Each option says one thing about all tasks; what is not given says nothing."""
    assert _config(*arguments) == RunConfig(settings)  # type: ignore[arg-type]


def test_files_and_options(tmp_path: Path) -> None:
    """Options replace what files say about all tasks; what they say about one stays; later files count."""
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text("requestCpus: 2\nnumberOfRetries: 1\npipetask: {isr: {requestCpus: 3}}\ncolour: red\n")
    second.write_text("numberOfRetries: 2\n")
    config = _config("--resources", first, "--resources", second, "-n", 8)
    assert config == RunConfig({"cores": 8, "n_retries": 2}, {"isr": {"cores": 3}})
    assert config.unknown == (f"colour ({first}:4)",)


@pytest.mark.parametrize(
    ("option", "value", "taken"),
    [
        ("--max-failures", "20", ("max_failures", "20")),
        ("--max-failures", "2.5%", ("max_failures", "2.5%")),
        ("--grace", "0", ("grace_s", 0.0)),
        ("--grace", "2.5", ("grace_s", 2.5)),
    ],
)
def test_what_is_not_about_tasks(option: str, value: str, taken: tuple[str, object]) -> None:
    """It stays among the options."""
    _config(option, value)
    assert _taken[0][taken[0]] == taken[1]
    assert not {"resources", "retries", "timeout_s", "memory_limit"} & _taken[0].keys()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--retries", "-1"),
        ("--retries", "many"),
        ("--memory-multiplier", "0.5"),
        ("--memory-multiplier", "nan"),
        ("--memory-limit", "much"),
        ("--max-failures", "0"),
        ("--max-failures", "1.5"),
        ("--max-failures", "101%"),
        ("--max-failures", "nan%"),
        ("--max-failures", "some"),
        ("--grace", "-1"),
        ("--grace", "inf"),
        ("--resources", ""),
    ],
)
def test_wrong_values(option: str, value: str) -> None:
    """They are refused by the option's name."""
    result = _call(option, value)
    assert result.exit_code == 2
    assert option in result.output
    assert not _taken


def test_wrong_file(tmp_path: Path) -> None:
    """A file with a wrong value, or none at all, ends the command before anything else."""
    path = tmp_path / "a.yaml"
    path.write_text("requestCpus: 0\n")
    for file in (path, tmp_path / "absent.yaml"):
        result = _call("--resources", file)
        assert str(file) in str(result.exception)
        assert not _taken
