"""Images that every machine makes alike from what scikit-learn ships."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from sklearn.datasets import load_digits, load_sample_image, load_sample_images

Pictures = Iterator[tuple[str, Image.Image]]  # of a class each


def write_photographs(folder: Path, count: int) -> Path:
    """Crops of two photographs, mirrored and brightened at random: JPEGs of 500 × 375 in two classes."""
    generator = np.random.default_rng(0)
    for name in ("china", "flower"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (folder / name).mkdir(parents=True)
        for number in range(count // 2):
            width = generator.integers(300, 570)
            height = width * 3 // 4
            left, top = generator.integers(0, (photograph.width - width, photograph.height - height))
            crop = photograph.crop((left, top, left + width, top + height)).resize((500, 375))
            if generator.random() < 0.5:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            crop = ImageEnhance.Brightness(crop).enhance(generator.uniform(0.7, 1.3))
            crop.save(folder / name / f"{number:05}.jpg", quality=90)
    return folder


def digits(size: int, random: np.random.Generator) -> Pictures:
    data = load_digits()
    for i in random.permutation(len(data.images)):
        pixels = Image.fromarray((data.images[i] * 15.9).astype(np.uint8))
        yield str(data.target[i]), pixels.resize((size, size), Image.Resampling.BICUBIC)


def photographs(random: np.random.Generator) -> Pictures:
    """Crops of six regions: three vertical bands of each of the two photographs, turned and dimmed."""
    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    while True:
        photo, band = random.integers(2), random.integers(3)
        width, height = photos[photo].size
        side = int(random.integers(40, 90))
        x = int(band * width / 3 + random.random() * (width / 3 - side))
        y = int(random.random() * (height - side))
        crop = photos[photo].crop((x, y, x + side, y + side)).rotate(float(random.uniform(-20, 20)))
        yield (
            f"{photo}-{band}",
            ImageEnhance.Brightness(crop.resize((64, 64))).enhance(random.uniform(0.5, 1.2)),
        )


def textures(random: np.random.Generator) -> Pictures:
    """Gratings, checks, dots and filtered noise, with much noise on top."""
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1)
    names = ("grating", "checks", "dots", "rings", "coarse", "fine")
    while True:
        name = names[random.integers(len(names))]
        angle, scale = random.uniform(0, np.pi), random.uniform(5, 9)
        turned = grid @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        if name == "grating":
            values = np.sin(turned[..., 0] * 2)
        elif name == "checks":
            values = np.sign(np.sin(turned[..., 0] * 2) * np.sin(turned[..., 1] * 2))
        elif name == "dots":
            values = (np.hypot(*(np.modf(np.abs(turned))[0] - 0.5).transpose(2, 0, 1)) < 0.3) * 2.0 - 1
        elif name == "rings":
            values = np.sin(np.hypot(*(turned - turned.mean((0, 1))).transpose(2, 0, 1)) * 2.5)
        else:
            cells = 8 if name == "coarse" else 24
            noise = Image.fromarray(random.integers(0, 256, (cells, cells), np.uint8))
            values = np.asarray(noise.resize((64, 64), Image.Resampling.BICUBIC)) / 128.0 - 1
        colour = random.uniform(60, 190, 3)
        pixels = colour + 25 * values[..., None] + random.normal(0, 45, (64, 64, 3))
        yield name, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def shapes(random: np.random.Generator) -> Pictures:
    """Polygons and an ellipse of any colour, size and angle on noise."""
    names = ("triangle", "square", "pentagon", "hexagon", "ellipse")
    while True:
        number = int(random.integers(len(names)))
        noise = random.normal(random.uniform(60, 190, 3), 40, (64, 64, 3)).clip(0, 255)
        picture = Image.fromarray(noise.astype(np.uint8))
        draw, fill = ImageDraw.Draw(picture), tuple(random.integers(0, 256, 3).tolist())
        x, y, r = *random.uniform(24, 40, 2), random.uniform(10, 20)
        if names[number] == "ellipse":
            draw.ellipse((x - r, y - r * 0.8, x + r, y + r * 0.8), fill=fill)
        else:
            draw.regular_polygon((x, y, r), number + 3, float(random.uniform(0, 90)), fill=fill)
        yield names[number], picture


def write_set(folder: Path, pictures: Pictures, pool: int, test: int) -> Path:
    """split/class/number.png"""
    for number, (name, picture) in zip(range(pool + test), pictures, strict=False):
        path = folder / ("train" if number < pool else "test") / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(path)
    return folder
