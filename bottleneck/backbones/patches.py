"""Show what a channel responds to: the patches of the user's images that activate it most.

After Zeiler and Fergus (2014), without their deconvolution. The size of a patch is the effective receptive
field of Luo et al. (2016), which is smaller than the theoretical one.

Shapes: N images, H × W pixels, C channels of a node with h × w positions, K channels shown, P patches
of each, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.extractor import Extractor, Pool
from bottleneck.data.loader import readable_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.errors import BackboneError
from bottleneck.names import PATCH_IMAGES
from bottleneck.progress import SILENT, Reporter
from bottleneck.threads import thread_budget

_BATCH = 16
_FIELD_IMAGES = 4  # images over which the receptive field is measured
_FIELD_SHARE = 0.9  # share of the gradient that it contains


@dataclass(frozen=True)
class Patches:
    """The strongest channels of one node.

    channels : int (K,), sorted by how much their strongest images exceed the mean.
    crops : uint8 (K, P, S, S, 1 | 3 | 4), strongest first, each from another image.
    activations : float32 (K, P).
    """

    node: str
    channels: np.ndarray
    crops: np.ndarray
    activations: np.ndarray


def first_kernels(backbone: Backbone) -> np.ndarray:
    """Weights of the first convolution, float32 (F, C, k, k) for F filters.

    Raises
    ------
    BackboneError
        If the network has none.
    """
    first = next((m for m in backbone.module.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise BackboneError(f"{backbone.name} has no convolution whose kernels could be drawn.")
    return first.weight.detach().float().numpy()


def patches_of_source(
    backbone: Backbone,
    source: str,
    nodes: Sequence[str] = (),
    *,
    preprocess: Preprocess | None = None,
    limit: int = PATCH_IMAGES,
    reporter: Reporter = SILENT,
) -> list[Patches]:
    """`strongest_patches` of several nodes over the first images of a source, from the stem upwards.

    Parameters
    ----------
    source : path or URL
        As for `extract`.
    nodes : sequence of str, optional
        By default all blocks that are maps.
    limit : int
        Number of images to use.

    Raises
    ------
    SourceError
        If no image can be read.
    """
    preprocess = preprocess or backbone.preprocess
    nodes = nodes or map_nodes(backbone, preprocess)
    opened = read_source(source)
    keys = opened.images[:limit]
    with reporter.step("Reading", total=len(keys), unit="images") as advance:
        workers = thread_budget().decode
        pixels = readable_pixels(opened, keys, preprocess, workers=workers, advance=advance)
    return strongest_patches(backbone, pixels, nodes, preprocess=preprocess, reporter=reporter)


def map_nodes(backbone: Backbone, preprocess: Preprocess) -> list[str]:
    """Return the nodes of all blocks that are maps, from the stem upwards.

    Blocks that take no images of this size, such as a classifier of another one, are left out.
    """
    found = []
    for block in backbone.blocks:
        with suppress(BackboneError):
            if _layout(backbone, block.node, preprocess) not in ("", "NC"):
                found.append(block.node)
    return found


def strongest_patches(
    backbone: Backbone,
    pixels: np.ndarray,
    nodes: Sequence[str | int],
    *,
    preprocess: Preprocess | None = None,
    channels: int = 8,
    patches: int = 9,
    reporter: Reporter = SILENT,
) -> list[Patches]:
    """Find the patches that activate the strongest channels of each node, in one pass over the images.

    Parameters
    ----------
    pixels : uint8 array of shape (N, H, W, C)
        Preprocessed images; at least `patches` of them for full rows.
    nodes : sequence of str or int
        Nodes with positions: maps or tokens.

    Raises
    ------
    BackboneError
        If a node is a vector, or does not exist.
    """
    preprocess = preprocess or backbone.preprocess
    names = [backbone.resolve(node) for node in nodes]
    flat = [name for name in names if _layout(backbone, name, preprocess) in ("", "NC")]
    if flat:
        raise BackboneError(f"{', '.join(flat)} has no positions in the image, so no patches can be shown.")
    extractor = backbone.extractor([f"{name}@none" for name in names], preprocess)
    with reporter.step("Looking for patches", total=len(pixels), unit="images") as advance:
        peaks = _peaks(extractor, pixels, advance)
    results = []
    for index, (name, (values, positions, grid)) in enumerate(zip(names, peaks, strict=True)):
        order = np.argsort(-values, axis=0, kind="stable")[:patches]  # (P, C) images
        best = np.take_along_axis(values, order, axis=0)
        contrast = (best.mean(axis=0) - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)
        chosen = np.argsort(-contrast, kind="stable")[:channels]
        side = _field_size(extractor, index, pixels[:_FIELD_IMAGES])
        (h, w), (H, W) = grid, pixels.shape[1:3]
        rows, columns = (positions // w + 0.5) * H / h, (positions % w + 0.5) * W / w
        crops = [[_crop(pixels[i], rows[i, c], columns[i, c], side) for i in order[:, c]] for c in chosen]
        results.append(Patches(name, chosen, np.array(crops), best[:, chosen].T))
    return results


def _layout(backbone: Backbone, node: str, preprocess: Preprocess) -> str:
    return backbone.node_shape(f"{node}@none", preprocess)[1]


def _peaks(
    extractor: Extractor, pixels: np.ndarray, advance: Callable[[int], None]
) -> list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """For each node: each channel's maximum in each image (N, C), its flat position (N, C), and (h, w)."""
    batches = []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            maps = extractor(torch.from_numpy(pixels[start : start + _BATCH]))
            grids = [_grid(extractor, index, values) for index, values in enumerate(maps)]
            batches.append([(*grid.flatten(2).max(2), tuple(grid.shape[2:])) for grid in grids])
            advance(len(grids[0]))
    joined = []
    for node in zip(*batches, strict=True):
        values, positions, shapes = zip(*node, strict=True)
        joined.append((torch.cat(values).numpy(), torch.cat(positions).numpy(), shapes[0]))
    return joined


def _grid(extractor: Extractor, index: int, values: Tensor) -> Tensor:
    """A node's tensor → (B, C, h, w)."""
    pool = extractor.pools[index]
    assert isinstance(pool, Pool)
    return pool.channels_first(values)


def _field_size(extractor: Extractor, index: int, pixels: np.ndarray) -> int:
    """Side in pixels of the square around a node's central position that contains most of its gradient."""
    x = extractor.normalise(torch.from_numpy(pixels)).requires_grad_()
    grid = _grid(extractor, index, extractor.trunk(x)[index])
    h, w = grid.shape[2:]
    (gradient,) = torch.autograd.grad(grid[:, :, h // 2, w // 2].abs().sum(), x)
    energy = gradient.abs().sum((0, 1))
    H, W = energy.shape
    rows = (torch.arange(H) + 0.5 - (h // 2 + 0.5) * H / h).abs()
    columns = (torch.arange(W) + 0.5 - (w // 2 + 0.5) * W / w).abs()
    distance = torch.maximum(rows[:, None], columns[None, :]).flatten()
    nearest = distance.argsort()
    share = energy.flatten()[nearest].cumsum(0) / energy.sum()
    radius = distance[nearest][int((share < _FIELD_SHARE).sum().clamp(max=len(nearest) - 1))]
    return min(H, W, max(3, 2 * int(radius.ceil()) + 1))


def _crop(image: np.ndarray, row: float, column: float, side: int) -> np.ndarray:
    """A square around a position, shifted if it would leave the image."""
    top = int(np.clip(row - side / 2, 0, image.shape[0] - side))
    left = int(np.clip(column - side / 2, 0, image.shape[1] - side))
    return image[top : top + side, left : left + side]
