"""What a channel looks for: the patches of the user's own images that excite it most.

After Zeiler and Fergus (2014), without their deconvolution; the size of a patch is the effective receptive
field of Luo et al. (2016), which is smaller than what the kernels could reach.

Shapes: N images, H × W pixels, C channels of a node with h × w positions, K channels shown, P patches
of each, S pixels a side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.extractor import Extractor
from bottleneck.data.loader import readable_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import read_source
from bottleneck.errors import BackboneError
from bottleneck.progress import SILENT, Reporter
from bottleneck.threads import thread_budget

_BATCH = 16
_FIELD_IMAGES = 4  # images over which the receptive field is measured
_FIELD_SHARE = 0.9  # of the gradient that it holds


@dataclass(frozen=True)
class Patches:
    """The strongest channels of one node.

    channels : int (K,), by how far their strongest images stand out.
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
    limit: int = 300,
    reporter: Reporter = SILENT,
) -> list[Patches]:
    """`strongest_patches` of several nodes over the first images of a source, from the stem upwards.

    Parameters
    ----------
    source : path or URL
        As for `extract`.
    nodes : sequence of str, optional
        All blocks that are maps by default.
    limit : int
        Images to look at.

    Raises
    ------
    SourceError
        If no image can be read.
    """
    preprocess = preprocess or backbone.preprocess
    nodes = nodes or [
        b.node for b in backbone.blocks if _layout(backbone, b.node, preprocess) not in ("", "NC")
    ]
    opened = read_source(source)
    keys = opened.images[:limit]
    with reporter.step("Reading", total=len(keys), unit="images") as advance:
        workers = thread_budget().decode
        pixels = readable_pixels(opened, keys, preprocess, workers=workers, advance=advance)
    return strongest_patches(backbone, pixels, nodes, preprocess=preprocess, reporter=reporter)


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
    """Find the patches that excite the strongest channels of each node, in one pass over the images.

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
        raise BackboneError(f"{', '.join(flat)} has no positions in the image, so no patches excite it.")
    extractor = backbone.extractor([f"{name}@none" for name in names], preprocess)
    with reporter.step("Looking for patches", total=len(pixels), unit="images") as advance:
        peaks = _peaks(extractor, pixels, advance)
    found = []
    for place, (name, (values, positions, grid)) in enumerate(zip(names, peaks, strict=True)):
        order = np.argsort(-values, axis=0, kind="stable")[:patches]  # (P, C) images
        best = np.take_along_axis(values, order, axis=0)
        contrast = (best.mean(axis=0) - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)
        chosen = np.argsort(-contrast, kind="stable")[:channels]
        side = _field(extractor, place, pixels[:_FIELD_IMAGES])
        (h, w), (H, W) = grid, pixels.shape[1:3]
        rows, columns = (positions // w + 0.5) * H / h, (positions % w + 0.5) * W / w
        crops = [[_crop(pixels[i], rows[i, c], columns[i, c], side) for i in order[:, c]] for c in chosen]
        found.append(Patches(name, chosen, np.array(crops), best[:, chosen].T))
    return found


def _layout(backbone: Backbone, node: str, preprocess: Preprocess) -> str:
    return backbone.node_shape(f"{node}@none", preprocess)[1]


def _peaks(
    extractor: Extractor, pixels: np.ndarray, advance: Callable[[int], None]
) -> list[tuple[np.ndarray, np.ndarray, tuple[int, int]]]:
    """Of each node: a channel's maximum in each image (N, C), its flat position (N, C), the grid h × w."""
    batches = []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            maps = extractor(torch.from_numpy(pixels[start : start + _BATCH]))
            grids = [pool.channels_first(map) for pool, map in zip(extractor.pools, maps, strict=True)]
            batches.append([(*grid.flatten(2).max(2), tuple(grid.shape[2:])) for grid in grids])
            advance(len(grids[0]))
    joined = []
    for node in zip(*batches, strict=True):
        values, positions, grids = zip(*node, strict=True)
        joined.append((torch.cat(values).numpy(), torch.cat(positions).numpy(), grids[0]))
    return joined


def _field(extractor: Extractor, place: int, pixels: np.ndarray) -> int:
    """Pixels a side of the square around a node's central position that holds most of its gradient."""
    x = extractor.normalise(torch.from_numpy(pixels)).requires_grad_()
    grid = extractor.pools[place].channels_first(extractor.trunk(x)[place])
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
    """A square around a position, moved inside the image where it would leave it."""
    top = int(np.clip(row - side / 2, 0, image.shape[0] - side))
    left = int(np.clip(column - side / 2, 0, image.shape[1] - side))
    return image[top : top + side, left : left + side]
