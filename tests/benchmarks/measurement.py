"""One measurement beside its peer, how a part prints its own, and the one dataclass that all parts share.

A module of this folder with a function `rows(short)` that yields `Row`s is a part: `python -m
tests.benchmarks.NAME [--short] [--json F]` runs it alone, `python -m tests.benchmarks` runs all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from inspect import signature
from pathlib import Path
from statistics import median

from bottleneck.errors import first_line
from tests.benchmarks.machine import this_machine

REPEATS = 3
TIMES, FEWER, LESS = "ours / peer", "peer / ours", "ours - peer"  # how ours is compared with the peer's
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Row:
    """One line of a table.

    what : what was measured, with its size.
    unit : of `ours` and of `theirs`.
    ours, theirs : a value for each round; contenders take turns. Empty where there is none.
    peer : what `theirs` are of.
    compared : `TIMES` (rates), `FEWER` (times, bytes) or `LESS` (accuracies, counts).
    at_least, at_most : what is wanted of the comparison, or of ours where there is no peer.
    conditions : what a reader must know beside the machine.
    reason : why there is no figure.
    failed : the measurement was possible and did not end.
    interval : 95 % interval of the mean comparison. Where there is one, it is judged and not the median.
    """

    what: str
    unit: str = ""
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    peer: str = ""
    compared: str = TIMES
    at_least: float | None = None
    at_most: float | None = None
    conditions: str = ""
    reason: str = ""
    failed: bool = False
    interval: tuple[float, ...] = ()

    @property
    def ratios(self) -> tuple[float, ...]:
        """The comparison in each round; empty without a peer, or where something is divided by zero."""
        pairs = list(zip(self.ours, self.theirs, strict=False))
        if self.compared == LESS:
            return tuple(ours - theirs for ours, theirs in pairs)
        if self.compared == FEWER:
            pairs = [(theirs, ours) for ours, theirs in pairs]
        return tuple(above / below for above, below in pairs) if all(below for _, below in pairs) else ()

    @property
    def verdict(self) -> str:
        """ "failed", "not measured", "missed", "not shown", "ok", or "" where nothing is wanted.

        "not shown" is an interval that has values on both sides of what is wanted.
        """
        judged = self.ratios if self.theirs else self.ours
        if self.failed or not judged:
            return "failed" if self.failed else "not measured"
        if self.at_least is None and self.at_most is None:
            return ""
        low, high = self.interval or (median(judged), median(judged))
        least = -math.inf if self.at_least is None else self.at_least
        most = math.inf if self.at_most is None else self.at_most
        if high < least or low > most:
            return "missed"
        return "ok" if least <= low and high <= most else "not shown"

    def to_json(self) -> dict:
        """Fields, and what follows from them: `ratio`, `spread` and `verdict`."""
        ratios = self.ratios
        found = {"ratio": median(ratios), "spread": [min(ratios), max(ratios)]} if ratios else {}
        return {**asdict(self), **found, "verdict": self.verdict}

    @classmethod
    def from_json(cls, record: dict) -> Row:
        known = {name: record[name] for name in cls.__dataclass_fields__ if name in record}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return cls(**{**known, **lists})

    def cells(self) -> tuple[str, str, str, str, str]:
        """Ours, the peer's, the comparison, what is wanted, and conditions, as text."""
        wanted = [f"≥ {self.at_least:g}"] if self.at_least is not None else []
        wanted += [f"≤ {self.at_most:g}"] if self.at_most is not None else []
        verdict = self.verdict if self.verdict != "ok" else ""
        interval = "95 % interval {:+.2f} … {:+.2f}".format(*self.interval) if self.interval else ""
        notes = "; ".join(filter(None, (self.reason, self.conditions, interval)))
        compared = told(self.ratios, sign=self.compared == LESS)
        aim = ": ".join(filter(None, (" ".join(wanted), verdict)))
        return told(self.ours), told(self.theirs), compared, aim, notes


def told(values: tuple[float, ...], sign: bool = False) -> str:
    """The median, and least and greatest in parentheses where they differ in what is shown."""
    if not values:
        return "–"
    texts = [figure(value, sign) for value in (median(values), min(values), max(values))]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} ({texts[1]} … {texts[2]})"


def figure(value: float, sign: bool = False) -> str:
    """Three digits that say something, without an exponent where that is readable."""
    shown = f"{value:+.3g}" if sign else f"{value:.3g}"
    if "e" in shown and 1e3 <= abs(value) < 1e9:
        return f"{value:+,.0f}" if sign else f"{value:,.0f}"
    return shown


def speed(
    what: str,
    ours: Sequence[dict],
    theirs: Sequence[dict],
    peer: str,
    at_least: float | None = None,
    conditions: str = "",
) -> Iterator[Row]:
    """Rows of contenders that return images and seconds: by the clock, and of cores where all tell
    processor_seconds.
    """
    rates = [tuple(one["images"] / one["seconds"] for one in side) for side in (ours, theirs)]
    yield Row(f"{what}, by the clock", "images/s", *rates, peer, TIMES, at_least, conditions=conditions)
    if all("processor_seconds" in one for one in (*ours, *theirs)):
        costs = [
            tuple(1000 * one["processor_seconds"] / one["images"] for one in side) for side in (ours, theirs)
        ]
        yield Row(f"{what}, of cores", "processor ms an image", *costs, peer, FEWER, conditions=conditions)


@dataclass
class Result:
    """Rows of a part as they come, kept in a file so that a part that dies keeps those before."""

    file: Path | None
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        ours, theirs, compared, wanted, notes = row.cells()
        beside = f"  {row.peer}: {theirs}  {row.compared}: {compared}" if row.theirs else ""
        print(f"{row.what} [{row.unit}]: {ours}{beside}  {wanted}  {notes}".rstrip(), flush=True)
        if self.file:
            self.file.write_text(json.dumps([each.to_json() for each in self.rows], indent=1), "utf-8")


def print_verdicts(rows: Sequence[Row]) -> None:
    """Print a line for each row:
    ok, missed, not shown, failed, not measured, or measured where nothing is wanted.
    """
    print()
    for row in rows:
        print(f"{row.verdict or 'measured':14}{row.what}")


def collect(rows: Iterator[Row], result: Result) -> bool:
    """Add rows as they come; an exception becomes a failed row. Return whether all went well."""
    try:
        for row in rows:
            result.add(row)
    except Exception as error:
        result.add(Row("the rest of this part", reason=one_line(error), failed=True))
    return not any(row.failed for row in result.rows)


def one_line(error: BaseException) -> str:
    """The kind of an exception and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def main(rows: Callable[..., Iterator[Row]], doc: str) -> None:
    """The command of a part. It takes folders of images where `rows` has a parameter `folders`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    if "folders" in signature(rows).parameters:
        parser.add_argument("folders", nargs="*", type=Path, help="judged beside the generated sets")
    parser.add_argument("--short", action="store_true", help="smaller sizes")
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = vars(parser.parse_args())
    result = Result(arguments.pop("json"))
    print(this_machine().title, flush=True)
    with tempfile.TemporaryDirectory(prefix="bottleneck-benchmark-") as graphs:
        os.environ.setdefault("BOTTLENECK_CACHE", graphs)  # engines' graphs, kept from round to round
        good = collect(rows(**arguments), result)
    print_verdicts(result.rows)
    sys.exit(0 if good else 1)
