"""Journals that are not what was written: changed by disks, or copied from another host."""

from __future__ import annotations

import json
import os
from pathlib import Path

from qgexec.books.linefile import json_line, with_checksum, without_checksum

_CHECKSUM_BYTES = 17


def flip_digit(path: Path, number: int) -> None:
    """Change one bit of the last digit in a line of a file, from 1, that is not part of its checksum."""
    lines = path.read_bytes().splitlines(keepends=True)
    line = bytearray(lines[number - 1])
    digits = [place for place, byte in enumerate(line[:-_CHECKSUM_BYTES]) if chr(byte).isdigit()]
    line[digits[-1]] ^= 1
    lines[number - 1] = bytes(line)
    path.write_bytes(b"".join(lines))


def move_away(path: Path, host: str, *, n_lines: int | None = None) -> None:
    """Have a journal's file, or only its first lines, be one that was written on another host, long ago."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True)[:n_lines]:
        values = json.loads(without_checksum(line))
        if "writer" in values:
            values["writer"][0] = host
        if "h" in values:
            values["h"] = host
        for key in {"birth", "o"} & values.keys():
            values[key][0] = "the boot of another machine"
        lines.append(with_checksum(json_line(values)))
    path.write_bytes(b"".join(lines))
    os.utime(path, (1e9, 1e9))
