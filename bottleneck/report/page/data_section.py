"""The section on data: classes by split, failures, ignored files, sizes, look-alikes across splits.

Shapes: I images, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from bottleneck.data.decode import EncodedImage
from bottleneck.errors import BottleneckError, ImageError, counted, listed, verb
from bottleneck.extraction.cached_source import source_of
from bottleneck.extraction.data_sheet import data_sheet
from bottleneck.files import readable
from bottleneck.names import SPLITS
from bottleneck.report.page.blocks import Block, Gallery, Item, Problem, Prose, Section, Share, Table
from bottleneck.report.page.inputs import Inputs
from bottleneck.report.page.pictures import PAIR, Pictures
from bottleneck.store.reader import FeatureCache
from bottleneck.store.tables import as_bytes
from bottleneck.studies.study_config import AuditConfig

MOST_PAIRS = 24
MOST_REASONS = 20
MOST_MEASURED = 256  # images whose pixels are counted


def data_section(inputs: Inputs, cache: FeatureCache | None, pictures: Pictures) -> Section:
    """Return the section, with the problems that it shows."""
    if cache is None:
        missing = "No cache is among the paths, so the data are not shown. Name the cache as well."
        return Section("data", "Data", missing=missing)
    sheet = data_sheet(cache.samples, cache.failures)
    extraction = extracted(inputs.results.get("extract", ()), cache)
    blocks: list[Block] = []
    problems: list[Problem] = []
    for name, target in sheet["targets"].items():
        if target["kind"] == "regression":
            blocks.append(_range(name, target))
        else:
            table, worse = _classes(name, sheet["classes"][name], sheet["splits"], len(sheet["targets"]) > 1)
            blocks.append(table)
            problems += worse
        if target["unlabelled"]:
            text = f"{counted(target['unlabelled'], 'sample has', 'samples have')} no label of target {name}."
            blocks.append(Prose(f"unlabelled-{name}", text=text))
    if not sheet["targets"]:
        counts = ", ".join(f"{count:,} {split}" for split, count in sheet["splits"].items() if count)
        blocks.append(Prose("no-labels", text=f"The images have no labels. Samples: {counts or 'none'}."))
    blocks.append(_files(cache))
    if cache.failures:
        blocks.append(_failures(cache, sheet))
        problems.append(_failed(cache))
    if ignored := extraction.get("data", {}).get("ignored"):
        rows = [[suffix, count] for suffix, count in ignored.items()]
        blocks.append(Table("ignored", "Ignored files", columns=("suffix", "files"), rows=rows))
    pairs = look_alikes(cache, inputs.results.get("audit", ()))
    if pairs:
        blocks.append(_pairs(pairs, pictures))
        problems.append(_leak(pairs, cache))
    elif not inputs.results.get("audit"):
        text = (
            "No file is in two splits. Whether images are nearly the same was not looked for: give the "
            "result of bottleneck audit --json as a further path."
        )
        blocks.append(Prose("look-alikes", "Look-alikes", text))
    return Section("data", "Data", blocks, problems=problems)


def extracted(results: Any, cache: FeatureCache) -> dict[str, Any]:
    """Return the result of the extraction of this cache, of several the last one; {} for none."""
    found: dict[str, Any] = {}
    for result in results:
        if str(result.get("cache")) == str(cache.path) and isinstance(result.get("data"), dict):
            found = result
    return found


def _range(name: str, target: Mapping[str, Any]) -> Prose:
    low, high = target.get("range", (None, None))
    return Prose(
        f"target-{name}", f"Target {name}", f"{counted(target['labelled'], 'number')} from {low} to {high}."
    )


def _classes(
    name: str, classes: Mapping[str, Mapping[str, int]], splits: Mapping[str, int], several: bool
) -> tuple[Table, list[Problem]]:
    """Return samples by class and split, the largest class first, and a problem where classes are rare."""
    used = [split for split in SPLITS if splits[split]]
    widest = max((counts[split] for counts in classes.values() for split in used), default=1) or 1
    ranked = sorted(classes.items(), key=lambda item: -sum(item[1].values()))
    rows, rare = [], []
    for label, counts in ranked:
        few = "train" in used and counts["train"] < AuditConfig.thin
        if few:
            rare.append(label)
        bars = [
            Share(counts[split], counts[split] / widest, "rare" if few and split == "train" else "")
            for split in used
        ]
        rows.append([label, *bars, sum(counts[split] for split in used)])
    have = verb(len(rare), "has", "have")
    thin = f"{len(rare)} of {counted(len(rows), 'class', 'classes')} {have} fewer than "
    thin += f"{AuditConfig.thin} training samples"
    table = Table(
        f"classes-{name}",
        f"Classes of {name} by split" if several else "Classes by split",
        columns=("class", *used, "all"),
        rows=rows,
        note=f"{thin}." if rare else "",
    )
    if not rare:
        return table, []
    named = listed(rare, 3)
    fewest = min(classes[label]["train"] for label in rare)
    return table, [
        Problem(
            0.5 * len(rare) / len(rows) + 0.1,
            thin,
            f"{named}: {fewest:,} at the least. Their accuracy is uncertain; more images of them help most.",
        )
    ]


def _files(cache: FeatureCache) -> Table:
    """Return the number and the sizes of the files."""
    images, samples = cache.images, cache.samples
    sizes = images.stat[:, 0]
    sizes = sizes[sizes >= 0]
    rows: list[list[Any]] = [["images", f"{len(images):,}"], ["samples", f"{len(samples):,}"]]
    if len(samples) and samples.image.shape[1] > 1:
        rows.append(["images per sample", samples.image.shape[1]])
    if len(sizes):
        low, middle, high = np.percentile(sizes, [0, 50, 100])
        rows.append(["all files", readable(int(sizes.sum()))])
        rows.append(
            ["a file", f"{readable(int(middle))} (from {readable(int(low))} to {readable(int(high))})"]
        )
    if pixels := _pixel_sizes(cache):
        rows.append(["pixels of an image", pixels])
    if samples.group is not None:
        rows.append(["groups", f"{len(np.unique(samples.group.astype(str))):,}"])
    if samples.covariate_names:
        rows.append(["covariates", ", ".join(samples.covariate_names)])
    return Table("files", "Files", columns=("what", "value"), rows=rows, sortable=False)


def _pixel_sizes(cache: FeatureCache) -> str:
    """Return width × height of at most `MOST_MEASURED` images, evenly drawn; "" if none can be read."""
    keys, sizes = cache.images.key, []
    try:
        source = source_of(cache)
        for row in np.unique(np.linspace(0, len(keys) - 1, min(len(keys), MOST_MEASURED)).astype(int)):
            with suppress(ImageError, OSError, BottleneckError):
                image = EncodedImage(source.read(keys[row]))
                sizes.append(image.size)
                image.close()
    except BottleneckError:
        return ""
    if not sizes:
        return ""
    ranked = sorted(sizes, key=lambda size: size[0] * size[1])
    small, middle, large = (
        f"{width:,} × {height:,}" for width, height in (ranked[0], ranked[len(ranked) // 2], ranked[-1])
    )
    of = (
        ""
        if len(sizes) == len(keys)
        else f"; of {counted(len(sizes), 'image that was', 'images that were')} read"
    )
    return (small if small == large else f"{middle} (from {small} to {large})") + of


def _failures(cache: FeatureCache, sheet: Mapping[str, Any]) -> Table:
    example: dict[str, str] = {}
    for key, reason in sorted(cache.failures.items()):
        example.setdefault(reason, key)
    reasons = list(sheet["failures"].items())
    rows = [[reason, count, example[reason]] for reason, count in reasons[:MOST_REASONS]]
    more = (
        f"{len(reasons) - MOST_REASONS:,} more reasons are left out." if len(reasons) > MOST_REASONS else ""
    )
    return Table(
        "failures", "Images without features", columns=("reason", "images", "such as"), rows=rows, note=more
    )


def _failed(cache: FeatureCache) -> Problem:
    failed, all_images = len(cache.failures), len(cache.failures) + len(cache.images)
    return Problem(
        failed / all_images,
        f"{failed:,} of {counted(all_images, 'image')} gave no features",
        "They take part in nothing here. The reasons are listed under Data.",
    )


def look_alikes(cache: FeatureCache, audits: Any) -> list[dict[str, Any]]:
    """Return pairs of images that are the same, or nearly, in two splits: {images, splits, cosine}.

    audits : results of `audit`; without one only files of the same bytes are found. The splits are those of
    the cache: an audit may be older, or of another cache of the images.
    """
    splits: dict[int, set[str]] = {}
    for images, split in zip(cache.samples.image, cache.samples.split, strict=True):
        for image in images:
            splits.setdefault(int(image), set()).add(str(split))
    first: dict[bytes, int] = {}
    pairs: dict[tuple[str, ...], dict[str, Any]] = {}
    keys = cache.images.key
    for row, digest in enumerate(as_bytes(cache.images.digest)):
        other = first.setdefault(digest, row)
        both = splits.get(other, set()) | splits.get(row, set())
        if other != row and len(both) > 1:
            pairs[keys[other], keys[row]] = {"splits": sorted(both), "cosine": 1.0, "exact": True}
    row_of = {key: row for row, key in enumerate(keys)}
    for audit in audits:
        for item in audit["leaks"].get("items", ()):
            images = tuple(item.get("images", ()))
            if len(images) != 2 or not set(images) <= row_of.keys():
                continue
            both = set[str]().union(*(splits.get(row_of[image], set()) for image in images))
            if len(both) > 1:
                values = {"splits": sorted(both), "cosine": item.get("cosine"), "exact": item.get("exact")}
                pairs.setdefault(images, values)
    return [{"images": list(images), **values} for images, values in pairs.items()]


def _pairs(pairs: list[dict[str, Any]], pictures: Pictures) -> Gallery:
    items = []
    for pair in pairs[:MOST_PAIRS]:
        one, two = (pictures.want(name, PAIR) for name in pair["images"])
        cosine = "the same bytes" if pair["exact"] else f"cosine {pair['cosine']:.3f}"
        where = " and ".join(map(str, pair["splits"]))
        items.append(Item(one, (where, cosine), ((two, ""),)))
    more = (
        f" {counted(len(pairs) - MOST_PAIRS, 'more pair is', 'more pairs are')} left out."
        if len(pairs) > MOST_PAIRS
        else ""
    )
    text = f"Images that are the same, or nearly, and stand in two splits: {len(pairs):,}.{more}"
    return Gallery("look-alikes", "Look-alikes across splits", text, items=items)


def _leak(pairs: list[dict[str, Any]], cache: FeatureCache) -> Problem:
    return Problem(
        0.7 + len(pairs) / max(1, len(cache.images)),
        f"{len(pairs):,} pair{'s of images are' if len(pairs) > 1 else ' of images is'} in two splits",
        "What is measured on one of them was learnt from the other: the accuracy is too good.",
        "audit",
    )
