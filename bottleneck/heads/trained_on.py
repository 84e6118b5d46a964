"""The images that a head was fitted on, as its file remembers them: the beginnings of their sha256.

Up to `MOST` images all are kept. Of more, those with the smallest digests are: a random part, by which the
number of images that two sets share is estimated.

Shapes: I images, n images kept.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import numpy as np

from bottleneck.errors import ArtifactError
from bottleneck.records import is_integer, is_text, require_fields
from bottleneck.samples import SampleTable

MOST = 1 << 16
START = 8  # bytes of a digest: two of 10⁵ images agree in them once in 10⁹ times


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """The different images of a training set.

    images : their number. starts : (n,) uint64, ascending: the beginnings of their digests.
    """

    images: int
    starts: np.ndarray

    @classmethod
    def of(cls, digests: np.ndarray) -> TrainedOn:
        """Return those of the sha256 digests (I, 32) uint8; an image may occur several times."""
        starts = np.unique(_starts(digests))
        return cls(len(starts), starts[:MOST])

    def shared_with(self, digests: np.ndarray) -> tuple[int, int, bool]:
        """Compare with other images, digests (I, 32) uint8.

        Returns
        -------
        shared : how many of the different images are among these. of : number of different images.
        exact : False where `shared` is estimated from a part.
        """
        others = np.unique(_starts(digests))
        found = int(np.isin(others, self.starts).sum())
        exact = self.images == len(self.starts)
        if exact or not found:
            return found, len(others), exact
        compared = int((others <= self.starts[-1]).sum())
        return max(found, round(found / compared * len(others))), len(others), False

    def has(self, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each of some images, digests (I, 32) uint8, whether it is one of these, and whether that
        can be told: (I,) bool each."""
        starts = _starts(digests)
        decided = (starts <= self.starts[-1]) | (self.images == len(self.starts))
        return np.isin(starts, self.starts), decided

    def joined_with(self, other: TrainedOn) -> TrainedOn:
        """Return the images of both."""
        starts = np.union1d(self.starts, other.starts)
        exact = self.images + other.images == len(self.starts) + len(other.starts)
        images = len(starts) if exact else max(self.images, other.images)
        return TrainedOn(images, starts[:MOST])

    def to_json(self) -> dict[str, Any]:
        """Return {"images", "digests"}: the n beginnings in base64, 8 bytes each, big-endian."""
        data = self.starts.astype(">u8").tobytes()
        return {"images": self.images, "digests": base64.b64encode(data).decode()}

    @classmethod
    def from_json(cls, record: Any) -> TrainedOn:
        """Rebuild from `to_json`. Raises ArtifactError where a field is missing or invalid."""
        require_fields(record, {"images": is_integer, "digests": is_text}, "A head's list of training images")
        try:
            data = base64.b64decode(record["digests"], validate=True)
        except (binascii.Error, ValueError):
            data = b"?"
        n, images = len(data) // START, record["images"]
        starts = np.frombuffer(data[: n * START], ">u8").astype(np.uint64)
        if len(data) % START or not 0 < n <= min(images, MOST) or (starts[1:] <= starts[:-1]).any():
            raise ArtifactError("A head's list of training images is damaged.")
        return cls(images, starts)


def seen_before(
    record: dict[str, Any], digests: np.ndarray, samples: SampleTable, rows: np.ndarray
) -> dict[str, Any]:
    """Return `TrainedOn.to_json` of the images of the samples `rows`, and of `record`, what was seen before.

    digests : (I, 32) uint8 of the images that the samples point at.
    """
    if not len(rows):
        return record
    seen = TrainedOn.of(digests[np.unique(samples.image[rows])])
    return (TrainedOn.from_json(record).joined_with(seen) if record else seen).to_json()


def _starts(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests[:, :START]).view(">u8").astype(np.uint64).ravel()
