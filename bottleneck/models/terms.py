"""The terms of the logits of a head: how its features come from maps, and what each place contributes.

`attribution` says what the terms are.

Shapes: B samples, M images per sample, V views (an image, its mirror image), C channels of a map of
h × w places, K classes, P covariates, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.extractor import Pool
from bottleneck.backbones.section import Section, find_cut
from bottleneck.errors import ArtifactError, BottleneckError
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.models.classifier import Classifier
from bottleneck.names import BOTTLENECK, nodes_in

# Maps, what has no place, logit and intercept.
Found = tuple[tuple[dict[str, np.ndarray], ...], dict[str, float], float, float]


@dataclass(frozen=True)
class Way:
    """How one node of the head is reached from a map.

    node : of the head. map : NODE@none. features : map (N, …) → features (N, D).
    places : arranges the values of the map by place. linear : whether `features` is.
    average : whether it is linear and each feature is a weighted mean, so that a mean of features has places.
    """

    node: str
    map: str
    features: Callable[[Tensor], Tensor]
    places: Pool
    linear: bool
    average: bool

    @property
    def is_maximum(self) -> bool:
        """Whether it is a maximum, of which the place depends on the image."""
        return isinstance(self.features, Pool) and self.features.kind == "max"


class Terms:
    """Maps, features and logits of samples, and the terms of any logit.

    maps : for each way (B, M, V, …). mean_maps : of reference images, for each way (M, V, …).
    inputs : (B, V, D) of the head, float64.
    """

    def __init__(
        self,
        maps: list[Tensor],
        mean_maps: list[Tensor] | None,
        ways: list[Way],
        head: HeadArtifact,
        covariates: np.ndarray,
    ) -> None:
        self._ways, self._head, self._names = ways, head, head.covariate_names
        self._mean_maps = mean_maps
        B, self._M, V = maps[0].shape[:3]
        self._maps = [
            (x.double() if isinstance(way.features, Pool) else x).flatten(0, 2).requires_grad_()
            for x, way in zip(maps, ways, strict=True)
        ]
        rows = [way.features(x).double() for x, way in zip(self._maps, ways, strict=True)]
        images = torch.cat([row.flatten(1) for row in rows], dim=1).unflatten(0, (B, self._M, V))
        self._covariates = torch.tensor(covariates, dtype=torch.float64).requires_grad_()
        beside = self._covariates[:, None].expand(-1, V, -1)
        self.inputs = torch.cat([images.transpose(1, 2).flatten(2), beside], dim=2)
        self._logits = _layers(head, self.inputs).mean(1)
        given = head.decision(self.inputs.detach().numpy().reshape(B * V, -1)).reshape(B, V, -1)
        self._given = given.astype(np.float64).mean(1)

    def of(self, rows: list[int], codes: list[int]) -> list[Found]:
        """Return the terms of one logit, by its code, of each of the samples `rows`."""
        B, inputs = len(self._covariates), [*self._maps, self._covariates]
        slopes = _gradients(self._logits[rows, codes].sum(), inputs)
        terms = [slope * x for slope, x in zip(slopes, inputs, strict=True)]
        intercept = torch.from_numpy(_last_intercept(self._head)[codes]).double()
        if self._head.form == "linear":
            weights = torch.from_numpy(self._head.coef[codes] * self._head.mean).double()
            means = _gradients((self.inputs.mean(1)[rows] * weights).sum(), inputs)
            for index, mean in enumerate(means):
                way = self._ways[index] if index < len(self._ways) else None
                if way and self._mean_maps and not way.is_maximum:
                    each = slopes[index].unflatten(0, (B, *self._mean_maps[index].shape[:2]))
                    mean = (each * self._mean_maps[index]).flatten(0, 2)
                elif way and not way.average:
                    continue
                terms[index] = terms[index] - mean
                intercept += mean.reshape(B, -1).sum(1)[rows]
        placed, lost = [], []
        for way, term in zip(self._ways, terms, strict=False):
            places = way.places.channels_first(term).sum(1)
            rest = (term.flatten(1).sum(1) - places.flatten(1).sum(1)).detach()
            lost.append(rest.unflatten(0, (B, -1)).sum(1))
            views = places.detach().unflatten(0, (B, self._M, -1))
            placed.append((views[:, :, :1] + _mirrored(views[:, :, 1:])).sum(2).numpy())
        self._require_places(placed, lost)
        found = []
        for row, code, at_mean in zip(rows, codes, intercept.tolist(), strict=True):
            maps = tuple(
                {way.node: part[row, image] for way, part in zip(self._ways, placed, strict=True)}
                for image in range(self._M)
            )
            unplaced = dict(zip(self._names, terms[-1][row].tolist(), strict=True))
            unplaced |= {
                f"class token of {way.node}": float(values[row])
                for way, values in zip(self._ways, lost, strict=True)
                if way.places.tokens_before
            }
            found.append((maps, unplaced, float(self._given[row, code]), at_mean))
        return found

    def _require_places(self, placed: list[np.ndarray], lost: list[Tensor]) -> None:
        """Raise ArtifactError where all that the head reads is a class token."""
        if not any(part.any() for part in placed) and any(values.any() for values in lost):
            raise ArtifactError(
                f"The head reads the class token of {self._head.node} alone, which is no place of the image.",
                "Fit one on the patches: bottleneck extract with --node norm, then fit-head --node norm",
            )


def _mirrored(views: Tensor) -> Tensor:
    """Return maps (B, M, V − 1, h, w) of mirror images the right way round; zeros (B, M, 1, h, w) of none."""
    return views.flip(-1) if views.shape[2] else views.new_zeros((*views.shape[:2], 1, *views.shape[3:]))


def _gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return the gradient of a value at each of `inputs`, float64; zeros where it does not depend on it."""
    found = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(x) if gradient is None else gradient.double()
        for x, gradient in zip(inputs, found, strict=True)
    ]


def _last_intercept(head: HeadArtifact) -> np.ndarray:
    """Return the intercepts (K,) of a head's last layer."""
    return head.intercept if head.form == "linear" else head.arrays["intercept2"]


def _layers(head: HeadArtifact, inputs: Tensor) -> Tensor:
    """Return logits (…, K) of inputs (…, D) by a linear head or an mlp, in float64."""
    arrays = {name: torch.tensor(array, dtype=torch.float64) for name, array in head.arrays.items()}
    logits = inputs @ arrays["coef"].T + arrays["intercept"]
    return logits if head.form == "linear" else logits.relu() @ arrays["coef2"].T + arrays["intercept2"]


def ways_to(backbone: Backbone, classifier: Classifier, exact: bool) -> list[Way]:
    """Return the way from a map to each node of the head. exact : only from the maps that are pooled."""
    head, preprocess = classifier.head, classifier.trunk.preprocess
    tuned = head.settings.get("finetuned", {}).get("input", "")
    found = []
    for node in nodes_in(head.node):
        pool = backbone.extractor([node], preprocess).pools[0]
        assert isinstance(pool, Pool)
        if tuned.endswith("@none") and not exact:
            found.append(_through(backbone, classifier, node, tuned))
        elif pool.layout in ("NC", ""):
            found.append(_through(backbone, classifier, node, f"{BOTTLENECK}@none"))
        else:
            found.append(Way(node, f"{node.partition('@')[0]}@none", pool, pool, linear=True, average=True))
    return found


def _through(backbone: Backbone, classifier: Classifier, node: str, map_node: str) -> Way:
    """Return the way to a node through the layers above a map."""
    preprocess, anatomy = classifier.trunk.preprocess, backbone.anatomy
    name = map_node.removesuffix("@none")
    start = anatomy.map if name == BOTTLENECK else backbone.operation(name)
    cut = find_cut(backbone, node, 1)
    position = backbone.graph.position
    if position[start] >= position[cut.end]:
        raise ArtifactError(
            f"The head reads {node}, a vector below the last map, which has no places.",
            "Fit a head on a node that is a map: see `bottleneck inspect`.",
        )
    try:
        section = Section(backbone, replace(cut, node=map_node, start=start), node, preprocess)
    except (BottleneckError, RuntimeError, KeyError) as error:
        raise ArtifactError(f"The head reads {node}, which is not computed from {name} alone.") from error
    pool = backbone.extractor([map_node], preprocess).pools[0]
    assert isinstance(pool, Pool)
    return Way(node, map_node, section, pool, *_kind_of(section, pool.row))


def _kind_of(features: Callable[[Tensor], Tensor], row: tuple[int, ...]) -> tuple[bool, bool]:
    """Return whether layers are linear in maps of shape `row`, as a network's own average is, and whether
    each feature is a weighted mean of the map, too.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x, y = torch.randn(2, 1, *row, generator=generator)
        expected = features(x) - 2 * features(y)
        linear = torch.allclose(features(x - 2 * y), expected, rtol=1e-4, atol=1e-5)
        ones = features(torch.ones(1, *row))
    return linear, linear and torch.allclose(ones, torch.ones_like(ones), rtol=1e-4)
