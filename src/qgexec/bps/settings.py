"""Owns what a BPS configuration, as ctrl_bps hands it over, means here: a file of resources and a command.

What the keys about memory, time, retries, sites and clusters mean is left to `qgexec.config.bpsfile`; here
the sections that only ctrl_bps has (``bps_cmdline``, ``bps_defined``) are laid where that reads them.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from lsst.ctrl.bps import BPS_DEFAULTS
from lsst.daf.butler import Config

from qgexec.books.rundir import write_aside
from qgexec.bps.clustering import ALGORITHMS, ORDERING_ASIDE
from qgexec.bps.refusal import Refusal
from qgexec.cli.run import building, run, submit
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import RunConfig
from qgexec.errors import RepositoryError, UsageError
from qgexec.models.batch import BatchModel
from qgexec.models.registry import facts_of, find_model, takes_setting
from qgexec.plaintext import few
from qgexec.rubin.collections import collection_type
from qgexec.rubin.repository import open_butler, require_writeable

__all__ = ["Settings", "check_service"]

_logger = logging.getLogger(f"lsst.{__name__}")  # what the --log-level of bps is about

_NOT_RUN = "it is not run: qgexec executes the quanta itself"
_TAKEN_IN = "outputs are taken into the registry by qgexec, while the run goes on and at its end"

_IGNORED = {
    "runQuantumCommand": _NOT_RUN,
    "extraInitOptions": "init-outputs are written by qgexec",
    "extraAggregateOptions": _TAKEN_IN,
    "fileDistributionEndPoint": "jobs read the graph in the run directory, and the repository where it is",
}
"""Keys that make another service do something else than this one, where they are not BPS's defaults."""

_IGNORED_OF_JOBS = {
    "provisionResources": "jobs wait for the machines that the batch system has",
    **dict.fromkeys(
        ("concurrencyLimit", "nodeset", "preemptible", "priority", "profile", "releaseExpr", "requestDisk"),
        "say it in submitLines, in the words of the batch system",
    ),
}
"""Likewise, where a batch system runs the quanta."""

_BPS_CLUSTERING = "lsst.ctrl.bps.quantum_clustering_funcs"

_ALGORITHM_NAMES = {
    "auto": "qgexec.bps.auto",
    "chunks": "qgexec.bps.chunks",
    "dimensions": f"{_BPS_CLUSTERING}.dimension_clustering",
    "single": f"{_BPS_CLUSTERING}.single_quantum_clustering",
}
"""Our names of algorithms, and those by which ctrl_bps imports them."""

_OF_THE_SERVICE = {"run_dir", "model", "init_only", "dry_run"}
"""Options that the service gives itself, or that would execute nothing; so are those of building a graph."""


_BY_NAME = ("pipetask", "cluster")
"""Sections whose own sections count for the task, or the cluster, that they name."""


class Settings:
    """A configuration, and what follows from it.

    Parameters
    ----------
    config : `lsst.ctrl.bps.BpsConfig`
        As ctrl_bps gives it to a service.

    Raises
    ------
    qgexec.errors.QgexecError
        A value makes no sense, or there is no such model.
    """

    def __init__(self, config: Any) -> None:
        self._config = config
        self._places: dict[str, str] = {}
        site, cloud = self._text("computeSite"), self._text("computeCloud")
        # Without a name ctrl_bps would take the section of all sites for that of one.
        self._places = {k: v for k, v in (("curr_site", site), ("curr_cloud", cloud)) if v}
        self.model = self._text("qgexecModel") or "pool"
        self.ends = facts_of(self.model).survives_driver
        """The command ends when the run is handed over to a batch system."""
        self.processes = self._whole("qgexecProcesses") or len(os.sched_getaffinity(0))
        self.waits = self._yes_or_no("qgexecWait")
        repository = self._text("butlerConfig")
        # An alias stays what it is; a folder is to be found from wherever the run is restarted.
        self.repository = (
            str(Path(repository).absolute()) if repository and Path(repository).exists() else repository
        )

    def _value(self, key: str) -> Any:
        with _evaluating(key):
            return self._config.search(key, opt={"default": "", "curvals": dict(self._places)})[1]

    def _text(self, key: str) -> str:
        value = self._value(key)
        return "" if value is None or isinstance(value, Mapping) else str(value).strip()

    def _whole(self, key: str) -> int | None:
        text = self._text(key)
        if text and not (text.isdecimal() and int(text) > 0):
            raise UsageError(f"{key} is {text!r}, which is no number of processes", hint="Give 1 or more.")
        return int(text) if text else None

    def _yes_or_no(self, key: str) -> bool:
        text = self._text(key).lower()
        if text not in ("", "true", "false"):
            raise UsageError(f"{key} is {text!r}, which is neither true nor false")
        return text == "true"

    def check(self) -> None:
        """Find what is wrong before anything is made: neither submit directory nor graph.

        Raises
        ------
        qgexec.errors.QgexecError, Refusal
            It cannot be executed like this.
        """
        self._check_payload()
        self._check_final_job()
        with tempfile.TemporaryDirectory(prefix="qgexec-") as folder:
            file = Path(folder) / "qgexec.yaml"
            self.write_resources(file)
            config = _read(file)
            for name in config.unknown:
                _logger.warning("Of no meaning in the BPS configuration: %s", _without_place(name, file))
            if config.batch.environments and not self.ends:
                own = few(list(config.batch.environments))
                _logger.warning(
                    "Model %s has one environment for all tasks: not taken of %s", self.model, own
                )
            self._check_options(self.arguments("graph.qg", file, Path(folder), extends=False))
        try:
            with open_butler(self.repository, writeable=True) as butler:
                require_writeable(butler)
        except RepositoryError as error:
            error.hint = "It is butlerConfig of the BPS configuration."
            raise
        check_service(self.model)
        for remark in self.remarks():
            _logger.warning("%s", remark)

    def _check_payload(self) -> None:
        if not self.repository:
            raise UsageError(
                "the BPS configuration names no repository", hint="Write `butlerConfig` below `payload`."
            )
        graph = self._text("qgraphFile")
        if graph and not Path(graph).is_file():
            raise UsageError(f"qgraphFile: there is no file {graph}")
        pipeline = os.path.expandvars(self._text("pipelineYaml"))
        if not graph and not pipeline:
            raise UsageError(
                "the BPS configuration names neither a pipeline nor a graph",
                hint="Write `pipelineYaml`, or `qgraphFile`.",
            )
        file = pipeline.partition("#")[0]
        if not graph and "://" not in file and not Path(file).is_file():
            raise UsageError(f"pipelineYaml: there is no file {file}")
        self._check_program("updateQuantumGraph" if graph else "createQuantumGraph")
        if self._text("bpsBatchSubmission").lower() == "true":
            raise UsageError(
                "bpsBatchSubmission is true, and qgexec puts nothing but quanta into batch jobs",
                hint="Leave it out: the graph is made where bps submit runs.",
            )
        name = self._text("clusterAlgorithm")
        if name and name not in {*ALGORITHMS, *_ALGORITHM_NAMES.values()}:
            known = _ALGORITHM_NAMES.get(name)
            raise UsageError(
                f"clusterAlgorithm is {name!r}, which "
                f"{'is of your own, and not run' if known is None else 'ctrl_bps would not find'}",
                hint=f"In a BPS configuration write `clusterAlgorithm: {known or 'qgexec.bps.auto'}`.",
            )

    def _check_final_job(self) -> None:
        """Refuse what would leave something else in the repository than another service does."""
        final = _plain(self._config).get("finalJob") or {}
        more = [key for key in final if re.fullmatch(r"command\d+", key) and key != "command1" and final[key]]
        if more:
            raise UsageError(
                f"finalJob: {more[0]} of the BPS configuration is a command of your own, which is not run",
                hint="Leave it out, and run it when `bps status --id DIR` says that the run has ended.",
            )
        if (when := str(final.get("whenRun") or "ALWAYS")).upper() != "ALWAYS":
            raise UsageError(
                f"finalJob: whenRun of the BPS configuration is {when}, and {_TAKEN_IN}, always",
                hint='Leave it out. To leave the output chain alone: `finalJob: {updateOutputChain: ""}`.',
            )

    def _check_program(self, key: str) -> None:
        """Check that what makes the graph is there, for ctrl_bps would say it with a traceback."""
        written = self._config.search(key, opt={"default": "", "replaceVars": False})[1]
        try:
            program = os.path.expandvars(next(iter(shlex.split(str(written))), ""))
        except ValueError:  # an open quotation mark; ctrl_bps splits it likewise, and says so
            return
        if re.search(r"(?<!\$)\{", program):  # what ctrl_bps will put there is not known yet
            return
        if program and shutil.which(program) is None:
            raise UsageError(
                f"{key} of the BPS configuration: there is no program {program}",
                hint="Set up the stack. Without one: export CTRL_MPEXEC_DIR=$VIRTUAL_ENV"
                if "CTRL_MPEXEC_DIR" in program
                else "Set up the stack, or the environment that it is in.",
            )

    def _check_options(self, command: list[str]) -> None:
        """Check what is given to a command besides what this service gives it."""
        verb, name = (submit if self.ends else run), f"qgexec {command[0]}"
        told = list(self._options())
        own = command[: len(command) - len(told)]
        begin = "extraRunQuantumOptions of the BPS configuration:"
        if {"-h", "--help"} & set(told):
            raise Refusal(f"{begin} with --help `{name}` would execute nothing\nLeave it out.")
        try:
            found, plain = (verb.make_context(name, words[1:]).params for words in (command, own))
        except click.ClickException as error:
            raise Refusal(
                f"{begin} {error.format_message()}\n"
                f"They are given to `{name}`, which has options of the same names as pipetask."
            ) from error
        for option in verb.params:
            is_ours = option.name in _OF_THE_SERVICE or option.name in _names_of_building()
            if is_ours and found.get(str(option.name)) != plain.get(str(option.name)):
                raise Refusal(
                    f"{begin} {option.opts[-1]} is not taken from there\n"
                    "Repository, graph, collections and model have keys of their own: docs/bps.md."
                )

    def remarks(self) -> Iterator[str]:
        """Yield a sentence for each key that would have made another service do something else."""
        tree = _plain(self._config)
        sections = {"": tree, "payload: ": tree.get("payload") or {}}
        sections |= {f"pipetask: {label}: ": own for label, own in (tree.get("pipetask") or {}).items()}
        if (site := self._places.get("curr_site")) is not None:
            sections[f"site: {site}: "] = (tree.get("site") or {}).get(site)
        ignored = _IGNORED | (_IGNORED_OF_JOBS if self.ends else {})
        for prefix, section in sections.items():
            default = BPS_DEFAULTS["pipetask"]["pipetaskInit"] if "pipetaskInit" in prefix else BPS_DEFAULTS
            for key, why in ignored.items():
                value = (section or {}).get(key)
                if value not in (None, "", {}, default.get(key, False)):
                    yield f"{prefix}{key} of the BPS configuration is ignored: {why}."
        command = (tree.get("finalJob") or {}).get("command1")
        if command and command != BPS_DEFAULTS["finalJob"].get("command1"):
            yield f"finalJob: command1 of the BPS configuration is ignored: {_TAKEN_IN}."

    def write_resources(self, file: Path) -> None:
        """Write what ``--resources`` is to name."""
        text = yaml.safe_dump(self._resources(), sort_keys=False, allow_unicode=True)
        write_aside(file, lambda stream: stream.write(text.encode()))

    def _resources(self) -> dict[str, Any]:
        tree = _plain(self._config)
        told = tree.pop("bps_cmdline", None) or {}
        tree |= (tree.pop("bps_defined", None) or {}) | told
        if (ordering := tree.pop(ORDERING_ASIDE, None)) is not None:
            tree["ordering"] = ordering
        tree["payload"] = (tree.get("payload") or {}) | told
        site = (tree.get("site") or {}).get(self._places.get("curr_site"))
        cloud = (tree.get("cloud") or {}).get(self._places.get("curr_cloud"))
        for section in (tree, tree["payload"], site, cloud):
            if isinstance(section, dict):
                section.pop("extraRunQuantumOptions", None)  # given to the command
                _rename_algorithm(section)
        self._evaluate(tree, self._places)
        for kind in _BY_NAME:
            for name, own in (tree.get(kind) or {}).items():
                if isinstance(own, dict):
                    self._evaluate(own, {**self._places, f"curr_{kind}": name})
        return tree

    def _evaluate(self, section: dict[str, Any], current: Mapping[str, str]) -> None:
        """Have ctrl_bps evaluate what only it does: ``bpsEval``."""
        for key, value in section.items():
            if isinstance(value, dict) and key not in _BY_NAME:
                self._evaluate(value, current)
            elif isinstance(value, str) and "bpsEval(" in value:
                with _evaluating(key):
                    section[key] = self._config.replace_vars(value, {"curvals": dict(current)})

    def command(self, graph: str, resources: Path, run_dir: Path) -> list[str]:
        """Return the arguments of `qgexec` that execute a graph as this configuration has it.

        Raises
        ------
        qgexec.errors.RepositoryError
            The repository cannot be opened.
        """
        with open_butler(self.repository) as butler:
            extends = collection_type(butler, self._text("outputRun")) is not None
        return self.arguments(graph, resources, run_dir, extends=extends)

    def arguments(self, graph: str, resources: Path, run_dir: Path, *, extends: bool) -> list[str]:
        """Return the same, for an output RUN that exists already or not; asks no repository."""
        command = ["submit" if self.ends else "run", "-b", self.repository, "-g", graph]
        command += ["--run-dir", str(run_dir), "--resources", str(resources), "--model", self.model]
        command.append("--register-dataset-types")
        if not self.ends:
            command += ["-j", str(self.processes)]
        if extends:  # as `pipetask run-qbb` does it in a RUN that exists
            command += ["--extend-run", "--clobber-outputs"]
        told = self._config.search(".finalJob.updateOutputChain", opt={"default": ""})[1]
        if "--update-output-chain" not in str(told).split():
            command.append("--no-output-chain")
        return command + list(self._options())

    def _options(self) -> Iterator[str]:
        """Yield ``extraRunQuantumOptions`` but for ``-j``, which is about the processes of one job."""
        words = iter(_words(self._text("extraRunQuantumOptions")))
        for word in words:
            if word in ("-j", "--processes"):
                next(words, None)
            elif not re.match(r"-j\d|--processes=", word):
                yield word


@functools.cache
def _names_of_building() -> frozenset[str]:
    """Return the names of the options that say of which repository and graph a run is."""

    @click.command()
    @building
    def probe(**_: object) -> None: ...

    return frozenset(str(option.name) for option in probe.params)


@contextmanager
def _evaluating(key: str) -> Iterator[None]:
    """Name the key whose value cannot be evaluated."""
    try:
        yield
    except Exception as error:
        raise UsageError(
            f"{key} of the BPS configuration cannot be evaluated: {error}",
            hint="Look at its variables; a call is written `bpsEval(package.module.name, argument, ...)`.",
        ) from error


def check_service(name: str) -> bool:
    """Check that what a model submits to answers; return whether it submits to anything.

    Raises
    ------
    qgexec.errors.ModelError
        It does not answer, or there is no such model.
    """
    settings = {"settings": BatchSettings()} if takes_setting(name, "settings") else {}
    model = find_model(name, **settings)
    if not isinstance(model, BatchModel):
        return False
    model.system.check()
    return True


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"extraRunQuantumOptions is {text!r}: {error}") from error


def _plain(config: Any) -> dict[str, Any]:
    """Return a configuration as it stands, with no variable replaced."""
    plain: dict[str, Any] = Config(config).toDict()
    return plain


def _rename_algorithm(section: dict[str, Any]) -> None:
    name = section.get("clusterAlgorithm")
    if name in ALGORITHMS:
        ours = ALGORITHMS[name]
        if ours is None:
            del section["clusterAlgorithm"]
        else:
            section["clusterAlgorithm"] = ours


def _read(file: Path) -> RunConfig:
    """Read a file of resources that nobody will find after this."""
    try:
        return read_config([file])
    except UsageError as error:
        error.message = f"the BPS configuration cannot be executed: {_without_place(error.message, file)}"
        raise


def _without_place(text: str, file: Path) -> str:
    return re.sub(rf"{re.escape(str(file))}:\d+(: |; )?", "", text).replace(" ()", "")
