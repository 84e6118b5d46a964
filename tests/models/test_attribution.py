"""The terms of a logit by place: their sum, where they lie, and what has none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from bottleneck.backbones.backbone import Backbone
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import image_files
from bottleneck.errors import ArtifactError
from bottleneck.extraction.config import EngineConfig
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.models.attribution import Explainer
from bottleneck.models.classifier import Classifier
from bottleneck.models.config import ExplainConfig
from tests.helpers.contributions import by_pixel

SIZE, S = 32, 3
PREPROCESS = Preprocess(SIZE, SIZE, "bilinear", (0.5,) * 3, (0.25,) * 3)
LINKS = {"class": "softmax", "multilabel": "sigmoid", "regression": "identity"}
POOLED = {
    "avg": lambda x: x.mean((2, 3)),
    "avg2": lambda x: adaptive_avg_pool2d(x, 2),
    "avg3": lambda x: adaptive_avg_pool2d(x, 3),
    "max": lambda x: adaptive_max_pool2d(x, 1),
    "flatten": lambda x: x,
}


class Net(nn.Module):
    """Maps of 15 × 15 and 7 × 7 places; the classifier reads a hidden layer, which is not linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.classifier = nn.Linear(5, 2)

    def forward(self, x):
        return self.classifier(self.hidden(self.pool(self.body(self.stem(x))).flatten(1)))


NET = Net().eval()
BACKBONE = Backbone.from_module(NET, PREPROCESS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six images of the network's own size, of noise that differs between the quadrants."""
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    paths = []
    for number in range(2 * S):
        noise = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        noise[: SIZE // 2] //= 3
        noise[:, : SIZE // 2, number % 3] //= 2
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(noise).save(paths[-1])
    return paths


def source_of(paths, images=1, covariates=0, seed=0):
    """S samples of the first images, with random covariates."""
    source = image_files(paths)
    numbers = np.random.default_rng(seed).normal(size=(S, covariates))
    image = np.arange(S * images).reshape(S, images)
    samples = source.samples.take(np.arange(S))
    names = tuple(f"age {number}" for number in range(covariates))
    return replace(source, samples=replace(samples, image=image, covariates=numbers, covariate_names=names))


def maps_of(paths, mirrored):
    """Maps (6, C, h, w) by node, of pixels that Pillow reads."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    pixels = pixels[:, :, ::-1].copy() if mirrored else pixels
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        stem = NET.stem(x)
        return {"stem": stem, "body": NET.body(stem), "hidden": NET.hidden(NET.body(stem).mean((2, 3)))}


def linear_head(nodes, images, covariates, kind, seed):
    """A head with random coefficients and means on `nodes`."""
    random = np.random.default_rng(seed)
    widths = {"stem": (4, 225), "body": (6, 49), "hidden": (5, 1)}
    D = 0
    for node in nodes:
        channels, places = widths[node.partition("@")[0]]
        D += channels * {"avg2": 4, "avg3": 9, "flatten": places}.get(node.partition("@")[2], 1)
    D = D * images + covariates
    K = 1 if kind == "regression" else 3
    arrays = {
        "coef": random.normal(size=(K, D)) / np.sqrt(D),
        "intercept": random.normal(size=K),
        "mean": random.normal(size=D),
        "scale": random.uniform(0.5, 2, size=D),
    }
    return HeadArtifact(
        kind="logistic",
        form="linear",
        arrays={name: array.astype(np.float32) for name, array in arrays.items()},
        target_kind=kind,
        class_names=() if kind == "regression" else ("개미", "bee", "wasp"),
        link=LINKS[kind],
        node="+".join(nodes),
        images_per_sample=images,
        covariate_names=tuple(f"age {number}" for number in range(covariates)),
        preprocess=PREPROCESS.to_json(),
    )


def explainer(head, **options):
    return Explainer(Classifier(head, lambda: BACKBONE, EngineConfig()), ExplainConfig(**options))


NODES = st.lists(
    st.tuples(st.sampled_from(["stem", "body"]), st.sampled_from(list(POOLED))).map("@".join),
    min_size=1,
    max_size=3,
    unique=True,
)


@settings(max_examples=40, deadline=None)
@given(
    nodes=NODES,
    images=st.integers(1, 2),
    covariates=st.integers(0, 2),
    kind=st.sampled_from(list(LINKS)),
    flip=st.booleans(),
    reference=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_terms_are_the_logit(pictures, nodes, images, covariates, kind, flip, reference, seed):
    """The logit is that of features which torch pools by itself, over views, images, nodes and covariates."""
    head = linear_head(nodes, images, covariates, kind, seed)
    source = source_of(pictures, images, covariates, seed)
    names = () if kind == "regression" else ("bee",)
    own = explainer(head, class_names=names, flip=flip, exact=True)
    if reference:
        own.compare_with(source, "noise")
    found = list(own.explain(source))
    expected = np.zeros((S, head.outputs))
    for mirrored in (False, True)[: 1 + flip]:
        maps = maps_of(pictures, mirrored)
        parts = [node.split("@") for node in nodes]
        rows = torch.cat([POOLED[pool](maps[node]).flatten(1) for node, pool in parts], dim=1).numpy()
        inputs = [rows[source.samples.image].reshape(S, -1), source.samples.covariates]
        expected += np.concatenate(inputs, axis=1) @ head.coef.T + head.intercept
    expected /= 1 + flip
    explained = {(one.sample, one.label) for one in found}
    assert kind == "regression" or {(key, "bee") for key in source.samples.key} <= explained
    for one in found:
        row = list(source.samples.key).index(one.sample)
        code = 0 if kind == "regression" else head.class_names.index(one.label)
        assert one.logit == pytest.approx(expected[row, code], abs=1e-4, rel=1e-4)
        total = one.intercept + sum(one.sums) + sum(one.unplaced.values())
        assert total == pytest.approx(one.logit, abs=1e-4, rel=1e-4)
        assert by_pixel(one).sum() == pytest.approx(one.sums[0], abs=1e-6)
        assert by_pixel(one).shape == (SIZE, SIZE)
        assert list(one.unplaced) == list(head.covariate_names)
        assert len(one.maps) == images


@pytest.mark.parametrize("pool", ["avg", "avg2", "avg3", "max", "flatten"])
def test_a_place_contributes_what_its_values_do(pictures, pool):
    """Of a head whose mean is 0: the map is changed at one place, and the logit follows its contribution."""
    head = linear_head([f"body@{pool}"], 1, 0, "class", 1)
    head = replace(head, arrays={**head.arrays, "mean": np.zeros_like(head.mean)})
    one = next(explainer(head).explain(source_of(pictures)))
    code = head.class_names.index(one.label)
    x = maps_of(pictures, False)["body"][:1]
    (values,) = one.maps[0].values()
    assert values.shape == (7, 7)
    if pool == "max":  # all of a channel's contribution lies where its maximum is
        expected = np.zeros(49)
        for channel, position in enumerate(x[0].flatten(1).argmax(1).tolist()):
            expected[position] += head.coef[code, channel] * x[0, channel].max().item()
        np.testing.assert_allclose(values.ravel(), expected, atol=1e-5)
        return
    for row, column in ((0, 0), (2, 3), (6, 6)):
        without = x.clone()
        without[0, :, row, column] = 0
        difference = (POOLED[pool](x) - POOLED[pool](without)).flatten(1).numpy() @ head.coef[code]
        assert values[row, column] == pytest.approx(difference.item(), abs=1e-5)


def test_the_predicted_class_comes_first_and_a_named_one_once(pictures):
    head = linear_head(["body@avg"], 1, 0, "class", 0)
    names = list(head.class_names)
    found = list(explainer(head, class_names=names).explain(source_of(pictures)))
    for start in range(0, len(found), 3):
        group = found[start : start + 3]
        assert sorted(one.label for one in group) == sorted(names)
        assert [one.predicted for one in group] == [True, False, False]
        assert group[0].logit == max(one.logit for one in group)
        assert sum(one.confidence for one in group) == pytest.approx(1)


@pytest.mark.parametrize("pool", ["avg", "avg2", "avg3", "flatten"])
def test_contributions_are_differences_from_the_mean_map(pictures, pool):
    """Over all reference images each place sums to 0, and the intercept is the mean of their logits."""
    head = linear_head([f"body@{pool}"], 1, 0, "regression", 3)
    own, source = explainer(head), source_of(pictures)
    own.compare_with(source, "noise")
    found = list(own.explain(source))
    total = sum(one.maps[0][f"body@{pool}"] for one in found)
    np.testing.assert_allclose(total, np.zeros((7, 7)), atol=1e-4)
    assert found[0].intercept == pytest.approx(np.mean([one.logit for one in found]), abs=1e-4)


def test_a_vector_is_explained_at_the_last_map_and_said_to_be_approximate(pictures):
    """Gradient × input by torch's autograd."""
    head = linear_head(["hidden"], 1, 0, "class", 2)
    own = explainer(head)
    (note,) = own.notes
    assert note.code == "explained-approximately"
    assert "approximation" in note.message
    one = next(own.explain(source_of(pictures)))
    x = maps_of(pictures, False)["body"][:1].requires_grad_()
    logit = NET.hidden(x.mean((2, 3))) @ torch.from_numpy(head.coef[head.class_names.index(one.label)])
    (gradient,) = torch.autograd.grad(logit.sum(), x)
    (values,) = one.maps[0].values()
    np.testing.assert_allclose(values, (gradient * x).detach().sum((0, 1)).numpy(), atol=1e-5)
    assert not one.exact
    assert one.logit == pytest.approx(one.intercept + sum(one.sums) + one.remainder)
    with pytest.raises(ArtifactError, match="not linear"):
        explainer(head, exact=True)
    with pytest.raises(ArtifactError, match="an approximation are compared with no reference"):
        own.compare_with(source_of(pictures), "noise")


def test_the_networks_own_average_is_exact(pictures):
    head = replace(linear_head(["body@avg"], 1, 0, "class", 4), node="pool")
    own = explainer(head, exact=True)
    (one,) = list(own.explain(source_of(pictures).take([0])))
    assert own.notes == []
    assert one.exact


def test_an_mlp_is_approximate(pictures):
    linear = linear_head(["body@avg"], 1, 0, "class", 5)
    random = np.random.default_rng(0)
    arrays = {
        **linear.arrays,
        "coef2": random.normal(size=(3, 3)).astype(np.float32),
        "intercept2": np.ones(3, np.float32),
    }
    head = replace(linear, kind="mlp", form="mlp", arrays=arrays)
    own = explainer(head)
    one = next(own.explain(source_of(pictures)))
    assert [note.code for note in own.notes] == ["explained-approximately"]
    assert not one.exact
    assert one.intercept == 1.0


def test_what_cannot_be_explained_is_refused(pictures):
    head = linear_head(["body@avg"], 1, 0, "class", 0)
    with pytest.raises(ArtifactError, match="no class 'be'; it has 3, such as bee"):
        explainer(head, class_names=["be"])
    with pytest.raises(ArtifactError, match="a quantity, and has no class 'bee'"):
        explainer(linear_head(["body@avg"], 1, 0, "regression", 0), class_names=["bee"])
    rows = {"features": np.ones((4, 6)), "answers": np.eye(4, 3), "mean": np.zeros(6), "scale": np.ones(6)}
    rows = {name: array.astype(np.float32) for name, array in rows.items()}
    knn = replace(head, kind="knn", form="knn", arrays=rows, settings={"k": 1})
    with pytest.raises(ArtifactError, match="no sum over places"):
        explainer(knn)
    with pytest.raises(ArtifactError, match="takes 1 image per sample"):
        list(explainer(head).explain(source_of(pictures, images=2)))


def test_a_bad_image_costs_its_samples_alone(pictures, tmp_path):
    broken = tmp_path / "x.png"
    broken.write_bytes(b"no image")
    source = image_files([pictures[0], str(broken), pictures[0]])
    own = explainer(linear_head(["body@avg"], 1, 0, "class", 0))
    found = list(own.explain(source))
    assert [one.images for one in found] == [(pictures[0],)] * 2  # a copy has the same terms
    assert found[0].logit == found[1].logit
    assert list(own.failed) == [str(broken)]
