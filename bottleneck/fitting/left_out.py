"""Leave images out of a fit by a list of their names, and prove of a head that it has seen none of them.

An image is left out in every form: with its bytes under other names, and with each sample that it is part of.

Shapes: S samples, I images, m listed images.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.data.table_file import find_column, read_table
from bottleneck.errors import FitError, Note, counted, quoted, verb
from bottleneck.files import other_than_file
from bottleneck.fitting.labels import KEY_COLUMNS, in_order_of, plain_key
from bottleneck.heads.artifact import load_head
from bottleneck.heads.trained_on import TrainedOn
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache

TABLES = (".csv", ".jsonl", ".parquet")
COLUMNS = (*KEY_COLUMNS, "group")
Listed = str | os.PathLike[str] | Sequence[str]  # a file of names, or the names


@dataclass(frozen=True)
class LeftOut:
    """What a list names in a cache.

    rows : samples that have an image of the list. images : (m,) rows of these images in the cache, copies of
    the same bytes included. copies : how many of the m are copies that the list does not name.
    unknown : names that match nothing. ambiguous : names of an image or a sample that a group or another
    sample has, too, which stays. names : how many the list has.
    """

    rows: np.ndarray
    images: np.ndarray
    copies: int
    unknown: tuple[str, ...]
    ambiguous: tuple[str, ...]
    names: int

    def notes(self, cache: FeatureCache) -> list[Note]:
        """Return what a user must know of what is left out."""
        images, samples = len(self.images), len(self.rows)
        also = f", {self.copies:,} of them copies that the list does not name" if self.copies else ""
        text = f"{counted(samples, 'sample takes', 'samples take')} no part in the fit and its figures: "
        text += f"{counted(images, 'image is', 'images are')} left out"
        details = {"samples": samples, "images": images, "copies": self.copies}
        notes = [Note("samples-left-out", f"{text}{also}.", details=details)]
        if self.unknown:
            shown = ", ".join(self.unknown[:3]) + (" …" if len(self.unknown) > 3 else "")
            text = (
                f"{len(self.unknown):,} of {counted(self.names, 'name')} "
                f"{verb(len(self.unknown), 'matches', 'match')} nothing in {cache.path}: {shown}."
            )
            notes.append(Note("names-not-found", text, True, {"names": list(self.unknown)}))
        if self.ambiguous:
            text = (
                f"{len(self.ambiguous):,} of {counted(self.names, 'name')} {verb(len(self.ambiguous))} of an "
                f"image or a sample, which is left out, and of a group or sample that stays: "
                f"{quoted(self.ambiguous)}. List the images of the latter as well to leave them out."
            )
            notes.append(Note("names-of-several", text, True, {"names": list(self.ambiguous)}))
        calibrated = any(node.calibration for node in cache.nodes.values())
        if cache.spec.backbone.get("calibrated") or calibrated:
            text = (
                f"The features of {cache.path} still depend on the images that are left out, if only by "
                "statistics of a random network or of a 16- or 8-bit engine. Extract a cache without them to "
                "be free of that."
            )
            notes.append(Note("left-out-in-features", text))
        return notes

    def record(self, cache: FeatureCache) -> dict[str, Any]:
        """Return what a head's file keeps: the numbers, and the sha256 of the images' sorted digests."""
        digests = np.unique(cache.images.digest[self.images], axis=0)
        digest = hashlib.sha256(np.ascontiguousarray(digests).tobytes()).hexdigest()
        return {"names": self.names, "images": len(digests), "samples": len(self.rows), "sha256": digest}


def left_out(cache: FeatureCache, listed: Listed) -> LeftOut:
    """Find what a list names: samples, images (also by their path below the source) and groups of the cache.

    listed : a .csv, .jsonl or .parquet file with a column sample, key, image, file_name or group; another
        text file with one name a line; or the names.

    Raises FitError where the file cannot be read, or none of its names is in the cache.
    """
    where = "the list" if not isinstance(listed, str | os.PathLike) else str(listed)
    names = list(dict.fromkeys(names_in(listed)))
    samples = cache.samples
    images_of, samples_of = _rows_by_name(cache.images.key), _rows_by_name(samples.key)
    members = _rows_by_name(() if samples.group is None else samples.group)
    chosen, unknown, named = set[int](), [], dict[str, set[int]]()
    for name in names:
        key = _relative(name, cache.source_root)
        of = samples_of.get(key) or members.get(key, [])
        found = images_of.get(key) or samples.image[of].ravel().tolist()
        chosen.update(found)
        named[name] = {*of, *members.get(key, [])}
        unknown += [] if found else [name]
    if not chosen:
        example = f" The list has {names[0]!r}, the cache {cache.images.key[0]!r}." if names else ""
        raise FitError(
            f"None of {counted(len(names), 'name')} of {where} is a sample, image or group of "
            f"{cache.path}.{example}"
        )
    digests = {bytes(cache.images.digest[image]) for image in chosen}
    images = np.flatnonzero([digest in digests for digest in cache.images.digests()])
    rows = np.flatnonzero(np.isin(samples.image, images).any(axis=1))
    left = set(rows.tolist())
    ambiguous = tuple(name for name, of in named.items() if not of <= left)
    return LeftOut(rows, images, len(images) - len(chosen), tuple(unknown), ambiguous, len(names))


def without_rows(samples: SampleTable, rows: np.ndarray) -> SampleTable:
    """Return the samples, those of `rows` unlabelled in every target, so that no fit or figure has them."""
    row_of = np.arange(len(samples))
    row_of[rows] = -1
    targets = {name: in_order_of(target, row_of) for name, target in samples.targets.items()}
    return replace(samples, targets=targets)


def seen_images(
    head: str | os.PathLike[str], cache: str | os.PathLike[str], listed: Listed
) -> dict[str, Any]:
    """Say whether a head was fitted on an image of a list, by the digests of its images that its file keeps.

    Returns
    -------
    dict
        `images`: how many different images the list names; `seen`: those that the head was fitted on, by key;
        `undecided`: how many of them its file cannot tell, since it keeps digests of a part of more than
        65,536 images; `proven`: whether none was seen and none is undecided; `trained_on`: on how many images
        it was fitted; `notes`.

    Raises FitError as `left_out`, or where the file of the head does not say what it was fitted on.
    """
    model = load_head(head)
    if not model.trained_on:
        raise FitError(
            f"{head} does not say which images it was fitted on: it is of an earlier version.",
            "Fit it again with `bottleneck fit-head`.",
        )
    trained = TrainedOn.from_json(model.trained_on)
    with FeatureCache(cache) as opened:
        opened.require_rows()
        found = left_out(opened, listed)
        digests = opened.images.digest[found.images]
        keys = opened.images.key[found.images]
        notes = [note for note in found.notes(opened) if note.code in ("names-not-found", "names-of-several")]
    seen, decided = trained.has(digests)
    _, first = np.unique(digests, axis=0, return_index=True)
    undecided = int((~decided[first]).sum())
    return {
        "head": str(head),
        "images": len(first),
        "seen": keys[seen].tolist(),
        "undecided": undecided,
        "proven": not seen.any() and not undecided,
        "trained_on": trained.images,
        "notes": [note.to_json() for note in notes],
    }


def names_in(listed: Listed) -> list[str]:
    """Return the names of a list, without empty ones. Raises FitError where there are none."""
    if not isinstance(listed, str | os.PathLike):
        names, where = list(listed), "The list"
    else:
        path = Path(listed)
        where = str(path)
        if not path.is_file():
            raise FitError(
                f"{path} is {other_than_file(path)}; expected a list of names."
                if path.exists()
                else f"There is no list {path}."
            )
        names = _column(path) if path.suffix.lower() in TABLES else _lines(path)
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise FitError(f"{where} is empty.", "Write one name of an image, a sample or a group a line.")
    return names


def _column(path: Path) -> list[str]:
    table = read_table(path.name, path.read_bytes())
    column = next(filter(None, (find_column(table, name, path.name) for name in COLUMNS)), None)
    if column is None:
        raise FitError(
            f"{path.name} has columns {', '.join(table)}; expected one of {', '.join(COLUMNS)}.",
            "Or write the names into a .txt file, one a line.",
        )
    return [str(cell) for cell in table[column] if cell is not None]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").split("\n")  # a name may have other ends of lines, as U+2028
    except UnicodeDecodeError:
        raise FitError(f"{path} is not UTF-8 text; expected one name a line.", "Save it as UTF-8.") from None


def _rows_by_name(names: Iterable[object]) -> dict[str, list[int]]:
    """Return the rows of each name as it is compared: names of two files may be the same one.

    Outer spaces do not count, since a list has none.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(plain_key(str(name)).strip(), []).append(row)
    return rows


def _relative(name: str, root: str) -> str:
    """Return a name as it is compared; a path below the source's root relative to it."""
    plain, start = plain_key(name), unicodedata.normalize("NFC", root).replace("\\", "/").rstrip("/") + "/"
    return plain.removeprefix(start)
