"""Classes that a small network can learn: stripes by their direction and width, with noise."""

import numpy as np
from PIL import Image


def write_stripes(folder, classes=4, images=8, val=4):
    """`folder/SPLIT/classK/I.png`, 16 × 16 grey."""
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", val)):
        for k in range(classes):
            where = folder / split / f"class{k}"
            where.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                x, y = np.mgrid[:16, :16]
                wave = np.sin((x if k % 2 else y) * (0.5 + 0.4 * (k // 2)) + rng.uniform(0, 6))
                pixels = 128 + 80 * wave + rng.normal(0, 20, (16, 16))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(where / f"{i}.png")
    return folder
