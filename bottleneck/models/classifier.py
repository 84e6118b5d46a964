"""A deployable classifier: preprocessing, backbone and head in one, from a head or a model file.

    source ──► pixels ──► trunk ──► features of M images + P covariates ──► head ──► label, confidence

Shapes: I images, S samples, M images per sample, P covariates, D features, C classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.backbones.model_file import backbone_of
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.loader import LoadedImage
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import Source, read_sources
from bottleneck.errors import ArtifactError
from bottleneck.extraction.config import EngineConfig
from bottleneck.extraction.pipeline import Batch, Trunk
from bottleneck.heads.artifact import HeadArtifact, apply_link, load_head
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import SampleTable

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone

CHUNK = 4096  # images among which copies are recognised; their features are held that long


@dataclass(frozen=True)
class Outputs:
    """What a head says of a source.

    rows : (B,) positions in the source's samples, ascending; samples with a failed image are missing.
    decisions : (B, C) float32, the head's decision function.
    failed : reason by image key.
    """

    rows: np.ndarray
    decisions: np.ndarray
    failed: dict[str, str]


class Classifier:
    """What `load_model` gives: images in, predictions out.

    Attributes
    ----------
    head : HeadArtifact
        Classes, target, temperature, metrics, the recipe of its backbone.
    trunk : Trunk
        Loaded when the first image is computed.
    """

    def __init__(self, head: HeadArtifact, load: Callable[[], Backbone], config: EngineConfig) -> None:
        self.head = head
        self.trunk = Trunk(load, Preprocess.from_json(head.preprocess), config)

    def features(
        self, source: Source, failed: dict[str, str], reporter: Reporter = SILENT
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Head inputs of the samples as their images become ready.

        Yields positions in `source.samples` (B,) and float32 inputs (B, M·D + P). An image that gives no
        features goes to `failed` with its reason; its samples never come.
        """
        gather = _Gather(source.samples)
        with reporter.step("Classifying", total=len(source.images), unit="images") as advance:
            for start in range(0, len(source.images), CHUNK):
                for positions, features in self._chunk(source, start, failed):
                    yield gather.add(positions, features)
                    advance(len(positions))

    def _chunk(
        self, source: Source, start: int, failed: dict[str, str]
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Positions and features (B, D) of the images of one chunk, copies among them last."""
        of_digest: dict[bytes, np.ndarray] = {}
        copies: list[LoadedImage] = []
        for item in self.trunk.stream(source, source.images[start : start + CHUNK], [self.head.node]):
            if isinstance(item, Batch):
                of_digest |= {
                    image.digest: row for image, row in zip(item.images, item.features[0], strict=True)
                }
                yield [start + image.index for image in item.images], item.features[0]
            elif item.error is None:
                copies.append(item)
            else:
                failed[item.key] = item.error
        if copies:
            rows = np.stack([of_digest[image.digest] for image in copies])
            yield [start + image.index for image in copies], rows

    def _require_fit(self, samples: SampleTable) -> None:
        """Refuse samples that are not of the form that the head was fitted on."""
        head = self.head
        M, names = samples.image.shape[1], tuple(samples.covariate_names)
        if head.images_per_sample != M:
            raise ArtifactError(
                f"The head takes {head.images_per_sample} images per sample, the source gives {M}.",
                "Name the image columns with --image-column.",
            )
        if names != tuple(head.covariate_names):
            raise ArtifactError(
                f"The head takes covariates {list(head.covariate_names)}, the source gives {list(names)}.",
                "Name the covariate columns with --covariate, in that order.",
            )

    def outputs(self, source: Source, reporter: Reporter = SILENT) -> Outputs:
        """Run all images of `source` through the network and the head.

        Raises
        ------
        ArtifactError
            The samples have other images per sample or covariates than the head was fitted on.
        """
        self._require_fit(source.samples)
        rows, decisions, failed = [], [], dict(source.absent)
        for ready, inputs in self.features(source, failed, reporter):
            if len(ready):
                rows.append(ready)
                decisions.append(self.head.decision(inputs))
        if not rows:
            return Outputs(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), failed)
        order = np.argsort(rows := np.concatenate(rows))
        return Outputs(rows[order], np.concatenate(decisions)[order], failed)

    def classify(
        self, source: Source, top: int = 5, reporter: Reporter = SILENT
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """One record per sample that could be classified, in order; the reason of each image that could not.

        A record is what `bottleneck.prediction.predict` describes.
        """
        outputs = self.outputs(source, reporter)
        if not len(outputs.rows):
            return [], outputs.failed
        head = self.head
        scores = apply_link(outputs.decisions, head.link, head.temperature)  # (B, C), a regression's (B,)
        records = []
        for row, score in zip(outputs.rows, scores, strict=True):
            images = [source.images[image] for image in source.samples.image[row]]
            record = {"image": images[0]} | ({"images": images} if len(images) > 1 else {})
            records.append(record | _verdict(head, score, top))
        return records, outputs.failed

    def predict(self, *sources: str | Path | Source, top: int = 5, **reading: Any) -> list[dict[str, Any]]:
        """Predictions for images, folders, manifests or URLs; `reading` are fields of `ReadConfig`."""
        opened = read_sources(sources, ReadConfig(**reading))
        return [record for source in opened for record in self.classify(source, top)[0]]


def _verdict(head: HeadArtifact, score: np.ndarray, top: int) -> dict[str, Any]:
    """Label, confidence and the likeliest classes of one sample."""
    if head.target_kind == "regression":
        return {"label": float(score), "confidence": None, "top": []}
    best = np.argsort(-score, kind="stable")[:top]
    ranked = [{"label": head.class_names[code], "confidence": float(score[code])} for code in best]
    if head.target_kind == "multilabel":
        label = [head.class_names[code] for code in np.flatnonzero(score > 0.5)]
        return {"label": label, "confidence": ranked[0]["confidence"], "top": ranked}
    return {**ranked[0], "top": ranked}


class _Gather:
    """Brings the features of a sample's images together; holds them no longer than needed."""

    def __init__(self, samples: SampleTable) -> None:
        self.samples = samples
        self.samples_of: dict[int, list[int]] = defaultdict(list)
        for row, images in enumerate(samples.image):
            for image in set(images.tolist()):
                self.samples_of[image].append(row)
        self.awaited = [len(set(images.tolist())) for images in samples.image]
        self.held: dict[int, np.ndarray] = {}
        self.uses = {image: len(rows) for image, rows in self.samples_of.items()}

    def add(self, images: Iterable[int], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take features (B, D) of `images`; give the samples that are complete now and their inputs."""
        ready = []
        for image, feature in zip(images, features, strict=True):
            self.held[image] = feature
            for row in self.samples_of[image]:
                self.awaited[row] -= 1
                if not self.awaited[row]:
                    ready.append(row)
        table = self.samples
        inputs = [
            np.concatenate([*(self.held[image] for image in table.image[row]), table.covariates[row]])
            for row in ready
        ]
        for row in ready:
            for image in set(self.samples.image[row].tolist()):
                self.uses[image] -= 1
                if not self.uses[image]:
                    del self.held[image]
        width = len(inputs[0]) if inputs else 0
        return np.array(ready, dtype=np.int64), np.array(inputs, dtype=np.float32).reshape(len(ready), width)


def load_model(
    path: str | Path, *, weights: str | None = None, trust_code: bool = False, **options: Any
) -> Classifier:
    """Open a head or a model file for prediction; the network is loaded with the first image.

    Parameters
    ----------
    path : path of a `.safetensors` file that `fit-head`, `finetune` or `scratch` wrote
    weights : path, optional
        The weights file, where the backbone's came from one.
    trust_code : bool
        Import a backbone that the file names as `package.module:function`.
    options : fields of `EngineConfig`

    Raises
    ------
    ArtifactError
        The file is no head or model, is damaged or hostile.
    """
    head = load_head(path)
    load = partial(backbone_of, head, path, LoadOptions(weights, trust_code))
    return Classifier(head, load, EngineConfig(**options))
