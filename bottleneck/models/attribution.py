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

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bottleneck.data.loader import NotedImages, load_images
from bottleneck.data.preprocess import MIRROR
from bottleneck.data.source import Source
from bottleneck.errors import ArtifactError, BottleneckError, Note, counted
from bottleneck.models.classifier import Classifier, mean_scores
from bottleneck.models.config import ExplainConfig
from bottleneck.models.explanation import Explanation
from bottleneck.models.learnt_from import float32_notes
from bottleneck.models.terms import Found, Terms, ways_to
from bottleneck.progress import SILENT, Reporter
from bottleneck.threads import thread_budget

BLOCK = 8  # samples whose maps are in memory at once
REFERENCES = 256  # samples whose mean map is taken


class Explainer:
    """Explains the predictions of a head or model.

    Parameters
    ----------
    classifier : an open head or model, of which the network is loaded.
    config : what is explained; its `output` is not used.

    Attributes
    ----------
    failed : reason by name of images that cannot be read. exact : whether the maps are.

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
        self._codes = [self.head.code_of(name) for name in self.config.class_names]
        backbone, preprocess = classifier.trunk.backbone, classifier.trunk.preprocess
        self._ways = ways_to(backbone, classifier, self.config.exact)
        self._extractor = backbone.extractor([way.map for way in self._ways], preprocess)
        self.exact = self.head.form == "linear" and all(way.linear for way in self._ways)
        if self.config.exact and not self.exact:
            raise ArtifactError(
                f"{self._between()} are not linear, so that no map of this head is exact.",
                "Leave --exact out for an approximation.",
            )
        self._mean_maps: list[Tensor] | None = None
        self._notes = [*classifier.flip_notes(self.config.flip), *float32_notes(self.head, "The explanation")]
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
        self.failed, self._noted = {}, NotedImages()  # those of reference images are not reported
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
            f"Contributions of places are differences from the mean of {used:,} of "
            f"{counted(count, 'sample')} of "
        )
        message += f"{name}."
        self._notes.append(Note("reference-images", message, details={"samples": used, "of": count}))

    def _between(self) -> str:
        """Return the layers that are not linear, as the subject of a sentence."""
        not_linear = [way for way in self._ways if not way.linear]
        if not not_linear:
            return "The layers of the mlp head"
        return f"The layers between {not_linear[0].map.removesuffix('@none')} and the head"

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
        self.failed |= {source.shown(key): reason for key, reason in source.absent.items()}
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
                self.failed[source.shown(image.key)] = image.error
                continue
            if image.pixels is not None:  # a copy comes without pixels
                mirrored = [] if image.views is None else [*image.views]
                of_digest[image.digest] = np.stack([image.pixels, *mirrored])
            pixels[image.index] = of_digest[image.digest]
        return pixels

    def _explained(self, source: Source, views: np.ndarray) -> Iterator[Explanation]:
        """Yield the explanations of samples whose images have the pixels `views`."""
        named = [tuple(source.images[image] for image in images) for images in source.samples.image]
        terms = Terms(
            _maps(self._extractor, views), self._mean_maps, self._ways, self.head, source.samples.covariates
        )
        scores = mean_scores(self.head, terms.inputs.detach().numpy().astype(np.float32))
        wanted = [self._wanted(score) for score in scores]
        found: list[list[Found]] = [[] for _ in wanted]
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


def _maps(extractor: torch.nn.Module, pixels: np.ndarray) -> list[Tensor]:
    """Return the maps (B, M, V, …) of pixels (B, M, V, H, W, C) uint8."""
    flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[3:]))
    with torch.no_grad():
        parts = [extractor(flat[at : at + BLOCK]) for at in range(0, len(flat), BLOCK)]
    return [torch.cat(part).unflatten(0, pixels.shape[:3]) for part in zip(*parts, strict=True)]
