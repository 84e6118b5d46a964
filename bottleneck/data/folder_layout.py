"""Take split and class of images from their folders, and note what was decided.

Layouts: `class/x.jpg`, `split/class/x.jpg`, `class/split/x.jpg`, or no folders at all. Folders below a class
belong to the class. Folders that hold all images between them and the top ("wrapping") are looked through.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.data.class_names import name_notes
from bottleneck.data.splits import ALIASES, merged_notes, split_named
from bottleneck.data.table_file import folded
from bottleneck.data.targets import class_target
from bottleneck.errors import Note, SourceError, counted, listed, quoted
from bottleneck.samples import SampleTable

Path = tuple[str, ...]  # names of folders from the top

# Words that beside train, val or test make the name of a split folder, such as training_set or testdata.
_SPLIT_WORDS = ("dataset", "data", "set", "images", "image", "imgs", "img", "photos", "split", "folder")
_SPLIT_NAME = "|".join(sorted((*ALIASES, *_SPLIT_WORDS), key=len, reverse=True))


@dataclass(frozen=True)
class _Layout:
    """What the folders of images mean.

    wrapper : folders that are looked through, at the top. inner : others, between split and class.
    order : "class", "split/class" or "class/split".
    """

    wrapper: Path
    order: str
    inner: Path = ()

    @property
    def depth(self) -> int:
        """Number of folders that mean something, or are looked through."""
        return len(self.wrapper) + len(self.inner) + (1 if self.order == "class" else 2)

    def read(self, folder: Path) -> tuple[str, str | None, Path]:
        """Return the split and the class that a folder means, and the folders below them."""
        rest = folder[len(self.wrapper) :]
        if self.order == "class/split":
            return (split_named(rest[1]) or "train", rest[0], rest[2:]) if rest else ("train", None, ())
        split = "train"
        if self.order == "split/class" and rest:
            split, rest = split_named(rest[0]) or "train", rest[1 + len(self.inner) :]
        return split, (rest[0] if rest else None), rest[1:]


def folder_samples(
    keys: Sequence[str], root: str, folders: dict[str, Counter[str]]
) -> tuple[SampleTable, list[Note]]:
    """Return samples of one image each, split and labelled by their folders, and notes.

    The target is "label". Images outside of any class are unlabelled. A shard is not a folder.

    Parameters
    ----------
    folders : all folders, with the number of files by suffix that are not read.

    Raises
    ------
    SourceError
        Folders named like splits are where they may mean a split or a class.
    """
    paths = [_folders_of(key) for key in keys]
    layout = _layout(paths, root)
    meanings = {path: layout.read(path) for path in set(paths)}
    labels = [meanings[path][1] for path in paths]
    splits = [meanings[path][0] for path in paths]
    told: list[Note] = []
    if set(splits) == {"train"}:
        splits, told = _splits_of_shards(keys)
    targets = {"label": class_target("label", labels)} if any(labels) else {}
    samples = SampleTable(
        key=np.array(keys, object),
        image=np.arange(len(keys), dtype=np.int64)[:, None],
        split=np.array(splits, object),
        targets=targets,
    )
    notes = told + _layout_notes(layout, labels, meanings)
    notes += _empty_notes(layout, paths, folders, bool(targets))
    return samples, notes + [note for target in targets.values() for note in name_notes(target, certain=True)]


def _folders_of(key: str) -> Path:
    return tuple(part for part in key.split("/")[:-1] if not part.lower().endswith(".tar"))


def _splits_of_shards(keys: Sequence[str]) -> tuple[list[str], list[Note]]:
    """Return the splits that the names of several shards, such as val-0001.tar, give to their images."""
    shards = [next((part for part in key.split("/") if part.lower().endswith(".tar")), "") for key in keys]
    named = {shard: _named_in(shard) for shard in set(shards)}
    splits = sorted(filter(None, set(named.values())))
    if len(named) < 2 or not splits or splits == ["train"]:
        return ["train"] * len(keys), []
    if None not in named.values():
        message = f"Shards are named after splits ({', '.join(splits)}), which their images therefore have."
        return [named[shard] or "train" for shard in shards], [Note("splits-from-shard-names", message, True)]
    other = min(shard for shard, split in named.items() if split is None)
    message = f"Some shards are named after splits ({', '.join(splits)}) but not {other!r}, so all are "
    return ["train"] * len(keys), [Note("shard-splits-not-used", message + "train.", True)]


def _named_in(shard: str) -> str | None:
    """Return the split that one word of a shard's name names."""
    words = re.findall(r"[^\W\d_]+", shard.lower().removesuffix(".tar"))
    splits = {split for word in words if (split := split_named(word))}
    return splits.pop() if len(splits) == 1 else None


def _unwrapped(paths: Sequence[Path]) -> Path:
    """Return the folders that hold all images, one in the other, and have none of their own."""
    common: list[str] = []
    while True:
        below = {path[len(common) : len(common) + 2] for path in paths}
        first = {part[:1] for part in below}
        if len(first) != 1 or any(len(part) < 2 for part in below) or split_named(min(first)[0]):
            return tuple(common)
        common.append(min(first)[0])


def _layout(paths: Sequence[Path], root: str) -> _Layout:
    """Return what the folders mean."""
    wrapper = _unwrapped(paths)
    inside = {path[len(wrapper) :] for path in paths} - {()}
    top = {path[0] for path in inside}
    splits = {name for name in top if split_named(name)}
    if top and splits == top:
        below = [path[1:] for path in inside]
        return _Layout(wrapper, "split/class", _unwrapped(below))
    if any(len(path) > 1 and path[0] in splits for path in inside):
        raise SourceError(
            f"{root} has split folders ({', '.join(sorted(splits))}) beside others "
            f"({listed(sorted(top - splits))}); expected split/class/image or class/image alone.",
            "Move the other folders away, or list the images in a manifest.",
        )
    second = {path for path in inside if len(path) > 1 and split_named(path[1])}
    if not second:
        return _Layout(wrapper, "class")
    if others := sorted(inside - second):
        raise SourceError(
            f"{root} has folders named like splits below some classes ({'/'.join(min(second)[:2])}), but not "
            f"above the images in {'/'.join(others[0])}; expected class/split/image for all, or for none.",
            "Move all images into split folders, rename these folders, or list the images in a manifest.",
        )
    return _Layout(wrapper, "class/split")


def _layout_notes(
    layout: _Layout, labels: Sequence[str | None], meanings: dict[Path, tuple[str, str | None, Path]]
) -> list[Note]:
    """Return notes on how folders were understood."""
    notes = []
    for wrapper in filter(None, (layout.wrapper, layout.inner)):
        where = "the images" if wrapper == layout.wrapper else "the classes of each split"
        message = f"Folder {'/'.join(wrapper)!r} holds all of {where} and is looked through; it is no class."
        notes.append(Note("wrapping-folder", message, details={"folder": "/".join(wrapper)}))
    if layout.order != "class":
        level = 0 if layout.order == "split/class" else 1
        inside = (path[len(layout.wrapper) :] for path in meanings)
        notes += merged_notes(path[level] for path in inside if len(path) > level)
    if layout.order == "class/split":
        message = "Folders are read as class/split/image: a class holds folders named like splits."
        notes.append(Note("layout-class-split", message))
    classes = {label for label in labels if label is not None}
    beneath = {part for _, _, below in meanings.values() for part in below}
    if like := sorted(name for name in classes | beneath if split_named(name)):
        message = f"Folders named like splits ({listed(like)}) are read as classes or as part of one."
        message += " If they are splits, use split/class/image."
        notes.append(Note("split-folder-not-used", message, True, {"folders": like}))
    if like := sorted(name for name in classes if _resembles_split(name)):
        message = f"Folders {quoted(like)} are read as classes. If they are splits, rename "
        message += "them to train, val or test."
        notes.append(Note("class-named-like-split", message, True, {"folders": like}))
    labelled = [(path, label, below) for path, (_, label, below) in meanings.items() if label is not None]
    if labelled and layout.order != "class/split" and all(below for _, _, below in labelled):
        path, label, _ = min(labelled)
        message = (
            f"All images lie below the class folders, such as those in {'/'.join(path)!r} of {label!r}. "
        )
        message += "If the lower folders are the classes, give a folder of those, or a manifest."
        notes.append(Note("folders-within-classes", message, True, {"folders": len(labelled)}))
    if classes and (outside := sum(label is None for label in labels)):
        message = f"{counted(outside, 'image lies', 'images lie')} outside of any class folder: unlabelled, "
        message += "and train where no folder names the split."
        notes.append(Note("images-outside-classes", message, details={"images": outside}))
    return notes


def _resembles_split(name: str) -> bool:
    """Return whether a name is one of a split and nothing else, such as training_set or testdata."""
    words = re.findall(_SPLIT_NAME, folded(name))
    rest = re.sub(r"[\W\d_]", "", re.sub(_SPLIT_NAME, "", folded(name)))
    return not rest and not split_named(name) and any(word in ALIASES for word in words)


def _empty_notes(
    layout: _Layout, paths: Sequence[Path], folders: dict[str, Counter[str]], labelled: bool
) -> list[Note]:
    """Return one note that names the folders, at the level of splits and classes, which yield no image."""
    full = {path[:depth] for path in set(paths) for depth in range(len(path) + 1)}
    contents: dict[Path, Counter[str]] = {}
    for folder, files in folders.items():
        path = tuple(part for part in folder.split("/") if part and not part.lower().endswith(".tar"))
        empty = next((path[:n] for n in range(1, len(path) + 1) if path[:n] not in full), None)
        if empty and len(empty) <= layout.depth and not any(p.startswith((".", "__MACOSX")) for p in empty):
            contents.setdefault(empty, Counter()).update(files)
    if not contents:
        return []
    shown = [f"{'/'.join(path)!r} ({by_suffix(files)})" for path, files in sorted(contents.items())]
    names, verb = ("Folders", "yield") if len(shown) > 1 else ("Folder", "yields")
    message = f"{names} {listed(shown)} {verb} no image"
    message += ", so there is no such class or split." if labelled else "."
    paths_without = ["/".join(path) for path in sorted(contents)]
    return [Note("folders-without-images", message, labelled, {"folders": paths_without})]


def by_suffix(files: Counter[str]) -> str:
    """Return "2 × .txt, 1 × .csv", the most frequent first."""
    shown = [f"{count} × {suffix}" for suffix, count in files.most_common(5)]
    more = [f"{files.total() - sum(dict(files.most_common(5)).values())} others"] if len(files) > 5 else []
    return ", ".join(shown + more) or "empty"
