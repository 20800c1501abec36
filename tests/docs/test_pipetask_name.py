"""What docs/pipetask.md says to type, so that `qgexec-pipetask` has the name of pipetask, does that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.kit.checkout import PYTHONPATH
from tests.kit.docs.pages import all_blocks

PROGRAM = f"#!{sys.executable}\nfrom qgexec.cli.pipetask import main\nmain()\n"
"""What pip installs as ``qgexec-pipetask``."""


def test_link(tmp_path: Path) -> None:
    """It is found on the PATH, and where ctrl_bps looks."""
    (block,) = (block for block in all_blocks("bash") if "ln -s" in block.text)
    (tmp_path / "venv").mkdir()
    installed = tmp_path / "venv" / "qgexec-pipetask"
    installed.write_text(PROGRAM)
    installed.chmod(0o755)
    both = 'pipetask --version && "${CTRL_MPEXEC_DIR}/bin/pipetask" --version'
    path = f"{installed.parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": path, "PYTHONPATH": PYTHONPATH}
    script = f"set -e\n{block.text}\n{both}\n"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("qgexec-pipetask, version ") == 2
