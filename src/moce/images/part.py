"""Some pictures of a source in any order, with labels that are numbered as another split's classes are."""

import hashlib

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.images.sources import Source, even_shards


class Part:
    """The pictures at `rows` of a source, by default all of them; `labels` are in the order of the rows."""

    def __init__(
        self,
        source: Source,
        classes: list[str] | None,
        labels: Int64[np.ndarray, " images"] | None,
        rows: Int64[np.ndarray, " images"] | None = None,
    ) -> None:
        self._source, self._rows = source, rows
        self.classes, self.labels, self.uri = classes, labels, source.uri
        self.channels = getattr(source, "channels", 3)
        assert labels is None or len(labels) == len(self), "a label for every picture"

    def __len__(self) -> int:
        return len(self._source) if self._rows is None else len(self._rows)

    def _row(self, index: int) -> int:
        return index if self._rows is None else int(self._rows[index])

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """The picture, and its label in the other split's numbers."""
        return self._source.get(self._row(index))[0], None if self.labels is None else int(self.labels[index])

    def shards(self) -> list[range]:
        """As they are; of some rows, runs of 1024 neighbours."""
        return self._source.shards() if self._rows is None else even_shards(len(self))

    def name(self, index: int) -> str:
        """As in the whole source."""
        return self._source.name(self._row(index))

    def fingerprint(self) -> str:
        """Of the whole source, and of the rows."""
        whole = self._source.fingerprint()
        if self._rows is None:
            return whole
        return hashlib.sha256(whole.encode() + self._rows.astype("<i8").tobytes()).hexdigest()[:16]
