"""The transformer gives each image the features that `extract` gives its file, and computes each once."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import bottleneck.extraction.feature_extractor as module
from bottleneck import FeatureExtractor, extract
from bottleneck.errors import BottleneckError, CacheError, FingerprintError, ImageError, SourceError
from bottleneck.store.reader import FeatureCache

SMALL = {"backbone": "small_cnn", "weights": "none", "engine": "torch", "image_size": 64, "depth": 1}
N = 12


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve images of noise below 사진/, of which the odd ones are bright."""
    folder = tmp_path_factory.mktemp("content") / "사진"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(N):
        pixels = draw.integers(0, 90, (48, 56, 3)) + 120 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def paths(photographs):
    return sorted(str(path) for path in photographs.iterdir())


@pytest.fixture(scope="module")
def expected(photographs, tmp_path_factory):
    """Features (12, D) of the files, in the order of their names, as `extract` stores them."""
    cache = tmp_path_factory.mktemp("extracted") / "features.h5"
    extract(photographs, cache, **SMALL)
    with FeatureCache(cache) as opened:
        return opened.features("bottleneck").read(0, N).astype(np.float32), cache


@pytest.fixture
def extractor(tmp_path):
    return FeatureExtractor(**SMALL, cache=tmp_path / "kept")


@pytest.fixture
def runs(monkeypatch):
    """The number of images of each extraction that a test makes."""
    counts = []
    run = module.run_extraction

    def counted(*arguments):
        result = run(*arguments)
        counts.append(result.computed)
        return result

    monkeypatch.setattr(module, "run_extraction", counted)
    return counts


def test_rows_are_those_of_extract_in_the_order_of_x(extractor, paths, expected):
    shuffled = np.random.default_rng(1).permutation(N)
    extractor.fit(paths)
    features = extractor.transform([paths[i] for i in shuffled])
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected[0][shuffled], rtol=1e-3, atol=1e-3)


def test_every_image_is_computed_once_under_any_name(extractor, paths, tmp_path, runs):
    first = extractor.fit_transform(paths[:8])
    copy = tmp_path / "other name.png"
    shutil.copy(paths[0], copy)
    again = FeatureExtractor(**extractor.get_params()).fit_transform([copy, *paths[2:10], paths[2]])
    assert runs == [8, 2]
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1:7], first[2:])
    np.testing.assert_array_equal(again[-1], first[2])


def test_paths_pil_images_and_arrays_are_the_same_images(extractor, paths):
    features = extractor.fit_transform(paths)
    opened = [Image.open(path) for path in paths]
    pixels = np.stack([np.asarray(image) for image in opened])
    for X in (
        opened,
        pixels,
        list(pixels),
        np.array(paths),
        pd.Series(paths),
        pd.DataFrame({"image": paths}),
    ):
        np.testing.assert_allclose(extractor.transform(X), features, rtol=1e-3, atol=1e-3)


def test_modes_that_png_lacks_and_grey_arrays_are_read(extractor, paths):
    colour = Image.open(paths[0])
    grey = np.asarray(colour.convert("L"))
    rows = extractor.fit_transform(
        [colour.convert("CMYK"), grey, grey[:, :, None], grey.astype(np.uint16) * 257]
    )
    assert np.isfinite(rows).all()
    np.testing.assert_array_equal(rows[1], rows[2])


def test_an_opened_photograph_is_turned_as_its_file_is(extractor, paths, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(paths[0])
    image.save(tmp_path / "turned.png", exif=exif.tobytes())
    with Image.open(tmp_path / "turned.png") as opened:
        upright = ImageOps.exif_transpose(opened)
        rows = extractor.fit_transform([tmp_path / "turned.png", opened, upright, image])
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(rows[2], rows[0], rtol=1e-3, atol=1e-3)
    assert not np.allclose(rows[3], rows[0], rtol=1e-3, atol=1e-3)


def test_a_table_of_paths_gives_features_side_by_side(extractor, paths):
    single = extractor.fit_transform(paths)
    pairs = extractor.fit_transform(pd.DataFrame({"left": paths[:6], "right": paths[6:]}))
    np.testing.assert_array_equal(pairs, np.hstack([single[:6], single[6:]]))
    assert extractor.n_features_out_ == 2 * single.shape[1]


def test_a_pipeline_in_a_grid_search_computes_each_image_once(extractor, paths, runs):
    model = make_pipeline(extractor, LogisticRegression(max_iter=1000))
    search = GridSearchCV(model, {"logisticregression__C": [0.01, 1.0]}, cv=3)
    labels = np.arange(N) % 2
    search.fit(paths, labels)
    assert sum(runs) == N
    assert search.predict(paths).tolist() == labels.tolist()
    search.fit(paths, labels)
    assert sum(runs) == N


def test_a_grid_over_its_own_parameters_keeps_the_caches_apart(extractor, paths):
    model = make_pipeline(extractor, LogisticRegression(max_iter=1000))
    sizes = GridSearchCV(model, {"featureextractor__image_size": [32, 64]}, cv=2)
    sizes.fit(paths, np.arange(N) % 2)
    assert len(list(extractor.cache.glob("*.h5"))) == 2


def test_clone_and_set_output(extractor, paths):
    copy = clone(extractor)
    assert copy.get_params() == extractor.get_params()
    with pytest.raises(NotFittedError):
        copy.get_feature_names_out()
    frame = copy.set_output(transform="pandas").fit_transform(pd.Series(paths, index=range(100, 100 + N)))
    assert list(frame.columns[:2]) == ["bottleneck_0", "bottleneck_1"]
    assert frame.index.tolist() == list(range(100, 100 + N))


def test_broken_images_are_named_or_become_nan(extractor, paths, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for bad in (broken, tmp_path / "missing.png"):
        with pytest.raises(ImageError, match=rf"1 of 3 images .* the first is .*{bad.name}: \w+"):
            extractor.fit([paths[0], bad, paths[2]])
    X = [paths[0], broken, tmp_path / "missing.png", paths[1]]
    extractor.set_params(on_error="nan")
    features = extractor.fit_transform(X)
    assert np.isnan(features).all(axis=1).tolist() == [False, True, True, False]
    assert [note.code for note in extractor.notes_] == ["batchnorm-statistics-kept", "rows-of-nan"]
    np.testing.assert_array_equal(features[[0, 3]], extractor.fit_transform(paths[:2]))


def test_a_cache_of_extract_is_read_by_content_and_never_changed(expected, paths, tmp_path, runs):
    features, cache = expected
    before = cache.read_bytes()
    extractor = FeatureExtractor(**SMALL, cache=cache)
    np.testing.assert_array_equal(extractor.fit_transform(paths[::-1]), features[::-1])
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 20), (1, 2, 3)).save(other)
    with pytest.raises(CacheError, match="lacks 1 of the 2 images of X"):
        extractor.transform([paths[0], other])
    with pytest.raises(FingerprintError, match="size"):
        FeatureExtractor(**SMALL | {"image_size": 32}, cache=cache).transform(paths)
    with pytest.raises(CacheError, match="no features of node"):
        FeatureExtractor(**SMALL, node="conv1", cache=cache).transform(paths)
    assert (runs, cache.read_bytes()) == ([], before)


@pytest.mark.parametrize(
    ("X", "error", "text"),
    [
        ("one.png", SourceError, "one image"),
        ([], ImageError, "empty"),
        ([3], SourceError, "Sample 0 of X is a int"),
        (np.zeros((4, 9)), SourceError, r"shape \(4, 9\)"),
        ([["a.png", "b.png"], ["c.png"]], SourceError, "Sample 0 of X is a list"),
        (np.zeros((2, 8, 8, 3)), ImageError, "array of float64"),
        (np.zeros((2, 8, 8, 2), np.uint8), ImageError, r"shape \(8, 8, 2\)"),
        (["nul\0.png"], ImageError, "null"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(extractor, X, error, text):
    with pytest.raises(error, match=text):
        extractor.transform(X)


def test_settings_are_checked(extractor, paths):
    with pytest.raises(BottleneckError, match="on_error is 'skip'; expected fail or nan"):
        clone(extractor).set_params(on_error="skip").fit(paths)
    with pytest.raises(CacheError, match="is a map"):
        clone(extractor).set_params(node="conv1@none").fit(paths)


def test_processes_that_need_the_same_images_wait_for_each_other(extractor, paths):
    """Two processes start at once on an empty folder; both get all rows."""
    code = (
        "import sys; from bottleneck import FeatureExtractor\n"
        f"extractor = FeatureExtractor(**{SMALL!r}, cache={str(extractor.cache)!r})\n"
        "print(repr(extractor.fit_transform(sys.argv[1:]).sum(axis=1).tolist()))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *paths[i:]], stdout=subprocess.PIPE, text=True, env=os.environ
        )
        for i in (0, 4)
    ]
    sums = [eval(process.communicate()[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0]
    np.testing.assert_allclose(sums[0][4:], sums[1])
    np.testing.assert_allclose(sums[0], extractor.fit_transform(paths).sum(axis=1), rtol=1e-6)
