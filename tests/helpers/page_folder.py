"""The files that the commands of the pages name: images, tables of labels, caches and heads of them."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.photographs import photograph

SPLIT = {"train/ants": 12, "train/bees": 12, "val/ants": 6, "val/bees": 6}
FLAT = dict.fromkeys(("ants", "bees", "flies", "wasps"), 12)


def write_images(folder, counts, start=0):
    """`folder/PLACE/NUMBER.jpg` for each place and its count; the last part of a place is its class."""
    kinds = sorted({place.rpartition("/")[2] for place in counts})
    written = []
    for place, count in counts.items():
        (folder / place).mkdir(parents=True)
        for number in range(count):
            name = f"{place}/{number}.jpg"
            photograph(kinds.index(place.rpartition("/")[2]), start + len(written)).save(folder / name)
            written.append(name)
    return written


def write_table(path, **columns):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])


def write_grey16(folder):
    """Two classes of 16-bit PNG."""
    for kind, name in enumerate(("healthy", "ill")):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            grey = np.asarray(photograph(kind, number).convert("L"), np.uint16) * 257
            Image.fromarray(grey).save(folder / name / f"{number}.png")


def write_gauges(folder):
    """`gauges/N.png`, as bright as the reading that gauges.csv has for it."""
    readings = [round(4.7 * number + 0.37, 2) for number in range(40)]
    (folder / "gauges").mkdir()
    for number, reading in enumerate(readings):
        Image.new("RGB", (64, 64), (int(reading), 90, 200 - int(reading))).save(
            folder / f"gauges/{number}.png"
        )
    write_table(
        folder / "gauges.csv", image=[f"gauges/{n}.png" for n in range(len(readings))], reading=readings
    )


def messy_folder(photos):
    """The folder of the README: a wrapping folder, a class without images, a broken image, other files."""
    random = np.random.default_rng(0)
    counts = {"train/ants": 12, "train/bees": 12, "val/ants": 6, "val/bees": 6, "val/wasps": 1}
    for folder, count in counts.items():
        (photos / "pictures" / folder).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / "pictures" / folder / f"{number}.png")
    whole = (photos / "pictures/train/ants/0.png").read_bytes()
    (photos / "pictures/train/ants/cut.png").write_bytes(whole[:20])
    (photos / "pictures/train/flies").mkdir()
    for name in ("notes.txt", "pictures/Thumbs.db", "pictures/train/flies/1.heif0"):
        (photos / name).write_text("x")


def make_folder(folder, run):
    """Make the files in `folder`, the current one. run : of the arguments of a command."""
    names = write_images(folder / "photos", SPLIT)
    write_images(folder / "flat", FLAT)
    for start, place in enumerate(("new-photos", "new", "unlabelled", "other-photos"), 1):
        write_images(folder, {place: 6}, 100 * start)
    shutil.copy(folder / "new/0.jpg", folder / "new.jpg")
    for name in ("bee", "china", "flower"):
        shutil.copy(folder / "new/1.jpg", folder / f"new/{name}.jpg")
    write_grey16(folder / "xrays")
    write_gauges(folder)
    files = [f"photos/{name}" for name in names]
    splits, kinds = zip(*(name.split("/")[:2] for name in names), strict=True)
    write_table(folder / "labels.csv", image=files, photo=files, label=kinds, species=kinds, part=splits)
    sizes = [("large", "small")[number % 2] for number in range(len(names))]
    write_table(folder / "other-labels.csv", image=names, size=sizes)
    write_table(folder / "new-labels.csv", image=files, size=sizes)
    both = [*names, *(name.replace("bees", "wasps") for name in names if "bees" in name)]
    write_table(folder / "renamed.csv", image=both, label=[name.split("/")[1] for name in both])
    tags = [kind[:-1] + "+red" * (number % 3 == 0) for number, kind in enumerate(kinds)]
    write_table(folder / "tags.csv", image=names, tags=tags)
    (folder / "list.txt").write_text(names[0])
    run(["extract", "photos", "-o", "photos.h5"])
    run(["fit-head", "photos.h5", "-o", "heads"])
    run(["train", "photos", "--finetune", "never", "--no-report"])
    for part, name in (("train", "first"), ("val", "second")):
        run(["extract", f"photos/{part}", "-o", f"{name}.h5"])
    for name in ("lite0.h5", "imbalanced.h5"):
        shutil.copy("photos.h5", name)
    run(["extract", "photos", "-o", "resnet50.h5", "--backbone", "resnet18", "--weights", "none"])


def write_code(folder, text):
    """Write the Python of a page that begins with `# NAME.py`, and the weights of its network."""
    for name, code in re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", text, re.M | re.S):
        import torch

        (folder / f"{name}.py").write_text(code)
        built = {}
        exec(code, built)
        torch.save(built["build"]().state_dict(), folder / f"{name}.pth")


def lay_photos(flat):
    """Let `photos` be folders of classes alone (flat), or folders of splits with those in them."""
    wanted, kept = ("flat", "split") if flat else ("split", "flat")
    if Path(wanted).is_dir():
        Path("photos").rename(kept)
        Path(wanted).rename("photos")
