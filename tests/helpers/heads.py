"""A head artifact for tests that need any head at all."""

from dataclasses import replace

import numpy as np

from bottleneck.heads.artifact import HeadArtifact


def head(**options):
    """A linear head of four features and two classes whose names hold markup characters."""
    arrays = {"coef": np.eye(2, 4), "intercept": np.zeros(2), "mean": np.zeros(4), "scale": np.ones(4)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    return replace(HeadArtifact("logistic", "linear", arrays, class_names=("a|b", "`c`")), **options)
