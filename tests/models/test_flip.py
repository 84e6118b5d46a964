"""`flip`: the mean of the scores of an image and of its mirror image, made by hand with Pillow."""

import csv
import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from bottleneck import FeatureCache, evaluate, extract, finetune, fit_heads, load_model, predict
from bottleneck.errors import BottleneckError, FingerprintError
from tests.models.conftest import COLUMNS, write_rows

SIZES = ((57, 43), (40, 91), (50, 50), (33, 128), (64, 64), (301, 47))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two manifests of the same rows: of asymmetric pictures of any size, and of their mirror images."""
    folder, rows = tmp_path_factory.mktemp("pictures"), {"plain": [], "mirrored": []}
    random = np.random.default_rng(1)
    for number, (width, height) in enumerate(SIZES):
        noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        noise[:, : width // 2] //= 3
        picture = Image.fromarray(noise)
        for name, shown in (("plain", picture), ("mirrored", ImageOps.mirror(picture))):
            shown.save(folder / f"{name}{number}.png")
            label = ("blue", "green", "red")[number % 3]
            row = {"name": number, "Photo": f"{name}{number}.png", "species": label, "age": number}
            rows[name].append({**row, "tags": f"{label}|even", "weight": number + 0.5, "fold": "test"})
    return {name: write_rows(folder / f"{name}.csv", listed) for name, listed in rows.items()}


def scores(head, source, **options):
    """Probabilities, or the value of a regression, by sample."""
    kind = load_model(head).head.target_kind
    options |= {"probabilities": kind != "regression", "engine": "torch"}
    records = predict(head, source, **options)["predictions"]
    return np.array([list(record.get("probabilities", {"": record["label"]}).values()) for record in records])


@pytest.mark.parametrize("target", ["species", "tags", "weight"])
def test_the_mean_of_two_predictions(listed, pictures, target):
    head = listed.heads[target]
    plain, mirrored = (scores(head, pictures[name]) for name in ("plain", "mirrored"))
    assert np.abs(plain - mirrored).max() > 1e-3  # the pictures are asymmetric
    flipped = scores(head, pictures["plain"], flip=True)
    np.testing.assert_allclose(flipped, (plain + mirrored) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scores(head, pictures["mirrored"], flip=True), flipped, rtol=1e-5, atol=1e-6)


def test_it_is_recorded_and_measured(listed, pictures):
    head = listed.heads["species"]
    expected = scores(head, pictures["plain"], flip=True)
    answers = np.arange(len(SIZES)) % 3
    result = evaluate(head, pictures["plain"], flip=True, engine="torch")
    assert result["flip"] is True
    assert evaluate(head, pictures["plain"], engine="torch")["flip"] is False
    log_loss = -np.log(expected[np.arange(len(SIZES)), answers]).mean()
    assert result["log_loss"] == pytest.approx(log_loss, rel=1e-4)
    assert predict(head, pictures["plain"], flip=True, engine="torch")["flip"] is True
    records = load_model(head, engine="torch").predict(pictures["plain"], flip=True, probabilities=True)
    found = [list(record["probabilities"].values()) for record in records]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def mirrored(pictures, listed, tmp_path_factory):
    """A manifest of both kinds of pictures, its cache with mirrored views, and heads on it."""
    folder = tmp_path_factory.mktemp("mirrored")
    rows = list(csv.DictReader(io.StringIO(pictures["plain"].read_text())))
    for row in rows:
        row |= {"Photo": str(pictures["plain"].parent / row["Photo"]), "name": f"picture {row['name']}"}
    rows = [*listed.rows, *({**dict.fromkeys(listed.rows[0], "x"), **row} for row in rows)]
    manifest = write_rows(folder / "m.csv", rows)
    options = {**COLUMNS, "dtype": "float32", "engine": "torch"}
    extract(manifest, folder / "c.h5", backbone="small_cnn", flip=True, **options)
    heads = fit_heads(folder / "c.h5", output=folder / "heads", C=0.1).heads
    return manifest, folder / "c.h5", {head["target"]: head["path"] for head in heads}


@pytest.mark.parametrize(
    ("target", "measure"),
    [("species", "log_loss"), ("tags", "mean_average_precision"), ("weight", "mae")],
)
def test_from_the_mirrored_views_of_a_cache(mirrored, monkeypatch, target, measure):
    """No image is read, and the figures are those of the images."""
    manifest, cache, heads = mirrored
    on_images = evaluate(heads[target], manifest, flip=True, engine="torch")
    monkeypatch.setattr("bottleneck.models.classifier.Classifier.outputs", None)  # what reads images
    on_cache = evaluate(heads[target], cache, flip=True)
    assert on_cache["n"] == on_images["n"] == 15 + len(SIZES)
    assert on_cache[measure] == pytest.approx(on_images[measure], rel=1e-4)
    assert on_cache[measure] != evaluate(heads[target], cache)[measure]
    assert "flip-computed" not in [note.code for note in on_cache["notes"]]


def test_a_head_on_nodes_side_by_side(images, tmp_path):
    """The mean of the scores on both images, from images and from the cache."""
    nodes, cache = ("features.block1@avg2", "bottleneck"), tmp_path / "c.h5"
    options = {"backbone": "small_cnn", "depth": 2, "engine": "torch", "dtype": "float32"}
    extract(images, cache, nodes=nodes, flip=True, **options)
    head = fit_heads(cache, nodes=["+".join(nodes)], output=tmp_path / "heads", C=0.1).heads[0]["path"]
    for path in (images / "test").rglob("*.png"):
        target = tmp_path / "mirrored" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            ImageOps.mirror(image).save(target)
    expected = (scores(head, images / "test") + scores(head, tmp_path / "mirrored")) / 2
    found = scores(head, images / "test", flip=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    names = load_model(head).head.class_names
    answers = [names.index(path.parent.name) for path in sorted((images / "test").rglob("*.png"))]
    on_cache = evaluate(head, cache, split="test", flip=True)
    log_loss = -np.log(expected[np.arange(len(answers)), answers]).mean()
    assert on_cache["log_loss"] == pytest.approx(log_loss, rel=1e-3)


def test_a_cache_without_mirrored_views_needs_its_images(listed):
    result = evaluate(listed.heads["species"], listed.cache, flip=True, engine="torch")
    assert "flip-computed" in [note.code for note in result["notes"]]
    assert (
        result["log_loss"]
        == evaluate(listed.heads["species"], listed.manifest, flip=True, engine="torch")["log_loss"]
    )


def test_two_images_a_sample_are_mirrored_together(images, tmp_path):
    files = sorted((images / "train").rglob("*.png"))[::3]
    rows = [
        {"front": str(a), "back": str(b), "label": a.parent.name, "split": "train"}
        for a, b in zip(files, files[::-1], strict=True)
    ]
    manifest = write_rows(tmp_path / "l.csv", rows)
    options = {"image_columns": ["front", "back"], "backbone": "small_cnn", "depth": 2, "engine": "torch"}
    extract(manifest, tmp_path / "c.h5", **options)
    head = fit_heads(tmp_path / "c.h5", output=tmp_path / "heads", C=0.1).heads[0]["path"]
    mirrored = []
    for number, row in enumerate(rows):
        for column in ("front", "back"):
            with Image.open(row[column]) as image:
                ImageOps.mirror(image).save(tmp_path / f"{column}{number}.png")
        mirrored.append({"front": f"front{number}.png", "back": f"back{number}.png"})
    other = write_rows(tmp_path / "mirrored.csv", mirrored)
    expected = (scores(head, manifest) + scores(head, other)) / 2
    np.testing.assert_allclose(scores(head, manifest, flip=True), expected, rtol=1e-5, atol=1e-6)


def test_a_trained_network(made_cache, made_head, images, tmp_path, monkeypatch):
    """On images, and on the mirrored views of the map that it was trained from."""
    model = finetune(made_cache, made_head, tmp_path / "m.safetensors", epochs=1, lr=0.05, device="cpu")
    extract(
        images,
        made_cache_with_views := tmp_path / "c.h5",
        backbone="small_cnn",
        engine="torch",
        nodes=("bottleneck", "block3@none"),
        dtype="float32",
        flip=True,
    )
    for split in ("plain", "mirrored"):
        for path in (images / "test").rglob("*.png"):
            target = tmp_path / split / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                (ImageOps.mirror(image) if split == "mirrored" else image).save(target)
    expected = (scores(model.model, tmp_path / "plain") + scores(model.model, tmp_path / "mirrored")) / 2
    flipped = scores(model.model, tmp_path / "plain", flip=True)
    np.testing.assert_allclose(flipped, expected, rtol=1e-4, atol=1e-6)
    names = [
        record["image"].split("/")[0] for record in predict(model.model, tmp_path / "plain")["predictions"]
    ]
    answers = np.searchsorted(["blue", "green", "red"], names)
    log_loss = -np.log(expected[np.arange(len(answers)), answers]).mean()
    monkeypatch.setattr("bottleneck.models.classifier.Classifier.outputs", None)
    found = evaluate(model.model, made_cache_with_views, flip=True)["log_loss"]
    assert found == pytest.approx(log_loss, rel=1e-3)


def test_mirrored_and_augmented_views_are_two_caches(images, tmp_path):
    options = {"backbone": "small_cnn", "depth": 1, "image_size": 16, "engine": "torch"}
    with pytest.raises(BottleneckError, match="not both"):
        extract(images / "test", tmp_path / "c.h5", views=2, flip=True, **options)
    extract(images / "test", tmp_path / "c.h5", flip=True, **options)
    with pytest.raises(FingerprintError, match="views"):
        extract(images / "test", tmp_path / "c.h5", views=2, **options)
    again = extract(images / "test", tmp_path / "c.h5", engine="torch")
    assert again.computed == 0
    with FeatureCache(tmp_path / "c.h5") as cache:
        assert cache.node("bottleneck").views == {"count": 1, "mirror": True}
    extract(images / "val", tmp_path / "v.h5", views=2, **options)
    with pytest.raises(FingerprintError, match="views"):
        extract(images / "val", tmp_path / "v.h5", flip=True, **options)
