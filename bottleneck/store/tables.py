"""The small tables of a cache (images, failures, samples, labels) and their columns as stored in HDF5.

Shapes: I images, F failures, S samples, M images per sample, L labels of a multi-label target, P covariates.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from shlex import quote
from typing import Any

import numpy as np

from bottleneck.errors import CacheError, counted
from bottleneck.files import UNKNOWN_STAT, FileStat
from bottleneck.names import ASIDE_FLAGS, COLUMN_FLAGS, FOUND_BY_ROLE, MEASURES, SPLITS, TARGET_KINDS
from bottleneck.records import is_integer, is_number
from bottleneck.samples import MOST_SHARDS, SampleTable, Shard, Target
from bottleneck.store.spec import canonical_json, link_name, name_of_link

DIGEST_BYTES = 32
DECODED = 1 << 16  # strings at a time
IMAGE_COLUMNS = ("key", "digest", *FileStat._fields)
MEASURED = "measures"  # column of /images that files may lack
UNKNOWN_BEFORE_2 = ("ctime_ns", "inode", "kind")  # columns that files of format version 1 lack
FAILURE_COLUMNS = (*IMAGE_COLUMNS, "reason", "kind")
CONTENT, PASSING = "content", "passing"  # kinds of failures
LABELS: dict[str, tuple[np.dtype, int]] = {  # type and number of axes of the labels of each kind of target
    "class": (np.dtype(np.int64), 1),
    "multilabel": (np.dtype(np.uint8), 2),
    "regression": (np.dtype(float), 1),
}

UNMEASURED = np.full(len(MEASURES), np.nan, np.float32).tobytes()

ImageRow = tuple[str, bytes, FileStat]  # key, digest and file of an image


@dataclass(frozen=True)
class ImageTable:
    """The images whose rows a file holds.

    Parameters
    ----------
    name : (I,) S
        The keys as stored, in UTF-8; `key` has them as texts.
    digest : (I, 32) uint8
        sha256 of the image file's bytes.
    stat : (I, 4) int64
        The fields of each image's `FileStat`.
    measures : (I, 7) float32 or None
        `names.MEASURES` of each image's pixels, NaN where they are unknown; None where all are.
    """

    name: np.ndarray
    digest: np.ndarray
    stat: np.ndarray
    measures: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.name)

    @cached_property
    def key(self) -> np.ndarray:
        """The keys (I,), an object array of str; made at the first use, since texts take much memory."""
        return decode(self.name)

    def take(self, rows: np.ndarray) -> ImageTable:
        """Return the table of the images `rows` (indices or a mask), in that order."""
        measures = None if self.measures is None else self.measures[rows]
        return ImageTable(self.name[rows], self.digest[rows], self.stat[rows], measures)

    def columns(self, group: str = "images") -> dict[str, Column]:
        """Return the table's datasets by path, below `group`."""
        values = (_shortest(self.name), self.digest, *self.stat.T)
        columns = {f"{group}/{name}": Column(v) for name, v in zip(IMAGE_COLUMNS, values, strict=True)}
        if self.measures is not None:
            columns[f"{group}/{MEASURED}"] = Column(self.measures, {"names": _names(MEASURES)})
        return columns

    @staticmethod
    def of(rows: Sequence[ImageRow], measured: Mapping[bytes, bytes] | None = None) -> ImageTable:
        """Return the table of (key, digest, stat) rows. measured : measures as float32 bytes, by digest."""
        keys, digests, stats = zip(*rows, strict=True) if rows else ((), (), ())
        found = [(measured or {}).get(digest, UNMEASURED) for digest in digests]
        measures = None
        if any(each is not UNMEASURED for each in found):
            measures = np.frombuffer(b"".join(found), np.float32).reshape(-1, len(MEASURES))
        return ImageTable(
            encode(keys),
            np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES),
            np.array(stats, np.int64).reshape(-1, len(FileStat._fields)),
            measures,
        )

    @staticmethod
    def joined(tables: Sequence[ImageTable]) -> ImageTable:
        """Return the images of all tables, one table after the other, without measures."""
        tables = tables or [ImageTable.of([])]
        columns = zip(*((table.name, table.digest, table.stat) for table in tables), strict=True)
        return ImageTable(*map(np.concatenate, columns))

    @staticmethod
    def of_columns(columns: Mapping[str, np.ndarray]) -> ImageTable:
        """Return the table of stored columns, by name; those that format version 1 lacks are unknown."""
        unknown = np.full(len(columns["key"]), -1, np.int64)
        stat = np.stack([columns.get(name, unknown) for name in FileStat._fields], axis=1)
        return ImageTable(columns["key"], columns["digest"], stat, columns.get(MEASURED))

    def rows(self) -> Iterator[ImageRow]:
        """Yield (key, digest, stat) of each image."""
        return zip(self.key, self.digests(), map(FileStat._make, self.stat.tolist()), strict=True)

    def digests(self) -> list[bytes]:
        """Return the digests as bytes, one per image."""
        return as_bytes(self.digest)


@dataclass(frozen=True)
class Failure:
    """An input that gave no row.

    passing : the reason may be gone at the next run (network, permission, time), which tries again.
        Otherwise it lies in the bytes, and is tried again only when the file has changed.
    """

    key: str
    reason: str
    digest: bytes = bytes(DIGEST_BYTES)
    stat: FileStat = UNKNOWN_STAT
    passing: bool = False


@dataclass(frozen=True)
class Column:
    """A dataset with its attributes, its checksum left out."""

    values: np.ndarray
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheTables:
    """Everything that the main file of a cache holds except features and views."""

    images: ImageTable
    samples: SampleTable
    failures: Sequence[Failure]

    def columns(self) -> dict[str, Column]:
        """Return all datasets by path."""
        return self.images.columns() | sample_columns(self.samples) | failure_columns(self.failures)


def failure_columns(failures: Sequence[Failure]) -> dict[str, Column]:
    """Return the datasets of failures by path."""
    table = ImageTable.of([(f.key, f.digest, f.stat) for f in failures])
    reasons = Column(encode([failure.reason for failure in failures]))
    kinds = Column(encode([PASSING if failure.passing else CONTENT for failure in failures]))
    return table.columns("failures") | {"failures/reason": reasons, "failures/kind": kinds}


def failures_of(columns: Mapping[str, np.ndarray]) -> list[Failure]:
    """Return the failures that `failure_columns` stored; `columns` by name.

    Format version 1 has no kind: a failure without a digest, whose bytes were never read, is a passing one.
    """
    table = ImageTable.of_columns(columns)
    reasons = decode(columns["reason"])
    passing = [not any(digest) for digest in table.digests()]
    if "kind" in columns:
        passing = [kind == PASSING for kind in decode(columns["kind"])]
    return [
        Failure(key, reason, digest, stat, may_pass)
        for (key, digest, stat), reason, may_pass in zip(table.rows(), reasons, passing, strict=True)
    ]


def sample_columns(samples: SampleTable) -> dict[str, Column]:
    """Return the datasets of a sample table by path."""
    shard = {} if samples.shard is None else {"shard": canonical_json(vars(samples.shard))}
    columns = {
        "samples/key": Column(encode(samples.key), _columns_attribute(samples.columns) | shard),
        "samples/image": Column(samples.image.astype(np.int64)),
        "samples/split": Column(encode(samples.split), _set_aside_attribute(samples.set_aside)),
    }
    if samples.group is not None:
        columns["samples/group"] = Column(encode(samples.group), {})
    if samples.position is not None:
        columns["samples/position"] = Column(samples.position.astype(np.int64))
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
    """Return the sample table that `sample_columns` stored. Raises CacheError if a value is out of range."""
    stored = {path: column.values for path, column in columns.items()}
    covariates = columns.get("covariates")
    split = decode_repeated(stored["samples/split"])
    unknown = sorted(set(split) - set(SPLITS))
    if unknown:
        raise CacheError(f"a split is {unknown[0]!r}; expected one of {', '.join(SPLITS)}")
    shard = _shard_of(columns["samples/key"].attributes.get("shard"))
    position = stored.get("samples/position")
    if (shard is None) != (position is None) or (position is not None and position.dtype != np.int64):
        raise CacheError("expected positions (int64) of the samples of a shard, and of no others")
    links = [path for path in columns if path.startswith("labels/")]
    targets = [_target_of(name_of_link(path.removeprefix("labels/")), columns[path]) for path in links]
    return SampleTable(
        key=decode(stored["samples/key"]),
        image=stored["samples/image"],
        split=split,
        targets={target.name: target for target in targets},
        covariates=np.zeros((len(split), 0)) if covariates is None else covariates.values,
        covariate_names=() if covariates is None else _names_of(covariates.attributes["names"]),
        group=decode_repeated(stored["samples/group"]) if "samples/group" in stored else None,
        columns=columns_of(columns["samples/key"].attributes.get("columns", "{}")),
        set_aside=set_aside_of(columns["samples/split"].attributes.get("set_aside", "{}")),
        shard=shard,
        position=position,
    )


def _columns_attribute(columns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the attribute that names the columns of a manifest by role; none where there are none."""
    return (
        {"columns": canonical_json({role: list(names) for role, names in columns.items()})} if columns else {}
    )


def _set_aside_attribute(set_aside: Mapping[str, float]) -> dict[str, str]:
    return {"set_aside": canonical_json(dict(set_aside))} if set_aside else {}


def sample_flags(
    columns: Mapping[str, Sequence[str]],
    set_aside: Mapping[str, float],
    targets: Iterable[tuple[str, str, Sequence[str]]] = (),
) -> str:
    """Return the flags of `extract` that give the samples again, each after a space.

    Without them samples would lose labels, splits and groups that have columns of other names, those of val
    and test that were set aside would be of train, and numbers could be read as targets of another kind.

    targets : name, kind and class names of each.
    """
    aside = "".join(f" {ASIDE_FLAGS[name]} {number}" for name, number in set_aside.items() if number)
    separator = next(iter(columns.get("separator", ())), "")
    kinds = ""
    for target, kind, classes in targets:
        if kind == "regression":
            kinds += f" --regression {quote(target)}"
        elif kind == "class" and target in columns.get("label", ()) and _is_unclear(classes, separator):
            kinds += f" --classes {quote(target)}"
    return f"{aside}{kinds}" + "".join(
        f" {COLUMN_FLAGS[role]} {quote(name)}"
        for role, names in columns.items()
        if role in COLUMN_FLAGS and not (role in FOUND_BY_ROLE and tuple(names) == (role,))
        for name in names
    )


def _is_unclear(classes: Sequence[str], separator: str) -> bool:
    """Return whether cells with these names may be read as quantities, or as several labels each."""
    if separator and any(separator in name for name in classes):
        return True
    try:
        return any(float(name) % 1 for name in classes)
    except ValueError:
        return False


def columns_of(text: str) -> dict[str, tuple[str, ...]]:
    """Return the columns of a manifest by role, as stored. Raises CacheError or ValueError if damaged."""
    record = json.loads(text)
    if not isinstance(record, dict):
        raise CacheError("the columns of the samples are not an object")
    return {role: _names_of(json.dumps(names)) for role, names in record.items()}


def set_aside_of(text: str) -> dict[str, float]:
    """Return `SampleTable.set_aside`, as stored. Raises CacheError or ValueError if damaged."""
    record = json.loads(text)
    checks = {"val": _is_fraction, "test": _is_fraction, "seed": is_integer}
    if not isinstance(record, dict) or not all(
        name in checks and checks[name](record[name]) for name in record
    ):
        raise CacheError(f"what was set aside is {text[:80]}; expected fractions of val and test and a seed")
    return record


def _is_fraction(value: Any) -> bool:
    return is_number(value) and 0 < value < 1


def _shard_of(text: str | None) -> Shard | None:
    if text is None:
        return None
    record = json.loads(text)
    fields = record if isinstance(record, dict) else {}
    of, numbers, plan = fields.get("of"), fields.get("numbers"), fields.get("plan")
    if not (
        isinstance(of, int)
        and of <= MOST_SHARDS
        and isinstance(numbers, list)
        and numbers
        and all(isinstance(number, int) and 1 <= number <= of for number in numbers)
        and numbers == sorted(set(numbers))
        and isinstance(plan, dict)
        and all(isinstance(digest, str) for digest in plan.values())
    ):
        raise CacheError(f"the shard of the samples is {text[:80]}; expected of, numbers and plan")
    return Shard(of, tuple(numbers), plan)


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
        raise CacheError(
            f"the labels {name!r} have values outside their {counted(classes, 'class', 'classes')}"
        )
    return Target(name, kind, values, class_names)


def _names_of(text: str) -> tuple[str, ...]:
    names = json.loads(text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CacheError("the names of classes or covariates are not a list of texts")
    return tuple(names)


def no_samples() -> SampleTable:
    """Return the empty sample table of a file that holds none."""
    return SampleTable(objects(()), np.zeros((0, 1), np.int64), objects(()))


def without_failed(samples: SampleTable, row_of: np.ndarray) -> SampleTable:
    """Return the samples all of whose images have a row, pointing at the new rows.

    Parameters
    ----------
    row_of : (I,) int64
        New row of each image that `samples.image` points at, −1 if it has none.
    """
    if not len(samples):
        return samples
    image = row_of[samples.image]
    return replace(samples, image=image).take((image >= 0).all(axis=1))


def same_columns(a: Mapping[str, Column], b: Mapping[str, Column]) -> bool:
    """Return True if two sets of datasets are stored as the same bytes."""
    return a.keys() == b.keys() and all(
        a[path].attributes == b[path].attributes
        and a[path].values.dtype == b[path].values.dtype
        and a[path].values.shape == b[path].values.shape
        and a[path].values.tobytes() == b[path].values.tobytes()  # NaN equals itself as bytes
        for path in a
    )


def as_bytes(digest: np.ndarray) -> list[bytes]:
    """Return the rows of digest (N, 32) as bytes."""
    flat = np.ascontiguousarray(digest).tobytes()
    return [flat[at : at + DIGEST_BYTES] for at in range(0, len(flat), DIGEST_BYTES)]


def objects(texts: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return an object array of str."""
    array = np.empty(len(texts), object)
    array[:] = list(texts)
    return array


def encode(texts: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return strings as fixed-length NUL-padded UTF-8. A file name that is not UTF-8 keeps its bytes."""
    blocks = []
    for start in range(0, len(texts), DECODED):
        raw = [_bytes(text) for text in texts[start : start + DECODED]]
        if any(b"\0" in item for item in raw):
            raise CacheError("A name holds a NUL character, which no cache can store.")
        blocks.append(np.array(raw, dtype=f"S{max(map(len, raw), default=1) or 1}"))
    return np.concatenate(blocks) if blocks else np.array([], "S1")


def _shortest(column: np.ndarray) -> np.ndarray:
    """Return stored texts in the least length that holds all."""
    length = max(1, int(np.char.str_len(column).max(initial=1)))
    return column if column.dtype.itemsize == length else column.astype(f"S{length}")


def by_code_point(column: np.ndarray) -> np.ndarray:
    """Return stored texts (n,) in a form whose order as bytes is that of the texts.

    UTF-8 has that order. Bytes that are no UTF-8 stand for surrogates, whose place is another.
    """
    for start in range(0, len(column), DECODED):
        try:
            b"\n".join(column[start : start + DECODED].tolist()).decode()
        except UnicodeDecodeError:
            return np.array([text.encode("utf-8", "surrogatepass") for text in decode(column)])
    return column


def _bytes(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # not from a file system, but a manifest may contain it
        return text.encode("utf-8", "replace")


def decode(column: np.ndarray) -> np.ndarray:
    """Return the object array of str that `encode` stored. It works in steps to save memory."""
    out = np.empty(len(column), object)
    for start in range(0, len(column), DECODED):
        part = column[start : start + DECODED].tolist()
        out[start : start + DECODED] = [item.decode("utf-8", "surrogateescape") for item in part]
    return out


def decode_repeated(column: np.ndarray) -> np.ndarray:
    """Decode a column of few distinct values; equal rows share one str."""
    values, which = np.unique(column, return_inverse=True)
    return decode(values)[which]


def _names(names: tuple[str, ...]) -> str:
    return canonical_json([str(name) for name in names])
