"""A folder of stripes, a tiny random network, and the result of `train` on them."""

import pytest

from bottleneck import train
from tests.helpers.stripes import write_stripes

TINY = {"backbone": "small_cnn", "weights": "none", "depth": 2, "image_size": 32, "engine": "torch"}


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Four classes of stripes in train, val and test; the first two images of each have another's label."""
    folder = write_stripes(tmp_path_factory.mktemp("source") / "줄무늬", images=12, val=6)
    for split, number in ((split, number) for split in ("train", "val") for number in (0, 1)):
        paths = [folder / split / f"class{k}" / f"{number}.png" for k in range(4)]
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, [*contents[1:], contents[0]], strict=True):
            path.write_bytes(content)
    for path in [path for number in (8, 9) for path in (folder / "train").glob(f"*/{number}.png")]:
        to = folder / "test" / path.parent.name / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
    return folder


@pytest.fixture(scope="session")
def trained(source, tmp_path_factory):
    return train(source, tmp_path_factory.mktemp("trained") / "m.safetensors", **TINY)
