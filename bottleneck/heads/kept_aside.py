"""Keep the head or model of another data set, whose file name a new one has."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

from bottleneck.errors import ArtifactError, Note
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.heads.trained_on import TrainedOn

# Endings of a model's other files.
BESIDE = (".md", ".html", ".history.json", ".history.png", ".candidates.json", ".candidates.csv")


def kept_aside(path: Path, head: HeadArtifact) -> list[Note]:
    """Rename a file at `path` that is no earlier version of `head`, and return a note on it.

    An earlier version was fitted on some of the same images; where a file does not list its images, it has
    the same target and classes.
    """
    if not path.is_file():
        return []
    try:
        before = load_head(path)
    except ArtifactError:
        what = "no head or model that can be read"
    else:
        if _is_earlier(before, head):
            return []
        what = f"a head or model of other images (target {before.target!r})"
    names = (f"{path.stem}.previous{'' if number == 1 else f'-{number}'}" for number in count(1))
    suffixes = (*BESIDE, path.suffix)
    stem = next(
        name for name in names if not any(path.with_name(f"{name}{end}").exists() for end in suffixes)
    )
    for suffix in suffixes:
        with suppress(FileNotFoundError):
            path.with_suffix(suffix).rename(path.with_name(f"{stem}{suffix}"))
    text = f"{path} was {what}; it is kept as {path.with_name(f'{stem}{path.suffix}')}."
    return [Note("file-kept-aside", text, details={"path": str(path)})]


def _is_earlier(before: HeadArtifact, head: HeadArtifact) -> bool:
    """Return whether `before` may be an earlier version of `head`."""
    if before.trained_on and head.trained_on:
        first, second = (TrainedOn.from_json(each.trained_on) for each in (before, head))
        return bool(np.isin(first.starts, second.starts).any())
    return (before.target, before.class_names) == (head.target, head.class_names)
