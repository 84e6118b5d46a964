"""The section on the network: kernels of its first layer, pictures of its channels, the transfer study."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.patches import first_kernels, map_nodes, strongest_patches
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.decode import decode_image
from bottleneck.data.loader import readable_pixels
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BottleneckError, Note, counted
from bottleneck.extraction.cached_source import source_of
from bottleneck.progress import Reporter
from bottleneck.report.image_sheets import draw_filters, draw_patches
from bottleneck.report.page.blocks import Block, Chart, Picture, Section, Series
from bottleneck.report.page.inputs import Inputs, study_curves
from bottleneck.store.reader import FeatureCache
from bottleneck.threads import thread_budget
from bottleneck.training.inputs import backbone_of

WIDEST = 1200  # pixels of a picture
MOST_KERNELS = 128
MOST_EXCITED, CHANNELS, PATCHES = 64, 5, 8  # images that are searched; rows and columns of a sheet
SHARE = 0.1  # of the page's size that sheets of patches may take
LINES = {"BnB": "line", "BnB+": "line", "AnB": "line", "AnB+": "line", "random": "dashes"}


def network_section(
    inputs: Inputs, cache: FeatureCache | None, options: LoadOptions, max_size: int, reporter: Reporter
) -> tuple[Section, list[Note]]:
    """Return the section, and notes. max_size : of the page, of which sheets of patches take a part only."""
    blocks: list[Block] = []
    notes: list[Note] = []
    if cache is not None:
        try:
            backbone = backbone_of(cache, options)
            blocks.append(_kernels(backbone))
            blocks += _excitation(backbone, cache, int(max_size * SHARE), reporter)
        except (BottleneckError, OSError) as error:
            first = "Patches are" if blocks else "The first layer is"
            notes.append(Note("network-not-shown", f"{first} not shown: {error}"))
    for path in inputs.pictures:
        try:
            blocks.append(_picture(path))
        except (BottleneckError, OSError) as error:
            notes.append(Note("picture-not-shown", f"{path} is not shown: {error}"))
    if result := inputs.result("transfer-study"):
        blocks += _study(result)
    missing = "" if blocks else "No cache of a network is among the paths."
    return Section("network", "Network", blocks, missing), notes


def _kernels(backbone: Backbone) -> Picture:
    """Return the kernels of the first convolution as colours, each scaled to the full range."""
    kernels = first_kernels(backbone)
    with TemporaryDirectory() as folder:
        path = draw_filters(kernels[:MOST_KERNELS], Path(folder) / "kernels.png")
        sheet = Image.open(path).convert("RGB")
    size = " × ".join(map(str, kernels.shape[2:]))
    shown = "" if len(kernels) <= MOST_KERNELS else f", the first {MOST_KERNELS}"
    text = f"{len(kernels)} kernels of {size} pixels{shown}. Middle grey is zero; each has its own scale."
    return _as_block("kernels", "First layer", text, sheet, lossless=True)


def _excitation(
    backbone: Backbone, cache: FeatureCache, budget: int, reporter: Reporter
) -> Iterator[Picture]:
    """Yield a sheet for an early, a middle and a late block: patches of the images that excite channels most.

    budget : bytes of all sheets; those that do not fit are left out.
    """
    preprocess = Preprocess.from_json(cache.spec.preprocess)
    blocks = map_nodes(backbone, preprocess)
    nodes = list(dict.fromkeys(blocks[round(at * (len(blocks) - 1))] for at in (0.25, 0.6, 1) if blocks))
    source = source_of(cache)
    keys = cache.images.key
    drawn = np.unique(np.linspace(0, len(keys) - 1, min(len(keys), MOST_EXCITED)).astype(int))
    pixels = readable_pixels(
        source, [str(keys[row]) for row in drawn], preprocess, workers=thread_budget().decode
    )
    found = strongest_patches(
        backbone, pixels, nodes, preprocess=preprocess, channels=CHANNELS, patches=PATCHES, reporter=reporter
    )
    for patches in found:
        with TemporaryDirectory() as folder:
            sheet = Image.open(draw_patches([patches], Path(folder) / "patches.png")).convert("RGB")
        text = (
            f"Of {counted(len(pixels), 'image')} evenly drawn, the patches that excite {CHANNELS} "
            "channels of "
        )
        text += f"{patches.node} most, the strongest first."
        block = _as_block(f"patches-{patches.node}", f"What excites {patches.node}", text, sheet)
        if (budget := budget - len(block.data) * 4 // 3) >= 0:
            yield block


def _picture(path: Path) -> Picture:
    picture = decode_image(path.read_bytes())
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, max(1, round(picture.height * WIDEST / picture.width))))
    return _as_block(f"picture-{path.stem}", path.stem, f"From {path.name}.", picture)


def _as_block(name: str, caption: str, text: str, picture: Image.Image, lossless: bool = False) -> Picture:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=70, lossless=lossless)
    return Picture(name, caption, text, data=file.getvalue(), size=picture.size)


def _study(result: Mapping[str, Any]) -> list[Block]:
    """Return the means of a transfer study by the number of copied layers."""
    curves = study_curves(result)
    base = [point["mean"] for point in curves.get("baseB", ()) if point["n"] == 0]
    series = []
    for kind, drawn in LINES.items():
        points = sorted(curves.get(kind, ()), key=lambda point: point["n"])
        if points:
            series.append(Series(kind, [p["n"] for p in points], [p["mean"] for p in points], drawn=drawn))
    if base and series:
        ends = [min(s.x[0] for s in series), max(s.x[-1] for s in series)]
        series.append(Series("base B", ends, [base[0], base[0]], drawn="reference"))
    if not series:
        return []
    text = (
        "Mean accuracy of B by the number of layers n that were copied, frozen or fine-tuned (+): from a "
        "network trained on B itself (BnB) or on the other classes A (AnB). After Yosinski et al. 2014."
    )
    return [
        Chart(
            "transfer-study",
            "Transfer study",
            text,
            x_label="layers copied, n",
            y_label="accuracy of B on val",
            series=series,
        )
    ]
