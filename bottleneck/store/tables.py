"""The small tables of a cache: images, failures, samples, labels; and their columns as HDF5 stores them.

Shapes: I images, F failures, S samples, M images per sample, L labels of a multi-label target, P covariates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bottleneck.errors import CacheError
from bottleneck.names import SPLITS, TARGET_KINDS
from bottleneck.samples import SampleTable, Target
from bottleneck.store.spec import canonical_json

DIGEST_BYTES = 32
DECODED = 1 << 16  # strings at a time
LABELS = {
    "class": (np.dtype(np.int64), 1),
    "multilabel": (np.dtype(np.uint8), 2),
    "regression": (np.dtype(float), 1),
}


@dataclass(frozen=True)
class ImageTable:
    """One row per image.

    Parameters
    ----------
    key : (I,) object array of str
    digest : (I, 32) uint8
        sha256 of the file's bytes.
    size, mtime_ns : (I,) int64
        Bytes; ns since 1970, −1 where unknown.
    """

    key: np.ndarray
    digest: np.ndarray
    size: np.ndarray
    mtime_ns: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: np.ndarray) -> ImageTable:
        """The table of the images `rows` (indices or a mask), in that order."""
        return ImageTable(self.key[rows], self.digest[rows], self.size[rows], self.mtime_ns[rows])

    def columns(self) -> dict[str, np.ndarray]:
        """Columns as stored."""
        return {
            "key": encode(self.key),
            "digest": self.digest,
            "size": self.size,
            "mtime_ns": self.mtime_ns,
        }

    @staticmethod
    def of(rows: list[tuple[str, bytes, int, int]]) -> ImageTable:
        """The table of (key, digest, size, mtime_ns) rows."""
        keys, digests, sizes, mtimes = zip(*rows, strict=True) if rows else ((), (), (), ())
        return ImageTable(
            objects(keys),
            np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
            np.array(sizes, np.int64),
            np.array(mtimes, np.int64),
        )

    def rows(self) -> Iterator[tuple[str, bytes, int, int]]:
        """What `of` takes."""
        return zip(self.key, self.digests(), self.size.tolist(), self.mtime_ns.tolist(), strict=True)

    def digests(self) -> list[bytes]:
        """The digests as bytes, one per image."""
        return as_bytes(self.digest)


@dataclass(frozen=True)
class Failure:
    """One input that gave no row; size and mtime_ns (−1 where unknown) tell whether it has changed since."""

    key: str
    reason: str
    digest: bytes = bytes(DIGEST_BYTES)
    size: int = -1
    mtime_ns: int = -1


@dataclass(frozen=True)
class Column:
    """A dataset with its attributes (without its checksum)."""

    values: np.ndarray
    attributes: dict[str, str] = field(default_factory=dict)


def failure_columns(failures: Sequence[Failure]) -> dict[str, Column]:
    """Paths and contents of the datasets that hold failures."""
    table = ImageTable.of([(f.key, f.digest, f.size, f.mtime_ns) for f in failures])
    columns = table.columns() | {"reason": encode([failure.reason for failure in failures])}
    return {f"failures/{name}": Column(values) for name, values in columns.items()}


def failures_of(columns: dict[str, np.ndarray]) -> list[Failure]:
    """The failures whose columns, by name, are `columns`."""
    keys, reasons = decode(columns["key"]), decode(columns["reason"])
    digests = [row.tobytes() for row in columns["digest"]]
    sizes, mtimes = columns["size"].tolist(), columns["mtime_ns"].tolist()
    return [Failure(*row) for row in zip(keys, reasons, digests, sizes, mtimes, strict=True)]


def images_of(columns: dict[str, np.ndarray]) -> ImageTable:
    """The image table that `ImageTable.columns` stored."""
    return ImageTable(decode(columns["key"]), columns["digest"], columns["size"], columns["mtime_ns"])


def sample_columns(samples: SampleTable) -> dict[str, Column]:
    """Paths and contents of the datasets that hold a sample table."""
    columns = {
        "samples/key": Column(encode(samples.key)),
        "samples/image": Column(samples.image.astype(np.int64)),
        "samples/split": Column(encode(samples.split)),
    }
    if samples.group is not None:
        columns["samples/group"] = Column(encode(samples.group), {})
    for name, target in samples.targets.items():
        attributes = {"kind": target.kind, "class_names": _names(target.class_names)}
        columns[f"labels/{link_name(name)}"] = Column(
            target.values.astype(LABELS[target.kind][0]), attributes
        )
    if samples.covariates.shape[1]:
        names = {"names": _names(samples.covariate_names)}
        columns["covariates"] = Column(samples.covariates.astype(np.float64), names)
    return columns


def samples_of(columns: Mapping[str, Column]) -> SampleTable:
    """The sample table that `sample_columns` stored; CacheError where a value is not what it may be."""
    read = {path: column.values for path, column in columns.items()}
    covariates = columns.get("covariates")
    split = decode_repeated(read["samples/split"])
    strange = sorted(set(split) - set(SPLITS))
    if strange:
        raise CacheError(f"a split is {strange[0]!r}; expected one of {', '.join(SPLITS)}")
    links = [path for path in columns if path.startswith("labels/")]
    targets = [_target_of(name_of_link(path.removeprefix("labels/")), columns[path]) for path in links]
    return SampleTable(
        key=decode(read["samples/key"]),
        image=read["samples/image"],
        split=split,
        targets={target.name: target for target in targets},
        covariates=None if covariates is None else covariates.values,
        covariate_names=() if covariates is None else _names_of(covariates.attributes["names"]),
        group=decode_repeated(read["samples/group"]) if "samples/group" in read else None,
    )


def _target_of(name: str, column: Column) -> Target:
    kind, values = column.attributes["kind"], column.values
    if kind not in TARGET_KINDS:
        raise CacheError(f"the labels {name!r} have kind {kind!r}; expected one of {', '.join(TARGET_KINDS)}")
    class_names = _names_of(column.attributes["class_names"])
    expected, axes = LABELS[kind]
    if values.dtype != expected or values.ndim != axes:
        raise CacheError(f"the labels {name!r} are {values.dtype} with {values.ndim} axes")
    classes = len(class_names)
    if kind == "class":
        inside = (values >= -1) & (values < classes)
    elif kind == "multilabel":
        inside = np.isin(values, (0, 1)).all(axis=1) | (values == 255).all(axis=1)
        inside &= values.shape[1] == classes
    else:
        inside = ~np.isinf(values)
    if not inside.all():
        raise CacheError(f"the labels {name!r} have values outside their {classes} classes")
    return Target(name, kind, values, class_names)


def _names_of(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CacheError("the names of classes or covariates are not a list of texts")
    return tuple(names)


def no_samples() -> SampleTable:
    """An empty sample table, for files that hold none."""
    return SampleTable(objects(()), np.zeros((0, 1), np.int64), objects(()))


def without_failed(samples: SampleTable, row_of: np.ndarray) -> SampleTable:
    """Drop samples that have an image without a row.

    Parameters
    ----------
    row_of : (I,) int64
        New row of each image that `samples.image` points at, −1 where it has none.
    """
    if not len(samples):
        return samples
    image = row_of[samples.image]
    kept = (image >= 0).all(axis=1)
    return replace(samples, image=image).take(kept)


def same_columns(a: dict[str, Column], b: dict[str, Column]) -> bool:
    """True where two sets of datasets would be stored alike."""
    return a.keys() == b.keys() and all(
        a[path].attributes == b[path].attributes
        and a[path].values.dtype == b[path].values.dtype
        and a[path].values.shape == b[path].values.shape
        and a[path].values.tobytes() == b[path].values.tobytes()  # bytewise: NaN equals itself
        for path in a
    )


def same_images(a: ImageTable, b: ImageTable) -> bool:
    """True where two image tables would be stored alike."""
    return len(a) == len(b) and all(
        np.array_equal(x, y) for x, y in zip(a.columns().values(), b.columns().values(), strict=True)
    )


def as_bytes(digest: np.ndarray) -> list[bytes]:
    """The rows of digest (N, 32) as bytes."""
    flat = np.ascontiguousarray(digest).tobytes()
    return [flat[at : at + DIGEST_BYTES] for at in range(0, len(flat), DIGEST_BYTES)]


def objects(texts) -> np.ndarray:
    """An object array of str."""
    array = np.empty(len(texts), object)
    array[:] = list(texts)
    return array


def encode(texts) -> np.ndarray:
    """Strings as fixed-length NUL-padded UTF-8; a name that is not UTF-8 keeps its bytes."""
    raw = [_bytes(text) for text in texts]
    if any(b"\0" in item for item in raw):
        raise CacheError("A name holds a NUL character, which no cache can store.")
    return np.array(raw, dtype=f"S{max(map(len, raw), default=1) or 1}")


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no file system gives such a name, but a manifest may
        return text.encode("utf-8", "replace")


def decode(column: np.ndarray) -> np.ndarray:
    """The object array of str that `encode` stored, made in steps to hold fewer at once as bytes."""
    out = np.empty(len(column), object)
    for start in range(0, len(column), DECODED):
        part = column[start : start + DECODED].tolist()
        out[start : start + DECODED] = [item.decode("utf-8", "surrogateescape") for item in part]
    return out


def decode_repeated(column: np.ndarray) -> np.ndarray:
    """As `decode`, for columns of few values: rows that are equal share one str."""
    values, which = np.unique(column, return_inverse=True)
    return decode(values)[which]


def link_name(name: str) -> str:
    """The HDF5 link (and file name) under which a node or a target is stored."""
    return "%2E" if name == "." else name.replace("%", "%25").replace("/", "%2F")


def name_of_link(link: str) -> str:
    """The name that `link_name` encoded."""
    return link.replace("%2E", ".").replace("%2F", "/").replace("%25", "%")


def _names(names: tuple[str, ...]) -> str:
    return canonical_json([str(name) for name in names])
