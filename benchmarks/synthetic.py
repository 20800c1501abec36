"""Writes ``.qg`` files of any size whose thin part is valid; their quanta cannot be executed.

For measuring how a graph is loaded and scheduled, without hours of graph
building: the shape is that of the mock graph, with a sky coaddition of three
edges per quantum added in place of the summary.
"""

from __future__ import annotations

import argparse
import io
import json
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import zstandard

__all__ = ["SyntheticQuantum", "replace_blocks", "write_synthetic_graph"]

SyntheticQuantum = tuple[str, uuid.UUID, Sequence[int | str], Sequence[uuid.UUID]]
"""Label, ID, data-ID values, and IDs of the prerequisites."""

_VERSION_7 = 0x7000
_VARIANT = 0x8000_0000_0000_0000


def replace_blocks(graph: Path, path: Path, blocks: Mapping[str, bytes | None]) -> Path:
    """Copy a ``.qg`` file with some of its members replaced.

    Parameters
    ----------
    graph
        File to copy.
    path
        File to write.
    blocks
        New content by member name; JSON text for members ending in
        ``.json.zst``, `None` to leave a member out.

    Returns
    -------
    path
        File written.
    """
    with zipfile.ZipFile(graph) as old, zipfile.ZipFile(path, "w") as new:
        names = [name for name in old.namelist() if name not in blocks]
        shared = old.read("compression_dict") if "compression_dict" in names else None
        dictionary = zstandard.ZstdCompressionDict(shared) if shared is not None else None
        compressor = zstandard.ZstdCompressor(level=3, dict_data=dictionary)
        for name in names:
            new.writestr(name, old.read(name))
        for name, content in blocks.items():
            if content is not None:
                packed = compressor.compress(content) if name.endswith(".zst") else content
                new.writestr(name, packed)
    return path


def read_block(graph: Path, name: str) -> bytes:
    """Return the JSON text of one block of a ``.qg`` file."""
    with zipfile.ZipFile(graph) as file:
        shared = file.read("compression_dict") if "compression_dict" in file.namelist() else None
        dictionary = zstandard.ZstdCompressionDict(shared) if shared is not None else None
        return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(file.read(f"{name}.json.zst"))


def synthetic_id(number: int) -> uuid.UUID:
    """Return a UUID of version 7, as upstream's: a million in a few minutes, the rest looks random."""
    noise = (number * 0x9E37_79B9_7F4A_7C15 + 0x1234_5678) & 0xFFFF_FFFF_FFFF_FFFF
    high = (1_790_000_000_000 + number // 8) << 16 | _VERSION_7 | (noise >> 52)
    return uuid.UUID(int=high << 64 | (noise & 0x3FFF_FFFF_FFFF_FFFF) | _VARIANT)


def synthetic_quanta(
    n_quanta: int, labels: Sequence[str], fan_in: int = 3, width: int = 1_000
) -> Iterator[SyntheticQuantum]:
    """Make quanta of these labels in layers: each has up to ``fan_in`` prerequisites of the label before.

    Parameters
    ----------
    n_quanta
        Number of quanta in all.
    labels
        Labels of tasks over visit and detector, in pipeline order.
    fan_in
        Prerequisites of each quantum that is not of the first label.
    width
        Detectors of one visit.
    """
    per_label = -(-n_quanta // len(labels))
    for number in range(n_quanta):
        layer, place = divmod(number, per_label)
        prerequisites = []
        if layer:
            first = (layer - 1) * per_label
            prerequisites = [synthetic_id(first + (place + k) % per_label) for k in range(fan_in)]
        visit, detector = divmod(place, width)
        values = ("Cam1", detector, visit, "r", 20210909, "Cam1-R1")
        yield labels[layer], synthetic_id(number), values, prerequisites


def write_synthetic_graph(
    graph: Path, path: Path, quanta: Iterable[SyntheticQuantum], *, separators: tuple[str, str] = (",", ":")
) -> Path:
    """Write a graph with another graph's pipeline and other quanta in its thin part.

    Parameters
    ----------
    graph
        A real ``.qg`` file that has the labels.
    path
        File to write.
    quanta
        The quanta, those of one label one after another.
    separators
        Of the JSON text; upstream writes the compact ones.

    Returns
    -------
    path
        File written.
    """
    encode = json.JSONEncoder(separators=separators).encode
    comma, colon = separators
    thin, edges = io.StringIO(), io.StringIO()
    counts: dict[str, int] = {}
    for label, quantum_id, values, prerequisites in quanta:
        if label not in counts:
            thin.write(f"{f']{comma}' if counts else ''}{encode(label)}{colon}[")
        else:
            thin.write(comma)
        counts[label] = counts.get(label, 0) + 1
        thin.write(encode({"quantum_id": str(quantum_id), "data_coordinate": values}))
        for prerequisite in prerequisites:
            edges.write(f'["{prerequisite}","{quantum_id}"]{comma}')
    text = "".join(
        ('{"quanta"', colon, "{", thin.getvalue(), "]" if counts else "", "}", comma, '"edges"', colon, "[")
    )
    text += edges.getvalue().removesuffix(comma) + "]}"
    header = json.loads(read_block(graph, "header"))
    header |= {"n_quanta": sum(counts.values()), "n_task_quanta": counts}
    blocks = {"header.json.zst": json.dumps(header).encode(), "thin_graph.json.zst": text.encode()}
    return replace_blocks(graph, path, blocks)


def main() -> None:
    """Write a graph of the given size from a real one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graph", type=Path, help="a real .qg file, whose pipeline is used")
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("-n", type=int, default=1_000_000, help="number of quanta")
    parser.add_argument("--fan-in", type=int, default=6, help="prerequisites of each quantum but the first")
    arguments = parser.parse_args()
    thin = json.loads(read_block(arguments.graph, "thin_graph"))["quanta"]
    labels = [label for label, quanta in thin.items() if quanta and len(quanta[0]["data_coordinate"]) == 6]
    quanta = synthetic_quanta(arguments.n, labels, arguments.fan_in)
    write_synthetic_graph(arguments.graph, arguments.path, quanta)


if __name__ == "__main__":
    main()
