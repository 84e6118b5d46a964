"""What the source classifier says of images whose bottleneck features are cached: its last layers alone.

Shapes: n samples, D features, Z classes of the source classifier.
"""

from __future__ import annotations

import numpy as np
import torch

from bottleneck.backbones.backbone import BOTTLENECK, Backbone
from bottleneck.errors import BackboneError
from bottleneck.heads.rows import RowReader, as_rows, blocks

BATCH = 4096


@torch.inference_mode()
def source_outputs(backbone: Backbone, rows: np.ndarray | RowReader) -> np.ndarray | None:
    """(n, Z) float32 probabilities for bottleneck features (n, D).

    None where there is no trained classifier, or where the cached bottleneck is not quite its input (a map
    that is flattened rather than pooled to a fixed grid).
    """
    if backbone.recipe.get("weights") == "none" or backbone.anatomy.native is not None:
        return None
    try:
        _, top = backbone.split(BOTTLENECK)
    except BackboneError:
        return None
    reader = as_rows(rows)
    parts = [
        torch.softmax(top(torch.from_numpy(reader.read(*bounds).astype(np.float32))), dim=1).numpy()
        for bounds in blocks(reader, BATCH)
    ]
    return np.concatenate(parts)
