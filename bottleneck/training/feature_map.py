"""The cached feature map that unfrozen blocks are fed with: extracted once, into a file beside the cache.

Shapes: I images, C channels, H × W positions, V views.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions
from bottleneck.data.loader import load_images
from bottleneck.extraction.cached_source import require_images, source_of
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.extract import extract
from bottleneck.extraction.prepare import Extraction, prepare
from bottleneck.files import readable
from bottleneck.progress import SILENT, Reporter
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.layout import companion_path
from bottleneck.store.lock import CacheLock
from bottleneck.store.reader import FeatureCache
from bottleneck.training.timing import duration

REPLACED = ".replaced"  # ends the name of a map while the one that is to replace it is being made
TRIED = 16  # images on which the speed is measured


@dataclass(frozen=True)
class MapWork:
    """What is to be extracted: bytes on disk and an estimate of the seconds, for `images` images."""

    node: str
    images: int
    bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"Extracting {self.node} of {self.images:,} images once: {readable(self.bytes)} on disk, "
            f"about {duration(self.seconds)}."
        )


def ensure_map(
    cache: Path,
    node: str,
    *,
    views: int = 0,
    dtype: str | None = None,
    options: LoadOptions = NO_OPTIONS,
    reporter: Reporter = SILENT,
) -> float:
    """Extract the map `node`, with `views` views, unless the cache has it; return the seconds that this took.

    dtype : type of storage; a map in another type is replaced. None takes the map as it is, and for a new map
        the type of the cache's first node.
    reporter : is told the cost before the extraction starts.

    Raises
    ------
    CacheError
        The images that the cache was made from are gone, the disk is full, or another run is at work.
    """
    _recover(cache)
    with FeatureCache(cache) as opened:
        existing = opened.nodes.get(node)
        has_views = existing is not None and views in (0, (existing.views or {}).get("count"))
        if existing is not None and has_views and dtype in (None, existing.dtype):
            return 0.0
        source = source_of(opened)
        dtype = dtype or next(iter(opened.nodes.values())).dtype
    require_images(source, slice(None), "A new node is needed", cache)
    config = ExtractConfig(nodes=(node,), views=views, dtype=dtype, on_error="fail", **asdict(options))
    replaced = existing if existing is not None and existing.dtype != dtype else None
    with nullcontext() if replaced is None else _set_aside(companion_path(cache, replaced)):
        reporter.tell(str(_work(prepare(config, source, cache), node)))
        started = time.perf_counter()
        extract(
            source,
            cache,
            nodes=(node,),
            views=views,
            dtype=dtype,
            on_error="fail",
            weights=options.weights,
            trust_code=options.trust_code,
            reporter=reporter,
        )
        return time.perf_counter() - started


@contextmanager
def _set_aside(path: Path) -> Iterator[None]:
    """Rename a map's file while its replacement is made; rename it back where there is no replacement."""
    aside = path.with_name(path.name + REPLACED)
    path.replace(aside)
    try:
        yield
    except BaseException:
        if not path.exists():
            aside.replace(path)
        raise
    aside.unlink(missing_ok=True)


def _recover(cache: Path) -> None:
    """After a kill: rename a map that was set aside back, or delete it where its replacement is complete.

    Raises CacheError where another run is at work that may need it.
    """
    left = [path for path in cache.parent.glob(f"*--*{REPLACED}") if path.name.startswith(f"{cache.stem}--")]
    if not left:
        return
    with CacheLock(cache):
        for aside in left:
            path = aside.with_name(aside.name.removesuffix(REPLACED))
            if path.exists():
                aside.unlink(missing_ok=True)
            elif aside.exists() and _is_map_of(cache, aside, path):
                aside.replace(path)


def _is_map_of(cache: Path, aside: Path, path: Path) -> bool:
    """Whether the file `aside` is the map of this cache at `path`, not of a cache whose name begins alike."""
    with closing(CacheFile(aside)) as file:
        node = file.nodes.get(file.map_name or "")
        return node is not None and companion_path(cache, node) == path


def _work(extraction: Extraction, node: str) -> MapWork:
    """Bytes from the node's shape; seconds from the speed on a few images, engine building left out."""
    spec = next(spec for spec in extraction.nodes if spec.name == node)
    keys = extraction.source.images
    views = 0 if spec.views is None else spec.views["count"]
    trunk = extraction.trunk
    loaded = load_images(extraction.source, keys[:TRIED], trunk.preprocess, workers=1)
    pixels = [image.pixels for image in islice(loaded, TRIED) if image.pixels is not None]
    if not pixels:
        return MapWork(node, len(keys), 0, 0.0)
    batch = np.stack(pixels)
    run = trunk.engine([node], batch)
    run(batch)
    started = time.perf_counter()
    run(batch)
    seconds = (time.perf_counter() - started) / len(batch) * len(keys) * (1 + views)
    return MapWork(node, len(keys), spec.bytes_of(len(keys)), seconds)
