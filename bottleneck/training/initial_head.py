"""The start of fine-tuning: a head that fits the cache, and the check that the network has its logits.

Shapes: n samples, D inputs of the head, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bottleneck.engines.reference import COSINES, mean_cosine
from bottleneck.errors import ArtifactError, FingerprintError, FitError, Note
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.config import SweepConfig
from bottleneck.heads.cross_validation import assign_folds
from bottleneck.heads.fit import fit_kind
from bottleneck.heads.metrics import fit_temperature
from bottleneck.heads.solver.problem import NO_FOLD, TargetProblem
from bottleneck.heads.trained_on import TrainedOn, seen_before
from bottleneck.names import SPLITS
from bottleneck.samples import SampleTable, Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import NodeSpec, differences
from bottleneck.training.job import TrainingJob
from bottleneck.training.labelled_splits import LabelledSplits
from bottleneck.training.loss import Measured, Objective, logits_of, metrics_of
from bottleneck.training.network import TransferNetwork, network_of

# The greatest difference from the head's logits that is allowed before the first step, by the type in which
# features are stored. The network computes features with another library than the engine did, so they agree
# to about a millionth of the greatest one only, and large weights of the head multiply that.
START_BOUND = {"float32": 1e-4, "float16": 2e-2}
# The greatest difference of features from the cached ones that is rounding, relative to the greatest feature:
# by the type of map and features, and by the precision of the engine that computed them.
STORED = {"float32": 1e-4, "float16": 5e-3}
COMPUTED = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
FOLDS = 5


def require_same_cache(head: HeadArtifact, cache: FeatureCache, samples: SampleTable) -> None:
    """Raise where the head was fitted on other features, samples of another form, or other classes.

    samples : of the cache, with the labels to train on.

    Raises
    ------
    FingerprintError
        Naming the fields in which the recipes differ.
    ArtifactError
        Other images per sample, covariates or classes.
    """
    ours = {"backbone": head.backbone, "preprocess": head.preprocess}
    fields = differences(cache.spec.to_json(), ours)
    fit = f"bottleneck fit-head {quote(str(cache.path))}"
    fit_one = f"Fit one on this cache with `{fit}`."
    if fields:
        raise FingerprintError(
            f"The head was fitted on another cache than {cache.path}: {', '.join(fields[:4])} differ.",
            fit_one,
            fields=tuple(fields),
        )
    if head.without:
        in_train = np.unique(samples.image[samples.split == "train"])
        seen, _ = TrainedOn.from_json(head.trained_on).has(cache.images.digest[in_train])
        if not seen.all():
            raise ArtifactError(
                f"The head was fitted without {head.without['images']:,} images that were left out by "
                f"a list; training would use images of {cache.path} that it has not seen.",
                "Extract a cache without those images, and fit a head on it.",
            )
    nodes = cache.vectors(head.node)  # CacheError if the cache lacks a node
    if len(nodes) > 1:
        raise ArtifactError(
            f"The head takes nodes {', '.join(node.name for node in nodes)} side by side; training starts "
            "from a head on one node, and trains the blocks below it.",
            f"Fit one on this cache with `{fit} --node {quote(nodes[-1].name)}`.",
        )
    width = math.prod(nodes[0].shape)
    forms: dict[str, tuple[Any, Any]] = {
        "images per sample": (head.images_per_sample, samples.image.shape[1]),
        "covariates": (tuple(head.covariate_names), tuple(samples.covariate_names)),
        f"inputs from node {head.node}": (
            head.n_features,
            width * samples.image.shape[1] + len(samples.covariate_names),
        ),
    }
    if head.target in samples.targets:
        forms["classes"] = (tuple(head.class_names), tuple(samples.targets[head.target].class_names))
    for what, (expected, found) in forms.items():
        if expected != found:
            raise ArtifactError(
                f"The head has {what} {_short(expected)}, the cache {cache.path} has {_short(found)}.",
                f"{fit_one} If that was done with --labels FILE, give the same here."
                if what == "classes"
                else fit_one,
            )


def head_inputs(cache: FeatureCache, node: str, rows: np.ndarray) -> np.ndarray:
    """(n, D) float32 inputs of the head for the samples `rows`."""
    return cache.sample_rows(node, rows).read(0, len(rows)).astype(np.float32)


def starting_head(head: HeadArtifact, cache: FeatureCache, splits: LabelledSplits) -> HeadArtifact:
    """The head that training starts from: `head`, or where val was carved from train one fitted without val.

    Otherwise the head would have been fitted on val, and the choice on val would favour it. A head that has
    no C takes one by cross-validation, with the scales of its blocks of inputs.
    """
    if not splits.carved:
        return head
    rows, C, groups = splits.rows["train"], head.C, splits.table.group
    target = Target(head.target, "class", splits.labels[rows], head.class_names)
    fold = np.full(len(rows), NO_FOLD, np.int16)
    if C is None:
        fold = assign_folds(target, min(FOLDS, len(rows)), None if groups is None else groups[rows])
    (fit,) = fit_kind(
        "logistic",
        cache.sample_rows(head.node, rows),
        [TargetProblem(target, fold)],
        "auto" if C is None else C,
        SweepConfig(),
        scales=None if C is None else head.settings.get("scales", {}),
    )
    temperature = head.temperature
    if fit.out_of_fold is not None:
        temperature = fit_temperature(target.values, fit.out_of_fold, fit.link)
    seen = seen_before({}, cache.images.digest, cache.samples, rows)
    found = fit.artifact(replace(head, trained_on=seen), temperature=temperature, n_train=len(rows))
    notes = fit.notes(head.target, head.node)
    settings = head.settings | {name: value for name, value in fit.settings.items() if name == "scales"}
    return replace(found, settings=settings, cv=head.cv, metrics=head.metrics, notes=tuple(notes))


def logits_on(head: HeadArtifact, inputs: Tensor) -> Tensor:
    """(n, K) logits of the head on inputs (n, D)."""
    return torch.from_numpy(np.asarray(head.decision(inputs.numpy()), np.float32))


def head_metrics(
    head: HeadArtifact, cache: FeatureCache, splits: LabelledSplits, names: Iterable[str] = SPLITS
) -> dict[str, dict[str, Any]]:
    """The metrics of a head on cached features, by split, for those of `names` that exist."""
    metrics = {}
    for name in names:
        if name in splits.rows:
            rows = splits.rows[name]
            logits = logits_on(head, torch.from_numpy(head_inputs(cache, head.node, rows)))
            labels = torch.from_numpy(splits.labels[rows])
            metrics[name] = metrics_of(logits, labels, head.class_names, head.temperature)
    return metrics


@dataclass(frozen=True)
class StartComparison:
    """The network before its first step beside the head, on the samples of val.

    head : that training starts from
    node : of the cached features
    cached, computed : (n, D) inputs of the head, from cached features and as the network computes them
    logits : (n, K) of the network
    labels : (n,)
    """

    head: HeadArtifact
    node: NodeSpec
    cached: Tensor
    computed: Tensor
    logits: Tensor
    labels: Tensor

    @cached_property
    def head_logits(self) -> Tensor:
        """(n, K) logits of the head on cached features."""
        return logits_on(self.head, self.cached)

    @cached_property
    def difference(self) -> float:
        """The greatest difference between the network's logits and the head's."""
        return _largest(self.logits - self.head_logits)

    @property
    def bound(self) -> float:
        """The difference up to which logits are equal."""
        return START_BOUND[self.node.dtype]

    def notes(self) -> tuple[Note, ...]:
        """What a reader must know of a difference beyond the bound.

        It is accepted where rounding explains it: the features differ from the cached ones by no more than
        their types and the precision they were computed in, and on its own features the network has the
        head's logits.

        Raises
        ------
        FitError
            The features are others, or the layers are not the head's.
        """
        if self.difference <= self.bound:
            return ()
        same, features = self._features()
        layers = _largest(self.logits - logits_on(self.head, self.computed))
        if not (same and layers <= START_BOUND["float32"]):
            raise FitError(
                "Before the first step the network's logits differ from the head's by "
                f"{self.difference:.3g}, at most {self.bound:g} is allowed: features {features}, the layers "
                f"by {layers:.1e}.",
                "The features are not of this network, or too coarse: extract them again with "
                "--precision fp32 --dtype float32, and fit the head on those.",
            )
        text = (
            f"At the start logits differ from the head's by {self.difference:.2g}, more than {self.bound:g}, "
            f"by rounding alone: the head has weights of up to {np.abs(self.head.coef).max():.0f} on nearly "
            "constant features. One with a smaller C is steadier."
        )
        if not self.node.computed_exactly:
            text = (
                f"At the start logits differ from the head's by {self.difference:.2g}: the cached features "
                f"were computed in {self.node.precision}, the network that is trained computes them in fp32, "
                f"{features}."
            )
        return (Note("start-rounded", text, details={"difference": self.difference}),)

    def _features(self) -> tuple[bool, str]:
        """Whether the network's features are the cached ones but for rounding, and by how much they differ.

        An engine that was compared by cosine may be twice as far from float32 as its bound, or as it was on
        the images that it was compared on: val is of others.
        """
        calibration = self.node.calibration
        if calibration is None:
            features = _largest(self.computed - self.cached) / float(self.cached.abs().max())
            allowed = max(STORED[self.node.dtype], COMPUTED.get(self.node.precision, 0.0))
            return features <= allowed, f"by {features:.1e} of the greatest"
        inputs = self.cached.shape[1] - len(self.head.covariate_names)
        cosine = mean_cosine(self.computed[:, :inputs].numpy(), self.cached[:, :inputs].numpy())
        least = min(COSINES[self.node.precision], *calibration["cosine"])
        return 1 - cosine <= 2 * (1 - least), f"with cosine {cosine:.4f}"


def compare_start(
    job: TrainingJob[TransferNetwork], head: HeadArtifact, cache: FeatureCache, val: np.ndarray
) -> StartComparison:
    """Run the blocks of `job`, with the layers of `head`, on val. val : rows of the samples."""
    network = network_of(job.network.section, head).to(job.device)
    computed, labels = logits_of(network, job.training.val, job.device, network.inputs)
    with torch.inference_mode():
        logits = network.classify(computed.to(job.device)).cpu()
    cached = torch.from_numpy(head_inputs(cache, head.node, val))
    return StartComparison(head, cache.node(head.node), cached, computed, logits, labels)


def faint_start(
    start: StartComparison, cache: FeatureCache, measured: Measured, labels_file: str | None = None
) -> tuple[Note, ...]:
    """A note where the head's logits are so small that the loss hardly differs from that of guessing.

    At a very small C the order of the classes is right, and the temperature makes probabilities of it. But
    the loss that is trained has no temperature: for it such a head is little better than a guess, and
    training moves its weights as if they were new. The note is made where the head's advantage over guessing
    is less than half of what it is at the best temperature.

    measured : of the head on val. labels_file : the table of labels, where there is one.
    """
    head = start.head
    objective = Objective(len(head.class_names))
    guess, loss = objective.chance, objective.loss(start.head_logits, start.labels).item()
    if measured.temperature >= 1 or guess - loss >= (guess - measured.calibrated) / 2:
        return ()
    what, flags = "a logistic head", "--head logistic"
    if head.kind == "logistic" and head.C:  # small logits grow in proportion to C
        C = 10.0 ** math.ceil(math.log10(head.C / measured.temperature))
        what, flags = "one with a larger C", f"--C {C:g}"
    if labels_file:
        flags += f" --labels {quote(labels_file)}"
    path, target, node = (quote(text) for text in (str(cache.path), head.target, head.node))
    text = (
        f"The head's logits are so small that training starts almost anew: their loss on val is {loss:.3f}, "
        f"that of guessing {guess:.3f}, and {measured.calibrated:.3f} at the temperature "
        f"{measured.temperature:.2g}. Fit {what}: "
        f"`bottleneck fit-head {path} --target {target} --node {node} {flags}`."
    )
    return (Note("start-faint", text, details={"loss": loss, "calibrated_loss": measured.calibrated}),)


def _largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def _short(value: object) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
