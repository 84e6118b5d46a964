"""Generated photographs for tests: each class a pattern of its own, each image its own noise."""

from pathlib import Path

import numpy as np
from PIL import Image


def photograph(kind: int, number: int, size: tuple[int, int] = (72, 56)) -> Image.Image:
    """A pattern that tells the class (stripes of a direction and colour) with noise that tells the image."""
    generator = np.random.default_rng([kind, number])
    width, height = size
    y, x = np.mgrid[:height, :width]
    wave = np.sin((x * np.cos(kind) + y * np.sin(kind)) / (2.5 + kind) + generator.uniform(0, 6))
    colour = np.array([(220, 60, 40), (40, 200, 80), (60, 80, 230)][kind % 3])
    pixels = 128 + 0.45 * wave[..., None] * colour + generator.normal(0, 25, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_photographs(folder: Path, classes=("ants", "bees", "개미 🐜"), each: int = 10) -> Path:
    """`folder/CLASS/NUMBER.jpg`."""
    for kind, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            photograph(kind, number).save(folder / name / f"{number:03d}.jpg", quality=92)
    return folder
