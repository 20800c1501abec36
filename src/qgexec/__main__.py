"""``python -m qgexec`` is the `qgexec` command."""

from __future__ import annotations

from qgexec.cli.main import main

if __name__ == "__main__":
    main()
