"""What a cache holds, in numbers and names; `bottleneck cache info` shows it.

Shapes: S samples.
"""

from __future__ import annotations

import os
from typing import Any

from bottleneck.samples import SPLITS
from bottleneck.store.reader import FeatureCache


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """Describe the cache at `path` as one JSON object. Raises CacheError as `FeatureCache` does.

    Returns
    -------
    dict with cache, finished, backbone, preprocess, fingerprint, source_root, created_with, images, samples,
    images_per_sample, splits {name: samples}, nodes {name: {shape, dtype, precision, pool, layout, map,
    views}}, targets {name: {kind, classes, class_names, labelled}}, covariates and failures {key: reason}
    """
    with FeatureCache(path) as cache:
        samples = cache.samples
        counts = {split: int((samples.split == split).sum()) for split in SPLITS}
        return {
            "cache": str(cache.path),
            "finished": cache.finished,
            "backbone": cache.spec.backbone,
            "preprocess": cache.spec.preprocess,
            "fingerprint": cache.fingerprint,
            "source_root": cache.source_root,
            "created_with": cache.created_with,
            "images": len(cache.images),
            "samples": len(samples),
            "images_per_sample": samples.image.shape[1],
            "splits": {split: count for split, count in counts.items() if count},
            "nodes": {
                name: {
                    "shape": list(node.shape),
                    "dtype": node.dtype,
                    "precision": node.precision,
                    "pool": node.pool,
                    "layout": node.layout,
                    "map": node.is_map,
                    "views": 0 if node.views is None else node.views["count"],
                }
                for name, node in cache.nodes.items()
            },
            "targets": {
                name: {
                    "kind": target.kind,
                    "classes": len(target.class_names),
                    "class_names": list(target.class_names),
                    "labelled": int(target.labelled.sum()),
                }
                for name, target in samples.targets.items()
            },
            "covariates": list(samples.covariate_names),
            "failures": dict(cache.failures),
        }
