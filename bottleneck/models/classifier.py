"""A deployable classifier: preprocessing, backbone and head in one, from a head or a model file.

    source ──► pixels ──► trunk ──► features of M images + P covariates ──► head ──► label, confidence

Shapes: S samples, M images per sample, P covariates, D features, B rows of a batch, K classes; V views of an
image: itself, and with `flip` its mirror image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bottleneck.backbones.model_file import backbone_of
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.config import ReadConfig
from bottleneck.data.loader import LoadedImage
from bottleneck.data.preprocess import MIRROR, Mirror, Preprocess
from bottleneck.data.read_source import read_sources
from bottleneck.data.source import Source
from bottleneck.errors import ArtifactError, Note, counted
from bottleneck.extraction.config import EngineConfig
from bottleneck.extraction.pipeline import Batch, Trunk
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.models.config import TrustConfig
from bottleneck.models.learnt_from import how_computed, require_calibration_of, unknown_notes
from bottleneck.models.trust import Trust
from bottleneck.names import TOP_CLASSES, nodes_in
from bottleneck.progress import SILENT, Reporter
from bottleneck.records import config_from
from bottleneck.samples import SampleTable

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone

REMEMBERED = ("image", "split", "group", "sample", "separator")  # roles of columns, beside those of the head
FLIPS = "The model averages each image and its mirror image, which was chosen when it was trained."
CHUNK = 4096  # images among which copies are recognised; their features stay in memory that long


@dataclass(frozen=True)
class Outputs:
    """Outputs of a head for samples.

    rows : (B,) indices of the samples, ascending; samples with a failed image are missing.
    scores : probabilities (B, K) or (B, L) after temperature scaling, or values (B,) of a regression.
    failed : reason by image key.
    digests : (I, 32) uint8, sha256 of their images.
    novelty : (B,), where it is wanted.
    precisions : of the features, by node.
    notes : what was decided.
    """

    rows: np.ndarray
    scores: np.ndarray
    failed: dict[str, str]
    digests: np.ndarray
    novelty: np.ndarray | None = None
    precisions: dict[str, str] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


class Classifier:
    """A model in memory, as `load_model` returns it: images in, predictions out.

    Attributes
    ----------
    head : HeadArtifact
        Classes, target, temperature, metrics, the recipe of its backbone.
    trunk : Trunk
        The network up to the head's node; loaded when the first image is computed.
    """

    def __init__(self, head: HeadArtifact, load: Callable[[], Backbone], config: EngineConfig) -> None:
        self.head = head
        require_calibration_of(head, config)
        recipe = head.backbone if head.node_fingerprint else None  # a trained network has weights of its own
        computed = how_computed(head) or {}
        self.trunk = Trunk(
            load,
            Preprocess.from_json(head.preprocess),
            config,
            recipe,
            calibrations={node: record["calibration"] for node, record in computed.items()},
            precisions={node: record["precision"] for node, record in computed.items()},
            gives_way=True,
            first_notes=unknown_notes(head),
        )

    @property
    def flips(self) -> bool:
        """Whether the model averages each image and its mirror image by itself, as `train` chose."""
        return bool(self.head.settings.get("flip", False))

    def flip_notes(self, flip: bool) -> list[Note]:
        """Return a note where the model averages by itself. flip : whether the user asked for it."""
        if flip or not self.flips:
            return []
        return [Note("flip-of-the-model", FLIPS)]

    def predict(
        self,
        *sources: str | Path | Source,
        top: int = TOP_CLASSES,
        probabilities: bool = False,
        flip: bool = False,
        reject: float | None = TrustConfig.reject,
        coverage: float | None = TrustConfig.coverage,
        image_columns: Sequence[str] = ReadConfig.image_columns,
        label_columns: Sequence[str] = ReadConfig.label_columns,
        split_column: str | None = ReadConfig.split_column,
        group_column: str | None = ReadConfig.group_column,
        sample_column: str | None = ReadConfig.sample_column,
        covariate_columns: Sequence[str] = ReadConfig.covariate_columns,
        classes: Sequence[str] = ReadConfig.classes,
        regression: Sequence[str] = ReadConfig.regression,
        label_separator: str | None = ReadConfig.label_separator,
    ) -> list[dict[str, Any]]:
        """Return the predictions for images, folders, manifests or URLs, one record per sample.

        top : classes listed per sample. probabilities : add those of all classes. flip : average an image
        and its mirror image. reject, coverage : see `TrustConfig`. The columns are those of `ReadConfig`.
        `bottleneck.models.predict.predict` describes records, and also returns failed images and notes.
        """
        reading = config_from(ReadConfig, locals())
        self.require_probabilities(probabilities)
        trust = Trust.of(self.head, TrustConfig(reject, coverage))
        opened = read_sources(sources, self.reading(reading, inputs_only=True))
        return [record for one in opened for record in self.classify(one, top, probabilities, flip, trust)[0]]

    def reading(self, config: ReadConfig, inputs_only: bool = False) -> ReadConfig:
        """Return `config` with the columns that the head was made with, for what no flag names."""
        head = self.head
        columns = {role: names for role, names in head.columns.items() if role in REMEMBERED}
        columns |= {"label": (head.target,), "covariate": head.covariate_names}
        if head.target_kind != "multilabel":
            columns.pop("separator", None)
        target = (head.target, head.target_kind)
        return replace(config, remembered=columns, head_target=target, inputs_only=inputs_only)

    def require_probabilities(self, wanted: bool) -> None:
        """Raise ArtifactError if probabilities of classes are wanted of a head that has no classes."""
        if wanted and self.head.target_kind == "regression":
            raise ArtifactError(
                f"The head predicts {self.head.target!r}, a quantity, which has no probabilities of classes.",
                "Leave --probabilities out.",
            )

    def classify(
        self,
        source: Source,
        top: int = TOP_CLASSES,
        probabilities: bool = False,
        flip: bool = False,
        trust: Trust | None = None,
        reporter: Reporter = SILENT,
    ) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Return one record per classified sample, in order, and the reason of each failed image by name."""
        outputs = self.outputs(source, flip, trust, reporter)
        records = []
        for row, score in zip(outputs.rows.tolist(), outputs.scores, strict=True):
            images = [source.shown(source.images[image]) for image in source.samples.image[row]]
            record: dict[str, Any] = {"image": images[0]} | ({"images": images} if len(images) > 1 else {})
            record |= {"sample": source.samples.key[row]} | _prediction(self.head, score, top)
            if probabilities:
                record["probabilities"] = dict(zip(self.head.class_names, score.tolist(), strict=True))
            if source.cells:
                record["columns"] = {name: cells[row] for name, cells in source.cells.items()}
            records.append(record)
        if trust is not None:
            trust.add_to(records, outputs.scores, outputs.novelty)
        return records, {source.shown(key): reason for key, reason in outputs.failed.items()}

    def outputs(
        self, source: Source, flip: bool = False, trust: Trust | None = None, reporter: Reporter = SILENT
    ) -> Outputs:
        """Run all images of `source` through the network and the head.

        flip : average the probabilities, or the values of a regression, of each sample and of the same sample
            with all its images mirrored.
        trust : says whether novelty is wanted.

        Raises ArtifactError as `require_form` does.
        """
        self.require_form(source.samples)
        parts: list[tuple[np.ndarray, ...]] = []
        read = _Read(dict(source.absent), MIRROR if flip or self.flips else None)
        for ready, inputs in self._inputs(source, read, reporter):
            if len(ready):
                new = None if trust is None else trust.novelty(inputs)
                parts.append((ready, mean_scores(self.head, inputs), *([] if new is None else [new])))
        empty = (np.zeros(0, np.int64), np.zeros((0, 0)))
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else empty
        order = np.argsort(columns[0])
        row, score, *novelty = (column[order] for column in columns)
        digests = np.frombuffer(b"".join(read.digests), np.uint8).reshape(-1, 32)
        new = novelty[0] if novelty else None
        return Outputs(row, score, read.failed, digests, new, self.trunk.precisions_used)

    def inputs(
        self, source: Source, reporter: Reporter = SILENT
    ) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
        """Return the samples (n,) that could be read, their inputs (n, M·D + P), and the reason of each
        failed image by key. Errors as from `outputs`.
        """
        self.require_form(source.samples)
        read = _Read(dict(source.absent))
        parts = [part for part in self._inputs(source, read, reporter) if len(part[0])]
        rows = np.concatenate([np.zeros(0, np.int64), *(ready for ready, _ in parts)])
        none = np.zeros((0, self.head.n_features), np.float32)
        found = np.concatenate([none, *(inputs[:, 0] for _, inputs in parts)])
        order = np.argsort(rows)
        return rows[order], found[order], read.failed

    def _inputs(
        self, source: Source, read: _Read, reporter: Reporter
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the head's inputs of the samples as their images become ready.

        Yields indices of `source.samples` (B,) and float32 inputs (B, V, M·D + P). Samples with an image that
        has no features are not yielded. What is known of the images is added to `read`.
        """
        assembly = _SampleAssembly(source.samples)
        with reporter.step("Classifying", total=len(source.images), unit="images") as advance:
            for start in range(0, len(source.images), CHUNK):
                for images, features in self._chunk(source, start, read):
                    yield assembly.add(images, features)
                    advance(len(images))

    def _chunk(self, source: Source, start: int, read: _Read) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield indices and features (B, V, D) of the images of one chunk, copies of other images last."""
        features_of: dict[bytes | None, np.ndarray] = {}
        copies: list[LoadedImage] = []
        keys, nodes = source.images[start : start + CHUNK], nodes_in(self.head.node)
        for item in self.trunk.stream(source, keys, nodes, views=read.views):
            if isinstance(item, Batch):
                features = np.concatenate(item.features, axis=1)[:, None]
                if item.views is not None:
                    features = np.concatenate([features, np.concatenate(item.views, axis=2)], axis=1)
                digests = [image.digest or b"" for image in item.images]
                read.digests += digests
                features_of |= zip(digests, features, strict=True)
                yield [start + image.index for image in item.images], features
            elif item.error is None:
                copies.append(item)
            else:
                read.failed[item.key] = item.error
        for image in copies:
            if image.digest not in features_of:
                read.failed[image.key] = "has the same bytes as an image that cannot pass the network"
        copies = [image for image in copies if image.digest in features_of]
        if copies:
            rows = np.stack([features_of[image.digest] for image in copies])
            yield [start + image.index for image in copies], rows

    def require_form(self, samples: SampleTable) -> None:
        """Refuse samples with other images per sample or other covariates than the head was fitted on."""
        head, M = self.head, samples.image.shape[1]
        if head.images_per_sample != M:
            raise ArtifactError(
                f"The head takes {counted(head.images_per_sample, 'image')} per sample, the source gives "
                f"{M}.",
                "Name the image columns with --image-column.",
            )
        if tuple(samples.covariate_names) != tuple(head.covariate_names):
            raise ArtifactError(
                f"The head takes covariates {list(head.covariate_names)}, "
                f"the source gives {list(samples.covariate_names)}.",
                "Name the covariate columns with --covariate, in that order."
                if samples.columns
                else "Only a manifest has covariates: list the images in one, with these columns.",
            )


def _prediction(head: HeadArtifact, score: np.ndarray, top: int) -> dict[str, Any]:
    """Return label, confidence and the likeliest classes of one sample, for scores (K,) or a value ()."""
    if head.target_kind == "regression":
        return {"label": float(score), "confidence": None, "top": []}
    best = np.argsort(-score, kind="stable")[:top]
    ranked = [{"label": head.class_names[code], "confidence": float(score[code])} for code in best]
    if head.target_kind == "multilabel":
        label = [head.class_names[code] for code in np.flatnonzero(score > 0.5)]
        return {"label": label, "confidence": ranked[0]["confidence"], "top": ranked}
    return {**ranked[0], "top": ranked}


@dataclass
class _Read:
    """What a run learns of its images.

    failed : reason by key. views : made beside each image. digests : of images that passed the network.
    """

    failed: dict[str, str]
    views: Mirror | None = None
    digests: list[bytes] = field(default_factory=list)


class _SampleAssembly:
    """Joins the features of each sample's images, and drops them as soon as no sample needs them."""

    def __init__(self, samples: SampleTable) -> None:
        self.samples = samples
        self.samples_of: dict[int, list[int]] = defaultdict(list)
        for row, images in enumerate(samples.image):
            for image in set(images.tolist()):
                self.samples_of[image].append(row)
        self.missing = [len(set(images.tolist())) for images in samples.image]  # images per sample
        self.features: dict[int, np.ndarray] = {}
        self.uses = {image: len(rows) for image, rows in self.samples_of.items()}

    def add(self, images: Sequence[int], features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take features (B, V, D) of `images`; return the samples that are now complete and their inputs."""
        ready = []
        for image, feature in zip(images, features, strict=True):
            self.features[image] = feature
            for row in self.samples_of[image]:
                self.missing[row] -= 1
                if not self.missing[row]:
                    ready.append(row)
        inputs = [self._input(row) for row in ready]
        for row in ready:
            for image in set(self.samples.image[row].tolist()):
                self.uses[image] -= 1
                if not self.uses[image]:
                    del self.features[image]
        stacked = np.stack(inputs) if inputs else np.zeros((0, 1, 0), np.float32)
        return np.array(ready, dtype=np.int64), stacked

    def _input(self, row: int) -> np.ndarray:
        """(V, M·D + P) features of a sample's images, then its covariates."""
        features = [self.features[image] for image in self.samples.image[row]]
        covariates = np.tile(self.samples.covariates[row], (len(features[0]), 1))
        return np.concatenate([*features, covariates], axis=1, dtype=np.float32)


def mean_scores(head: HeadArtifact, inputs: np.ndarray) -> np.ndarray:
    """Return the mean over views of the head's probabilities (B, K), or values (B,), for inputs (B, V, …)."""
    scores = head.probabilities(inputs.reshape(-1, inputs.shape[2]))
    return scores.reshape(*inputs.shape[:2], *scores.shape[1:]).mean(axis=1)


def load_model(
    path: str | Path,
    *,
    weights: str | None = None,
    trust_code: bool = False,
    engine: str = EngineConfig.engine,
    precision: str = EngineConfig.precision,
    device: str = EngineConfig.device,
    batch_size: int | None = EngineConfig.batch_size,
    workers: int | None = EngineConfig.workers,
    force: bool = EngineConfig.force,
) -> Classifier:
    """Open a head or a model file for prediction; the network is loaded with the first image.

    Parameters
    ----------
    path : a `.safetensors` file that `fit-head`, `finetune` or `scratch` wrote
    weights : path of the weights file, for a backbone whose weights came from one
    trust_code : import a backbone that the file names as `package.module:function`
    engine, precision, device, batch_size, workers, force : how the network is run, see `EngineConfig`

    Raises
    ------
    ArtifactError
        The file is no head or model, is damaged or hostile.
    """
    return open_model(path, LoadOptions(weights, trust_code), config_from(EngineConfig, locals()))


def open_model(model: str | Path | Classifier, options: LoadOptions, config: EngineConfig) -> Classifier:
    """Open the file `model` as `load_model` does; return an open Classifier, with which a new run begins."""
    if isinstance(model, Classifier):
        model.trunk.begin_run()
        return model
    head = load_head(model)
    return Classifier(head, partial(backbone_of, head, model, options), config)
