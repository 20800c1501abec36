"""The data IDs of many quanta in one piece of memory; knows no dimensions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from qgexec.errors import GraphError
from qgexec.quantum import DataIdValue
from qgexec.scheduling.topology import Ints, int_array
from qgexec.storedvalues import parse_json

__all__ = ["DataIds"]


class DataIds:
    """The data IDs of many quanta, without dimension names, in one piece of memory.

    Parameters
    ----------
    text
        The values of each quantum as a JSON array, one after another, ASCII:
        ``["LSSTCam",4]["LSSTCam",5]``.
    offsets
        Where each array begins in ``text``, and at the end where the last one
        ends; shape ``(n + 1,)``.

    Raises
    ------
    qgexec.errors.GraphError
        The text is larger than 4 GiB.
    """

    __slots__ = ("offsets", "text")

    def __init__(self, text: bytes, offsets: npt.ArrayLike) -> None:
        self.text = text
        self.offsets = int_array("I", np.asarray(offsets))

    @classmethod
    def pack(cls, data_ids: Iterable[Sequence[DataIdValue]]) -> DataIds:
        """Pack data-ID values, in the order of the dimensions of each quantum's task; about 2 us each."""
        encode = json.JSONEncoder(separators=(",", ":")).encode
        texts = [encode(list(values)).encode("ascii") for values in data_ids]
        return cls(b"".join(texts), np.cumsum([0, *map(len, texts)], dtype=np.int64))

    @classmethod
    def stored(cls, text: bytes, offsets: Ints) -> DataIds:
        """Return data IDs that were stored, once their offsets fit their text.

        Raises
        ------
        qgexec.errors.GraphError
            They do not.
        """
        if not len(offsets) or offsets[-1] != len(text) or np.any(np.diff(offsets) < 0):
            raise GraphError("the stored data IDs do not fit their text")
        return cls(text, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, position: int) -> list[DataIdValue]:
        offsets = self.offsets
        values: list[DataIdValue] = parse_json(
            self.text[offsets[position] : offsets[position + 1]].decode("ascii")
        )
        return values

    def taken(self, order: Ints) -> DataIds:
        """Return the data IDs at these positions."""
        text, offsets = self.text, self.offsets
        lengths = np.diff(np.asarray(offsets, dtype=np.int64))[order]
        pieces = b"".join([text[offsets[i] : offsets[i + 1]] for i in order.tolist()])
        return DataIds(pieces, np.concatenate(([0], np.cumsum(lengths))))
