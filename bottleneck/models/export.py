"""A head or model as one file for other runtimes: uint8 images in, probabilities out, nothing else needed.

    pixels (B, H, W, C) or (B, M, H, W, C), covariates ──► normalise ──► network ──► head ──► probabilities

Images are resized and cropped beforehand, as the file's metadata say; normalisation is inside. What is
written has been run and compared with the model.

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
from bottleneck.engines.onnx_export import silence
from bottleneck.errors import ArtifactError, EngineError, first_line
from bottleneck.files import write_whole
from bottleneck.heads.artifact import HeadArtifact, load_head

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
BOUND = 1e-4  # greatest difference of an output from the model's
SIZES = (1, 3)  # of the batches on which it is measured
METADATA = "bottleneck.json"  # its name within a .pt2


@dataclass(frozen=True)
class Exported:
    """What was written. max_difference : of its outputs from the model's; inputs : shapes by name, B free."""

    path: str
    format: str
    max_difference: float
    inputs: dict[str, list[int | str]]
    classes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON object of `bottleneck export --json`."""
        return dict(vars(self))


class Deployed(nn.Module):
    """Network and head as one module, in evaluation mode.

    forward : pixels uint8 (B, H, W, C), with M > 1 (B, M, H, W, C), and with P > 0 covariates float32 (B, P)
        → probabilities float32 (B, K); of a regression the values (B, 1).

    Raises
    ------
    ArtifactError
        A head of neighbours, which is its training data rather than a function that can be written down.
    """

    def __init__(self, backbone: Backbone, head: HeadArtifact) -> None:
        super().__init__()
        if head.form == "knn":
            raise ArtifactError(
                "A head of nearest neighbours cannot be exported.", "Fit another with --head logistic."
            )
        self.extractor = backbone.extractor([head.node], Preprocess.from_json(head.preprocess))
        self.several = head.images_per_sample > 1
        self.width = head.n_features - len(head.covariate_names)
        self.link, self.temperature = head.link, head.temperature
        for name in ("coef", "intercept", "coef2", "intercept2"):
            array = head.arrays.get(name)
            self.register_buffer(name, None if array is None else torch.from_numpy(np.array(array)))
        self.eval()

    def forward(self, pixels: Tensor, covariates: Tensor | None = None) -> Tensor:
        """See the class."""
        images = pixels.flatten(0, 1) if self.several else pixels
        x = self.extractor(images)[0].reshape(-1, self.width)
        if covariates is not None:
            x = torch.cat([x, covariates], dim=1)
        z = nn.functional.linear(x, self.coef, self.intercept)
        if self.coef2 is not None:
            z = nn.functional.linear(torch.relu(z), self.coef2, self.intercept2)
        if self.link == "identity":
            return z
        z = z / self.temperature
        if self.link == "softmax":
            return torch.softmax(z, dim=1)
        p = torch.sigmoid(z)
        return p / p.sum(dim=1, keepdim=True) if self.link == "ovr" else p


def export(
    model: str | Path, format: str = "onnx", output: str | Path | None = None, *, trust_code: bool = False
) -> Exported:
    """Write a head or model file as ONNX or as a torch.export program.

    Parameters
    ----------
    model : path of a file that `fit-head`, `finetune` or `scratch` wrote
    format : "onnx" or "torch"
    output : path; the model's with .onnx or .pt2 by default
    trust_code : allow a backbone that the file names as package.module:function

    Raises
    ------
    ArtifactError
        The file is no head or model, or of a kind that cannot be exported.
    EngineError
        The network cannot be exported, or says something else afterwards; nothing is written then.
    """
    if format not in SUFFIXES:
        raise ArtifactError(f"The format is {format!r}; expected {' or '.join(SUFFIXES)}.")
    head = load_head(model)
    backbone = backbone_of(head, model, LoadOptions(trust_code=trust_code))
    deployed = Deployed(backbone, head)
    path = Path(output) if output else Path(model).with_suffix(SUFFIXES[format])
    write = _onnx if format == "onnx" else _torch
    example = _inputs(head, max(SIZES) - 1)
    try:
        with silence():
            data, run = write(deployed, example, _metadata(head))
    except Exception as error:  # exporters have error classes without end
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise EngineError(
            f"{head.backbone.get('name')} cannot be exported as {format}: {reason}.",
            f"Try --format {'torch' if format == 'onnx' else 'onnx'}.",
        ) from error
    difference = max(_difference(deployed, head, run, _inputs(head, size)) for size in SIZES)
    if not difference <= BOUND:
        raise EngineError(
            f"The exported network differs from the model by {difference:.1e}, "
            f"at most {BOUND:.0e} is allowed; nothing was written."
        )
    write_whole(path, data)
    shapes = {name: ["B", *array.shape[1:]] for name, array in example.items()}
    return Exported(str(path), format, difference, shapes, head.class_names)


def _inputs(head: HeadArtifact, samples: int) -> dict[str, np.ndarray]:
    """Samples to try: noise for pixels, covariates about their mean."""
    random = np.random.default_rng(samples)
    preprocess = Preprocess.from_json(head.preprocess)
    image = (preprocess.size, preprocess.size, preprocess.channels)
    several = (head.images_per_sample,) if head.images_per_sample > 1 else ()
    inputs = {"pixels": random.integers(0, 256, (samples, *several, *image), dtype=np.uint8)}
    if P := len(head.covariate_names):
        drawn = head.mean[-P:] + head.scale[-P:] * random.normal(size=(samples, P))
        inputs["covariates"] = drawn.astype(np.float32)
    return inputs


def _difference(
    deployed: Deployed,
    head: HeadArtifact,
    run: Callable[[dict[str, np.ndarray]], np.ndarray],
    inputs: dict[str, np.ndarray],
) -> float:
    """Greatest difference from what the head says of the network's own features."""
    pixels = inputs["pixels"]
    with torch.inference_mode():
        images = torch.from_numpy(pixels.reshape(-1, *pixels.shape[-3:]))
        features = deployed.extractor(images)[0].numpy().reshape(len(pixels), -1)
    if "covariates" in inputs:
        features = np.concatenate([features, inputs["covariates"]], axis=1)
    wanted = np.asarray(head.probabilities(features)).reshape(len(pixels), -1)
    return float(np.abs(run(inputs) - wanted).max())


def _onnx(
    deployed: Deployed, example: dict[str, np.ndarray], metadata: dict[str, str]
) -> tuple[bytes, Callable[[dict[str, np.ndarray]], np.ndarray]]:
    """The bytes of an ONNX file, and how onnxruntime runs them."""
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
    proto = program.model_proto
    for name, value in metadata.items():
        proto.metadata_props.add(key=name, value=value)
    data = proto.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda inputs: session.run(None, inputs)[0]


def _torch(
    deployed: Deployed, example: dict[str, np.ndarray], metadata: dict[str, str]
) -> tuple[bytes, Callable[[dict[str, np.ndarray]], np.ndarray]]:
    """The bytes of a .pt2 file, and how torch runs them."""
    arguments = tuple(torch.from_numpy(array) for array in example.values())
    program = torch.export.export(deployed, arguments, dynamic_shapes=_free_batch(example))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata, ensure_ascii=False)})
    loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return loaded(*(torch.from_numpy(array) for array in inputs.values())).numpy()

    return buffer.getvalue(), run


def _free_batch(example: dict[str, np.ndarray]) -> tuple[dict, ...]:
    """The first axis of every input is any number of samples, the same one."""
    batch = torch.export.Dim("batch", min=1)
    return tuple({0: batch} for _ in example)


def _metadata(head: HeadArtifact) -> dict[str, str]:
    """What a user of the file needs to know; values that are not text are JSON."""
    values = {
        "classes": list(head.class_names),
        "preprocess": head.preprocess,
        "covariates": list(head.covariate_names),
        "images_per_sample": head.images_per_sample,
        "temperature": head.temperature,
        "backbone": head.backbone,
        "metrics": {split: found.get("accuracy") for split, found in head.metrics.items()},
    }
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return {**texts, "target": head.target, "node": head.node, "version": head.version}
