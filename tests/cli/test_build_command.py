"""`qgexec build`: what it shows, draws and saves is what `pipetask build` does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.kit.butler.repos import MockRepository
from tests.kit.commands.pipetask import pipetask
from tests.kit.commands.qgexec import call, one_message


@pytest.fixture
def pipeline(template: MockRepository) -> Path:
    """The standard pipeline's file."""
    return template.graph.with_name("pipeline.yaml")


@pytest.mark.parametrize(
    "show",
    [
        "pipeline",
        "pipeline-graph",
        "task-graph",
        "tasks",
        "inputs",
        "config",
        "config=isr::int_value",
        "config=*INT*",
        "config=isr::*Value:NOIGNORECASE",
        "config=config.int_value",
        "dump-config",
        "dump-config=isr",
    ],
)
def test_show(show: str, pipeline: Path) -> None:
    """Every thing that can be shown of a pipeline is shown as pipetask shows it."""
    arguments = ["build", "-p", pipeline, "-c", "isr:int_value=5", "--show", show]
    ours, theirs = call(*arguments), pipetask(*arguments)
    assert (ours.code, theirs.code) == (0, 0), (ours.err, theirs.err)
    assert ours.out == theirs.out
    assert len(ours.out) > 1


@pytest.mark.parametrize("show", ["pipeline-graph", "task-graph"])
def test_show_with_a_repository(show: str, pipeline: Path, template: MockRepository) -> None:
    """What the repository knows is shown, too."""
    arguments = ["build", "-p", pipeline, "--show", show]
    ours, theirs = (run(*arguments, "-b", template.root) for run in (call, pipetask))
    assert ours.out == theirs.out
    assert "{detector, visit}" in ours.out


def test_history(pipeline: Path) -> None:
    """Values of matching fields follow each other as pipetask shows them; who set them differs, of course."""
    arguments = ["build", "-p", pipeline, "-c", "isr:int_value=5", "--show", "history=isr::*_value"]
    ours, theirs = call(*arguments), pipetask(*arguments)
    assert (ours.code, theirs.code) == (0, 0)
    values = [
        [line.split(" ")[0] for line in result.out.splitlines() if not line.startswith(" ")]
        for result in (ours, theirs)
    ]
    assert (
        values[0]
        == values[1]
        == ["###", "int_value", "None", "None", "5", "", "###", "str_value", "None", "None"]
    )
    # Upstream (30.2026.4300; 30.2026.500 did) does not know the name of a configuration file any more.
    places = [re.findall(r"(?:pipeline_isr\.py|<string>):[0-9]+", result.out) for result in (ours, theirs)]
    assert places[0] == places[1]
    assert len(places[0]) >= 2


def test_subsets_are_shown(pipeline: Path, tmp_path: Path) -> None:
    """Subsets have their labels below them."""
    file = tmp_path / "with.yaml"
    content = yaml.safe_load(pipeline.read_text()) | {
        "subsets": {"first": ["isr", "calibrate"], "last": ["final"]}
    }
    file.write_text(yaml.safe_dump(content))
    ours, theirs = (run("build", "-p", file, "--show", "subsets") for run in (call, pipetask))
    assert ours.out == theirs.out
    assert "first:\n  - calibrate\n  - isr\n" in ours.out


def test_several_are_shown_in_the_order_that_they_were_asked_for(pipeline: Path) -> None:
    """Values may be repeated or stand between commas."""
    shown = [call("build", "-p", pipeline, "--show", what).out for what in ("inputs", "task-graph", "tasks")]
    together = call("build", "-p", pipeline, "--show", "inputs,task-graph", "--show", "tasks").out
    assert together == "".join(shown)


def test_changes_are_made_in_the_order_that_they_were_given(pipeline: Path, tmp_path: Path) -> None:
    """A task may be added, set up, taken out and added again; of two values the later counts."""
    override = tmp_path / "override.py"
    override.write_text("config.int_value = 7\n")
    task = "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask"
    changes = [
        *("-t", f"{task}:extra", "-cextra:int_value=1", "--delete", "extra", "--task", f"{task}:extra"),
        *(f"--config-file=isr:{override},calibrate:{override}", "--config=isr:int_value=8"),
        *("-c", "calibrate:int_value=8", "-C", f"calibrate:{override}"),
    ]
    saved = tmp_path / "saved.yaml"
    wanted = {"isr": "8", "calibrate": "7", "summary": "None", "final": "None", "extra": "None"}
    for arguments in (["-p", pipeline, *changes, "-s", saved], ["-p", saved]):
        result = call("build", *arguments, "--show", "config=int_value")
        assert result.code == 0, result.err
        lines = [line for line in result.out.splitlines() if line.startswith(("###", "config."))]
        labels, values = (line.rpartition("`")[2].strip("'") for line in lines[::2]), lines[1::2]
        found = dict(zip(labels, values, strict=True))
        assert found == {label: f"config.int_value={value}" for label, value in wanted.items()}


def test_saved_pipeline_equals_pipetasks(pipeline: Path, tmp_path: Path) -> None:
    """--save-pipeline writes the same YAML."""
    arguments = [
        "build",
        "-p",
        f"{pipeline}#isr,calibrate",
        "-c",
        "isr:int_value=3",
        "--delete",
        "calibrate",
        "-s",
    ]
    ours, theirs = tmp_path / "ours.yaml", tmp_path / "theirs.yaml"
    assert call(*arguments, ours).code == pipetask(*arguments, theirs).code == 0
    assert ours.read_text() == theirs.read_text()
    assert list(yaml.safe_load(ours.read_text())["tasks"]) == ["isr"]


@pytest.mark.parametrize("option", ["--pipeline-dot", "--pipeline-mermaid"])
@pytest.mark.parametrize("with_repository", [False, True])
def test_drawings_equal_pipetasks(
    option: str, with_repository: bool, pipeline: Path, template: MockRepository, tmp_path: Path
) -> None:
    """DOT and Mermaid are the same files; with a repository they have its dimensions."""
    ours, theirs = tmp_path / "ours.txt", tmp_path / "theirs.txt"
    arguments = ["build", "-p", pipeline, "--select-tasks", ">= calibrate", option]
    more = []
    if with_repository:
        more = ["-b", template.root]
        if option == "--pipeline-mermaid":
            more += ["--show", "task-graph"]  # pipetask refuses -b without it
    assert call(*arguments, ours, *more).code == pipetask(*arguments, theirs, *more).code == 0
    assert ours.read_text() == theirs.read_text()
    assert "summary" in ours.read_text()
    assert "isr_metadata" not in ours.read_text()


def test_nothing_is_asked_for(pipeline: Path) -> None:
    """It is made all the same, to see whether it can be."""
    result = call("build", "-p", pipeline, "--select-tasks", ">= summary")
    assert (result.code, result.out.partition(";")[0]) == (0, "2 tasks")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "There is nothing to build."),
        (["--select-tasks", "isr nosuch"], "--select-tasks 'isr nosuch' cannot be applied"),
        (["--show", "nosuch"], "--show nosuch: there is no 'nosuch' to show."),
        (["--show", "history"], "of which field?"),
        (["--show", "workflow"], "--show workflow: a pipeline has no quanta."),
        (["--show", "config=nosuch::a"], "the pipeline has no task 'nosuch'"),
        (["--show", "history=isr::nosuch"], "no task has such a field"),
        (["--select-tasks", "isr", "--show", "pipeline"], "--select-tasks has no part in a pipeline as YAML"),
        (["--select-tasks", "isr", "-s", "saved.yaml"], "--select-tasks has no part in a pipeline as YAML"),
        (["--pipeline-dot", "no/such/folder/a.dot"], "--pipeline-dot no/such/folder/a.dot cannot be written"),
        (["-c", "isr=3"], "'isr=3' is not of the form LABEL:KEY=VALUE"),
        (["-C", "isr"], "'isr' is not of the form LABEL:FILE"),
        (["-b", "repo"], "nothing that is asked for needs the repository"),
    ],
)
def test_wrong_use(arguments: list[str], said: str, pipeline: Path, folder: Path) -> None:
    """One message says what is wrong; nothing is written."""
    given = ["-p", pipeline, *arguments] if arguments else []
    one_message(call("build", *given), said)
    assert list(folder.iterdir()) == []


class TestCodeOfOthers:
    """It runs as it is imported, and must not choose the exit code."""

    @pytest.fixture
    def module(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """A module that ends the program, in success."""
        (tmp_path / "leaving_module.py").write_text("import sys\nsys.exit(0)\n")
        monkeypatch.syspath_prepend(tmp_path)
        return "leaving_module"

    def test_task(self, module: str, pipeline: Path, folder: Path) -> None:
        """A task class that ends the program when it is imported is named."""
        one_message(call("build", "-p", pipeline, "-t", f"{module}.Task"), module, "SystemExit: 0")

    def test_pipeline(self, module: str, folder: Path) -> None:
        """So is a pipeline that has one."""
        Path("p.yaml").write_text(f"description: x\ntasks:\n  a: {module}.Task\n")
        one_message(call("build", "-p", "p.yaml"), "p.yaml cannot be used", "SystemExit: 0")

    def test_configuration_file(self, module: str, pipeline: Path, tmp_path: Path) -> None:
        """And a configuration file that ends the program."""
        option = f"isr:{tmp_path / module}.py"
        one_message(call("build", "-p", pipeline, "-C", option), f"-C {option}", "SystemExit: 0")


class TestOptionsFile:
    """``-@``."""

    def test_options_are_taken_from_it(self, pipeline: Path, tmp_path: Path) -> None:
        """Names are those of the options; lists are for those that may be repeated; the command line wins."""
        file = tmp_path / "options.yaml"
        options = {
            "pipeline": str(pipeline),
            "config": ["isr:int_value=1", "isr:str_value=b"],
            "show": "pipeline",
        }
        file.write_text(yaml.safe_dump({"build": options}))
        plain = call(
            "build", "-p", pipeline, "-c", "isr:int_value=1", "-c", "isr:str_value=b", "--show", "pipeline"
        )
        assert call("build", "-@", file).out == plain.out != ""
        assert "int_value" in plain.out
        replaced = call("build", "-@", file, "--config", "isr:int_value=2").out
        assert "int_value: '2'" in replaced
        assert "str_value" not in replaced

    def test_as_pipetask(self, pipeline: Path, tmp_path: Path) -> None:
        """The same file serves both commands, and what it includes."""
        (tmp_path / "base.yaml").write_text(f"build:\n  pipeline: {pipeline}\n")
        file = tmp_path / "options.yaml"
        file.write_text(
            f"includeConfigs: {tmp_path / 'base.yaml'}\n"
            "build:\n  show: [tasks, inputs]\n  select-tasks: isr\n"
        )
        ours, theirs = (run("build", "--options-file", file) for run in (call, pipetask))
        assert (ours.code, theirs.code) == (0, 0), (ours.err, theirs.err)
        # pipetask shows in the order of a set.
        assert sorted(ours.out.splitlines()) == sorted(theirs.out.splitlines())

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("run:\n  input: a\n", "says nothing of `build`"),
            ("build:\n  piepline: a\n", "options.yaml:2: there is no option --piepline."),
            ("build:\n  pipeline: [a, b]\n", "options.yaml:2: pipeline takes one value."),
            ("build: [\n", "options.yaml:2: this is not YAML"),
            ("build:\n  config: [isr]\n", "'isr' is not of the form LABEL:KEY=VALUE"),
            ("build:\n  config:\n  - [isr]\n", "options.yaml:3: config should have a text or a number"),
            ("build:\n  show: [tasks, null]\n", "options.yaml:2: show should have a text or a number"),
            ('build:\n  pipeline: "a\\0b"\n', "options.yaml:2: pipeline should have a text or a number"),
        ],
    )
    def test_wrong(self, text: str, said: str, folder: Path) -> None:
        """File, line and option are named."""
        (folder / "options.yaml").write_text(text)
        one_message(call("build", "-@", "options.yaml"), said)

    def test_missing(self, folder: Path) -> None:
        """A file that is not there is named."""
        one_message(call("build", "-@", "no.yaml"), "no.yaml cannot be read")
