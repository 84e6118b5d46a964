"""What a head keeps of its training samples for `--reject` and `--coverage`.

Shapes: n training samples, m held-out samples, K classes.
"""

from __future__ import annotations

import numpy as np

from bottleneck.heads.artifact import apply_link
from bottleneck.heads.novelty import Novelty, fit_novelty
from bottleneck.heads.prediction_sets import Conformal
from bottleneck.samples import SampleTable
from bottleneck.store.reader import FeatureCache


def novelty_on(cache: FeatureCache, samples: SampleTable, node: str, rows: np.ndarray) -> Novelty | None:
    """Return the novelty that is measured from the training samples `rows` (n,) of a cache.

    None where all samples are of one group, so that none can be compared with another.
    """
    reader = cache.sample_rows(node, rows)
    features = reader.shape[1] - len(samples.covariate_names)
    blocks = [(block.start, block.stop) for block in reader.inputs if block.stop <= features]
    return fit_novelty(reader, blocks, _units(cache, samples, rows))


def _units(cache: FeatureCache, samples: SampleTable, rows: np.ndarray) -> np.ndarray:
    """Return (n,) int, equal for samples that share an image, by its bytes, or a group, directly or not."""
    n, image = len(rows), samples.image[rows]
    digest = np.ascontiguousarray(cache.images.digest[image.ravel()]).view("V32").ravel()
    shared = np.unique(digest, return_inverse=True)[1].reshape(image.shape)
    owners = [shared]
    if samples.group is not None:
        group = np.unique(samples.group[rows].astype(str), return_inverse=True)[1]
        owners.append(shared.max() + 1 + group[:, None])
    elif image.shape[1] == 1:
        return shared[:, 0]
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    owner = np.concatenate(owners, axis=1)
    sample = np.repeat(np.arange(n), owner.shape[1])
    size = n + int(owner.max()) + 1
    graph = coo_array((np.ones(owner.size, np.int8), (sample, n + owner.ravel())), (size, size))
    units: np.ndarray = connected_components(graph, directed=False)[1][:n]
    return units


def conformal_of(
    kind: str, link: str, temperature: float, answers: np.ndarray, logits: np.ndarray
) -> Conformal | None:
    """Return what sets of classes are calibrated by; None for other kinds of target.

    kind : of the target. answers : (m,) codes of held-out samples. logits : (m, K) of heads without them.
    """
    if kind != "class":
        return None
    return Conformal.of(apply_link(logits, link, temperature), answers)
