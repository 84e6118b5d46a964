"""scikit-learn's `GridSearchCV` over nodes of the network, then a `DataLoader` over the features.

    python examples/search.py

`FeatureExtractor` is a step of a pipeline: each image is computed once for a node, whatever the fold. Then
the features of the best node are extracted to a cache that PyTorch's `DataLoader` reads. Expected: an early
node with positions (`blocks.3@avg2`) is better than the bottleneck on digits, at 0.975 in cross-validation.
"""

import tempfile
from pathlib import Path

from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch.utils.data import DataLoader

from bottleneck import FeatureCache, FeatureExtractor, LogisticHead, extract
from bottleneck.demo import write_digits

NODES = ["blocks.3@avg2", "bottleneck"]


def main(work: Path) -> None:
    source = write_digits(work / "digits")
    paths = sorted(source.rglob("*.png"), key=lambda path: path.name)[:200]
    labels = [path.parent.name for path in paths]
    model = make_pipeline(FeatureExtractor(cache=work / "features", image_size=64), LogisticHead())
    grid = {"featureextractor__node": NODES, "logistichead__C": [0.01, 1.0]}
    search = GridSearchCV(model, grid, cv=3).fit(paths, labels)
    node = search.best_params_["featureextractor__node"]
    print(f"best: {node}, {search.best_score_:.3f} in cross-validation")
    path = extract(source, work / "digits.h5", nodes=(node,), image_size=64, limit=200).cache
    with FeatureCache(path) as cache:
        batches = DataLoader(cache.torch_dataset(node, "train", "label"), batch_size=100)
        for features, targets in batches:
            print(f"batch: features {tuple(features.shape)}, targets {tuple(targets.shape)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        main(Path(work))
