"""Sections and pictures as one HTML file within its budget: templates, policy, data, sprite.

Nothing in the page is executed but one script, and nothing styles it but two style sheets: the policy names
the sha256 of each. No request is allowed. Every text passes Jinja2's autoescape, the script sets texts alone,
and the JSON of the page has no character that could end its element.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bottleneck.errors import Note, counted
from bottleneck.names import SPLITS
from bottleneck.progress import printable
from bottleneck.report.page.blocks import Block, Confusion, Interval, Map, Picture, Section, Share
from bottleneck.report.page.pictures import SIDE, Pictures, Sprite
from bottleneck.report.page.svg import bar_svg, chart_svg, interval_svg, legend_svg

TEMPLATES = "report/page/templates"
CELL = 13  # units of a cell of a large confusion matrix
NAME = 150  # units of the names beside it
LONGEST = 22  # characters of a name beside it
UNSAFE = re.compile("[<>&]")


@dataclass(frozen=True)
class Page:
    """Everything that a page shows, but its thumbnails. lead : the sentence below the heading."""

    heading: str
    lead: str
    sections: Sequence[Section]
    pictures: Pictures
    notes: Sequence[Note]

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of all blocks by section and name."""
        return {
            section.name: {block.name: block.to_json() for block in section.blocks}
            for section in self.sections
        }

    def html(self, sprite: Sprite, notes: Sequence[Note] = ()) -> bytes:
        """Return the page as bytes of UTF-8. notes : further ones."""
        script, style, sprite_style = _asset("page.js"), _asset("page.css"), _sprite_style(sprite)
        policy = (
            "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
            f"style-src {_hash(style)} {_hash(sprite_style)}; script-src {_hash(script)}"
        )
        cells = {
            f"{t},{p}": numbers
            for section in self.sections
            for block in section.blocks
            if isinstance(block, Confusion)
            for (t, p), numbers in block.cells.items()
        }
        data = {
            "report": self.numbers(),
            "images": self.pictures.names,
            "sprite": {"columns": sprite.columns, "rows": sprite.rows, "side": SIDE, "place": sprite.place},
            "cells": cells,
        }
        text = (
            _environment(self.pictures)
            .get_template("page.html")
            .render(
                title=f"{self.heading} – bottleneck report",
                heading=self.heading,
                lead=self.lead,
                sections=self.sections,
                notes=[str(note) for note in (*self.notes, *notes)],
                policy=policy,
                style=Markup(style),
                sprite_style=Markup(sprite_style),
                script=Markup(script),
                data=embedded_json(data),
            )
        )
        return _printable(text).encode()


def embedded_json(value: Any) -> Markup:
    """Return JSON that can stand in a script element: no character of it ends the element or the script, and
    its texts are as the page shows them (`progress.printable`).
    """
    text = json.dumps(
        _shown(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
    )
    return Markup(UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def _shown(value: Any) -> Any:
    """Return a value with its texts as the page shows them."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(each) for key, each in value.items()}
    return [_shown(each) for each in value] if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Return a numpy value as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")


def _printable(text: str) -> str:
    """Return text without characters that a page cannot hold or that reverse it: they become escapes."""
    return "\n".join(map(printable, text.split("\n")))


def _asset(name: str) -> str:
    return files("bottleneck").joinpath(f"{TEMPLATES}/{name}").read_text(encoding="utf-8").strip()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _sprite_style(sprite: Sprite) -> str:
    if not sprite.data:
        return ".thumb{background-image:none}"
    return (
        f".thumb.has{{background-image:url(data:image/webp;base64,{base64.b64encode(sprite.data).decode()})}}"
    )


def _environment(pictures: Pictures) -> Environment:
    environment = Environment(
        loader=PackageLoader("bottleneck", TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        picture_name=lambda number: pictures.names[number],
        kind_of=_kind_of,
        number=_number,
        interval=interval_svg,
        bar=bar_svg,
        chart_svg=chart_svg,
        legend_svg=legend_svg,
        confusion_svg=confusion_svg,
        picture_source=_picture_source,
        splits_of=_splits_of,
        section_id=lambda block: f"block-{_identifier(block)}",
    )
    return environment


def _identifier(block: Block) -> str:
    """Return the name of a block as an id; a name with other characters than words gets a digest."""
    plain = re.sub(r"[^\w-]", "_", block.name, flags=re.ASCII)
    return (
        plain
        if plain == block.name
        else f"{plain}-{hashlib.sha256(block.name.encode('utf-8', 'replace')).hexdigest()[:6]}"
    )


def _kind_of(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Interval):
        return "interval"
    if isinstance(value, Share):
        return "share"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else "text"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return _text_of(value)


def _text_of(value: float) -> str:
    """Return a number with as many digits as its size needs; shares have four, so that they line up."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if 1e-3 <= abs(value) <= 1 or not value else f"{value:.4g}"


def _picture_source(block: Picture) -> Markup:
    return Markup("data:image/webp;base64,") + base64.b64encode(block.data).decode()


def _splits_of(block: Map) -> list[str]:
    return [split for split in SPLITS if split in block.split]


def confusion_svg(block: Confusion) -> Markup:
    """Return a confusion matrix of many classes at its natural size, a rectangle for each cell."""
    K = len(block.classes)
    side = NAME + K * CELL + 4
    parts = [
        Markup(
            '<svg class="matrix" width="{0}" height="{0}" viewBox="0 0 {0} {0}" role="group" '
            'aria-label="{1}">'
        ).format(
            side,
            f"Confusion matrix of {counted(K, 'class', 'classes')}; the most confused pairs are in the "
            "table below.",
        ),
        Markup('<rect class="frame" x="{0}" y="{0}" width="{1}" height="{1}"/>').format(NAME, K * CELL),
    ]
    for k, name in enumerate(block.classes):
        short = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
        at = NAME + (k + 0.75) * CELL
        parts.append(
            Markup(
                '<text x="{0}" y="{1:.1f}" text-anchor="end"><title>{3}</title>{2}</text>'
                '<text transform="translate({1:.1f} {0}) rotate(-90)"><title>{3}</title>{2}</text>'
            ).format(NAME - 5, at, short, name)
        )
    for t, row in enumerate(block.counts):
        total = max(1, sum(row))
        for p, count in enumerate(row):
            if count:
                kind = "right" if t == p else "wrong"
                parts.append(
                    Markup(
                        '<rect class="{} h{}" x="{}" y="{}" width="12" height="12" data-cell="{},{}"/>'
                    ).format(kind, -(-10 * count // total), NAME + p * CELL, NAME + t * CELL, t, p)
                )
    return Markup("").join(parts) + Markup("</svg>")
