"""The page of a report, from paths to the file: the public function.

paths ──► inputs ──► predictions of the main head on the cache that it was fitted on
──► sections ──► thumbnails, as many as fit ──► page, figures
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.errors import BottleneckError, Note, counted, distinct
from bottleneck.files import readable, require_file_name, write_whole
from bottleneck.progress import SILENT, Reporter
from bottleneck.report.page.blocks import Section
from bottleneck.report.page.choice_section import choice_section
from bottleneck.report.page.config import ReportConfig
from bottleneck.report.page.data_section import data_section
from bottleneck.report.page.held_out import Judged, judged
from bottleneck.report.page.inputs import Fitted, Inputs, read_inputs
from bottleneck.report.page.map_section import map_section
from bottleneck.report.page.model_section import model_section
from bottleneck.report.page.network_section import network_section
from bottleneck.report.page.page import Page
from bottleneck.report.page.pictures import Pictures, Sprite
from bottleneck.report.page.verdict_section import provenance_section, verdict_section
from bottleneck.store.reader import FeatureCache


@dataclass(frozen=True)
class Report:
    """The written page.

    path, bytes : of the page. thumbnails : pictures that have one, of `images` that the page names, of which
    `overlays` show where the model looked.
    sections : the numbers of each section by block. figures : paths of the figures that were written.
    """

    path: str
    bytes: int
    thumbnails: int
    images: int
    sections: dict[str, Any]
    overlays: int = 0
    figures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[Note] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck report --json`."""
        return {**vars(self), "notes": [note.to_json() for note in self.notes]}


def write_report(
    paths: Sequence[str | os.PathLike[str]],
    *,
    output: str | Path = ReportConfig.output,
    max_size: int = ReportConfig.max_size,
    figures: str | Path | None = ReportConfig.figures,
    seed: int = ReportConfig.seed,
    weights: str | None = LoadOptions.weights,
    trust_code: bool = LoadOptions.trust_code,
    command: str = "",
    reporter: Reporter = SILENT,
) -> Report:
    """Write one HTML page of caches, heads, models, studies and their results.

    Parameters
    ----------
    paths : files and folders, see `report.page.inputs`
    output : the page
    max_size : bytes of the page; thumbnails are left out first, and a note says so
    figures : folder for every figure of the page as PNG and SVG, optional
    seed : of the draw of samples for the map, and of t-SNE
    weights, trust_code : needed to load some backbones, see `load_model`
    command : that the page says it was made with

    Raises
    ------
    BottleneckError
        A path is nothing that a report shows, or is damaged; there is no path.
    WriteError
        The page cannot be written.
    """
    started = time.perf_counter()
    config = ReportConfig(output, max_size, figures, seed)
    path = Path(config.output)
    require_file_name(path)
    if not paths:
        raise BottleneckError("A report needs a path.", "Name a cache, a head or a model.")
    options = LoadOptions(weights, trust_code)
    inputs = read_inputs(paths)
    try:
        page, cache = _page(inputs, options, config, command, reporter)
        data, shown, notes = fitted_page(page, cache, config.max_size, reporter)
    finally:
        inputs.close()
    write_whole(path, data)
    drawn: list[str] = []
    if config.figures is not None:
        from bottleneck.report.page.figure_files import write_figures

        drawn = write_figures(page.sections, Path(config.figures))
    return Report(
        path=str(path),
        bytes=len(data),
        thumbnails=shown,
        images=len(page.pictures.names),
        sections=page.numbers(),
        overlays=len(page.pictures.made),
        figures=drawn,
        seconds=time.perf_counter() - started,
        notes=distinct([*page.notes, *notes]),
    )


def _page(
    inputs: Inputs, options: LoadOptions, config: ReportConfig, command: str, reporter: Reporter
) -> tuple[Page, FeatureCache | None]:
    """Return the page without thumbnails, and the cache whose images it shows."""
    main, pictures = _main(inputs.fitted), Pictures()
    cache, notes = _cache_of(inputs, main)
    if cache is not None:
        notes += cache.samples.part_notes()
    found: Judged | None = None
    if main is not None and cache is not None:
        found, told = judged(main.path, main.head, cache, options, reporter)
        notes += told
    data, of_data = data_section(inputs, cache, pictures)
    model, of_model, told = model_section(main, found, cache, pictures, options)
    notes += told
    plane, told = map_section(cache, found, pictures, config.seed, reporter)
    notes += told
    network, told = network_section(inputs, cache, options, config.max_size, reporter)
    notes += told
    sections: list[Section] = [
        verdict_section(inputs, main, found, cache, [*of_data, *of_model]),
        provenance_section(inputs, main, cache, command, config.seed),
        data,
        choice_section(inputs, main),
        model,
        plane,
        network,
    ]
    if main is not None:
        notes = [*main.head.notes, *notes]
    heading = main.path.stem if main is not None else cache.path.stem if cache is not None else "Results"
    return Page(heading, _lead(main, cache), sections, pictures, distinct([*inputs.notes, *notes])), cache


def _lead(main: Fitted | None, cache: FeatureCache | None) -> str:
    """Return what the page is about, in a sentence."""
    parts = []
    if main is not None:
        network = main.head.backbone.get("name", "a network")
        what = (
            f"{counted(len(main.head.class_names), 'class', 'classes')}"
            if main.head.class_names
            else "a quantity"
        )
        parts.append(f"A {main.head.kind} head on {main.head.node} of {network}, for {what}")
    if cache is not None:
        parts.append(f"{counted(len(cache.images), 'image')} of {cache.source}")
    return ("; ".join(parts) or "Results of studies") + "."


def _main(fitted: Sequence[Fitted]) -> Fitted | None:
    """Return the model or head that the page is about: a network before heads, then the best."""
    return max(fitted, key=lambda each: (each.is_network, each.score()), default=None)


def _cache_of(inputs: Inputs, main: Fitted | None) -> tuple[FeatureCache | None, list[Note]]:
    """Return the cache that the head was fitted on, else the first one; and what is not shown."""
    caches, notes = inputs.caches, list[Note]()
    if main is not None and len(inputs.fitted) > 1:
        text = (
            f"Of {len(inputs.fitted)} heads and models the page is about {main.path}: a trained network "
            "comes first, else the best score."
        )
        notes.append(Note("report-of-best", text, details={"path": str(main.path)}))
    if not caches:
        return None, notes
    chosen = caches[0]
    if main is not None:
        chosen = next((cache for cache in caches if cache.fingerprint == main.head.fingerprint), chosen)
    if len(caches) > 1:
        text = (
            f"{counted(len(caches), 'cache is', 'caches are')} given; data and map are those of "
            f"{chosen.path}."
        )
        notes.append(Note("report-of-one-cache", text, details={"cache": str(chosen.path)}))
    return chosen, notes


def fitted_page(
    page: Page, cache: FeatureCache | None, max_size: int, reporter: Reporter
) -> tuple[bytes, int, list[Note]]:
    """Return the page with as many thumbnails as fit, how many they are, and notes on what was left out."""
    bare = len(page.html(Sprite()))
    spare = max_size - bare - bare // 50 - 4096
    pixels, notes = page.pictures.read(cache, spare, reporter)
    sprite = page.pictures.sprite(pixels, max(0, spare - 8 * len(pixels)))
    readable_images = len(page.pictures.names) if not notes else len(pixels)
    left = page.pictures.left_out(len(sprite.place)) if len(sprite.place) < readable_images else []
    data = page.html(sprite, [*notes, *left])
    if len(data) > max_size:
        text = f"The page has {readable(len(data))} without thumbnails, more than {readable(max_size)}."
        left.append(Note("page-too-large", text, details={"bytes": len(data), "max_size": max_size}))
        data = page.html(sprite, [*notes, *left])
    return data, len(sprite.place), [*notes, *left]
