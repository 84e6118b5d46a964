"""Draw where in an image a classifier looked: an overlay for each explained class, and a contact sheet.

    source ──► Explainer ──► contributions of places ──► overlay, upright and at the image's own size

Shapes: H × W pixels of an image.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_sources
from bottleneck.data.source import Source
from bottleneck.errors import BottleneckError, Note, counted, distinct, refuse_strict, unread_notes
from bottleneck.extraction.cached_source import source_of
from bottleneck.extraction.config import EngineConfig
from bottleneck.files import require_file_name, whole_file
from bottleneck.models.attribution import Explainer
from bottleneck.models.classifier import Classifier, open_model
from bottleneck.models.config import ExplainConfig
from bottleneck.models.explanation import Explanation
from bottleneck.names import is_cache
from bottleneck.progress import SILENT, Reporter, probability
from bottleneck.records import config_from
from bottleneck.report.image_sheets import MOST_LINES, MOST_TILES, SIDE, Strip, Tile, contact_sheet
from bottleneck.report.overlays import laid_over, upright
from bottleneck.store.reader import FeatureCache

LONGEST_NAME = 40  # characters of an image's or a class's name in a file's name
LEGEND = "Yellow, bright: speaks for the class. Blue, dark: speaks against it. Frame: what the network sees."


@dataclass(frozen=True)
class Explanations:
    """The result of `explain`.

    maps : one for each sample and explained class. paths : for each map the overlays of its images; [] if
    nothing was drawn. sheet : path of the contact sheet, or None. failed : reason by image.
    """

    maps: list[Explanation]
    paths: list[list[str]]
    sheet: str | None
    failed: dict[str, str]
    flip: bool
    seconds: float
    notes: list[Note] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values, with the contributions of the places of every map."""
        drawn = self.paths or [[] for _ in self.maps]
        return {
            "maps": [_record(one, paths) for one, paths in zip(self.maps, drawn, strict=True)],
            "sheet": self.sheet,
            "failed": [{"image": key, "error": reason} for key, reason in self.failed.items()],
            "flip": self.flip,
            "seconds": self.seconds,
            "notes": self.notes,
        }


def explain(
    model: str | Path | Classifier,
    *sources: str | Path | Source,
    class_names: Sequence[str] = ExplainConfig.class_names,
    exact: bool = ExplainConfig.exact,
    flip: bool = ExplainConfig.flip,
    reference: str | Path | None = ExplainConfig.reference,
    output: str | Path | None = ExplainConfig.output,
    image_columns: Sequence[str] = ReadConfig.image_columns,
    label_columns: Sequence[str] = ReadConfig.label_columns,
    split_column: str | None = ReadConfig.split_column,
    group_column: str | None = ReadConfig.group_column,
    sample_column: str | None = ReadConfig.sample_column,
    covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
    classes: Sequence[str] = ReadConfig.classes,
    regression: Sequence[str] = ReadConfig.regression,
    label_separator: str | None = ReadConfig.label_separator,
    cache_images: str | None = ReadConfig.cache_images,
    strict: bool = False,
    weights: str | None = None,
    trust_code: bool = False,
    reporter: Reporter = SILENT,
) -> Explanations:
    """Show which places of images speak for the predicted class, and for others that are named.

    The network is run in float32 on the CPU. A logit is the head's intercept and the contributions of all
    places, which is exact where a linear head reads averages, maxima or all values of a map; else it is an
    approximation, which a note says.

    Parameters
    ----------
    model : path of a head or model file, or an open Classifier
    sources : images, folders, manifests, shards, URLs, or read `Source`s
    class_names, exact, flip, reference, output : see `ExplainConfig`
    image_columns … label_separator : columns of a manifest, as for `predict`
    cache_images : folder that keeps images read over a network, see `ReadConfig`
    strict : refuse decisions on the sources that change the result (`errors.refuse_strict`)
    weights, trust_code : needed to load some backbones, see `load_model`

    Raises
    ------
    ArtifactError
        The head has no such class, is a knn head, or reads nothing that has places.
    SourceError, BackboneError, StrictError
    BottleneckError
        None of the images could be read.
    """
    config, reading = config_from(ExplainConfig, locals()), config_from(ReadConfig, locals())
    sheet: _Sheet | None = None
    notes = list[Note]()
    if output is not None:
        sheet, notes = _Sheet.at(Path(output))
    classifier = open_model(model, LoadOptions(weights, trust_code), EngineConfig())
    started = time.perf_counter()
    opened = read_sources(sources, classifier.reading(reading, inputs_only=True))
    notes += [*classifier.head.notes, *(note for source in opened for note in source.notes)]
    refuse_strict(notes, strict)
    explainer = Explainer(classifier, config)
    if reference is not None:
        explainer.compare_with(_reference(reference, classifier, reading), Path(reference).name, reporter)
    maps: list[Explanation] = []
    paths: list[list[str]] = []
    for source in opened:
        for one in explainer.explain(source, reporter):
            maps.append(replace(one, images=tuple(map(source.shown, one.images))))
            paths += [sheet.add(one, source, classifier.trunk.preprocess)] if sheet else []
    notes += _unread(explainer.failed, bool(maps), sum(len(source.images) for source in opened))
    refuse_strict(notes, strict)
    if sheet:
        notes += [*sheet.notes, *sheet.write()]
    return Explanations(
        maps,
        paths,
        str(sheet.path) if sheet else None,
        explainer.failed,
        flip or classifier.flips,
        time.perf_counter() - started,
        distinct([*notes, *explainer.notes, *classifier.trunk.notes]),
    )


def _unread(failed: dict[str, str], any_explained: bool, images: int) -> list[Note]:
    """Return a note on failed images; BottleneckError if none of `images` was explained."""
    first = "".join(f"{key}: {why}" for key, why in [*failed.items()][:1])
    if not any_explained:
        reason = f"; the first: {first}" if first else ""
        raise BottleneckError(f"None of {counted(images, 'image')} could be explained{reason}.")
    return unread_notes("Images that are not explained", failed)


def _own_output(path: Path) -> tuple[Path, list[Note]]:
    """Return where the sheet goes, and a note: the default name is taken once only, and what an earlier run
    left in the folder of overlays is not this run's.
    """
    chosen = path
    if path == Path(str(ExplainConfig.output)):
        number = 1
        while chosen.exists() or chosen.with_suffix("").exists():
            number += 1
            chosen = path.with_stem(f"{path.stem}-{number}")
        if chosen != path:
            text = f"{path} or its folder exists, so the sheet is {chosen}; -o overwrites another file."
            return chosen, [Note("sheet-numbered", text, details={"path": str(chosen)})]
        return chosen, []
    folder = path.with_suffix("")
    stale = sorted(folder.iterdir()) if folder.is_dir() else []
    if not stale:
        return chosen, []
    text = f"{folder} has {counted(len(stale), 'file')} of before, such as {stale[0].name}; "
    text += "overlays of those names are overwritten, others stay."
    return chosen, [Note("overlays-of-before", text, details={"files": len(stale)})]


def _reference(path: str | Path, classifier: Classifier, reading: ReadConfig) -> Source:
    """Return the samples of a cache's train split, of all its splits where that is empty, or of images."""
    if is_cache(path):
        with FeatureCache(path) as cache:
            return training_images(cache)
    (source,) = read_sources([path], classifier.reading(reading, inputs_only=True))
    return source


def training_images(cache: FeatureCache) -> Source:
    """Return the source of the samples of a cache's train split, of all splits where that is empty."""
    source = source_of(cache)
    train = np.flatnonzero(source.samples.split == "train")
    return source.take(train) if len(train) else source


class _Sheet:
    """Writes overlays as they come, and then the sheet that shows the first of them."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.with_suffix("")
        self.notes: list[Note] = []
        self._strips: dict[str, Strip] = {}
        self._pictures: dict[str, np.ndarray | str] = {}
        self._count = 0  # of overlays

    @classmethod
    def at(cls, path: Path) -> tuple[_Sheet, list[Note]]:
        """Return a sheet for `path`, or for a free name in its place, and a note on that."""
        require_file_name(path)
        chosen, notes = _own_output(path)
        return cls(chosen), notes

    def add(self, one: Explanation, source: Source, preprocess: Preprocess) -> list[str]:
        """Write the overlays of the sample's images; return their paths."""
        paths = []
        for number, key in enumerate(one.images):
            self._count += 1
            picture, reduced = upright(source, key, preprocess)
            if reduced:
                size = f"{picture.width} × {picture.height}"
                text = f"{source.shown(key)} is very large; its overlay has {size} pixels."
                self.notes.append(Note("overlay-reduced", text))
            path = self.folder / f"{self._count:04}-{_safe(Path(key).stem)}--{_safe(one.label)}.png"
            _write(laid_over(one.smooth(number), picture, preprocess), path)
            paths.append(str(path))
            self._keep(one, number, source.shown(key), picture, preprocess)
        return paths

    def _keep(
        self, one: Explanation, number: int, image: str, picture: Image.Image, preprocess: Preprocess
    ) -> None:
        """Remember the small pictures of one overlay for the sheet. image : its name."""
        name = f"{one.sample}\0{image}\0{number}"
        strip = self._strips.get(name)
        if strip is None:
            if len(self._strips) == MOST_LINES:
                return
            self._pictures[name] = _framed(picture)
            first = Tile(name, marked=True, caption=[f"{picture.width} × {picture.height} pixels"])
            strip = self._strips[name] = Strip(image, [first])
        if len(strip.tiles) <= MOST_TILES:
            key = f"{name}\0{one.label}"
            self._pictures[key] = _framed(laid_over(one.smooth(number), picture, preprocess, SIDE))
            tile = Tile(key, caption=_of_class(one, number))
            self._strips[name] = Strip(strip.title, [*strip.tiles, tile])

    def write(self) -> list[Note]:
        """Write the sheet; return a note where it does not show everything."""
        strips, lines = list(self._strips.values()), 0
        for count, strip in enumerate(strips):
            lines += strip.lines
            if count and lines > MOST_LINES:
                strips = strips[:count]
                break
        contact_sheet(strips, self._pictures, self.path, footer=LEGEND)
        shown = sum(len(strip.tiles) - 1 for strip in strips)
        if shown == self._count:
            return []
        text = f"The sheet shows {shown} of {counted(self._count, 'overlay')}; {self.folder} has them all."
        return [Note("sheet-shortened", text)]


def _write(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as file:
        picture.save(file, format="PNG")


def _safe(name: str) -> str:
    """Return a name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name)[:LONGEST_NAME]


def _framed(picture: Image.Image) -> np.ndarray:
    """Return a picture in a white square of the sheet's tiles, (SIDE, SIDE, 3) uint8."""
    return np.asarray(ImageOps.pad(picture, (SIDE, SIDE), color="white"))


def _of_class(one: Explanation, number: int) -> tuple[str, ...]:
    """Return the lines below an overlay."""
    sure = "" if one.confidence is None else f", p {probability(one.confidence)}"
    places = f"{'exact' if one.exact else 'approximate'}, places {one.sums[number]:+.2f}"
    return (f"{one.label}{' (predicted)' if one.predicted else ''}", f"logit {one.logit:.2f}{sure}", places)


def _record(one: Explanation, paths: list[str]) -> dict[str, Any]:
    """Return a map as JSON values. Of several images, `path` is that of the first, and `images` has all."""
    drawn: Sequence[str | None] = paths or [None for _ in one.images]
    parts = [
        {
            "image": key,
            "sum": total,
            "path": path,
            "nodes": [{"node": node, "contributions": values} for node, values in maps.items()],
        }
        for key, total, path, maps in zip(one.images, one.sums, drawn, one.maps, strict=True)
    ]
    return {
        "image": one.images[0],
        "sample": one.sample,
        "class": one.label,
        "predicted": one.predicted,
        "confidence": one.confidence,
        "logit": one.logit,
        "intercept": one.intercept,
        "sum": sum(one.sums),
        "unplaced": one.unplaced,
        "remainder": one.remainder,
        "exact": one.exact,
        "path": parts[0]["path"],
        "images": parts,
    }
