"""Caches with random rows, for the tests of heads that are fitted on them."""

import hashlib

import numpy as np

from bottleneck.data.preprocess import Preprocess
from bottleneck.samples import SampleTable, Target
from bottleneck.store.spec import CacheSpec, NodeSpec
from bottleneck.store.writer import CacheWriter

D = 10
PIXELS = Preprocess(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).to_json()


def write_cache(
    path,
    X,
    targets,
    split=None,
    group=None,
    more=None,
    views=None,
    dtype="float32",
    measures=None,
    folder="그림",
):
    """Write rows X (S, D) of the node "bottleneck", rows `more` of further nodes, and views (S, V, D).

    folder : of the images, whose content is their key
    """
    S = len(X)
    rows = {"bottleneck": X} | (more or {})
    keys = [f"{folder}/{i:03d}.png" for i in range(S)]
    nodes = [
        NodeSpec(
            name,
            "native" if name == "bottleneck" else "avg",
            (values.shape[1],),
            dtype=dtype,
            views={"count": views.shape[1], "seed": 0} if views is not None else None,
        )
        for name, values in rows.items()
    ]
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    table = SampleTable(
        key=np.array(keys, object),
        image=np.arange(S)[:, None],
        split=np.array(["train"] * S if split is None else split, object),
        targets={target.name: target for target in targets},
        group=group,
    )
    spec = CacheSpec(backbone={"name": "drawn"}, preprocess=PIXELS)
    with CacheWriter(path, spec, nodes, str(path.parent)) as writer:
        writer.plan(keys, [(1, 1)] * S)
        extra = dict.fromkeys(rows, views) if views is not None else {}
        images = [(key, digest, (1, 1)) for key, digest in zip(keys, digests, strict=True)]
        writer.add(images, rows, extra, measures)
        writer.finish(table)
    return path


def class_target(y, name="label", names=None):
    """Return a class target of the codes `y`."""
    return Target(name, "class", np.asarray(y, np.int64), names or tuple(f"c{k}" for k in range(max(y) + 1)))
