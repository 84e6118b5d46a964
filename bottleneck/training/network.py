"""The network that fine-tuning trains: a section of the backbone, the head's fixed standardisation, the head.

    M maps ──► section ──► features, covariates ──► (x − mean) / (scale √D) ──► linear layers ──► logits

The standardisation is a fixed layer of its own during training, because the head is well conditioned only in
those coordinates: folded into the weights, plain SGD at 1e-2 diverges. It is folded at the end. With √D the
inputs have a norm of about 1, so that a learning rate means the same for a head on 64 features and on 25,088.

Shapes: B samples, M images per sample, P covariates, D inputs of the head, H hidden units, L logits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from bottleneck.errors import FitError
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.folding import double, fold_batchnorm

TRAINABLE_FORMS = ("linear", "mlp")


class TransferNetwork(nn.Module):
    """Rows (B, M, …) and covariates (B, P) → logits (B, L).

    Parameters
    ----------
    section : nn.Module
        Rows of images → features, called with (B·M, …).
    classifier : nn.Sequential
        Takes inputs (B, D), whose norm is about 1.
    mean, divisor : (D,) arrays
    """

    def __init__(
        self, section: nn.Module, classifier: nn.Sequential, mean: np.ndarray, divisor: np.ndarray
    ) -> None:
        super().__init__()
        self.mean: Tensor
        self.divisor: Tensor
        self.section, self.classifier = section, classifier
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).clone())
        self.register_buffer("divisor", torch.as_tensor(divisor, dtype=torch.float32).clone())

    @property
    def by_sample(self) -> bool:
        """Whether a sample's logits depend neither on the others of its batch nor on random numbers."""
        return not getattr(self.section, "statistics", True)

    def forward(self, rows: Tensor, covariates: Tensor) -> Tensor:
        """rows : (B, M, …) as stored, covariates : (B, P) float32."""
        return self.classify(self.inputs(rows, covariates))

    def inputs(self, rows: Tensor, covariates: Tensor) -> Tensor:
        """(B, D) inputs of the head: the features of all images, then the covariates."""
        features = self.section(rows.flatten(0, 1)).reshape(len(rows), -1)
        return torch.cat([features, covariates], dim=1) if covariates.shape[1] else features

    def classify(self, inputs: Tensor) -> Tensor:
        """(B, L) logits of inputs (B, D)."""
        return self.classifier((inputs - self.mean) / self.divisor)


def network_of(section: nn.Module, head: HeadArtifact) -> TransferNetwork:
    """The head's layers on a section, in the coordinates of training; the logits equal the head's.

    Raises
    ------
    FitError
        The head has no layers to train, or its target is not of kind class.
    """
    if head.form not in TRAINABLE_FORMS:
        raise FitError(
            f"A {head.kind} head has no weights to start from; expected {' or '.join(TRAINABLE_FORMS)}.",
            "Fit one with `bottleneck fit-head CACHE --head logistic`.",
        )
    if head.target_kind != "class":
        raise FitError(
            f"Target {head.target!r} is of kind {head.target_kind}; fine-tuning needs one of kind class."
        )
    mean, scale = (array.astype(np.float64) for array in (head.mean, head.scale))
    coef, intercept = head.coef.astype(np.float64), head.intercept.astype(np.float64)
    divisor = scale * np.sqrt(len(scale))
    layers: list[nn.Module] = [_linear(coef * divisor, intercept + coef @ mean)]
    if head.form == "mlp":
        layers += [nn.ReLU(), _linear(head.arrays["coef2"], head.arrays["intercept2"])]
    return TransferNetwork(section, nn.Sequential(*layers), mean, divisor)


def renew(classifier: nn.Sequential, seed: int) -> None:
    """Replace the layers' parameters by new random ones; the last layer becomes 0, so no class leads."""
    linear = [layer for layer in classifier if isinstance(layer, nn.Linear)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for layer in linear:  # drawn on the CPU, so that all devices start alike
            layer.load_state_dict(nn.Linear(layer.in_features, layer.out_features).state_dict())
        linear[-1].weight.zero_()
        linear[-1].bias.zero_()


def folded(network: TransferNetwork, scale: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of a head artifact: the classifier on raw inputs, and the standardisation.

    The classifier is Linear, or Linear [BatchNorm] ReLU [Dropout] Linear; a single logit z becomes two, ±z/2.
    """
    linear = [layer for layer in network.classifier if isinstance(layer, nn.Linear)]
    norms = [layer for layer in network.classifier if isinstance(layer, nn.BatchNorm1d)]
    mean, divisor = double(network.mean), double(network.divisor)
    coef, intercept = double(linear[0].weight), double(linear[0].bias)
    for norm in norms:
        coef, intercept = fold_batchnorm(coef, intercept, norm)
    coef = coef / divisor
    intercept = intercept - coef @ mean
    arrays = {"coef": coef, "intercept": intercept, "mean": mean, "scale": scale}
    if len(linear) == 2:
        arrays |= {"coef2": double(linear[1].weight), "intercept2": double(linear[1].bias)}
    last = ("coef2", "intercept2") if len(linear) == 2 else ("coef", "intercept")
    if len(arrays[last[1]]) == 1:
        arrays |= {name: np.concatenate([-arrays[name] / 2, arrays[name] / 2]) for name in last}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(torch.as_tensor(np.ascontiguousarray(weight)))
        layer.bias.copy_(torch.as_tensor(np.ascontiguousarray(bias)))
    return layer
