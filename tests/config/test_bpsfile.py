"""`qgexec.config.bpsfile`: what the keys of a BPS configuration mean."""

from __future__ import annotations

import re
from dataclasses import fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lsst.ctrl.bps import BpsConfig, GenericWorkflowJob

from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import RunConfig, TaskSettings, make_policy
from qgexec.errors import UsageError

MIB = 2**20
_DOCS = Path(__file__).parents[2] / "docs"

PRODUCTION = """\
# Adds requestMemory values.
pipetask:
  # Higher of two runs
  isr:
    requestMemory: 4762
  associate:
    requestMemory: 60000  # from 214204. Let it retry 2x.
  fitCycle:
    requestMemory: 480000
    requestCpus: 60
    extraRunQuantumOptions: "-j 1 -n 60"
  fitAstrometry:
    requestMemory: 88165
    requestCpus: 10
    extraRunQuantumOptions: "-j 1 -n 10 --no-raise-on-partial-outputs"
"""


def _file(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def _config(folder: Path, text: str) -> RunConfig:
    return read_config([_file(folder, text)])


def test_production_file(tmp_path: Path) -> None:
    """A file of the shape that production has is read as it is, and warns of nothing."""
    config = _config(tmp_path, PRODUCTION)
    assert config == RunConfig(
        {},
        {
            "isr": {"memory_bytes": 4762 * MIB},
            "associate": {"memory_bytes": 60000 * MIB},
            "fitCycle": {"memory_bytes": 480000 * MIB, "cores": 60, "other_options": None},
            "fitAstrometry": {
                "memory_bytes": 88165 * MIB,
                "cores": 10,
                "other_options": "--no-raise-on-partial-outputs",
            },
        },
    )
    assert config.unknown == ()


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("requestMemory: 2048", {"memory_bytes": 2048 * MIB}),
        ("requestMemory: '2048'", {"memory_bytes": 2048 * MIB}),
        ("requestMemory: 2e3", {"memory_bytes": 2000 * MIB}),
        ("requestMemory: null", {"memory_bytes": None}),
        ("requestMemoryMax: 5", {"memory_max_bytes": 5 * MIB}),
        ("memoryLimit: 6", {"memory_limit_bytes": 6 * MIB}),
        ("memoryMultiplier: 1.5", {"memory_multiplier": 1.5}),
        ("memoryMultiplier: 1", {"memory_multiplier": 1.0}),
        ("requestCpus: 4", {"cores": 4}),
        ("requestWalltime: 90", {"timeout_s": 90.0}),
        ("requestWalltime: 0.5", {"timeout_s": 0.5}),
        ("requestWalltime: '01:30:00'", {"timeout_s": 5400.0}),
        ("requestWalltime: 1:30:00", {"timeout_s": 5400.0}),
        ("requestWalltime: 0:30", {"timeout_s": 30.0}),
        ("requestWalltime:", {"timeout_s": None}),
        ("numberOfRetries: 0", {"n_retries": 0}),
        ("enforceMemory: true", {"enforce_memory": True}),
        ("enforceMemory: off", {"enforce_memory": False}),
        ("retryUnlessExit: 2", {"retry_unless_exit": [2]}),
        ("retryUnlessExit: [1, 2]", {"retry_unless_exit": [1, 2]}),
        ("retryUnlessExit: null", {"retry_unless_exit": None}),
        ("retries: {lost: 0, outOfMemory: 1, timeLimit: 2}", {"lost": 0, "out_of_memory": 1, "timed_out": 2}),
        ("retries: {exceptions: {OSError: 2, a.b.C: 0}}", {"exceptions": {"OSError": 2, "a.b.C": 0}}),
        ("retries: {exitCodes: {3: 1}}", {"exit_codes": {3: 1}}),
        ("retries: {signals: {SIGSEGV: 0, 7: 1}}", {"signals": {11: 0, 7: 1}}),
        ("retries: {signals: null}", {"signals": None}),
    ],
)
def test_values(tmp_path: Path, text: str, settings: TaskSettings) -> None:
    """Each key means the same at top level and under a label."""
    assert _config(tmp_path, text) == RunConfig(settings)
    below = "".join(f"\n    {line}" for line in text.splitlines())
    assert _config(tmp_path, f"pipetask:\n  a:{below}") == RunConfig({}, {"a": settings})


def test_what_means_nothing_here(tmp_path: Path) -> None:
    """Keys of BPS that tell a run nothing are read and left out."""
    text = "requestDisk: 5\nsite: {x: {class: y, retries: 1}}\npayload: {butlerConfig: r}"
    assert _config(tmp_path, text) == RunConfig({})


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("requestMemory: 8 GB", "requestMemory"),
        ("requestMemory: 0", "requestMemory"),
        ("requestMemory: -1", "requestMemory"),
        ("requestMemory: 1.5", "requestMemory"),
        ("requestMemory: true", "requestMemory"),
        ("requestMemory: .inf", "requestMemory"),
        ("requestMemory: .nan", "requestMemory"),
        ("requestMemory: ''", "requestMemory"),
        ("requestMemory: [1]", "one value"),
        ("requestMemory: {a: 1}", "one value"),
        ("requestMemory: bpsEval(max, 1)", "requestMemory"),
        ("requestMemory: '{nothing}'", "nothing"),
        ("requestMemoryMax: much", "requestMemoryMax"),
        ("memoryLimit: 2021-01-01", "memoryLimit"),
        ("memoryMultiplier: 0", "memoryMultiplier"),
        ("memoryMultiplier: .inf", "memoryMultiplier"),
        ("requestCpus: 0", "requestCpus"),
        ("requestCpus: 1.5", "requestCpus"),
        ("requestWalltime: 0", "requestWalltime"),
        ("requestWalltime: 1h", "requestWalltime"),
        ("requestWalltime: '1:99'", "requestWalltime"),
        ("numberOfRetries: -1", "numberOfRetries"),
        ("numberOfRetries: many", "numberOfRetries"),
        ("enforceMemory: 1", "enforceMemory"),
        ("retryUnlessExit: all", "retryUnlessExit"),
        ("retryUnlessExit: [1, x]", "retryUnlessExit"),
        ("retries: 3", "section"),
        ("retries: {lost: -1}", "retries: lost"),
        ("retries: {exceptions: 2}", "section"),
        ("retries: {exceptions: {'no name': 2}}", "no name"),
        ("retries: {exceptions: {OSError: x}}", "OSError"),
        ("retries: {exitCodes: {300: 1}}", "300"),
        ("retries: {exitCodes: {-1: 1}}", "-1"),
        ("retries: {signals: {SIGNOTHING: 1}}", "SIGNOTHING"),
        ("retries: {signals: {0: 1}}", "0"),
    ],
)
def test_wrong_values(tmp_path: Path, text: str, name: str) -> None:
    """They are refused with file, line and name, at top level and under a label."""
    for before in ("x: &y 1\n", "pipetask:\n  a:\n    numberOfRetries: 1\n    "):
        path = _file(tmp_path, before + text)
        with pytest.raises(UsageError, match=re.escape(name)) as raised:
            read_config([path])
        assert raised.value.message.startswith(f"{path}:{before.count(chr(10)) + 1}: ")


@pytest.mark.parametrize("text", ["pipetask: 5", "pipetask: [a]", "pipetask:\n  isr: 4096", "payload: x"])
def test_no_sections(tmp_path: Path, text: str) -> None:
    """A value where a section should be is refused with file and line."""
    path = _file(tmp_path, text)
    with pytest.raises(UsageError, match="section") as raised:
        read_config([path])
    assert raised.value.message.startswith(f"{path}:{text.count(chr(10)) + 1}: ")


class TestUnknown:
    """Keys that mean nothing."""

    def test_named_with_place_and_what_they_may_be(self, tmp_path: Path) -> None:
        """Each is named once, with its line and what it looks like, wherever it stands."""
        path = _file(
            tmp_path,
            "requestMemmory: 5\npipetasks: {}\nretries: {lots: 1}\npipetask:\n"
            "  isr:\n    colour: red\n    bpsGenerateConfig: os.system(x)\n"
            "    requestCpus: 1\n    requestCpus: 2\n",
        )
        assert read_config([path]).unknown == (
            f"requestMemmory ({path}:1; is it requestMemory?)",
            f"pipetasks ({path}:2; is it pipetask?)",
            f"lots ({path}:3)",
            f"colour ({path}:6)",
            f"bpsGenerateConfig ({path}:7; it would run code: write out what it makes)",
            f"requestCpus ({path}:9; it stood there before, this one counts)",
        )

    def test_sites_and_clouds_that_are_not_there(self, tmp_path: Path) -> None:
        """A site that has no section is named, but not where no site has one: then it is only a name."""
        text = "computeSite: heer\ncomputeCloud: c\nsite: {here: {queue: q}, there: {}}\n"
        path = _file(tmp_path, text)
        assert read_config([path]).unknown == (
            f"computeSite ({path}:1; no section `heer` below `site`, which has here, there)",
        )
        assert read_config([path], site="here").unknown == ()

    def test_upstreams_own_keys(self, tmp_path: Path) -> None:
        """BPS's file of defaults is read as it is; every attribute that its jobs have is known."""
        with as_file(files("lsst.ctrl.bps") / "etc" / "bps_defaults.yaml") as path:
            config = read_config([path])
        assert config.unknown == ()
        assert make_policy(config, ["a"]).rules_of("a").request.memory_bytes == 2048 * MIB
        of_its_own = {"name", "label", "quanta_counts", "tags", "cmdvals"}
        names = [f.name.split("_") for f in fields(GenericWorkflowJob) if f.name not in of_its_own]
        keys = [first + "".join(word.title() for word in more) for first, *more in names]
        assert _config(tmp_path, "".join(f"{key}:\n" for key in keys)).unknown == ()

    def test_variables_are_known(self, tmp_path: Path) -> None:
        """A key that some value refers to has a meaning, if only that."""
        text = "mine: 5\nsubDirTemplate: '{mine}/{tract}'\npipetask: {isr: {tract: 9}}\n"
        assert _config(tmp_path, text).unknown == ()


class TestPrecedence:
    """Of several places that say the same thing one counts, as in BPS."""

    def test_order(self, tmp_path: Path) -> None:
        """Payload, task, site, cloud, top level."""
        places = {
            "payload": "payload:\n  requestCpus: 5\n",
            "task": "pipetask:\n  isr:\n    requestCpus: 4\n",
            "site": "computeSite: here\nsite:\n  here:\n    requestCpus: 3\n  there:\n    requestCpus: 9\n",
            "cloud": "computeCloud: sky\ncloud:\n  sky:\n    requestCpus: 2\n",
            "top": "requestCpus: 1\n",
        }
        expected = [(5, 5), (4, 3), (3, 3), (2, 2), (1, 1)]
        for number, cores in enumerate(expected):
            config = _config(tmp_path, "".join(list(places.values())[number:]))
            assert tuple(config.settings(label).get("cores") for label in ("isr", "other")) == cores

    def test_later_files(self, tmp_path: Path) -> None:
        """A later file counts, but a task's own value stays above what is for all, in whatever file."""
        first = _file(
            tmp_path, "requestCpus: 1\npipetask: {isr: {requestMemory: 1, requestCpus: 2}}", "1.yaml"
        )
        second = _file(tmp_path, "requestCpus: 3\npipetask: {isr: {requestMemory: 5}}", "2.yaml")
        assert read_config([first, second]) == RunConfig(
            {"cores": 3}, {"isr": {"memory_bytes": 5 * MIB, "cores": 2}}
        )

    def test_a_label_that_repeats_the_default(self, tmp_path: Path) -> None:
        """What is said under a label is the label's, even where it equals what is said for all."""
        config = _config(tmp_path, "requestCpus: 4\npipetask: {isr: {requestCpus: 4}}")
        later = config.updated(RunConfig({"cores": 1}))
        assert [later.settings(label).get("cores") for label in ("isr", "other")] == [4, 1]

    def test_null_takes_back(self, tmp_path: Path) -> None:
        """An empty value under a label takes back what is said for all."""
        config = _config(tmp_path, "requestWalltime: 60\npipetask: {isr: {requestWalltime: null}}")
        policy = make_policy(config, ["isr", "other"])
        assert [policy.rules_of(label).timeout_s for label in ("isr", "other")] == [None, 60.0]

    def test_variables_of_a_task(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A value for all may depend on what a task says, and on the environment."""
        monkeypatch.setenv("CORES", "3")
        text = "mem: 7\nrequestMemory: '{mem}'\nrequestCpus: ${CORES}\npipetask: {isr: {mem: 9}, other: {}}"
        assert _config(tmp_path, text) == RunConfig(
            {"memory_bytes": 7 * MIB, "cores": 3}, {"isr": {"memory_bytes": 9 * MIB}, "other": {}}
        )

    def test_tables_of_retries_add_up(self, tmp_path: Path) -> None:
        """A task's budgets are added to those for all; of the same name the task's counts."""
        text = (
            "retries: {lost: 1, exceptions: {A: 1, B: 1}}\n"
            "pipetask: {isr: {retries: {exceptions: {B: 2, C: 2}}}}\n"
        )
        retries = make_policy(_config(tmp_path, text), ["isr"]).rules_of("isr").retries
        assert (retries.lost, retries.exceptions) == (1, {"A": 1, "B": 2, "C": 2})


_COMPARED = {"requestMemory": "memory_bytes", "requestCpus": "cores", "numberOfRetries": "n_retries"}
_VARIABLES = ("u", "v", "w")
_number = st.integers(1, 9)
_section = st.fixed_dictionaries(
    {},
    optional={key: _number | st.sampled_from([f"{{{name}}}" for name in _VARIABLES]) for key in _COMPARED}
    | dict.fromkeys(_VARIABLES, _number),
)
_tree = st.builds(
    lambda top, sections: top | sections,
    _section,
    st.fixed_dictionaries(
        {"pipetask": st.dictionaries(st.sampled_from("ab"), _section)},
        optional={
            "payload": _section,
            "site": st.fixed_dictionaries({"here": _section, "there": _section}),
            "cloud": st.fixed_dictionaries({"here": _section}),
        },
    ),
)
_CHOSEN = {"computeSite": "here", "computeCloud": "here", "includeConfigs": ["one.yaml", "two.yaml"]}


@settings(max_examples=60, deadline=None)
@given(_tree, _tree, _tree)
def test_as_upstream_reads_it(
    tmp_path_factory: pytest.TempPathFactory, top: dict[str, Any], one: dict[str, Any], two: dict[str, Any]
) -> None:
    """Sections, includes and variables: every value for every task is that which BPS finds."""
    folder = tmp_path_factory.mktemp("bps")
    top = dict.fromkeys(_VARIABLES, 7) | top | _CHOSEN
    for name, tree in (("top.yaml", top), ("one.yaml", one), ("two.yaml", two)):
        _file(folder, yaml.safe_dump(tree), name)
    upstream, config = BpsConfig(str(folder / "top.yaml")), read_config([folder / "top.yaml"])
    for label in ("a", "b", "other"):
        current = {"curr_pipetask": label, "curr_site": "here", "curr_cloud": "here"}
        for key, name in _COMPARED.items():
            found, value = upstream.search(key, opt={"curvals": current})
            unit = MIB if key == "requestMemory" else 1
            assert config.settings(label).get(name) == (int(value) * unit if found else None)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("-j 1 -n 10", None),
        ("--cores-per-quantum 10 -j 4", None),
        ("-n 4", "-n 4"),
        ("-j 1 --no-versions -n 10", "--no-versions"),
        ("it's", "it's"),
        ("-n", "-n"),
        ("''", None),
    ],
)
def test_options_of_a_task(tmp_path: Path, options: str, left: str | None) -> None:
    """What `requestCpus` says already is left out; everything else is kept to be told."""
    quoted = options if options == "''" else f'"{options}"'
    text = f"pipetask: {{a: {{requestCpus: 10, extraRunQuantumOptions: {quoted}}}}}"
    assert _config(tmp_path, text).tasks["a"].get("other_options") == left


def _examples(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (_DOCS / page).read_text(), flags=re.DOTALL)


class TestPage:
    """The examples in the documentation."""

    @pytest.mark.parametrize("text", _examples("resources.md") + _examples("when-things-go-wrong.md"))
    def test_example_is_read(self, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is right in every key, and makes a policy."""
        monkeypatch.setenv("DRP_PIPE_DIR", str(tmp_path))
        folder = tmp_path / "bps" / "resources" / "LSSTCam"
        folder.mkdir(parents=True)
        (folder / "DRP.yaml").write_text(PRODUCTION)
        config = _config(tmp_path, text)
        assert config.unknown == ()
        assert make_policy(config, config.tasks).rules.keys() == config.tasks.keys()

    def test_its_claims(self, tmp_path: Path) -> None:
        """What the page says about an example comes out of it."""
        config = _config(tmp_path, _examples("resources.md")[-1])
        policy = make_policy(config.updated(RunConfig({"memory_bytes": 3 * 10**9, "cores": 1})), ["isr", "x"])
        requests: list[Any] = [policy.rules_of(label).request for label in ("isr", "x")]
        assert [(request.memory_bytes, request.cores) for request in requests] == [
            (6144 * MIB, 1),
            (3 * 10**9, 1),
        ]
