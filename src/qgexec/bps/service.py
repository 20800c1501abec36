"""`QgexecService`, the class that ``wmsServiceClass`` names: BPS's verbs, each in qgexec's own."""

from __future__ import annotations

import getpass
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from lsst.ctrl.bps import BaseWmsService, BaseWmsWorkflow, WmsRunReport, WmsStates
from lsst.daf.butler import Config

from qgexec.batch.rounds import last_round
from qgexec.books.journal import has_ended, last_epoch
from qgexec.books.rundir import RunDir
from qgexec.books.trust import check_trusted
from qgexec.bps.jobs import BatchJobs, job_reports
from qgexec.bps.launch import launch
from qgexec.bps.refusal import Refusal, refusing
from qgexec.bps.reporting import report_of, state_of, words_on
from qgexec.bps.settings import Settings, check_service
from qgexec.bps.submission import Submission, remember, remembered
from qgexec.config.batchsettings import BatchSettings
from qgexec.config.bpsfile import read_config
from qgexec.errors import JournalError, QgexecError, RunDirError
from qgexec.offline import cancel
from qgexec.reports.report import RunReport, read_report, read_run

__all__ = ["QgexecService", "QgexecWorkflow"]

_logger = logging.getLogger(f"lsst.{__name__}")  # what the --log-level of bps is about

_DAY_S = 86400.0

_CLOSING_MEMORY_MB = BatchSettings().closing_memory_bytes >> 20


class QgexecWorkflow(BaseWmsWorkflow):
    """A run that is ready to be begun.

    Parameters
    ----------
    name
        What ctrl_bps calls it.
    config : `lsst.ctrl.bps.BpsConfig`
        BPS configuration.
    submission
        The submit directory, and what is to be done.
    """

    def __init__(self, name: str, config: Any, submission: Submission) -> None:
        super().__init__(name, config)
        self.submission = submission
        self.submit_path = str(submission.path)

    @classmethod
    def from_generic_workflow(
        cls, config: Any, generic_workflow: Any, out_prefix: str, service_class: str
    ) -> Self:
        """Return the run that a configuration describes.

        Of the generic workflow only name and attributes are needed: jobs are made of the graph itself.

        Parameters
        ----------
        config : `lsst.ctrl.bps.BpsConfig`
            BPS configuration.
        generic_workflow : `lsst.ctrl.bps.GenericWorkflow`
            What ctrl_bps has made of it.
        out_prefix
            The submit directory.
        service_class
            Name of the service's class.
        """
        settings = Settings(config)
        path = Path(out_prefix).absolute()
        draft = Submission(path, generic_workflow.name, (), settings.ends)
        told = generic_workflow.run_attrs
        submission = Submission(
            path,
            generic_workflow.name,
            tuple(
                settings.command(
                    str(Path(config["runQgraphFile"]).absolute()), draft.resources, draft.run_dir
                )
            ),
            settings.ends,
            settings.waits,
            {
                name: str(told.get(f"bps_{name}") or "")
                for name in ("project", "campaign", "payload", "operator", "runsite")
            },
        )
        workflow = cls(generic_workflow.name, config, submission)
        workflow.service_class = service_class
        return workflow

    def write(self, out_prefix: str) -> None:
        """Write what `qgexec` is to read.

        Parameters
        ----------
        out_prefix
            The submit directory.
        """
        Settings(self.config).write_resources(self.submission.resources)
        self.submission.write()


class QgexecService(BaseWmsService):
    """Executes the quantum graphs of BPS on qgexec's execution models.

    The key ``qgexecModel`` of the configuration names the model. The identifier of a run is its submit
    directory.

    Parameters
    ----------
    config : `lsst.ctrl.bps.BpsConfig`
        BPS configuration; empty for all verbs but ``prepare`` and ``submit``.
    """

    @property
    def defaults(self) -> Config:
        """What is laid over ctrl_bps's defaults, below the user's configuration."""
        return Config(
            {
                "clusterAlgorithm": "qgexec.bps.by_task",
                "finalJob": {"requestMemory": _CLOSING_MEMORY_MB, "requestCpus": 1},
            }
        )

    def run_submission_checks(self) -> None:
        """Find what is wrong with a configuration before anything is made.

        Raises
        ------
        Refusal
            It cannot be executed; the message says why.
        """
        with refusing():
            Settings(self.config).check()

    def prepare(self, config: Any, generic_workflow: Any, out_prefix: str | None = None) -> QgexecWorkflow:
        """Write into the submit directory all that executing the graph needs.

        Parameters
        ----------
        config : `lsst.ctrl.bps.BpsConfig`
            BPS configuration.
        generic_workflow : `lsst.ctrl.bps.GenericWorkflow`
            What ctrl_bps has made of it.
        out_prefix
            The submit directory.

        Raises
        ------
        Refusal
            There is no graph to execute, or the configuration is wrong.
        """
        if generic_workflow.run_attrs.get("bps_iscustom"):
            raise Refusal(
                "qgexec executes quantum graphs, and no other commands: bps submitcmd needs another service\n"
                "Name it with --wms-service-class."
            )
        service_class = f"{type(self).__module__}.{type(self).__name__}"
        with refusing():
            workflow = QgexecWorkflow.from_generic_workflow(
                config, generic_workflow, out_prefix or config["submitPath"], service_class
            )
            workflow.write(workflow.submit_path)
        return workflow

    def submit(self, workflow: QgexecWorkflow, **kwargs: Any) -> QgexecWorkflow:
        """Begin a run; it goes on without this process.

        Parameters
        ----------
        workflow
            From `prepare`.
        **kwargs
            Not used.

        Raises
        ------
        Refusal
            It could not be begun; the message is that of ``qgexec``.
        """
        submission = workflow.submission
        remember(submission.path)  # before it begins: Ctrl-C now would leave a run that nobody knows
        with refusing():
            launch(submission, submission.command, _variables(submission))
        workflow.run_id = submission.identifier
        return workflow

    def restart(self, wms_workflow_id: str) -> tuple[str | None, str | None, str]:
        """Go on with a run: what succeeded is kept, the rest is executed.

        Parameters
        ----------
        wms_workflow_id
            Its submit directory.

        Returns
        -------
        wms_id, run_name, message
            As ctrl_bps wants them: `None` where it could not be restarted, and why.
        """
        try:
            submission = Submission.find(wms_workflow_id)
            check_trusted(submission.path)
            if submission.path != Path(wms_workflow_id).absolute():
                # ctrl_bps reads its own files from what it takes for the submit directory.
                raise RunDirError(f"the id of the run in {wms_workflow_id} is {submission.path}")
            if submission.run_dir.exists():
                command = ["resume", str(submission.run_dir), *(["--no-wait"] if submission.ends else [])]
            else:
                command = list(submission.command)  # its first start was refused
            launch(submission, command, _variables(submission))
        except QgexecError as error:
            return None, None, str(error)
        remember(submission.path)
        return submission.identifier, submission.name, ""

    def list_submitted_jobs(
        self,
        wms_id: str | None = None,
        user: str | None = None,
        require_bps: bool = True,
        pass_thru: str | None = None,
        is_global: bool = False,
    ) -> list[str]:
        """Return the identifiers of runs that go on.

        Parameters
        ----------
        wms_id
            Only this one.
        user
            Only this user's. Those of others are not known here.
        require_bps, pass_thru, is_global
            Not used.
        """
        if wms_id is None:
            found = list(remembered()) if user in (None, getpass.getuser()) else []
        else:
            try:
                found = [Submission.find(wms_id)]
            except RunDirError as error:
                _logger.warning("%s", error.message)
                return []
        return [submission.identifier for submission in found if _goes_on(submission)]

    def report(
        self,
        wms_workflow_id: str | None = None,
        user: str | None = None,
        hist: float = 0,
        pass_thru: str | None = None,
        is_global: bool = False,
        return_exit_codes: bool = False,
    ) -> tuple[list[WmsRunReport], str]:
        """Say how far runs are.

        Parameters
        ----------
        wms_workflow_id
            The submit directory of a run; otherwise all runs of this user that go on.
        user
            Only this user's. Those of others are not known here, but by their submit directories.
        hist
            Also those that have ended within so many days.
        pass_thru, is_global
            Not used.
        return_exit_codes
            With the exit codes of failed quanta.

        Returns
        -------
        run_reports, message
            As ctrl_bps wants them.
        """
        if wms_workflow_id is not None:
            try:
                submission = Submission.find(wms_workflow_id)
                _check_begun(submission)
                found, record = _record(submission, exit_codes=return_exit_codes)
            except QgexecError as error:
                return [], str(error)
            return [record], words_on(found)
        if user not in (None, getpass.getuser()):
            return [], f"Runs of {user} are reported by their submit directories: --id DIRECTORY"
        since = time.time() - hist * _DAY_S
        reports, troubles = [], []
        for submission in remembered():
            try:
                if _goes_on(submission) or _last_change(submission) >= since:
                    reports.append(_record(submission)[1])
            except QgexecError as error:
                troubles.append(str(error))
        return reports, "\n".join(troubles)

    def get_status(
        self, wms_workflow_id: str, hist: float = 1, is_global: bool = False
    ) -> tuple[WmsStates, str]:
        """Return the state of a run, and what it does not say.

        Parameters
        ----------
        wms_workflow_id
            Its submit directory.
        hist, is_global
            Not used.
        """
        try:
            submission = Submission.find(wms_workflow_id)
            _check_begun(submission)
            found = read_report(submission.run_dir)
        except QgexecError as error:
            return WmsStates.UNKNOWN, str(error)
        return state_of(found), words_on(found)

    def cancel(self, wms_id: str, pass_thru: str | None = None) -> tuple[bool, str]:
        """End a run wherever it runs; return whether nothing of it is left, and why not.

        Parameters
        ----------
        wms_id
            Its submit directory.
        pass_thru
            Not used.
        """
        try:
            cancel(Submission.find(wms_id).run_dir)
        except QgexecError as error:
            return False, str(error)
        return True, ""

    def ping(self, pass_thru: str | None = None) -> tuple[int, str]:
        """Ask whether a model's batch system answers.

        Parameters
        ----------
        pass_thru
            Name of the model; by default ``pool``, which needs no service.

        Returns
        -------
        status, message
            0 if it can be submitted to, and else why not.
        """
        name = (pass_thru or "").strip() or "pool"
        try:
            if check_service(name):
                return 0, f"The batch system of execution model {name} answers."
        except QgexecError as error:
            return 1, str(error)
        return 0, f"Execution model {name} needs no service. For another: --pass-thru NAME"


def _variables(submission: Submission) -> Mapping[str, str]:
    """Return the variables of jobs, for a run whose workers are this machine's processes."""
    return {} if submission.ends else read_config([submission.resources]).batch.environment


def _check_begun(submission: Submission) -> None:
    """Check that there is a run to speak of."""
    if not submission.run_dir.exists():
        raise RunDirError(
            f"the run in {submission.path} has not begun: it was prepared only, or refused",
            hint=f"To begin it: bps restart --id {submission.path}",
        )


def _record(submission: Submission, *, exit_codes: bool = False) -> tuple[RunReport, WmsRunReport]:
    """Return what became of a run, and BPS's record of it."""
    report, plan, fold = read_run(submission.run_dir)
    batch_jobs = BatchJobs.of(report)
    jobs = job_reports(report, plan, fold.scheduler, batch_jobs)
    return report, report_of(submission, report, jobs, batch_words=batch_jobs.words, exit_codes=exit_codes)


def _goes_on(submission: Submission) -> bool:
    """Tell, without reading its books, whether a run may still be under way."""
    try:
        run_dir = RunDir.open(submission.run_dir)
        pending = last_round(run_dir)
        epoch = last_epoch(run_dir.journal)
        is_closed = epoch > 0 and has_ended(run_dir.journal, epoch)
        return not is_closed or (pending is not None and not pending.is_closed)
    except (JournalError, RunDirError):
        return False


def _last_change(submission: Submission) -> float:
    """Return when something was last written into a run's journal, UNIX seconds."""
    files = submission.run_dir.joinpath("journal").glob("*.jsonl")
    return max((file.stat().st_mtime for file in files), default=0.0)
