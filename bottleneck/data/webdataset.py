"""Samples of WebDataset shards: files of one name, apart from the suffixes, belong together.

In `0001.jpg`, `0001.cls`, `0001.seg.png` the image is 0001.jpg, its class is the text of 0001.cls, and the
mask is no sample. The name ends at its first dot (github.com/webdataset/webdataset).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bottleneck.data.config import LabelConfig
from bottleneck.data.table_file import folded
from bottleneck.data.targets import target_from_column
from bottleneck.errors import Note
from bottleneck.samples import Target

LABEL_SUFFIXES = (".cls", ".json", ".txt")  # the first that a source has gives the labels
LARGEST_LABEL = 64 * 1024  # bytes of a file that is read as a label
_LABEL_KEYS = ("label", "cls", "class", "class_name", "category", "target")  # of a JSON object


def base_of(key: str) -> tuple[str, str]:
    """Return the name that the files of a sample share, and the suffix of this file with its dot."""
    folder, slash, name = key.rpartition("/")
    stem, dot, suffix = name.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def without_masks(keys: Sequence[str], labelled: Mapping[str, Any]) -> tuple[list[str], Counter[str]]:
    """Return the images without those that belong to another image, and the number of these by suffix.

    labelled : names of samples that have a label file.
    """
    suffixes: dict[str, list[str]] = {}
    for base, suffix in map(base_of, keys):
        suffixes.setdefault(base, []).append(suffix)
    kept, masks = [], Counter[str]()
    for key in keys:
        base, suffix = base_of(key)
        plain = sorted(other for other in suffixes[base] if other.count(".") == 1)
        middle = suffix[1:].rpartition(".")[0]
        is_mask = bool(plain) and any(part.isalpha() for part in middle.split("."))
        is_second = base in labelled and suffix in plain[1:]  # .jpg comes before .png
        if is_mask or is_second:
            masks[suffix] += 1
        else:
            kept.append(key)
    return kept, masks


def shard_target(
    keys: Sequence[str], files: Mapping[str, Mapping[str, str]], has_folders: bool, config: LabelConfig
) -> tuple[Target | None, str, list[Note]]:
    """Return the target "label" of images, from the files beside them.

    Parameters
    ----------
    files : texts of the label files by suffix, by the name of the sample.
    has_folders : whether folders give labels; a .txt, which may be a caption, then does not.

    Returns
    -------
    target : None where no file gives labels.
    suffix : of the files that were read.
    notes : what was decided.
    """
    texts = [files.get(base_of(key)[0], {}) for key in keys]
    for suffix in LABEL_SUFFIXES[:2] if has_folders else LABEL_SUFFIXES:
        present = [text.get(suffix) for text in texts]
        cells: list[Any] = [None if text is None else text.strip() or None for text in present]
        unread: Counter[str] = Counter()
        if suffix == ".json":
            cells = [_json_label(cell, unread) for cell in cells]
        if any(cell is not None for cell in cells):
            target, notes = target_from_column("label", cells, config)
            return target, suffix, [_label_note(suffix, cells, unread, has_folders), *notes]
    return None, "", []


def _json_label(text: str | None, unread: Counter[str]) -> Any:
    """Return the label in a JSON file: its value, or that of a key of labels; other keys are counted."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        unread["files that are not JSON"] += 1
        return None
    if not isinstance(value, dict):
        return value
    key = next((key for name in _LABEL_KEYS for key in value if folded(key) == name), None)
    unread.update(repr(other) for other in value if other != key)
    return None if key is None else value[key]


def _label_note(suffix: str, cells: Sequence[Any], unread: Counter[str], has_folders: bool) -> Note:
    """Return the note on where labels came from, and what lies beside them."""
    message = f"Labels are read from the {suffix} files of the shards"
    if has_folders:
        message += ", not from the folders"
    if missing := sum(cell is None for cell in cells):
        message += f"; {missing} images have none"
    if unread:
        message += f"; not read: {', '.join(name for name, _ in unread.most_common(5))}"
    return Note("shard-labels", message + ".", has_folders, {"suffix": suffix, "unread": list(unread)})
