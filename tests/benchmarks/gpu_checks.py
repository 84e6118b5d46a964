"""The checks of `gpu`, each called in a process of its own: device and sizes in, figures out."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bottleneck.threads import available_cores
from tests.benchmarks.machine import peak_megabytes

LITE = "efficientnet_lite0"
REPEATS = 3


def _pixels(folder: str, limit: int) -> tuple:
    """The network, and decoded images (B, 224, 224, 3)."""
    from bottleneck.backbones.registry import load_backbone
    from bottleneck.data.decode import pixels_from_bytes

    net = load_backbone(LITE)
    paths = sorted(Path(folder).rglob("*.jpg"))[:limit]
    return net, np.stack([pixels_from_bytes(path.read_bytes(), net.preprocess) for path in paths])


def _largest(rows: np.ndarray, reference: np.ndarray) -> float:
    """The largest relative difference of a row."""
    return float((np.linalg.norm(rows - reference, axis=1) / np.linalg.norm(reference, axis=1)).max())


def agreement(folder: str, limit: int, device: str, precision: str) -> dict:
    """Rows of torch on the device beside eager float32 on the CPU, for all images."""
    import torch

    from bottleneck.engines.torch_engine import TorchEngine

    net, pixels = _pixels(folder, limit)
    refused = _refused_on_a_cpu(net, pixels, precision, device)
    extractor = net.extractor(("bottleneck",)).eval()
    with torch.inference_mode():
        parts = [extractor(torch.from_numpy(pixels[i : i + 16]))[0] for i in range(0, len(pixels), 16)]
    reference = torch.cat(parts).numpy().reshape(len(pixels), -1)
    engine = TorchEngine(extractor, precision, device, threads=available_cores())
    rows = engine(pixels)[0].reshape(len(pixels), -1)
    products = (rows * reference).sum(1)
    cosine = products / (np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1))
    told = f"{engine.name} {engine.precision} on {engine.device}"
    return {
        "difference": _largest(rows, reference),
        "cosine": float(cosine.min()),
        "images": len(rows),
        "engine": told,
        "refused": refused,
    }


def _refused_on_a_cpu(net, pixels: np.ndarray, precision: str, device: str) -> str:
    """Why `extract --engine torch` refuses a precision on this CPU; "" where it takes it, or for a GPU."""
    from bottleneck.engines.base import build_engine
    from bottleneck.errors import EngineError

    if device != "cpu":
        return ""
    try:
        build_engine(
            lambda: net.extractor(("bottleneck",)),
            pixels,
            key="gpu_checks",
            engine="torch",
            precision=precision,
            device=device,
        )
    except EngineError as error:
        return f"extract refuses it on this CPU: {error.message}"
    return ""


def twice(folder: str, limit: int, device: str, precision: str) -> dict:
    """Rows that differ in any bit between two runs of `extract`."""
    from bottleneck import FeatureCache, extract

    if refused := _refused_on_a_cpu(*_pixels(folder, limit), precision, device):
        return {"refused": refused}
    found = []
    with tempfile.TemporaryDirectory() as caches:
        for run in range(2):
            options = {"engine": "torch", "precision": precision, "device": device, "dtype": "float32"}
            extract(folder, f"{caches}/{run}.h5", limit=limit, **options)
            with FeatureCache(f"{caches}/{run}.h5") as cache:
                found.append(cache.to_numpy()[0].view(np.uint32))
    return {"differ": int((found[0] != found[1]).any(axis=1).sum()), "rows": len(found[0])}


def memory(folder: str, limit: int, device: str) -> dict:
    """Peak memory of the device (of the process on a CPU) at a quarter of the images and at all."""
    import torch

    from bottleneck import extract

    cuda, found = torch.device(device).type == "cuda", {}
    with tempfile.TemporaryDirectory() as caches:
        for name, count in (("few", limit // 4), ("many", limit)):
            if cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            extract(folder, f"{caches}/{name}.h5", limit=count, engine="torch", device=device)
            found[name] = torch.cuda.max_memory_reserved() / 1e6 if cuda else peak_megabytes()
    return found | {"of": "device" if cuda else "process"}


def out_of_memory(folder: str, limit: int, device: str) -> dict:
    """Take memory away, run the engine, and compare its rows with those before."""

    from bottleneck.engines.torch_engine import TorchEngine

    net, pixels = _pixels(folder, min(limit, 32))
    pixels = np.resize(pixels, (256, *pixels.shape[1:])) if device != "cpu" else pixels
    extractor = net.extractor(("bottleneck",))
    engine = TorchEngine(extractor, "fp32", device, threads=available_cores())
    whole = engine(pixels)[0].reshape(len(pixels), -1)
    how = _take_memory(extractor, device)
    rows = engine(pixels)[0].reshape(len(pixels), -1)
    if not engine.notes:
        raise RuntimeError(f"no pass was halved, although memory was taken away ({how})")
    (note,) = engine.notes
    return {**note.details, "note": note.code, "how": how, "difference": _largest(rows, whole)}


def _take_memory(extractor, device: str) -> str:
    """Leave a third of what a pass needs; a CPU, which has no such limit, raises the error by itself."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        least, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((least + (most - least) / 3) / total)
        return f"a third of the {(most - least) / 1e6:.0f} MB of a pass were left"

    def refuse(module, arguments) -> None:
        if len(arguments[0]) > 5:
            raise torch.OutOfMemoryError("as on a device that is too small")

    extractor.register_forward_pre_hook(refuse)
    return "an error for more than 5 images stands for it"


def decoding(folder: str, limit: int, device: str) -> dict:
    """Images a second of both decoders in each round, and how far their pixels differ."""
    import simplejpeg
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    data = [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))[:limit]]
    tensors = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in data]

    def host() -> list[np.ndarray]:
        with ThreadPoolExecutor(available_cores()) as pool:
            return list(pool.map(simplejpeg.decode_jpeg, data))

    def on_device() -> list[np.ndarray]:
        decoded = [
            decode_jpeg(tensors[i : i + 64], ImageReadMode.RGB, device) for i in range(0, len(tensors), 64)
        ]
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        return [image for part in decoded for image in part]

    theirs = [image.permute(1, 2, 0).cpu().numpy() for image in on_device()]
    differences = [np.abs(a.astype(np.int16) - b) for a, b in zip(host(), theirs, strict=True)]
    found = {"host": [], "device": []}
    for _ in range(REPEATS):
        for name, decode in (("host", host), ("device", on_device)):
            started = time.perf_counter()
            decode()
            found[name].append(len(data) / (time.perf_counter() - started))
    equal = float(np.mean([(each == 0).mean() for each in differences]))
    return found | {"equal": equal, "most": int(max(each.max() for each in differences))}


def finetune(folder: str, device: str, epochs: int, precision: str) -> dict:
    """One block tuned from the cached map; the accuracy of the network after the last epoch is on val."""
    from bottleneck import extract, finetune, fit_heads

    if refused := _training_refused(device, precision):
        return {"refused": refused}
    with tempfile.TemporaryDirectory() as work:
        cache = extract(folder, f"{work}/c.h5", image_size=64, device=device).cache
        (head,) = fit_heads(cache, C=1e-2, cv=2, output=f"{work}/heads").heads
        result = finetune(
            cache,
            head["path"],
            f"{work}/m.safetensors",
            epochs=epochs,
            patience=0,
            device=device,
            precision=precision,
            val_fraction=0.25,
        )
    return _trained(result)


def scratch(folder: str, device: str, epochs: int, precision: str) -> dict:
    """A small CNN from random weights."""
    from bottleneck import scratch

    if refused := _training_refused(device, precision):
        return {"refused": refused}
    with tempfile.TemporaryDirectory() as work:
        options = {"image_size": 64, "epochs": epochs, "device": device, "precision": precision}
        result = scratch(folder, f"{work}/m.safetensors", val_fraction=0.25, **options)
    return _trained(result)


def _training_refused(device: str, precision: str) -> str:
    """Why training refuses a precision on this CPU; "" where it takes it, or for a GPU."""
    from bottleneck.errors import FitError
    from bottleneck.training.config import ScratchConfig
    from bottleneck.training.job import training_device

    if device != "cpu":
        return ""
    try:
        training_device(ScratchConfig(device=device, precision=precision))
    except FitError as error:
        return f"training refuses it on this CPU: {error.message}"
    return ""


def _trained(result) -> dict:
    return {
        "images_per_second": result.images_per_second,
        "accuracy": 100 * result.finetuned_accuracy["test"],
    }


def heads(device: str, n: int) -> dict:
    """A sweep on the device and on the CPU: seconds, C, and the largest objective above the CPU's."""
    import bottleneck.heads.logistic as module
    from bottleneck.heads.config import SweepConfig
    from bottleneck.heads.solver.arrays import to_numpy
    from bottleneck.samples import ArrayRows
    from tests.benchmarks.heads import FOLDS, GRID, problem_of, synthetic

    x, y = synthetic(n, 10)
    solve, found = module.solve_path, {}
    objectives: list[np.ndarray] = []

    def watched(*arguments, **options):
        for solution in solve(*arguments, **options):
            objectives.extend(np.ravel(to_numpy(each)) for each in solution.objective)
            yield solution

    module.solve_path = watched
    try:
        for side, name in (("device", device), ("cpu", "cpu")):
            objectives.clear()
            started = time.perf_counter()
            config = SweepConfig(device=name)
            (fit,) = module.sweep(ArrayRows(x), [problem_of(y, FOLDS)], GRID, config=config)
            found[side] = (time.perf_counter() - started, np.concatenate(objectives), fit.C)
    finally:
        module.solve_path = solve
    gap = float((found["device"][1] / found["cpu"][1] - 1).max())
    chosen = f"{found['device'][2]:.2g}, on the CPU {found['cpu'][2]:.2g}"
    return {"device": found["device"][0], "cpu": found["cpu"][0], "gap": gap, "C": chosen}
