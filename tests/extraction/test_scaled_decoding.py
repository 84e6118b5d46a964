"""`--decoding scaled`: large JPEGs are decoded at part of their size, and all that follows knows it."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bottleneck import FeatureCache, compare, evaluate, extract, finetune, fit_heads, load_model, scratch
from bottleneck.data.decode import EncodedImage, pixels_from_bytes
from bottleneck.data.loader import load_images
from bottleneck.data.modes import as_array
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.read_source import read_source
from bottleneck.errors import ArtifactError, EngineError, FingerprintError, FitError, ImageError
from bottleneck.extraction import scaled_decoding
from bottleneck.extraction.feature_extractor import FeatureExtractor
from bottleneck.store.merge import merge
from bottleneck.store.reader import describe
from bottleneck.studies.compare import runs

NETWORK = {"backbone": "small_cnn", "weights": "none", "image_size": 32, "depth": 2}
EXACT = Preprocess(32, 36, "bicubic", (0.5,) * 3, (0.5,) * 3)
SCALED = replace(EXACT, decoding="scaled")


def photograph(width, height, seed=0, mode="RGB"):
    """Low frequencies and a little noise."""
    random = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    coarse = [random.integers(0, 256, (6, 8), np.uint8) for _ in range(channels)]
    bands = [Image.fromarray(band).resize((width, height), 3) for band in coarse]
    noisy = [np.asarray(band) + random.integers(-6, 7, (height, width)) for band in bands]
    merged = [Image.fromarray(band.clip(0, 255).astype(np.uint8)) for band in noisy]
    return merged[0] if mode == "L" else Image.merge(mode, merged)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(data, *, of=EXACT):
    """Mean difference in grey levels between the pixels of both decodings."""
    exact, scaled = (pixels_from_bytes(data, each) for each in (of, replace(of, decoding="scaled")))
    return np.abs(exact.astype(int) - scaled).mean()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of large JPEGs, small ones and PNGs."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(24):
        name = "ab"[number % 2]
        (folder / name).mkdir(exist_ok=True)
        image = photograph(320, 240, number)
        if name == "b":
            image = image.point(lambda value: value // 3)
        (folder / name / f"{number:02}-large.jpg").write_bytes(encoded(image, quality=95))
    for number in range(4):
        data = encoded(photograph(60, 50, number))
        (folder / "a" / f"{number}-small.jpg").write_bytes(data)
        (folder / "a" / f"{number}-other.png").write_bytes(encoded(photograph(320, 240, number), "PNG"))
    return folder


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):
    return extract(folder, tmp_path_factory.mktemp("cache") / "c.h5", decoding="scaled", **NETWORK)


# ---- pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(320, 240), (331, 247), (1200, 900)])
def test_large_jpegs_of_every_kind_have_other_pixels_that_are_near(mode, progressive, size):
    data = encoded(photograph(*size, mode=mode), progressive=progressive)
    assert 0 < difference(data) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_they_are_turned_by_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert 0 < difference(encoded(photograph(320, 240), exif=exif)) < 3


@pytest.mark.parametrize("side", [1, 9, 36, 71, 143])
def test_small_jpegs_are_decoded_exactly(side):
    assert difference(encoded(photograph(side, 2 * side))) == 0


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF", "GIF"])
def test_other_formats_are_decoded_exactly(kind):
    assert difference(encoded(photograph(320, 240), kind)) == 0


@pytest.mark.parametrize(("side", "decoded"), [(143, 143), (144, 72), (287, 144), (288, 72), (600, 75)])
def test_at_least_twice_the_wanted_size_is_decoded(side, decoded, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "bottleneck.data.decode.fast_pixels", lambda pixels, *options: seen.append(pixels.shape)
    )
    EncodedImage(encoded(photograph(side, side))).pixels(SCALED)
    assert seen == [(decoded, decoded, 3)]


def test_mirrored_pixels_and_views_are_of_the_same_decoding():
    data = encoded(photograph(320, 240))
    pixels, mirrored = EncodedImage(data).both_ways(SCALED)
    np.testing.assert_array_equal(pixels, pixels_from_bytes(data, SCALED))
    assert not np.array_equal(mirrored, EncodedImage(data).both_ways(EXACT)[1])
    image = EncodedImage(data)
    np.testing.assert_array_equal(pixels, image.cut(as_array(image.image(SCALED)), SCALED))
    assert EncodedImage(data).image(SCALED).size == (160, 120)
    assert EncodedImage(data).image(EXACT).size == (320, 240)


def test_the_size_that_is_told_is_the_stored_one():
    image = EncodedImage(encoded(photograph(320, 240, mode="CMYK")))
    image.pixels(SCALED)
    assert image.size == (320, 240)


def test_what_is_damaged_is_refused_or_read_as_it_is_exactly():
    random, refused = np.random.default_rng(0), 0
    whole = encoded(photograph(320, 240))
    for number in range(60):
        data = bytearray(whole)
        start = data.index(b"\xff\xda") + 20
        if number % 2:
            del data[random.integers(start, len(data)) :]
        else:
            data[random.integers(start, len(data))] ^= 1 << random.integers(8)
        found = []
        for recipe in (EXACT, SCALED):
            image = EncodedImage(bytes(data))
            try:
                image.pixels(recipe)
                found.append(image.notes)
            except ImageError as error:
                found.append(str(error))
        assert found[0] == found[1]
        refused += isinstance(found[0], str)
    assert 10 < refused < 60


def test_less_memory_is_reserved():
    image = EncodedImage(encoded(photograph(1200, 900)))
    assert image.memory(SCALED) < image.memory(EXACT) / 3


# ---- the recipe


def test_a_recipe_without_the_field_is_exact_and_keeps_its_fingerprint():
    assert "decoding" not in EXACT.to_json()
    assert Preprocess.from_json(EXACT.to_json()) == EXACT
    assert Preprocess.from_json(json.loads(json.dumps(SCALED.to_json()))) == SCALED
    for value in ("fast", 1, None):
        with pytest.raises(ArtifactError):
            Preprocess.from_json(EXACT.to_json() | {"decoding": value})


def test_the_cache_tells_its_decoding_and_how_well_it_agrees(folder, cache):
    (note,) = [note for note in cache.notes if note.code == "decoding-scaled"]
    described = describe(cache.cache)
    measured = described["nodes"]["bottleneck"]["decoding_agreement"]
    assert described["decoding"] == described["preprocess"]["decoding"] == "scaled"
    assert measured == {"cosine": note.details["cosine"]["bottleneck"], "images": 24, "of": 32}
    assert 0.995 <= measured["cosine"] < 1
    assert not note.changes_result


def test_large_jpegs_alone_have_other_pixels(folder):
    source = read_source(folder)
    exact, scaled = (
        {image.key: image.pixels for image in load_images(source, source.images, recipe, workers=1)}
        for recipe in (EXACT, SCALED)
    )
    differ = {key for key in exact if not np.array_equal(exact[key], scaled[key])}
    assert differ == {key for key in exact if "large" in key}


def test_both_are_told_apart(folder, cache, tmp_path):
    exact = extract(folder, tmp_path / "exact.h5", **NETWORK)
    described = describe(exact.cache)
    assert (described["decoding"], "decoding" in described["preprocess"]) == ("exact", False)
    assert described["nodes"]["bottleneck"]["decoding_agreement"] is None
    assert described["fingerprint"] != describe(cache.cache)["fingerprint"]
    with pytest.raises(FingerprintError, match="decoding"):
        merge([cache.cache, exact.cache], tmp_path / "merged.h5")


def test_a_later_run_takes_the_decoding_of_the_cache_and_no_other(folder, cache):
    again = extract(folder, cache.cache)
    assert (again.computed, again.reused) == (0, 32)
    assert extract(folder, cache.cache, decoding="scaled").computed == 0
    with pytest.raises(FingerprintError) as caught:
        extract(folder, cache.cache, decoding="exact")
    assert caught.value.fields == ("decoding",)


def test_an_added_node_is_of_the_same_decoding_and_measured(folder, cache, tmp_path):
    path = tmp_path / "c.h5"
    extract(folder, path, decoding="scaled", **NETWORK)
    extract(folder, path, nodes=("features.block1",))
    with FeatureCache(path) as opened:
        assert opened.nodes["features.block1"].decoding_agreement["images"] == 24


def test_views_and_mirror_images(folder, tmp_path):
    for options in ({"views": 2}, {"flip": True}):
        path = tmp_path / f"{len(options)}{next(iter(options))}.h5"
        result = extract(folder, path, decoding="scaled", limit=6, **options, **NETWORK)
        assert result.failed == 0
        assert result.views["bottleneck"] is not None


def test_what_differs_too_much_is_refused_and_used_by_force_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scaled_decoding, "LEAST_COSINE", 1.1)
    with pytest.raises(EngineError, match=r"decoding scaled is refused.*at least 1\.1 is needed"):
        extract(folder, tmp_path / "c.h5", decoding="scaled", **NETWORK)
    assert not (tmp_path / "c.h5").exists()
    result = extract(folder, tmp_path / "c.h5", decoding="scaled", force=True, **NETWORK)
    (note,) = [note for note in result.notes if note.code == "decoding-scaled"]
    assert note.changes_result


def test_images_that_are_all_small_are_told(folder, tmp_path):
    small = tmp_path / "small" / "a"
    small.mkdir(parents=True)
    for path in (folder / "a").glob("*small.jpg"):
        (small / path.name).write_bytes(path.read_bytes())
    result = extract(small.parent, tmp_path / "c.h5", decoding="scaled", **NETWORK)
    assert "decoding-not-scaled" in [note.code for note in result.notes]
    with FeatureCache(result.cache) as cache:
        assert cache.nodes["bottleneck"].decoding_agreement["cosine"] is None


def test_a_broken_image_fails_as_it_does_exactly(folder, tmp_path):
    images = tmp_path / "images" / "a"
    images.mkdir(parents=True)
    data = next((folder / "a").glob("*large.jpg")).read_bytes()
    (images / "good.jpg").write_bytes(data)
    (images / "other.jpg").write_bytes(encoded(photograph(320, 240, 99)))
    (images / "cut.jpg").write_bytes(data[: len(data) // 2])
    failures = [
        extract(images.parent, tmp_path / f"{decoding}.h5", decoding=decoding, **NETWORK).failures
        for decoding in ("exact", "scaled")
    ]
    assert list(failures[0]) == ["a/cut.jpg"]
    assert failures[0] == failures[1]


# ---- what follows


def test_heads_and_models_decode_as_their_cache(folder, cache, tmp_path):
    (head,) = fit_heads(cache.cache, output=tmp_path).heads
    model = load_model(head["path"])
    assert model.trunk.preprocess.decoding == "scaled"
    on_cache, on_images = (evaluate(head["path"], data) for data in (cache.cache, folder))
    assert on_cache["log_loss"] == pytest.approx(on_images["log_loss"], abs=1e-3)
    tuned = finetune(cache.cache, head=head["path"], output=tmp_path / "m.safetensors", epochs=1)
    assert load_model(tuned.model).trunk.preprocess.decoding == "scaled"


def test_networks_trained_from_nothing_read_images_so_too(folder, cache, tmp_path, monkeypatch):
    new = scratch(folder, tmp_path / "s.safetensors", decoding="scaled", epochs=1, image_size=32, depth=1)
    assert load_model(new.model).trunk.preprocess.decoding == "scaled"
    assert "decoding-not-scaled" not in [note.code for note in new.notes]
    with pytest.raises(FitError, match=r"decoding.*'coarse'"):
        scratch(folder, decoding="coarse")
    recipes = []

    def decode_and_note(source, keys, preprocess, *arguments):
        recipes.append(preprocess)
        return decoded(source, keys, preprocess, *arguments)

    decoded = runs.decoded
    monkeypatch.setattr(runs, "decoded", decode_and_note)
    compare(cache.cache, tmp_path / "compared", unfreeze=[0], scratch=[1], epochs=1)
    assert [recipe.decoding for recipe in recipes] == ["scaled"]


def test_training_from_nothing_on_images_that_are_all_small_is_told(folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "small" / name).mkdir(parents=True)
        for number in range(4):
            pixels = photograph(40, 40, 10 * ord(name) + number)
            (tmp_path / "small" / name / f"{number}.jpg").write_bytes(encoded(pixels))
    settings = {"epochs": 1, "image_size": 32, "depth": 1, "device": "cpu"}
    scaled = scratch(tmp_path / "small", tmp_path / "s.safetensors", decoding="scaled", **settings)
    (note,) = [note for note in scaled.notes if note.code == "decoding-not-scaled"]
    assert "changes nothing in the 8 images looked at" in note.message
    exact = scratch(tmp_path / "small", tmp_path / "e.safetensors", **settings)
    assert "decoding-not-scaled" not in [note.code for note in exact.notes]


def test_shards_with_a_plan_share_the_decoding(folder, tmp_path):
    options = {"plan_file": str(tmp_path / "plan.json"), **NETWORK}
    first = extract(folder, tmp_path / "c.h5", shard="1/2", decoding="scaled", **options)
    second = extract(folder, tmp_path / "c.h5", shard="2/2", **options)
    merge([first.cache, second.cache], tmp_path / "merged.h5")
    described = describe(tmp_path / "merged.h5")
    assert described["images"] == 32
    assert described["decoding"] == "scaled"
    assert described["nodes"]["bottleneck"]["decoding_agreement"]["images"] == 24
    with pytest.raises(FingerprintError, match="decoding"):
        extract(folder, tmp_path / "d.h5", shard="1/2", decoding="exact", **options)


def test_the_transformer_keeps_both_apart(folder, tmp_path):
    paths = sorted(map(str, (folder / "a").glob("*large.jpg")))
    shared = {"cache": tmp_path, "weights": "none", "image_size": 32, "depth": 2}
    exact = FeatureExtractor("small_cnn", **shared).transform(paths)
    scaled = FeatureExtractor("small_cnn", decoding="scaled", **shared).transform(paths)
    assert len([*tmp_path.glob("*.h5")]) == 2
    assert not np.array_equal(exact, scaled)
