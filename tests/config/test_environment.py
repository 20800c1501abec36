"""`qgexec.config.environment`: the variables of jobs are those that ctrl_bps's own function computes.

That function came with ctrl_bps 30.2026.4300. Where an older one is installed the values are held against
what it gave, and nothing else is compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lsst.ctrl.bps import BpsConfig, transform

from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import RunConfig
from qgexec.errors import UsageError

_THEIRS = getattr(transform, "gather_job_environment", None)

_compared = pytest.mark.skipif(_THEIRS is None, reason="this ctrl_bps puts no environments together")

_PRODUCTION = Path(os.environ.get("QGEXEC_BPS_FILES", Path(__file__).parents[3] / "shared" / "data" / "bps"))
"""Files of the LSST pipelines, where they are at hand; they are not ours to copy."""

_FILES = {
    "tools.yaml": """\
        environment:
          PATH: /tools/bin:${PATH}
          TOOLS: one
          LEVEL: 1
        site: {usdf: {environment: {SITE_TOOLS: "${TOOLS}"}}}
        """,
    "cache.yaml": """\
        cacheRoot: /lscratch/${USER}
        environment:
          PATH: /cache/bin:${PATH}
          CACHE_CONFIG: /cache/config:${CACHE_CONFIG}
          CACHE_MODE: datasets=500
        cluster:
          detectors:
            environment:
              CACHE_MODE: size=1_000_000
              CACHE_CONFIG: /detectors:${CACHE_CONFIG}
              CACHE_FOLDER: "{cacheRoot}/{name}"
        """,
    "main.yaml": """\
        includeConfigs: [tools.yaml, cache.yaml]
        computeSite: usdf
        computeCloud: far
        name: step1
        environment:
          PATH: /own:${PATH}
          TOOLS: two
        cloud: {far: {environment: {PATH: "/cloud:${PATH}", CLOUD: "{name}"}}}
        site:
          usdf:
            name: at_usdf
            environment: {PATH: "/site:${PATH}", HOME_OF_JOB: "$HOME/x", LEVEL: BPS_NONE}
          other: {environment: {PATH: never}}
        pipetask:
          isr: {environment: {PATH: "/isr:${PATH}", TOOLS: "${TOOLS}+isr"}}
          calibrate: {environment: {PATH: "/isr:${PATH}", TOOLS: "${TOOLS}+isr"}}
          coadd: {name: coadds, environment: {SITE_TOOLS: bps_none, CLOUD: "${CLOUD}-${OTHER}"}}
        cluster:
          detectors: {pipetasks: "isr,calibrate", dimensions: detector, environment: {TOOLS: "${TOOLS}+all"}}
        """,
}

_COMMON = {
    "PATH": "/site:/cloud:/own:/cache/bin:/tools/bin:/bin",
    "TOOLS": "two",
    "CACHE_CONFIG": "/cache/config:${CACHE_CONFIG}",
    "CACHE_MODE": "datasets=500",
    "SITE_TOOLS": "${TOOLS}",
    "CLOUD": "at_usdf",
    "HOME_OF_JOB": "/home/me/x",
}
_ISR = _COMMON | {
    "PATH": "/isr:/site:/cloud:/own:/cache/bin:/tools/bin:/bin",
    "TOOLS": "two+isr+all",
    "CACHE_MODE": "size=1_000_000",
    "CACHE_CONFIG": "/detectors:/cache/config:${CACHE_CONFIG}",
    "CACHE_FOLDER": "/lscratch/me/at_usdf",
}
_COADD = {name: value for name, value in _COMMON.items() if name != "SITE_TOOLS"} | {
    "CLOUD": "coadds-${OTHER}"
}


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that includes others, with all kinds of sections; and the environment it is read in."""
    for name, value in {"PATH": "/bin", "HOME": "/home/me", "USER": "me"}.items():
        monkeypatch.setenv(name, value)
    for name in ("TOOLS", "OTHER", "CACHE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    for name, text in _FILES.items():
        (tmp_path / name).write_text(re.sub(r"^ {8}", "", text, flags=re.MULTILINE))
    return tmp_path / "main.yaml"


def _ours(config: RunConfig, label: str) -> dict[str, str]:
    """Return the variables of the jobs of a task."""
    own = config.batch.environments.get(label, {})
    both = {**config.batch.environment, **own}
    return {name: value for name, value in both.items() if value is not None}


def _bps(file: Path, label: str, cluster: str | None = None) -> dict[str, str]:
    """Return what ctrl_bps computes for a task, as `create_generic_workflow` asks for it.

    Its placeholders are replaced as plug-ins do: from the environment of whoever submits.
    """
    assert _THEIRS is not None
    config = BpsConfig(str(file))
    options = config.get_search_opts(cluster or label)
    options |= {"replaceVars": False, "expandEnvVars": False, "replaceEnvVars": True, "required": False}
    options["curvals"]["curr_pipetask"] = label
    return {name: _replaced(str(value)) for name, value in _THEIRS(config, options).items()}


def _replaced(value: str) -> str:
    return re.sub(r"<ENV:([^>]+)>", lambda found: os.environ.get(found[1], f"${{{found[1]}}}"), value)


_CASES: list[tuple[str, str | None, Mapping[str, str]]] = [
    ("isr", "detectors", _ISR),
    ("calibrate", "detectors", _ISR),
    ("coadd", None, _COADD),
    ("plain", None, _COMMON),
]


class TestSections:
    """Files and sections laid over each other."""

    @pytest.mark.parametrize(("label", "cluster", "expected"), _CASES)
    def test_of_a_task(
        self, main: Path, label: str, cluster: str | None, expected: Mapping[str, str]
    ) -> None:
        """Root, cloud, site, task and cluster count in this order; what is not set stays as it is."""
        config = read_config([main])
        assert _ours(config, label) == expected
        assert config.unknown == ()

    @_compared
    @pytest.mark.parametrize(("label", "cluster", "expected"), _CASES)
    def test_as_bps_has_it(
        self, main: Path, label: str, cluster: str | None, expected: Mapping[str, str]
    ) -> None:
        """What is expected here is what ctrl_bps's own function gives."""
        # It takes all after a dollar sign without braces for one name.
        main.write_text(main.read_text().replace("$HOME", "${HOME}"))
        assert _bps(main, label, cluster) == expected

    def test_tasks_of_one_cluster(self, main: Path) -> None:
        """Quanta in the same jobs can only be given the same variables: BPS refuses others, too."""
        main.write_text(main.read_text() + "  more: {pipetasks: 'x,coadd', dimensions: visit}\n")
        with pytest.raises(
            UsageError, match=r"cluster more: tasks x and coadd .*says something else of CLOUD, "
        ):
            read_config([main])

    def test_without_clusters(self, main: Path) -> None:
        """Where another algorithm makes the jobs, what a cluster says holds for none, and is named."""
        main.write_text(f"clusterAlgorithm: single\n{main.read_text()}")
        config = read_config([main])
        assert _ours(config, "isr")["TOOLS"] == "two+isr"
        assert [name.partition(" (")[0] for name in config.unknown] == ["environment"]

    def test_a_value_that_grows(self, tmp_path: Path) -> None:
        """Files that double a value one after the other are refused."""
        for n in range(20):
            text = "environment: {A: '${A}${A}'}" if n else f"environment: {{A: {'x' * 64}}}"
            (tmp_path / f"{n}.yaml").write_text(text)
        with pytest.raises(UsageError, match=r"1\.yaml:1: A grows to \d+ characters"):
            read_config([tmp_path / f"{n}.yaml" for n in range(20)])


@pytest.mark.skipif(not _PRODUCTION.is_dir(), reason="the pipelines' own files are not here")
class TestProduction:
    """Files of the LSST pipelines that name variables which need not be set."""

    @pytest.fixture(autouse=True)
    def environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What their users have set, and what they have not."""
        monkeypatch.setenv("DRP_PIPE_DIR", str(tmp_path))
        monkeypatch.setenv("USER", "me")
        monkeypatch.delenv("DAF_BUTLER_CONFIG_PATH", raising=False)

    @pytest.mark.parametrize("name", ["caching", "compression"])
    def test_alone(self, tmp_path: Path, name: str) -> None:
        """Each is read; the variable that is not set stays as it is."""
        config = read_config([_PRODUCTION / f"{name}_LSSTCam_DRP.yaml"])
        value = config.batch.environment["DAF_BUTLER_CONFIG_PATH"]
        assert value.startswith(f"{tmp_path}/bps/{name}/LSSTCam/")
        assert value.endswith(":${DAF_BUTLER_CONFIG_PATH}")

    @pytest.mark.parametrize("label", ["isr", "calibrateImage", "skyCorr", "none"])
    def test_with_clusters(self, tmp_path: Path, label: str) -> None:
        """All of them in one file: the jobs of a cluster have its environment, all others the common one."""
        files = ["clustering_LSSTCam_DRP-clustering", "caching_LSSTCam_DRP", "compression_LSSTCam_DRP"]
        main = tmp_path / "main.yaml"
        main.write_text(f"includeConfigs: {[f'{_PRODUCTION}/{file}.yaml' for file in files]}\n")
        config = read_config([main, _PRODUCTION / "resources_LSSTCam_DRP.yaml"])
        assert config.unknown == ()
        cluster = {"isr": "step1detector", "calibrateImage": "step1detector", "skyCorr": "skyCorrCluster"}
        found = _ours(config, label)
        in_step1 = cluster.get(label) == "step1detector"
        assert found.get("DAF_BUTLER_CACHE_DIRECTORY") == ("/lscratch/me/step1_cache" if in_step1 else None)
        if _THEIRS is not None:
            assert found == _bps(main, label, cluster.get(label))


_NAMES = st.sampled_from(["A", "B", "C"])
_VALUES = st.lists(
    st.sampled_from(["x", "/y:", "${A}", "${B}", "${SET}", "${UNSET}", "{v}", "{w}"]), min_size=1, max_size=4
).map("".join) | st.sampled_from(["BPS_NONE", "7"])
_ENVIRONMENT = st.dictionaries(_NAMES, _VALUES, max_size=3)
_SECTION = st.fixed_dictionaries({"environment": _ENVIRONMENT}, optional={"v": st.just("own")})


@st.composite
def _tree(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a file's sections."""
    tree: dict[str, Any] = {}
    if draw(st.booleans()):
        tree["environment"] = draw(_ENVIRONMENT)
    for section, name in (("site", "s"), ("cloud", "c"), ("pipetask", "t"), ("cluster", "k")):
        if draw(st.booleans()):
            tree[section] = {name: draw(_SECTION)}
    return tree


@_compared
@settings(max_examples=150, deadline=None)
@given(trees=st.lists(_tree(), min_size=1, max_size=3), clustered=st.booleans())
def test_any_sections(
    trees: list[dict[str, Any]], clustered: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever files say, laid over each other: each job has the variables that ctrl_bps gives it."""
    folder = tmp_path_factory.mktemp("any")
    for n, tree in enumerate(trees):
        (folder / f"{n}.yaml").write_text(yaml.safe_dump(tree))
    main: dict[str, Any] = {"includeConfigs": [f"{n}.yaml" for n in range(len(trees))]}
    main |= {"v": 1, "w": "{v}+", "computeSite": "s", "computeCloud": "c"}
    if clustered:
        main["cluster"] = {"k": {"pipetasks": "t", "dimensions": "visit"}}
    (folder / "main.yaml").write_text(yaml.safe_dump(main))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SET", "set")
        for name in ("A", "B", "C", "UNSET"):
            patch.delenv(name, raising=False)
        config = read_config([folder / "main.yaml"])
        for label, cluster in (("t", "k" if clustered else None), ("other", None)):
            assert _ours(config, label) == _bps(folder / "main.yaml", label, cluster)
