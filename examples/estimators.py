"""Heads as scikit-learn estimators on cached features: alone, in a pipeline, and saved as a head file.

    python examples/estimators.py

Runs the network once over the digits of scikit-learn. Then a `LogisticHead` is fitted on arrays like any
estimator, alone and behind a PCA. The head alone takes the features as they are cached. It can therefore be
saved as a head file, which `bottleneck predict` and `bottleneck evaluate` read.
"""

import tempfile
from pathlib import Path

from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

from bottleneck import FeatureCache, LogisticHead, evaluate, extract
from bottleneck.demo import write_digits
from bottleneck.fitting.head_files import describe_head

NODE = "bottleneck"


def main(folder: Path) -> None:
    path = extract(write_digits(folder / "digits"), folder / "digits.h5", test_fraction=0.2).cache
    with FeatureCache(path) as cache:
        samples, target = cache.samples, cache.samples.targets["label"]
        X = cache.sample_rows(NODE).read(0, len(samples))  # (n_samples, n_features)
        description = describe_head(cache, samples, target, NODE)
    train, test = samples.split == "train", samples.split == "test"
    head = LogisticHead(C=1e-2).fit(X[train], target.values[train])
    pipeline = make_pipeline(PCA(0.99), LogisticHead(C=1e-2)).fit(X[train], target.values[train])
    saved = head.artifact(description).save(folder / "head.safetensors")
    print(f"head alone: {head.score(X[test], target.values[test]):.4f} on test")
    print(f"behind PCA: {pipeline.score(X[test], target.values[test]):.4f}")
    print(f"saved head: {evaluate(saved, path, split='test')['accuracy']:.4f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        main(Path(work))
