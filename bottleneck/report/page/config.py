"""Settings of the report, with their defaults. Without torch, so that the command line can read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bottleneck.errors import BottleneckError

LEAST_SIZE = 200_000  # bytes; a page without any image takes about half of them


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `write_report`."""

    output: str | Path = "report.html"
    max_size: int = 5_000_000  # bytes of the page; thumbnails are left out first
    figures: str | Path | None = None  # folder for every figure as PNG and SVG
    seed: int = 0  # of the draw of samples for the map, and of t-SNE

    def __post_init__(self) -> None:
        if self.max_size < LEAST_SIZE:
            raise BottleneckError(
                f"max_size is {self.max_size:,} bytes; a page needs {LEAST_SIZE:,} or more.",
                "Give for example --max-size 1MB.",
            )
