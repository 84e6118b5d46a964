"""Errors for users: what was wrong, what was given, what was expected, and what to do next.

Every error that this package raises on purpose is a `BottleneckError`; the command line prints its one line
and exits with 1. Any other error is a defect.

A `Note` is not an error: it reports a decision that was taken for the user, and goes into the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class BottleneckError(Exception):
    """A failure that the user can do something about.

    Parameters
    ----------
    message : str
        What was wrong, what was given and what was expected, as one sentence. Line breaks, which names of
        files and columns may contain, are written as escapes.
    hint : str, optional
        What to do next: a command, a flag, a place to look.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        self.message, self.hint = (text.replace("\n", "\\n").replace("\r", "\\r") for text in (message, hint))
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number of things in words: 1 node, 2 nodes. several : where it is not `one` and an s."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def verb(number: int, one: str = "is", several: str = "are") -> str:
    """Return the verb of a number of things: 1 of 5 images is, 2 of 5 images are."""
    return one if number == 1 else several


class SourceError(BottleneckError):
    """The source of images (folder, manifest, shard, URL) cannot be read."""


class ImageError(BottleneckError):
    """One image cannot be read or decoded. It is listed as a failure and does not stop a run by itself.

    passing : whether the next run should try again: the network, a permission, time or memory was missing.
        False where the reason lies in the image's bytes.
    """

    def __init__(self, message: str, hint: str = "", *, passing: bool = False) -> None:
        super().__init__(message, hint)
        self.passing = passing


class CacheError(BottleneckError):
    """A file is not a feature cache, is damaged, hostile, locked or incomplete."""


class FingerprintError(CacheError):
    """Two recipes that must agree (cache, head, model) differ; `fields` names the differing fields."""

    def __init__(self, message: str, hint: str = "", fields: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.fields = fields


class BackboneError(BottleneckError):
    """A backbone, its weights or one of its nodes does not exist or cannot be loaded."""


class EngineError(BottleneckError):
    """An engine cannot run the trunk, or its outputs differ from the reference by more than the bound."""


class ClusterError(BottleneckError):
    """A Ray cluster cannot be reached, or none of its workers can do what is asked."""


class FitError(BottleneckError):
    """A head or a network cannot be fitted to the data given."""


class ArtifactError(BottleneckError):
    """A head or model file cannot be read, or does not match what it is used with."""


class StrictError(BottleneckError):
    """A decision that changes the result was refused because the user asked for `--strict`."""


class WriteError(ArtifactError, CacheError):
    """A file cannot be written: the disk is full, or its folder is read-only."""


LONGEST_REASON = 300  # characters


def first_line(error: object) -> str:
    """Return the first line of an exception's message, to quote it in a sentence; its type if it is empty."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[0].split())[:LONGEST_REASON].rstrip(".")


@dataclass(frozen=True)
class Note:
    """A decision taken for the user: something dropped, guessed, merged, reused or overridden.

    code : stable kebab-case word for programs, such as "classes-without-training-samples".
    message : one sentence that says what was decided, and where useful a second one: what to do.
    changes_result : whether the decision changes what is learnt or measured; `--strict` refuses such notes.
    details : further JSON values, for example the names or counts concerned.
    """

    code: str
    message: str
    changes_result: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def to_json(self) -> dict[str, Any]:
        """Return {"code", "message", "changes_result", …details}."""
        return {
            "code": self.code,
            "message": self.message,
            "changes_result": self.changes_result,
            **self.details,
        }


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first `most` names with commas between them, and how many more there are."""
    texts = list(map(str, names))
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def quoted(names: Iterable[str]) -> str:
    """Return `listed` of the names in quotes."""
    return listed(map(repr, names))


def distinct(notes: Iterable[Note]) -> list[Note]:
    """Return the notes without those whose code and message an earlier one has."""
    return list({(note.code, note.message): note for note in reversed(list(notes))}.values())[::-1]


def reused_note(reused: int, total: int, folder: object) -> Note:
    """Return a note on runs that an earlier call did."""
    text = (
        f"{reused} of {counted(total, 'run')} {verb(reused)} those of an earlier call "
        f"with the same settings, from {folder}."
    )
    return Note("runs-reused", text, details={"runs": reused})


def unread_notes(what: str, reasons: Mapping[str, str]) -> list[Note]:
    """Return a note on images that could not be read, and so take no part; none where there are none.

    what : begins the sentence. reasons : by image.
    """
    if not reasons:
        return []
    image, why = next(iter(reasons.items()))
    text = f"{what}: {len(reasons):,}; the first is {image}: {why}."
    return [Note("images-unread", text, True, {"failed": len(reasons)})]


def refuse_strict(notes: Iterable[Note], strict: bool, tell: Callable[[str], None] | None = None) -> None:
    """Raise StrictError if `strict` and one of `notes` changes what is learnt or measured.

    tell : otherwise receives these notes, before long work that the user may wish to stop.
    """
    refused = [note for note in notes if note.changes_result]
    if strict and refused:
        more = f" ({len(refused) - 1} more such notes)" if len(refused) > 1 else ""
        raise StrictError(
            f"{refused[0].message}{more}", "Correct the input, or leave --strict out to accept the decision."
        )
    if tell is not None:
        for note in refused:
            tell(f"Note: {note}")
