"""Small problems for heads: correlated, ReLU-like features, and scikit-learn's optimum as the judge.

Shapes: n samples, D features, K classes.
"""

from hashlib import sha256

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.samples import Target


def features(n, D, K, seed=0, dtype=np.float32):
    """X (n, D) with a constant column, and classes (n,) that are learnable but not separable in low D."""
    generator = np.random.default_rng(seed)
    y = np.arange(n) % K
    latent = generator.standard_normal((n, D)) + 1.2 * generator.standard_normal((K, D))[y]
    X = np.maximum(latent @ generator.standard_normal((D, D)) / np.sqrt(D) + 0.3, 0)
    X = X * generator.uniform(0.1, 5, D) + generator.uniform(0, 3, D)
    X[:, -1] = 2.5
    noisy = generator.random(n) < 0.15
    y[noisy] = generator.integers(0, K, noisy.sum())
    return X.astype(dtype), y


def question(y, K, folds=0, seed=0, **options):
    """A class question about y, with folds or none."""
    target = Target("y", "class", np.asarray(y, np.int64), tuple(f"class {k}" for k in range(K)))
    fold = assign_folds(target, folds, seed=seed) if folds else np.full(len(y), NO_FOLD, np.int16)
    return TargetProblem(target, fold, **options)


def objective(X, y, coef, intercept, C, weights=None):
    """scikit-learn's objective in float64 on given features; one row of coef is a sigmoid."""
    z = X.astype(np.float64) @ np.asarray(coef, np.float64).T + intercept
    if z.shape[1] == 1:
        loss = np.logaddexp(0, z[:, 0]) - y * z[:, 0]
    else:
        loss = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(y)), y]
    weights = np.ones(len(y)) if weights is None else weights
    return C * (weights * loss).sum() + 0.5 * np.square(coef, dtype=np.float64).sum()


BEST = {}  # by problem: the solver's tests ask for each of them with two libraries


def judge(X, y, C, weights=None):
    """Standardised features, and scikit-learn's least objective on them."""
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    arrays = [Z, y] if weights is None else [Z, y, weights]
    problem = (C, sha256(b"".join(array.tobytes() for array in arrays)).digest())
    if problem not in BEST:
        model = LogisticRegression(C=C, tol=1e-8, max_iter=10000)
        model.fit(Z, y, sample_weight=weights)
        BEST[problem] = objective(Z, y, model.coef_, model.intercept_, C, weights)
    return Z, BEST[problem]


def standardised_coef(coef, intercept, mean, scale):
    """Coefficients of standardised features, of those of raw ones."""
    return coef * scale, intercept + coef @ mean
