"""What a page consists of: sections of blocks. Templates draw them; `--json` has their numbers.

A cell of a table is text, a number, None, a `Share` or an `Interval`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any, ClassVar

from bottleneck.errors import Note


@dataclass(frozen=True)
class Interval:
    """A share of 0 … 1 with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """A number as a bar of a share of 0 … 1 of the widest one. rare : marked, as text in words."""

    value: int | float | None
    share: float
    rare: str = ""


@dataclass(frozen=True)
class Block:
    """A part of a section. name : unique in the page, for links, files and JSON. caption : the heading."""

    kind: ClassVar[str]

    name: str
    caption: str = ""
    text: str = ""

    def to_json(self) -> Any:
        """Return the numbers of the block as JSON values."""
        return self.text


@dataclass(frozen=True)
class Prose(Block):
    """A sentence or two."""

    kind: ClassVar[str] = "prose"


@dataclass(frozen=True)
class Command(Block):
    """A command to copy."""

    kind: ClassVar[str] = "command"
    command: str = ""

    def to_json(self) -> Any:
        return self.command


@dataclass(frozen=True)
class Figure:
    """A number that stands alone, with what it is and what it is compared with."""

    label: str
    value: str
    hint: str = ""
    interval: Interval | None = None


@dataclass(frozen=True)
class Figures(Block):
    """A few large numbers."""

    kind: ClassVar[str] = "figures"
    figures: Sequence[Figure] = ()

    def to_json(self) -> Any:
        return [
            {"label": each.label, "value": each.value, "hint": each.hint}
            | ({} if each.interval is None else vars(each.interval) | {"text": each.value})
            for each in self.figures
        ]


@dataclass(frozen=True)
class Problem:
    """What a reader should know first. weight : the larger, the worse. command : what to do next."""

    weight: float
    headline: str
    detail: str
    command: str = ""


@dataclass(frozen=True)
class Problems(Block):
    """The worst problems."""

    kind: ClassVar[str] = "problems"
    problems: Sequence[Problem] = ()

    def to_json(self) -> Any:
        return [vars(each) for each in self.problems]


@dataclass(frozen=True)
class Table(Block):
    """Rows that can be sorted by each column.

    columns : titles. rows : cells. shown : rows before a button that shows the rest.
    note : below the table.
    """

    kind: ClassVar[str] = "table"
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    shown: int = 30
    sortable: bool = True
    note: str = ""

    def to_json(self) -> Any:
        plain = (Interval, Share)
        return [
            {
                column: vars(cell) if isinstance(cell, plain) else cell
                for column, cell in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]


@dataclass(frozen=True)
class Series:
    """A line or a cloud of points. low, high : of a band. drawn : line, dashes, reference or points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    drawn: str = "line"


@dataclass(frozen=True)
class Chart(Block):
    """Series over a numeric axis. marks : vertical lines with a label. y_range : None is that of the data."""

    kind: ClassVar[str] = "chart"
    x_label: str = ""
    y_label: str = ""
    series: Sequence[Series] = ()
    logarithmic: bool = False
    y_range: tuple[float, float] | None = None
    marks: Sequence[tuple[float, str]] = ()

    def to_json(self) -> Any:
        return [
            {key: value for key, value in vars(each).items() if value is not None} for each in self.series
        ]


@dataclass(frozen=True)
class Item:
    """A picture by its number in `Pictures`, with lines of text, and pictures beside it.

    near : (number, line of text). overlay : another picture of the image, such as a class activation map.
    """

    picture: int
    lines: Sequence[str] = ()
    near: Sequence[tuple[int, str]] = ()
    overlay: int | None = None


@dataclass(frozen=True)
class Gallery(Block):
    """Pictures with captions. near_label : what the pictures beside each are.
    shown : items before a button that shows the rest."""

    kind: ClassVar[str] = "gallery"
    items: Sequence[Item] = ()
    shown: int = 9
    near_label: str = ""


@dataclass(frozen=True)
class Confusion(Block):
    """Counts of true against predicted classes, whose cells open their images.

    counts : (K, K). cells : picture numbers by (true, predicted), as many as the page has. order : in which
    the classes are drawn.
    """

    kind: ClassVar[str] = "confusion"
    classes: Sequence[str] = ()
    counts: Sequence[Sequence[int]] = ()
    cells: dict[tuple[int, int], list[int]] = field(default_factory=dict)

    def to_json(self) -> Any:
        return {"classes": list(self.classes), "counts": [list(row) for row in self.counts]}

    @property
    def pairs(self) -> list[tuple[int, int, int, float]]:
        """(true, predicted, count, share of the true class) of the confused pairs, the commonest first."""
        found = []
        for true, row in enumerate(self.counts):
            total = max(1, sum(row))
            found += [(true, k, n, n / total) for k, n in enumerate(row) if n and k != true]
        return sorted(found, key=lambda pair: (-pair[2], -pair[3], pair[0], pair[1]))


@dataclass(frozen=True)
class Map(Block):
    """Samples as points of a plane, by several methods.

    positions : by method, n points (x, y) in 0 … 1. colour : (n,) class codes, −1 unlabelled.
    predicted : (n,) codes, −1 not predicted. split : (n,) names. pictures : (n,) numbers.
    """

    kind: ClassVar[str] = "map"
    positions: dict[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()
    colour: Sequence[int] = ()
    predicted: Sequence[int] = ()
    split: Sequence[str] = ()
    pictures: Sequence[int] = ()

    def to_json(self) -> Any:
        places = {name: [[round(float(v), 4) for v in p] for p in xy] for name, xy in self.positions.items()}
        return {
            "positions": places,
            "classes": list(self.classes),
            "class": list(self.colour),
            "predicted": list(self.predicted),
            "split": list(self.split),
            "image": list(self.pictures),
        }


@dataclass(frozen=True)
class Picture(Block):
    """A picture of its own. data : bytes of a WebP file. size : (width, height) in pixels."""

    kind: ClassVar[str] = "picture"
    data: bytes = b""
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Section:
    """One part of the page.

    missing : why it is empty, and what fills it. problems : what its blocks show. notes : on what they lack.
    """

    name: str
    title: str
    blocks: Sequence[Block] = ()
    missing: str = ""
    problems: Sequence[Problem] = ()
    notes: Sequence[Note] = ()


def uniquely_named(sections: Iterable[Section]) -> list[Section]:
    """Return the sections of a page; a block whose name an earlier one has gets a number: NAME-2, NAME-3."""
    used, named = set[str](), []
    for section in sections:
        blocks = []
        for block in section.blocks:
            names = chain([block.name], (f"{block.name}-{number}" for number in count(2)))
            name = next(each for each in names if each not in used)
            used.add(name)
            blocks.append(replace(block, name=name))
        named.append(replace(section, blocks=blocks))
    return named
