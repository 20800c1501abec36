"""docs/bps.md: its YAML is understood, and no key of ctrl_bps is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from lsst.ctrl.bps import BPS_DEFAULTS, BPS_SEARCH_ORDER, BpsConfig

from qgexec.bps.settings import Settings
from qgexec.config.bpsfile import read_config

PAGE = Path(__file__).parents[2].joinpath("docs", "bps.md").read_text()

SNIPPETS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", SNIPPETS)
def test_yaml(text: str, tmp_path: Path) -> None:
    """Each piece of YAML is one that the service takes, with no key that means nothing."""
    config = BpsConfig(
        yaml.safe_load(text) | {"bps_defined": {"timestamp": "T", "operator": "me"}},
        search_order=BPS_SEARCH_ORDER,
        defaults=BPS_DEFAULTS,
    )
    assert config["wmsServiceClass"] == "qgexec.bps.QgexecService"
    Settings(config).write_resources(tmp_path / "qgexec.yaml")
    assert read_config([tmp_path / "qgexec.yaml"]).unknown == ()


def test_all_keys_are_there() -> None:
    """Each key that ctrl_bps has a default for is on the page."""
    page = set(re.findall(r"\w+", PAGE))
    keys = {*BPS_DEFAULTS, *BPS_DEFAULTS["payload"], *BPS_DEFAULTS["pipetask"], "updateOutputChain"}
    assert len(SNIPPETS) == 4
    assert keys - page == set()
