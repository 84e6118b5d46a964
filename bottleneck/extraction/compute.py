"""Compute the rows and the measures that a plan misses, and hand them to the cache's writer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from bottleneck.data.loader import load_images
from bottleneck.data.preprocess import views_from_json
from bottleneck.errors import ImageError
from bottleneck.extraction.pipeline import Batch, Trunk, measures_of, without_unstorable
from bottleneck.extraction.prepare import Extraction
from bottleneck.extraction.settings import shared_views
from bottleneck.progress import Reporter
from bottleneck.store.plan import Work
from bottleneck.store.writer import CacheWriter
from bottleneck.threads import thread_budget


def compute(work: Work, extraction: Extraction, writer: CacheWriter, reporter: Reporter) -> list[str]:
    """Stream the images of one work group through the engine into the writer.

    Returns "key: reason" of the images that cannot be read at present and keep their rows of an earlier run.
    """
    kept: list[str] = []
    if not work.nodes:
        return _measured(work, extraction, writer, reporter)
    source, names = extraction.source, list(work.nodes)
    keys = [source.images[i] for i in work.images]
    views = shared_views((writer.nodes[name] for name in names), extraction.path)
    recipe = views_from_json(views) if views else None
    known = writer.known(names)
    items = extraction.trunk.stream(source, keys, names, known=known, views=recipe)
    with closing(items) as stream, reporter.step("Extracting", total=len(keys), unit="images") as advance:
        for item in without_unstorable(stream, [writer.nodes[name] for name in names]):
            if isinstance(item, Batch):
                _commit(item, names, writer, extraction.trunk)
                advance(len(item.images))
                continue
            if item.error is None:
                assert item.digest is not None  # the bytes were read
                writer.take_over(item.key, item.digest, item.stat)
            elif item.passing and writer.has_rows(item.key):
                kept.append(f"{item.key}: {item.error}")
            elif extraction.config.on_error == "fail":
                raise ImageError(f"{item.key}: {item.error}", "Use --on-error skip to list it and go on.")
            else:
                writer.fail(item.key, item.error, item.digest, item.stat, passing=item.passing)
            advance(1)
    return kept


def _commit(batch: Batch, names: Sequence[str], writer: CacheWriter, trunk: Trunk) -> None:
    writer.add(
        [(image.key, image.digest, image.stat) for image in batch.images if image.digest is not None],
        dict(zip(names, batch.features, strict=True)),
        dict(zip(names, batch.views, strict=True)) if batch.views else {},
        measures_of(batch.images, trunk.preprocess) if batch.measures is None else batch.measures,
        trunk.engines_of(names),
    )


def _measured(work: Work, extraction: Extraction, writer: CacheWriter, reporter: Reporter) -> list[str]:
    """Measure the pixels of images that have their rows; the network is not run. Returns as `compute`."""
    source, preprocess = extraction.source, extraction.trunk.preprocess
    keys, engine = [source.images[i] for i in work.images], extraction.trunk.config
    workers = thread_budget(engine.workers, engine.device).decode
    kept = []
    with reporter.step("Measuring", total=len(keys), unit="images") as advance:
        for image in load_images(source, keys, preprocess, workers=workers):
            if image.error is not None:
                kept.append(f"{image.key}: {image.error}")
            elif image.pixels is not None and image.digest is not None:
                rows = [(image.key, image.digest, image.stat)]
                writer.add(rows, {}, measures=measures_of([image], preprocess))
            advance(1)
    return kept
