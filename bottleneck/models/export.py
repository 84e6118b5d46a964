"""Export a head or model as one file for other runtimes: uint8 images in, probabilities out.

    pixels (B, H, W, C) or (B, M, H, W, C), covariates ──► normalise ──► network ──► head ──► probabilities

The user resizes and crops images as the file's metadata describe; normalisation is inside. The exported
program is run and compared with the model before the file is written.

Shapes: B samples, M images per sample, H × W pixels, C channels, P covariates, K classes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.model_file import backbone_of
from bottleneck.backbones.recipe import LoadOptions
from bottleneck.data.preprocess import Preprocess
from bottleneck.engines.onnx_graph import silence
from bottleneck.errors import ArtifactError, EngineError, Note, first_line
from bottleneck.files import require_file_name, write_whole
from bottleneck.heads.artifact import HeadArtifact, load_head
from bottleneck.models.classifier import mean_scores
from bottleneck.models.learnt_from import float32_notes
from bottleneck.names import EXPORT_FORMATS, nodes_in
from bottleneck.records import Result

SUFFIXES = dict(zip(EXPORT_FORMATS, (".onnx", ".pt2"), strict=True))
BOUND = 1e-4  # greatest allowed difference of a probability, or of a quantity relative to the target's spread
# Relative, of a quantity: a float32 of 500,000 has steps of 0.03.
ROUNDING = 64 * float(np.finfo(np.float32).eps)
SIZES = (1, 3)  # batch sizes at which the difference is measured
METADATA = "bottleneck.json"  # name of the metadata within a .pt2

Arrays = dict[str, np.ndarray]
Program = Callable[[Arrays], np.ndarray]  # inputs by name → probabilities


@dataclass(frozen=True)
class Exported(Result):
    """The written file.

    max_difference : of its outputs from the model's, in its unit. allowed : the greatest accepted one.
    inputs : shapes by name.
    """

    path: str
    format: str
    max_difference: float
    inputs: dict[str, list[int | str]]
    classes: tuple[str, ...]
    allowed: float = BOUND
    notes: tuple[Note, ...] = ()


class Deployed(nn.Module):
    """Network and head as one module, in evaluation mode.

    forward : pixels uint8 (B, H, W, C), with M > 1 (B, M, H, W, C), and with P > 0 covariates float32 (B, P)
        → probabilities float32 (B, K), or values (B, 1) of a regression.

    Raises
    ------
    ArtifactError
        A head of nearest neighbours: it would need its training data.
    """

    def __init__(self, backbone: Backbone, head: HeadArtifact) -> None:
        super().__init__()
        if head.form == "knn":
            raise ArtifactError(
                "A head of nearest neighbours cannot be exported.", "Fit another with --head logistic."
            )
        self.extractor = backbone.extractor(nodes_in(head.node), Preprocess.from_json(head.preprocess))
        self.several = head.images_per_sample > 1
        self.width = head.n_features - len(head.covariate_names)
        self.link, self.temperature = head.link, head.temperature
        self.flip = bool(head.settings.get("flip", False))
        self.layers = nn.Sequential(_linear(head.coef, head.intercept))
        if head.form == "mlp":
            self.layers.extend([nn.ReLU(), _linear(head.arrays["coef2"], head.arrays["intercept2"])])
        self.eval()

    def features(self, images: Tensor) -> Tensor:
        """(B · M, D) of images (B · M, H, W, C), the head's nodes side by side."""
        return torch.cat(list(self.extractor(images)), dim=1)

    def forward(self, pixels: Tensor, covariates: Tensor | None = None) -> Tensor:
        """See the class."""
        images = pixels.flatten(0, 1) if self.several else pixels
        scores = self.scores(images, covariates)
        return (scores + self.scores(images.flip(2), covariates)) / 2 if self.flip else scores

    def scores(self, images: Tensor, covariates: Tensor | None) -> Tensor:
        """(B, K) of images (B · M, H, W, C) as they are."""
        x = self.features(images).reshape(-1, self.width)
        if covariates is not None:
            x = torch.cat([x, covariates], dim=1)
        z: Tensor = self.layers(x)
        if self.link == "identity":
            return z
        z = z / self.temperature
        if self.link == "sigmoid":
            return torch.sigmoid(z)
        return torch.softmax(nn.functional.logsigmoid(z) if self.link == "ovr" else z, dim=1)


def _linear(coef: np.ndarray, intercept: np.ndarray) -> nn.Linear:
    """A layer with the given coefficients (out, in) and intercept (out,)."""
    layer = nn.Linear(coef.shape[1], coef.shape[0])
    layer.weight.data = torch.from_numpy(np.array(coef, np.float32))
    layer.bias.data = torch.from_numpy(np.array(intercept, np.float32))
    return layer.requires_grad_(False)


def export(
    model: str | Path,
    *,
    format: str,
    output: str | Path | None = None,
    trust_code: bool = False,
) -> Exported:
    """Write a head or model file as ONNX or as a torch.export program.

    Parameters
    ----------
    model : path of a file that `fit-head`, `finetune` or `scratch` wrote
    format : one of `names.EXPORT_FORMATS`
    output : path; by default the model's with the suffix .onnx or .pt2
    trust_code : import a backbone that the file names as `package.module:function`

    Raises
    ------
    ArtifactError
        The file is no head or model, or of a kind that cannot be exported.
    EngineError
        The network cannot be exported, or the exported program differs from it; nothing is written then.
    """
    if format not in EXPORT_FORMATS:
        raise ArtifactError(f"The format is {format!r}; expected {' or '.join(EXPORT_FORMATS)}.")
    head = load_head(model)
    backbone = backbone_of(head, model, LoadOptions(trust_code=trust_code))
    deployed = Deployed(backbone, head)
    path = Path(output) if output else Path(model).with_suffix(SUFFIXES[format])
    require_file_name(path)
    write = _onnx if format == "onnx" else _torch
    example = _noise(head, max(SIZES) - 1)
    try:
        with silence():
            data, run = write(deployed, example, _metadata(head))
    except Exception as error:  # exporters have error classes without end
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise EngineError(
            f"{head.backbone.get('name')} cannot be exported as {format}: {reason}.",
            f"Try --format {'torch' if format == 'onnx' else 'onnx'}.",
        ) from error
    pairs = [_outputs(deployed, head, run, _noise(head, size)) for size in SIZES]
    difference = max(float(np.abs(outputs - expected).max()) for outputs, expected in pairs)
    allowed = _allowed(head, np.concatenate([expected for _, expected in pairs]))
    if not difference <= allowed:
        raise EngineError(
            f"The exported network differs from the model by {difference:.1e}, "
            f"at most {allowed:.0e} is allowed; nothing was written."
        )
    write_whole(path, data)
    shapes: dict[str, list[int | str]] = {name: ["B", *array.shape[1:]] for name, array in example.items()}
    notes = float32_notes(head, "The exported file")
    if head.novelty or head.conformal:
        text = (
            "The exported file gives probabilities alone: --reject and --coverage stay with the head's file."
        )
        notes.append(Note("trust-not-exported", text))
    return Exported(str(path), format, difference, shapes, head.class_names, allowed, tuple(notes))


def _noise(head: HeadArtifact, samples: int) -> Arrays:
    """Draw inputs to compare on: noise for pixels, covariates about their mean."""
    random = np.random.default_rng(samples)
    preprocess = Preprocess.from_json(head.preprocess)
    image = (preprocess.size, preprocess.size, preprocess.channels)
    several = (head.images_per_sample,) if head.images_per_sample > 1 else ()
    inputs = {"pixels": random.integers(0, 256, (samples, *several, *image), dtype=np.uint8)}
    if P := len(head.covariate_names):
        drawn = head.mean[-P:] + head.scale[-P:] * random.normal(size=(samples, P))
        inputs["covariates"] = drawn.astype(np.float32)
    return inputs


def _allowed(head: HeadArtifact, expected: np.ndarray) -> float:
    """Return the greatest accepted difference: `BOUND` for probabilities, for quantities in their unit.

    Quantities are judged by the spread of the target's values, which the metrics of the fit give:
    r² = 1 − rmse² / variance. Without metrics it is the size of the outputs.
    """
    if head.target_kind != "regression":
        return BOUND
    fitted = [
        (m["rmse"], m["r2"]) for m in head.metrics.values() if m.get("rmse") and m.get("r2") is not None
    ]
    spreads = [float(rmse / np.sqrt(1 - r2)) for rmse, r2 in fitted if r2 < 1]
    size = float(np.abs(expected).max())
    spread = max(*spreads, float(expected.std())) if spreads else size
    return BOUND * spread + ROUNDING * size


def _outputs(
    deployed: Deployed, head: HeadArtifact, run: Program, inputs: Arrays
) -> tuple[np.ndarray, np.ndarray]:
    """Return the program's outputs, and those of the head applied to the network's features."""
    pixels = inputs["pixels"]
    with torch.inference_mode():
        images = torch.from_numpy(pixels.reshape(-1, *pixels.shape[-3:]))
        views = [images, images.flip(2)] if deployed.flip else [images]
        features = np.stack([deployed.features(view).numpy().reshape(len(pixels), -1) for view in views], 1)
    if "covariates" in inputs:
        covariates = np.repeat(inputs["covariates"][:, None], len(views), axis=1)
        features = np.concatenate([features, covariates], axis=2)
    return run(inputs), mean_scores(head, features).reshape(len(pixels), -1)


def _onnx(deployed: Deployed, example: Arrays, metadata: dict[str, str]) -> tuple[bytes, Program]:
    """Return the bytes of an ONNX file, and a function that runs them in onnxruntime."""
    import onnxruntime

    program = torch.onnx.export(
        deployed,
        tuple(torch.from_numpy(array) for array in example.values()),
        dynamo=True,
        dynamic_shapes=_free_batch(example),
        input_names=list(example),
        output_names=["probabilities"],
        optimize=True,
        verbose=False,
    )
    assert program is not None  # with dynamo=True a program is always returned
    proto = program.model_proto
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value)
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda inputs: session.run(None, inputs)[0]


def _torch(deployed: Deployed, example: Arrays, metadata: dict[str, str]) -> tuple[bytes, Program]:
    """Return the bytes of a .pt2 file, and a function that runs them in torch."""
    arguments = tuple(torch.from_numpy(array) for array in example.values())
    program = torch.export.export(deployed, arguments, dynamic_shapes=_free_batch(example))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()

    def run(inputs: Arrays) -> np.ndarray:
        with torch.inference_mode():
            return loaded(*(torch.from_numpy(array) for array in inputs.values())).numpy()

    return buffer.getvalue(), run


def _free_batch(example: Arrays) -> tuple[dict[int, Any], ...]:
    """Declare that the first axis of every input has any length, the same for all."""
    batch = torch.export.Dim("batch", min=1)
    return tuple({0: batch} for _ in example)


def _metadata(head: HeadArtifact) -> dict[str, str]:
    """Return what a user of the file needs to know; values other than text are encoded as JSON."""
    values = {
        "classes": list(head.class_names),
        "preprocess": head.preprocess,
        "covariates": list(head.covariate_names),
        "images_per_sample": head.images_per_sample,
        "temperature": head.temperature,
        "backbone": head.backbone,
        "metrics": {split: metrics.get("accuracy") for split, metrics in head.metrics.items()},
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return {**texts, "target": head.target, "node": head.node, "version": head.version}
