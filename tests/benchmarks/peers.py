"""What people write or install instead, each called in a process of its own with its library's defaults.

Loops return {"images", "seconds", "processor_seconds"}: from the first image to the last feature or step,
without imports and without building the network. Networks are EfficientNet-Lite0 with the weights that this
project ships, or ResNet-50 with random ones, which take the same time.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests.benchmarks.machine import processor_seconds

RESNET = "resnet50"
MODULES = {"fastai": "fastai", "img2vec_pytorch": "img2vec_pytorch", "Keras on TensorFlow": "tensorflow"}


def is_installed(peer: str) -> bool:
    return importlib.util.find_spec(MODULES[peer]) is not None


class Clock:
    """Seconds by the wall and of cores, from its making on."""

    def __init__(self) -> None:
        self._wall, self._cores = time.perf_counter(), processor_seconds()

    def took(self, images: int) -> dict:
        seconds = time.perf_counter() - self._wall
        return {
            "images": images,
            "seconds": seconds,
            "processor_seconds": processor_seconds() - self._cores,
        }


def _network(backbone: str, classes: int = 0):
    """A network with `classes` outputs; 0 gives features."""
    import timm
    import torch
    from torchvision import models

    if backbone == RESNET:
        network = models.resnet50(weights=None)
        features = network.fc.in_features
        network.fc = torch.nn.Linear(features, classes) if classes else torch.nn.Identity()
        return network
    from bottleneck.backbones.registry import load_backbone

    network = timm.create_model(f"tf_{backbone}", num_classes=classes)
    weights = load_backbone(backbone).module.state_dict()
    network.load_state_dict({k: v for k, v in weights.items() if "classifier" not in k}, strict=False)
    return network


def _transform(size: int = 224):
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(size * 256 // 224),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )


def _paths(folder: str, limit: int | None) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())[:limit]


def eager_extract(folder: str, backbone: str, limit: int | None = None, device: str = "cpu") -> dict:
    """The usual loop: DataLoader over PIL images, torchvision transforms, eager PyTorch, features to .npy."""
    import torch
    from PIL import Image

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return transform(Image.open(paths[index]).convert("RGB"))

    paths, transform = _paths(folder, limit), _transform()
    network = _network(backbone).eval().to(device)
    workers = 2 if device == "cpu" else 8
    loader = torch.utils.data.DataLoader(Images(), batch_size=32, num_workers=workers)
    clock = Clock()
    with torch.inference_mode(), tempfile.TemporaryFile() as out:
        np.save(out, np.concatenate([network(x.to(device)).cpu().numpy() for x in loader]))
    return clock.took(len(paths))


def img2vec_extract(folder: str, backbone: str, limit: int | None = None) -> dict:
    """img2vec_pytorch on lists of 32 PIL images."""
    from img2vec_pytorch import Img2Vec, img_to_vec
    from PIL import Image

    img_to_vec.resnet50 = lambda weights: __import__("torchvision").models.resnet50(
        weights=None
    )  # no download
    network = Img2Vec(model=backbone, layer_output_size=2048)
    paths = _paths(folder, limit)
    clock = Clock()
    for start in range(0, len(paths), 32):
        network.get_vec([Image.open(path).convert("RGB") for path in paths[start : start + 32]])
    return clock.took(len(paths))


def keras_extract(folder: str, backbone: str, limit: int | None = None) -> dict:
    """Keras on TensorFlow as its tutorial has it: a data set of the folder, `predict` without the top."""
    import keras
    import tensorflow as tf

    assert backbone == RESNET
    network = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
    paths = [str(path) for path in _paths(folder, limit)]

    def load(path):
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), 3), (224, 224))

    images = tf.data.Dataset.from_tensor_slices(paths).map(load, tf.data.AUTOTUNE).batch(32)
    images = images.map(keras.applications.resnet50.preprocess_input).prefetch(tf.data.AUTOTUNE)
    network.predict(np.zeros((32, 224, 224, 3), np.float32), verbose=0)  # traced before the clock starts
    clock = Clock()
    network.predict(images, verbose=0)
    return clock.took(len(paths))


def usual_finetune(
    folder: str,
    backbone: str,
    epochs: int,
    whole: bool = False,
    size: int = 224,
    seed: int = 0,
    share: float = 1.0,
) -> dict:
    """The usual fine-tuning: decode and run the whole network in every step, train its last stage, or all.

    With folders `train` and `test` it also returns the accuracy on test. share : of train that it trains on.
    """
    import torch
    from torchvision import datasets

    torch.manual_seed(seed)
    root = Path(folder)
    split = (root / "train").is_dir()
    images = datasets.ImageFolder(root / "train" if split else root, _transform(size))
    net = _network(backbone, len(images.classes))
    drawn = torch.randperm(len(images))[: round(share * len(images))]
    if backbone == RESNET:
        lower = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3]
        upper = [net.layer4, net.avgpool, torch.nn.Flatten(), net.fc]
    else:
        lower = [net.conv_stem, net.bn1, *net.blocks[:-1]]
        upper = [net.blocks[-1], net.conv_head, net.bn2, net.global_pool, net.classifier]
    trunk, top = torch.nn.Sequential(*lower), torch.nn.Sequential(*upper)
    trained = torch.nn.Sequential(trunk, top) if whole else top
    trunk.train(whole)
    optimizer = torch.optim.SGD(trained.parameters(), 1e-2 if split else 1e-3, momentum=0.9)
    chosen = torch.utils.data.Subset(images, drawn.tolist())
    loader = torch.utils.data.DataLoader(chosen, batch_size=32, shuffle=True, num_workers=2)
    clock = Clock()
    for _ in range(epochs):
        for pixels, labels in loader:
            with torch.set_grad_enabled(whole):
                maps = trunk(pixels)
            loss = torch.nn.functional.cross_entropy(top(maps), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = clock.took(epochs * len(chosen))
    if split:
        network = torch.nn.Sequential(trunk, top).eval()
        found["accuracy"] = _accuracy(network, datasets.ImageFolder(root / "test", _transform(size)))
    return found


def _accuracy(network, images) -> float:
    import torch

    loader = torch.utils.data.DataLoader(images, batch_size=64)
    with torch.inference_mode():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in loader)
    return 100 * right / len(images)


def fastai_finetune(folder: str, epochs: int, size: int = 224, seed: int = 0) -> dict:
    """fastai as its quick start has it: `vision_learner`, then `fine_tune`, with their defaults.

    A frozen epoch, then all layers; a fifth of train is val. BatchNorm is trained, in the body too
    (`train_bn`). Beside the accuracy on test it returns two on train, in evaluation mode and with the
    statistics of each batch: where these differ, there were too few steps for the running statistics.
    """
    warnings.simplefilter("ignore")
    import torch
    from fastai.vision.all import ImageDataLoaders, Resize, accuracy, get_image_files, vision_learner

    torch.manual_seed(seed)
    root = Path(folder)
    data = ImageDataLoaders.from_folder(
        root / "train", valid_pct=0.2, seed=seed, item_tfms=Resize(size), bs=32, num_workers=0
    )
    with tempfile.NamedTemporaryFile(suffix=".pth") as weights:
        torch.save(_network("efficientnet_lite0").state_dict(), weights)
        weights.flush()
        given = {"file": weights.name}  # in place of a download
        learner = vision_learner(
            data, "tf_efficientnet_lite0", metrics=accuracy, pretrained_cfg_overlay=given
        )
    clock = Clock()
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        found = clock.took((epochs + 1) * len(data.train_ds))
        test = data.test_dl(get_image_files(root / "test"), with_labels=True)
        found["accuracy"] = 100 * float(learner.validate(dl=test)[1])
        train = data.train.new(shuffle=False, drop_last=False)
        found["on_train"] = 100 * float(learner.validate(dl=train)[1])
    learner.model.train()
    with torch.no_grad():
        right = [learner.model(x).argmax(1) == y for x, y in data.train]
    found["by_batch"] = 100 * float(torch.cat(right).float().mean())
    return found


def sklearn_sweep(features: str, grid: list[float], folds: int) -> dict:
    """`LogisticRegressionCV` on standardised features: x (n, D) and y (n,) of an .npz file."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    warnings.simplefilter("ignore")
    with np.load(features) as data:
        x, y = data["x"].astype(np.float32), data["y"]
    clock = Clock()
    search = LogisticRegressionCV(Cs=grid, cv=folds, max_iter=2000, tol=1e-4, use_legacy_attributes=False)
    model = make_pipeline(StandardScaler(), search).fit(x, y)
    found = clock.took(len(x))
    scores = np.asarray(search.scores_).reshape(folds, -1, len(grid)).mean(axis=(0, 1))
    found |= {"C": float(np.ravel(search.C_)[0]), "cv_accuracy": float(scores.max())}
    with suppress(KeyError), np.load(features) as data:
        found["accuracy"] = 100 * float((model.predict(data["x_test"]) == data["y_test"]).mean())
    return found


def sklearn_at_exactness(
    features: str, grid: list[float], folds: int, objectives: list[float], within: float
) -> dict:
    """`LogisticRegression` without the first fold, from each C to the next with a warm start.

    At each C it has the largest tolerance, of powers of ten, that leaves its objective at most `within`
    (relative) above the one given. Only that fit is timed. RuntimeError where none is small enough.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from tests.benchmarks.heads import load, objective, problem_of

    warnings.simplefilter("ignore")
    x, y = load(features)
    seen = problem_of(y, folds).fold != 0
    z, y = StandardScaler().fit_transform(x)[seen], y[seen]
    found = {"seconds": 0.0, "processor_seconds": 0.0, "iterations": [], "tolerances": [], "gaps": []}
    start: tuple = ()
    for C, best in zip(grid, objectives, strict=True):
        for tol in (1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
            model = LogisticRegression(C=C, tol=tol, max_iter=20_000, warm_start=True)
            if start:
                model.coef_, model.intercept_ = (part.copy() for part in start)
            clock = Clock()
            model.fit(z, y)
            took = clock.took(len(z))
            gap = objective(z, y, model.coef_, model.intercept_, C) / best - 1
            if gap <= within:
                break
        else:
            raise RuntimeError(f"at C = {C:.2g} the objective is {gap:.1e} above ours at tolerance {tol:g}")
        start = model.coef_, model.intercept_
        for key in ("seconds", "processor_seconds"):
            found[key] += took[key]
        found["iterations"].append(int(model.n_iter_[0]))
        found["tolerances"].append(tol)
        found["gaps"].append(gap)
    return found


def sklearn_fit(features: str, C: float) -> dict:
    """One `LogisticRegression` on standardised features in memory."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    with np.load(features) as data:
        x, y = data["x"].astype(np.float32), data["y"]
    clock = Clock()
    LogisticRegression(C=C).fit(StandardScaler().fit_transform(x), y)
    return clock.took(len(x))


def imports() -> dict:
    """What the usual loop imports before it works."""
    import timm
    import torch
    import torchvision

    return {"loaded": [timm.__name__, torch.__name__, torchvision.__name__]}


def plain_hdf5(path: str, parts: int, rows: int) -> dict:
    """Append rows to one HDF5 file in place, flushed after each part, as most scripts do."""
    import h5py

    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        table = file.create_dataset("x", (0, 64), np.float16, maxshape=(None, 64), chunks=(16, 64))
        for part in range(parts):
            table.resize((part + 1) * rows, 0)
            table[part * rows :] = random.standard_normal((rows, 64))
            file.flush()
    return {"rows": parts * rows}
