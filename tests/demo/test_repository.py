"""The repository, the formatters, and what is said when something is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lsst.daf.butler import Butler

from qgexec import demo
from qgexec.demo import DemoRepository
from qgexec.demo.tasks.calibrate import CalibrateTask, make_source_schema
from qgexec.demo.tasks.quality import QualityTask
from qgexec.errors import QgexecError, RepositoryError


def test_raws_are_fits_of_their_data_id(small_survey: DemoRepository) -> None:
    """A raw frame reads back with the header of its exposure and detector."""
    with Butler.from_config(str(small_survey.root), collections=small_survey.input_collection) as butler:
        raw = butler.get("raw", instrument="DemoCam", exposure=3, detector=1)
    assert raw.header["EXPID"] == 3
    assert raw.header["DETECTOR"] == 1
    assert raw.data.dtype == np.uint16
    assert not list(small_survey.root.glob("incoming-*"))


def test_calibrations_have_a_validity_range(small_survey: DemoRepository) -> None:
    """They are found for an exposure, through the CALIBRATION collection."""
    with Butler.from_config(str(small_survey.root), collections=small_survey.input_collection) as butler:
        exposure = butler.query_dimension_records("exposure", instrument="DemoCam", exposure=1)[0]
        ref = butler.find_dataset("bias", instrument="DemoCam", detector=0, timespan=exposure.timespan)
        assert ref is not None
        assert butler.get(ref).header["BUNIT"] == "adu"


def test_a_second_repository_in_the_same_place_is_refused(small_survey: DemoRepository) -> None:
    """The one that is there stays as it is."""
    before = (small_survey.root / "butler.yaml").read_bytes()
    with pytest.raises(RepositoryError, match="holds a butler repository already"):
        demo.make_repository(small_survey.root)
    assert (small_survey.root / "butler.yaml").read_bytes() == before


def test_missing_extra_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error names it, and nothing is made."""
    monkeypatch.setattr("qgexec.demo.find_spec", lambda name: None if name == "photutils" else object())
    with pytest.raises(QgexecError, match=r"(?s)photutils.*pip install 'qgexec\[demo\]'") as caught:
        demo.make_repository(tmp_path / "repo")
    assert isinstance(caught.value, ImportError)
    assert not (tmp_path / "repo").exists()


def test_importing_the_package_is_cheap() -> None:
    """Neither lsst nor astropy nor numpy is imported with it."""
    code = "import sys, qgexec.demo; print([m for m in ('lsst', 'astropy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_schema_without_a_needed_column_stops_the_task_at_once() -> None:
    """The init-input is what the task checks before any quantum runs."""
    schema = make_source_schema()
    schema.remove_column("ra_deg")
    inputs = {"source_schema": schema, "object_schema": make_source_schema()}
    with pytest.raises(ValueError, match="source_schema lacks ra_deg"):
        QualityTask(config=QualityTask.ConfigClass(), initInputs=inputs)


def test_the_task_offers_its_schema() -> None:
    """The framework takes an init-output from the attribute of the connection's name."""
    task = CalibrateTask(config=CalibrateTask.ConfigClass())
    assert task.source_schema.colnames == make_source_schema().colnames
