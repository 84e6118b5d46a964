"""The rows that a network is fed with: cached feature maps, cached views, pixels, or new views every epoch.

Shapes: I images, n of them, V views, H × W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.batchnorm import read_statistics
from bottleneck.backbones.recipe import NO_OPTIONS, LoadOptions
from bottleneck.backbones.registry import load_from_recipe
from bottleneck.data.loader import LoadedImage, fill_pixels
from bottleneck.data.preprocess import Preprocess, ViewRecipe
from bottleneck.data.source import Source
from bottleneck.errors import ImageError, Note, counted
from bottleneck.extraction.cached_source import source_of
from bottleneck.extraction.config import EngineConfig
from bottleneck.extraction.pipeline import Trunk
from bottleneck.files import require_space
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import RowReader
from bottleneck.store.reader import FeatureCache
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.job import Inputs

PASS = 32  # images that pass the frozen trunk at once


class PixelRows(RowReader):
    """Pixels (I, H, W, C) uint8 in a file.

    failures : by index, why an image could not be read. digests : (I, 32) uint8, sha256 of the files' bytes.
    """

    def __init__(self, values: np.memmap, images: Sequence[LoadedImage]) -> None:
        self._values = values
        self.failures = _failures(images)
        digests = b"".join(image.digest or bytes(32) for image in images)
        self.digests = np.frombuffer(digests, np.uint8).reshape(-1, 32)
        self.shape, self.dtype = values.shape, values.dtype

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return pixels (n, H, W, C)."""
        return np.array(self._values[indices])


class LiveRows(RowReader):
    """A view of each image that is made when it is read, and the output of the frozen trunk for it.

    Parameters
    ----------
    source, preprocess
        The images (I), and how they become pixels.
    keys : the I images, in the order of the rows
    plain : RowReader
        The rows (I, …) without a new view. They take the place of views of images that cannot be read.
    seed : int
        Of the views, together with the epoch.
    trunk : callable, optional
        Pixels (n, H, W, C) uint8 → rows (n, …); without one the rows are the pixels.
    """

    def __init__(
        self,
        source: Source,
        keys: Sequence[str],
        preprocess: Preprocess,
        plain: RowReader,
        *,
        seed: int,
        trunk: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.source, self.keys, self.preprocess = source, keys, preprocess
        self.plain, self.shape, self.seed, self.trunk = plain, plain.shape, seed, trunk
        self.dtype = np.dtype(np.float32 if trunk else np.uint8)
        self.unread: dict[str, str] = {}  # why, by image
        self._any_read = False
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Make the views of `epoch` from now on."""
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        self.recipe = ViewRecipe(1, seed=seed)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return rows (n, …) of one view of each image. Raises ImageError while none could be read at all."""
        size, channels = self.preprocess.size, self.preprocess.channels
        pixels = np.empty((len(indices), size, size, channels), np.uint8)
        keys = [self.keys[i] for i in indices]
        images = fill_pixels(pixels, self.source, keys, self.preprocess, views=self.recipe)
        failures = _failures(images)
        self._any_read |= len(failures) < len(keys)
        self.unread |= {keys[index]: reason for index, reason in failures.items()}
        if failures and not self._any_read:
            key, reason = next(iter(self.unread.items()))
            raise ImageError(f"{key} cannot be read: {reason}.", "Mend the image, or extract again.")
        rows = pixels
        if self.trunk is not None:
            parts = [self.trunk(pixels[start : start + PASS]) for start in range(0, len(pixels), PASS)]
            rows = np.concatenate(parts)
        if failures:
            rows[list(failures)] = self.plain.take(indices[list(failures)])
        return rows

    def notes(self) -> tuple[Note, ...]:
        """Return a note on images of which no new view could be made."""
        if not self.unread:
            return ()
        count, (key, reason) = len(self.unread), next(iter(self.unread.items()))
        text = (
            f"{count:,} {'images' if count > 1 else 'image'} could not be read for new views, so training "
            f"saw the stored rows instead: {key}, {reason}."
        )
        return (Note("views-unread", text, True, {"images": count}),)


@contextmanager
def decoded(
    source: Source,
    keys: Sequence[str],
    preprocess: Preprocess,
    folder: Path,
    reporter: Reporter = SILENT,
) -> Iterator[PixelRows]:
    """Yield the pixels of the images `keys`, decoded once into a temporary file in `folder`.

    Images that cannot be read are listed in `failures` of the rows, and are black.

    Raises CacheError where the disk has no room.
    """
    shape = (len(keys), preprocess.size, preprocess.size, preprocess.channels)
    folder.mkdir(parents=True, exist_ok=True)
    require_space(folder, int(np.prod(shape)), f"Decoding {counted(len(keys), 'image')}")
    with TemporaryDirectory(dir=folder, prefix=".pixels-") as temporary:
        values = np.memmap(Path(temporary) / "pixels", np.uint8, "w+", shape=shape)
        with reporter.step("Decoding", total=len(keys), unit="images") as advance:
            images = fill_pixels(values, source, keys, preprocess, advance=advance)
        yield PixelRows(values, images)
        del values


def _failures(images: Sequence[LoadedImage]) -> dict[int, str]:
    """Return the reasons of the images that could not be read, by index."""
    return {image.index: image.error for image in images if image.error is not None}


def unread_note(failures: Mapping[str, str]) -> Note:
    """Return a note on images that could not be read, so that their samples are left out.

    failures : reasons by image.
    """
    count, (key, reason) = len(failures), next(iter(failures.items()))
    what = "images" if count > 1 else "image"
    text = f"{count:,} {what} could not be read, so their samples are left out: {key}, {reason}."
    return Note("images-unread", text, True, {"images": count})


def backbone_of(cache: FeatureCache, options: LoadOptions = NO_OPTIONS) -> Backbone:
    """The network that a cache was made with. Raises BackboneError where it cannot be had."""
    return load_from_recipe(cache.spec.backbone, options, statistics=statistics_of(cache) or None)


def statistics_of(cache: FeatureCache) -> dict[str, np.ndarray]:
    """The statistics of BatchNorm by name where the cache's network has random weights; else none."""
    return read_statistics(cache.path) if cache.spec.backbone.get("calibrated") else {}


@contextmanager
def inputs_of(
    cache: FeatureCache,
    backbone: Backbone,
    node: str | None,
    config: FinetuneConfig,
    folder: Path,
    reporter: Reporter = SILENT,
) -> Iterator[Inputs]:
    """Yield the rows by image that training and measuring read.

    Parameters
    ----------
    node : NODE@none of a map that the cache has, or None for pixels
    config : whether to train on cached views, or on views that are made in each epoch
    folder : where decoded pixels are stored meanwhile
    """
    live = config.augment == "live"
    if node is None:
        keys, preprocess = list(cache.images.key), Preprocess.from_json(cache.spec.preprocess)
        with decoded(source_of(cache), keys, preprocess, folder, reporter) as pixels:
            train = _live(cache, backbone, None, pixels, config.seed) if live else pixels
            yield Inputs(train, pixels, unread=pixels.failures)
        return
    plain = cache.features(node)
    if live:
        yield Inputs(_live(cache, backbone, node, plain, config.seed), plain)
    elif config.views:
        yield Inputs(cache.views(node), plain, draw_views=True)
    else:
        yield Inputs(plain, plain)


def _live(cache: FeatureCache, backbone: Backbone, node: str | None, plain: RowReader, seed: int) -> LiveRows:
    """New views in every epoch, run through the fast engine up to `node`."""
    preprocess = Preprocess.from_json(cache.spec.preprocess)
    trunk = None
    if node is not None:
        trunk = partial(_maps, Trunk(lambda: backbone, preprocess, EngineConfig()), node)
    return LiveRows(source_of(cache), list(cache.images.key), preprocess, plain, seed=seed, trunk=trunk)


def _maps(trunk: Trunk, node: str, pixels: np.ndarray) -> np.ndarray:
    return trunk.engine([node], pixels)(pixels)[0]
