"""Help: complete, narrow, fast, with an example for every command."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from qgexec.cli.main import cli
from tests.kit.commands.qgexec import call

COMMANDS = cli.list_commands(click.Context(cli))


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=str)
class TestHelp:
    """``--help`` of every command."""

    @pytest.mark.parametrize("columns", ["80", "200"])
    def test_text(self, command: list[str], columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """It fits, says what the command does, and shows an example."""
        monkeypatch.setenv("COLUMNS", columns)
        result = call(*command, "--help")
        assert (result.code, result.err) == (0, "")
        assert max(map(len, result.out.splitlines())) <= min(int(columns), 100)
        assert f"qgexec {' '.join(command)}".rstrip() in result.out.partition("Example")[2]


def test_nothing_large_is_imported_for_it() -> None:
    """The help of all commands together imports neither the stack nor what draws: it is there at once."""
    code = (
        "import sys\n"
        "from qgexec.cli.main import main\n"
        "for command in sys.argv[1:]:\n"
        "    sys.argv = ['qgexec', *command.split(), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0, command\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "", *COMMANDS], check=True, capture_output=True, text=True
    )
    assert done.stdout.count("Usage: ") == 1 + len(COMMANDS)
    assert not {"lsst", "numpy", "rich", "astropy", "sqlalchemy", "pydantic"} & set(done.stderr.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    """Each option says what it does; arguments are spoken of in the text or speak for themselves."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert [option.name for option in options if not option.help] == []
    assert all(len(option.help or "") < 110 for option in options)


def test_resume_has_no_defaults_of_a_new_run() -> None:
    """What is not given stays as it was: no value is shown that would not hold."""
    shown = call("resume", "--help").out
    assert "default" not in shown
    assert "Execution model." in shown
    assert "[default: 1; x>=1]" in call("run", "--help").out


def test_options_are_pipetasks() -> None:
    """Names that `pipetask run` has too."""
    command = cli.get_command(click.Context(cli), "run")
    assert command is not None
    ours = {opt for option in command.params for opt in option.opts}
    assert ours >= {
        *("-b", "--butler-config", "-g", "--qgraph", "-i", "--input", "-o", "--output", "--output-run"),
        *("-p", "--pipeline", "-d", "--data-query", "-c", "--config", "-C", "--config-file", "--save-qgraph"),
        *("-j", "--processes", "--fail-fast", "--timeout", "--skip-existing", "--extend-run"),
        *("--clobber-outputs", "--skip-init-writes", "--init-only", "--no-versions", "-n", "--summary"),
        *("--register-dataset-types", "--cores-per-quantum", "--memory-per-quantum"),
    }


def test_unknown_command() -> None:
    """It is named, and how to find the right one."""
    result = call("rnu")
    assert result.code == 2
    assert "No such command 'rnu'" in result.err
    assert "--help" in result.err


def test_traceback() -> None:
    """Programmers get the traceback of an error when they ask for it."""
    plain = call("status", "nowhere")
    assert "Traceback" not in plain.err
    full = call("--traceback", "status", "nowhere")
    assert full.code == plain.code == 2
    assert "Traceback (most recent call last)" in full.err
    assert "RunDirError" in full.err


def test_version() -> None:
    """The version is said."""
    assert call("--version").out.startswith("qgexec, version 0.")
