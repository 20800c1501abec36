"""The site that batch jobs run at, and run times of earlier runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from qgexec.config.batchsettings import BatchSettings
from qgexec.config.bpsfile import read_config
from qgexec.config.runconfig import RunConfig
from qgexec.errors import UsageError

_SITES = """
queue: common
computeSite: usdf
site:
  usdf: {queue: milano, requestMemory: 4096}
  laptop: {queue: debug}
"""


@pytest.mark.parametrize(
    ("site", "queue", "memory"),
    [(None, "milano", 4 << 30), ("usdf", "milano", 4 << 30), ("laptop", "debug", None)],
)
def test_a_site_is_chosen_by_the_file_or_the_user(
    tmp_path: Path, site: str | None, queue: str, memory: int | None
) -> None:
    """What the user names holds, whatever the file says; its section counts for resources too."""
    path = tmp_path / "sites.yaml"
    path.write_text(_SITES)
    config = read_config([path], site=site)
    assert config.batch.queue == queue
    assert config.batch.site == (site or "usdf")
    assert config.common.get("memory_bytes") == memory


@pytest.mark.parametrize("text", [_SITES, "queue: common\n"])
def test_an_unknown_site(tmp_path: Path, text: str) -> None:
    """A site without a section is an error that names those there are."""
    path = tmp_path / "sites.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="there is no site 'moon'") as caught:
        read_config([path], site="moon")
    assert ("laptop, usdf" if "laptop" in text else "No file has") in str(caught.value.hint)


def test_a_site_without_files() -> None:
    """A site can only be chosen from a file."""
    with pytest.raises(UsageError, match="there is no site"):
        read_config([], site="usdf")


def test_run_times_are_kept_with_the_run() -> None:
    """Run times survive run.json, and later ones replace earlier ones."""
    batch = BatchSettings(durations={"isr": 2.5})
    config = RunConfig(batch=batch)
    assert RunConfig.from_json(config.to_json()).batch.durations == {"isr": 2.5}
    later = RunConfig(batch=BatchSettings(durations={"coadd": 9.0}))
    assert config.updated(RunConfig()).batch.durations == {"isr": 2.5}
    assert config.updated(later).batch.durations == {"coadd": 9.0}
