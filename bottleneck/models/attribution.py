"""Which places of an image speak for a class: the terms of a logit, sorted by place.

    map x of a node ──► pool ──► features ──► head ──► logit = intercept + Σ g · (x − m)

The sum is over the places and channels of the map; g is the gradient of the logit there, and m the mean: what
looks like the mean contributes nothing, and the intercept is the logit of the mean. A linear head on an
average, a grid of averages, a maximum or all values of a map is linear in it, so the sum is exact (class
activation maps, Zhou et al. 2016). Where layers that are not linear lie between, gradient × input (m = 0) is
a first-order approximation, with a remainder.

There are two means. Without reference images m is the mean of the training features, which the head's file
has; for a pool it is the same at all places of a cell. With reference images (`Explainer.compare_with`) it is
their mean map, place by place: the Shapley value of a linear model (Štrumbelj and Kononenko 2014; Lundberg
and Lee 2017). What is the same in all reference images, such as a border or a constant ground, then
contributes nothing. The first mean leaves the difference between such a place and the mean of its cell, to
which a head that standardises its features gives a large weight where a cell varies little.

Shapes: B samples, M images per sample, V views (an image, its mirror image), C channels of a map of
h × w places, K classes, P covariates, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.extractor import Pool
from bottleneck.backbones.section import Section, find_cut
from bottleneck.data.loader import NotedImages, load_images
from bottleneck.data.preprocess import MIRROR
from bottleneck.data.source import Source
from bottleneck.errors import ArtifactError, BottleneckError, Note
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.models.classifier import Classifier, mean_scores
from bottleneck.models.config import ExplainConfig
from bottleneck.names import BOTTLENECK, nodes_in
from bottleneck.progress import SILENT, Reporter
from bottleneck.threads import thread_budget

# Maps, what has no place, logit and intercept.
_Found = tuple[tuple[dict[str, np.ndarray], ...], dict[str, float], float, float]
BLOCK = 8  # samples whose maps are in memory at once
REFERENCES = 256  # samples whose mean map is taken


@dataclass(frozen=True, eq=False)
class Explanation:
    """The terms of one logit of one sample: logit = intercept + Σ maps + Σ unplaced + remainder.

    sample : its name. images : keys of its M images.
    label : the class or label that is explained; of a regression the target.
    predicted : whether the model predicts it. confidence : its probability; None for a regression.
    logit : before the temperature; of a regression the value.
    intercept : where the map is exact the logit of the mean (see the module), else of the last layer.
    maps : for each image, by node, the contributions (h, w) of its places, float64.
    unplaced : contributions that have no place, by name: of covariates, and of a node's class token.
    exact : whether the logit is linear in the maps, so that the remainder is rounding.
    size : side of the network's input in pixels, which the places of every map share.
    """

    sample: str
    images: tuple[str, ...]
    label: str
    predicted: bool
    confidence: float | None
    logit: float
    intercept: float
    maps: tuple[dict[str, np.ndarray], ...]
    unplaced: dict[str, float]
    exact: bool
    size: int

    @property
    def sums(self) -> tuple[float, ...]:
        """Return for each image the contributions of all its places together."""
        return tuple(float(sum(values.sum() for values in maps.values())) for maps in self.maps)

    @property
    def remainder(self) -> float:
        """Return what of the logit no term accounts for."""
        return self.logit - self.intercept - sum(self.sums) - sum(self.unplaced.values())

    def contributions(self, image: int = 0) -> np.ndarray:
        """Return the contribution of each pixel of the network's input, (size, size), of all nodes together.

        A place spreads its contribution evenly over the pixels that it covers, so that their sum is kept.
        """
        total = np.zeros((self.size, self.size))
        for values in self.maps[image].values():
            rows, columns = (_overlap(count, self.size) for count in values.shape)
            total += rows @ values @ columns.T
        return total

    def smooth(self, image: int = 0) -> np.ndarray:
        """Return the same for the eye, (size, size) float32: without steps from place to place."""
        total = np.zeros((self.size, self.size), np.float32)
        for values in self.maps[image].values():
            density = Image.fromarray((values * values.size / self.size**2).astype(np.float32))
            total += np.asarray(density.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return total


def _overlap(count: int, size: int) -> np.ndarray:
    """Return the share of each of `count` parts of a side that is in each of `size` pixels, (size, count)."""
    ends = np.arange(size + 1) * count / size
    part = np.arange(count)
    return np.clip(np.minimum(ends[1:, None], part + 1) - np.maximum(ends[:-1, None], part), 0, None)


@dataclass(frozen=True)
class _Way:
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


class Explainer:
    """Explains the predictions of a head or model.

    Parameters
    ----------
    classifier : an open head or model, of which the network is loaded.
    config : what is explained; its `output` is not used.

    Attributes
    ----------
    failed : reason by key of images that cannot be read. exact : whether the maps are.

    Raises
    ------
    ArtifactError
        The head has no such class, or its outputs are no sum over places.
    BackboneError
        The network cannot be loaded.
    """

    def __init__(self, classifier: Classifier, config: ExplainConfig | None = None) -> None:
        self.classifier, self.head, self.config = classifier, classifier.head, config or ExplainConfig()
        self.failed: dict[str, str] = {}
        self._noted = NotedImages()
        if self.head.form == "knn":
            raise ArtifactError(
                "A knn head compares whole images with those of training: its answer is no sum over places.",
                "Fit one that is: bottleneck fit-head CACHE --head logistic",
            )
        self._codes = [_code(self.head, name) for name in self.config.class_names]
        backbone, preprocess = classifier.trunk.backbone, classifier.trunk.preprocess
        self._ways = _ways(backbone, classifier, self.config.exact)
        self._extractor = backbone.extractor([way.map for way in self._ways], preprocess)
        self.exact = self.head.form == "linear" and all(way.linear for way in self._ways)
        if self.config.exact and not self.exact:
            raise ArtifactError(
                f"{self._between()} are not linear, so that no map of this head is exact.",
                "Leave --exact out for an approximation.",
            )
        self._mean_maps: list[Tensor] | None = None
        self._notes = classifier.flip_notes(self.config.flip)
        if not self.exact:
            self._notes.append(self._note())

    @property
    def notes(self) -> list[Note]:
        """What was decided, as soon as it is known."""
        return [*self._notes, *self._noted.notes()]

    def compare_with(self, source: Source, name: str, reporter: Reporter = SILENT) -> None:
        """Take the mean map of the samples of `source`, at most `REFERENCES` of them, as the mean.

        name : of the source in the note that says so. Samples with an image that cannot be read are left out.

        Raises ArtifactError where the maps are approximate, BottleneckError where no image can be read.
        """
        if not self.exact:
            raise ArtifactError(
                "Maps that are an approximation are compared with no reference images.",
                "Leave --reference out, or explain a linear head.",
            )
        self.classifier.require_form(source.samples)
        count = len(source.samples)
        rows = np.unique(np.linspace(0, count - 1, min(count, REFERENCES)).round().astype(int))
        total, used, failed, noted = [torch.zeros(())] * len(self._ways), 0, self.failed, self._noted
        self.failed, self._noted = (
            {},
            NotedImages(),
        )  # what is said of images is said of those that are explained
        with reporter.step("Averaging reference images", total=len(rows), unit="samples") as advance:
            for start in range(0, len(rows), BLOCK):
                part = source.take(rows[start : start + BLOCK])
                views, _ = self._views(part)
                if len(views):
                    maps = _maps(self._extractor, views)
                    total = [sums + x.double().sum(0) for sums, x in zip(total, maps, strict=True)]
                    used += len(views)
                advance(len(part.samples))
        self.failed, self._noted = failed, noted
        if not used:
            raise BottleneckError(
                f"None of the images of {name} can be read.", "Name other reference images."
            )
        self._mean_maps = [sums / used for sums in total]
        message = (
            f"Contributions of places are differences from the mean of {used:,} of {count:,} samples of "
        )
        message += f"{name}."
        self._notes.append(Note("reference-images", message, details={"samples": used, "of": count}))

    def _between(self) -> str:
        bent = [way for way in self._ways if not way.linear]
        if not bent:
            return "The layers of the mlp head"
        return f"The layers between {bent[0].map.removesuffix('@none')} and the head"

    def _note(self) -> Note:
        message = f"{self._between()} are not linear: the maps are gradient × input, an approximation. "
        message += "The remainder is what they do not account for."
        if self.head.form == "linear" and "input" in self.head.settings.get("finetuned", {}):
            message += " --exact explains at the last map instead, which is coarser."
        return Note("explained-approximately", message)

    def explain(self, source: Source, reporter: Reporter = SILENT) -> Iterator[Explanation]:
        """Yield the explanations of each sample of `source` in order, that of the predicted class first.

        Samples with an image that cannot be read are left out, and the reason is added to `failed`.

        Raises ArtifactError as `Classifier.outputs` does.
        """
        self.classifier.require_form(source.samples)
        self.failed |= source.absent
        with reporter.step("Explaining", total=len(source.samples), unit="samples") as advance:
            for start in range(0, len(source.samples), BLOCK):
                rows = np.arange(start, min(start + BLOCK, len(source.samples)))
                part = source.take(rows)
                views, whole = self._views(part)
                if len(views):
                    yield from self._explained(part.take(whole), views)
                advance(len(rows))

    def _views(self, source: Source) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (B, M, V, H, W, C) of the samples whose images can all be read, and their rows."""
        pixels, image = self._pixels(source), source.samples.image
        whole = np.flatnonzero([all(each in pixels for each in images) for images in image.tolist()])
        views = [np.stack([pixels[each] for each in image[row].tolist()]) for row in whole]
        return np.stack(views) if views else np.zeros((0, image.shape[1], 1, 0, 0, 3), np.uint8), whole

    def _pixels(self, source: Source) -> dict[int, np.ndarray]:
        """Return the pixels (V, H, W, C) of the images that can be read, by their index in the source."""
        of_digest: dict[bytes | None, np.ndarray] = {}
        pixels: dict[int, np.ndarray] = {}
        views = MIRROR if self.config.flip or self.classifier.flips else None
        workers, preprocess = thread_budget().decode, self.classifier.trunk.preprocess
        for image in load_images(source, source.images, preprocess, workers=workers, views=views):
            self._noted.add(image)
            if image.error is not None:
                self.failed[image.key] = image.error
                continue
            if image.pixels is not None:  # a copy comes without pixels
                mirrored = [] if image.views is None else [*image.views]
                of_digest[image.digest] = np.stack([image.pixels, *mirrored])
            pixels[image.index] = of_digest[image.digest]
        return pixels

    def _explained(self, source: Source, views: np.ndarray) -> Iterator[Explanation]:
        """Yield the explanations of samples whose images have the pixels `views`."""
        named = [tuple(source.images[image] for image in images) for images in source.samples.image]
        terms = _Terms(
            _maps(self._extractor, views), self._mean_maps, self._ways, self.head, source.samples.covariates
        )
        scores = mean_scores(self.head, terms.inputs.detach().numpy().astype(np.float32))
        wanted = [self._wanted(score) for score in scores]
        found: list[list[_Found]] = [[] for _ in wanted]
        for turn in range(max(map(len, wanted))):
            rows = [row for row, codes in enumerate(wanted) if turn < len(codes)]
            for row, terms_of_row in zip(
                rows, terms.of(rows, [wanted[row][turn][0] for row in rows]), strict=True
            ):
                found[row].append(terms_of_row)
        for row, codes in enumerate(wanted):
            for (code, predicted), (maps, unplaced, logit, intercept) in zip(codes, found[row], strict=True):
                regression = self.head.target_kind == "regression"
                yield Explanation(
                    sample=str(source.samples.key[row]),
                    images=named[row],
                    label=self.head.target if regression else self.head.class_names[code],
                    predicted=predicted,
                    confidence=None if regression else float(scores[row][code]),
                    logit=logit,
                    intercept=intercept,
                    maps=maps,
                    unplaced=unplaced,
                    exact=self.exact,
                    size=self.classifier.trunk.preprocess.size,
                )

    def _wanted(self, score: np.ndarray) -> list[tuple[int, bool]]:
        """Return the codes that are explained of one sample, and whether each is predicted."""
        if self.head.target_kind == "regression":
            return [(0, True)]
        predicted = {int(score.argmax())}
        if self.head.target_kind == "multilabel":
            predicted = set(np.flatnonzero(score > 0.5).tolist())
        first = sorted(predicted, key=lambda code: -score[code]) or [int(score.argmax())]
        return [(code, code in predicted) for code in dict.fromkeys([*first, *self._codes])]


class _Terms:
    """Maps, features and logits of samples, and the terms of any logit.

    maps : for each way (B, M, V, …). mean_maps : of reference images, for each way (M, V, …).
    inputs : (B, V, D) of the head, float64.
    """

    def __init__(
        self,
        maps: list[Tensor],
        mean_maps: list[Tensor] | None,
        ways: list[_Way],
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

    def of(self, rows: list[int], codes: list[int]) -> list[_Found]:
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


def _maps(extractor: torch.nn.Module, pixels: np.ndarray) -> list[Tensor]:
    """Return the maps (B, M, V, …) of pixels (B, M, V, H, W, C) uint8."""
    flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[3:]))
    with torch.no_grad():
        parts = [extractor(flat[at : at + BLOCK]) for at in range(0, len(flat), BLOCK)]
    return [torch.cat(part).unflatten(0, pixels.shape[:3]) for part in zip(*parts, strict=True)]


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


def _code(head: HeadArtifact, name: str) -> int:
    """Return the code of a class that the user named; ArtifactError if the head has none of that name."""
    if head.target_kind == "regression":
        raise ArtifactError(
            f"The head predicts {head.target!r}, a quantity, and has no class {name!r}.", "Leave --class out."
        )
    if name not in head.class_names:
        close = get_close_matches(name, head.class_names, n=4, cutoff=0.4) or head.class_names[:8]
        raise ArtifactError(
            f"The head has no class {name!r}; it has {len(head.class_names)}, such as {', '.join(close)}."
        )
    return head.class_names.index(name)


def _ways(backbone: Backbone, classifier: Classifier, exact: bool) -> list[_Way]:
    """Return the way from a map to each node of the head. exact : only from the maps that are pooled."""
    head, preprocess = classifier.head, classifier.trunk.preprocess
    tuned = head.settings.get("finetuned", {}).get("input", "")
    ways = []
    for node in nodes_in(head.node):
        pool = backbone.extractor([node], preprocess).pools[0]
        assert isinstance(pool, Pool)
        if tuned.endswith("@none") and not exact:
            ways.append(_through(backbone, classifier, node, tuned))
        elif pool.layout in ("NC", ""):
            ways.append(_through(backbone, classifier, node, f"{BOTTLENECK}@none"))
        else:
            ways.append(_Way(node, f"{node.partition('@')[0]}@none", pool, pool, linear=True, average=True))
    return ways


def _through(backbone: Backbone, classifier: Classifier, node: str, map_node: str) -> _Way:
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
    return _Way(node, map_node, section, pool, *_kind_of(section, pool.row))


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
