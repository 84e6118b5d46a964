"""A cache as arrays, as an Arrow table and as a dataset: the rows of the samples, in any process."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, random_split

from bottleneck.errors import CacheError
from bottleneck.samples import Target
from bottleneck.store.exchange import blocks_of_table
from bottleneck.store.reader import FeatureCache
from tests.helpers.caches import class_target, write_cache

pytestmark = pytest.mark.filterwarnings("ignore:Pandas requires version")
N, D = 24, 10
SPLIT = ["train", "val", "train", "test"] * (N // 4)
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
Y = np.arange(N) % 3
Y[5] = Y[8] = -1  # without a label


@pytest.fixture
def path(tmp_path):
    labels = np.eye(3, dtype=np.uint8)[np.arange(N) % 3]
    labels[4] = 255
    targets = [
        class_target(Y, names=("개", "고양이", "c")),
        Target("marks", "multilabel", labels, ("a", "b", "c")),
        Target("weight", "regression", np.where(np.arange(N) == 2, np.nan, np.arange(N) / 2)),
    ]
    return write_cache(tmp_path / "cache.h5", X, targets, split=SPLIT)


@pytest.fixture
def cache(path):
    with FeatureCache(path) as opened:
        yield opened


def labelled(split):
    return [i for i in range(N) if SPLIT[i] == split and Y[i] >= 0]


def test_to_numpy_gives_rows_and_class_names(cache):
    rows, names = cache.to_numpy("bottleneck", "train", "label")
    np.testing.assert_array_equal(rows, X[labelled("train")])
    assert names.tolist() == [("개", "고양이", "c")[Y[i]] for i in labelled("train")]
    rows, none = cache.to_numpy()
    np.testing.assert_array_equal(rows, X)
    assert none is None


def test_to_numpy_leaves_out_samples_without_the_label(cache):
    rows, numbers = cache.to_numpy(split="train", target="weight")
    assert numbers.tolist() == [i / 2 for i in range(N) if SPLIT[i] == "train" and i != 2]
    assert len(rows) == len(numbers)
    rows, marks = cache.to_numpy(split="train", target="marks")
    assert marks.tolist() == [[int(k == i % 3) for k in range(3)] for i in range(0, N, 2) if i != 4]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nothing",), "has no features of node 'nothing'"),
        (("bottleneck", "holdout"), "The split is 'holdout'; expected one of train, val, test"),
        (("bottleneck", "train", "colour"), "no target 'colour'; it has: label, marks, weight"),
    ],
)
def test_what_is_not_there_is_named(cache, arguments, text):
    for method in (cache.to_numpy, cache.torch_dataset):
        with pytest.raises(CacheError, match=text):
            method(*arguments)


@pytest.mark.parametrize("target", [None, "label"])
def test_a_split_without_samples_is_no_empty_result(tmp_path, target):
    X = np.zeros((4, 3), np.float32)
    path = write_cache(tmp_path / "c.h5", X, [class_target([0, 1, 0, 1])], ["train"] * 3 + ["test"])
    with FeatureCache(path) as cache:
        for get in (cache.torch_dataset, cache.to_numpy):
            with pytest.raises(CacheError, match=r"no val sample.* 3 train, 0 val, 1 test"):
                get("bottleneck", "val", target)
        assert len(cache.torch_dataset("bottleneck", "test", target)) == 1


def test_items_are_float32_rows_with_their_targets(cache):
    dataset = cache.torch_dataset("bottleneck", "train", "label")
    assert (len(dataset), dataset.left_out, dataset.class_names) == (11, 1, ("개", "고양이", "c"))
    for index, sample in enumerate(labelled("train")):
        features, code = dataset[index]
        assert (features.dtype, code) == (np.float32, Y[sample])
        np.testing.assert_array_equal(features, X[sample])
    np.testing.assert_array_equal(dataset[-1][0], X[labelled("train")[-1]])
    with pytest.raises(IndexError, match="11 samples; there is no number 11"):
        dataset[11]
    np.testing.assert_array_equal(cache.torch_dataset("bottleneck", "val")[0], X[1])


@pytest.mark.parametrize(
    ("target", "dtype"), [("label", torch.int64), ("marks", torch.float32), ("weight", torch.float64)]
)
def test_batches_are_tensors_of_the_type_that_a_loss_takes(cache, target, dtype):
    features, values = next(iter(DataLoader(cache.torch_dataset(target=target), batch_size=4)))
    assert (features.dtype, features.shape, values.dtype, len(values)) == (torch.float32, (4, D), dtype, 4)


@pytest.mark.usefixtures("all_cores")  # torch warns of more workers than cores
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize(("context", "workers"), [("fork", 4), ("spawn", 2), ("forkserver", 2)])
def test_workers_read_what_one_process_reads(cache, context, workers):
    """The file is open in this process before the workers start, which must not share its position."""
    dataset = cache.torch_dataset("bottleneck", "train", "label")
    alone = list(DataLoader(dataset, batch_size=3))
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, multiprocessing_context=context)
    for (features, codes), (expected, expected_codes) in zip(loader, alone, strict=True):
        torch.testing.assert_close(features, expected, rtol=0, atol=0)
        assert codes.tolist() == expected_codes.tolist()


def test_subsets_and_pickled_copies_work_after_the_cache_is_closed(path):
    with FeatureCache(path) as cache:
        dataset = cache.torch_dataset("bottleneck", None, "label")
    part, rest = random_split(pickle.loads(pickle.dumps(dataset)), [5, len(dataset) - 5])
    assert len(rest) == N - 2 - 5
    np.testing.assert_array_equal(Subset(dataset, [3])[0][0], X[3])
    for i, (features, _) in zip(part.indices, part, strict=True):
        np.testing.assert_array_equal(features, dataset[i][0])


def test_a_cache_written_anew_is_refused(path):
    with FeatureCache(path) as cache:
        dataset = cache.torch_dataset("bottleneck", "train", "label")
    path.unlink()
    write_cache(path, X[:8], [class_target([*Y[:4].tolist(), 0, 1, 2, 0])], split=SPLIT[:8])
    with pytest.raises(CacheError, match="has been written anew"):
        dataset[0]


def test_maps_keep_their_shape(tmp_path):
    from tests.helpers.world import MAP, world_of

    world_of(6).extract(tmp_path / "maps.h5", [MAP])
    with FeatureCache(tmp_path / "maps.h5") as cache:
        dataset = cache.torch_dataset(MAP.name, target="label")
        rows = cache.features(MAP.name).read(0, len(cache.images)).astype(np.float32)
        labelled = np.flatnonzero(cache.samples.targets["label"].values >= 0)
        np.testing.assert_array_equal(dataset[0][0], rows[cache.samples.image[labelled[0], 0]])


def test_the_arrow_table_has_a_row_a_sample_and_is_read_by_polars_without_a_copy(cache):
    polars = pytest.importorskip("polars")
    table = cache.to_arrow(split="train")
    assert table.column("key").to_pylist() == [f"그림/{i:03d}.png" for i in range(0, N, 2)]
    assert table.column("marks").to_pylist()[2] is None
    features = table.column("features/bottleneck")
    np.testing.assert_array_equal(np.stack(features.to_numpy()), X[::2])
    frame = polars.from_arrow(table)
    np.testing.assert_array_equal(frame["features/bottleneck"].to_numpy(), X[::2])
    assert frame["label"].to_list() == table.column("label").to_pylist()


def test_a_target_or_covariate_named_like_another_column_replaces_none(cache):
    weight = cache.samples.targets["weight"]
    names = ("split", "label_split", "group", "features/bottleneck")
    samples = replace(
        cache.samples,
        targets={name: replace(weight, name=name) for name in names},
        covariates=np.arange(2.0 * N).reshape(N, 2),
        covariate_names=("key", "group"),
    )
    (table,) = blocks_of_table(cache.images.key, samples, {"bottleneck": cache.features("bottleneck")})
    columns = table.to_pydict()
    assert columns["key"] == samples.key.tolist()
    assert columns["split"] == SPLIT
    np.testing.assert_array_equal(columns["features/bottleneck"], X)
    for name in ("label_label_split", "label_split", "label_group", "label_features/bottleneck"):
        assert columns[name] == [None if i == 2 else i / 2 for i in range(N)]
    assert columns["covariate_key"] == samples.covariates[:, 0].tolist()
    assert columns["covariate_group"] == samples.covariates[:, 1].tolist()


def test_a_table_of_several_blocks_is_the_table_of_one(cache, monkeypatch):
    pytest.importorskip("pyarrow")
    whole = cache.to_arrow()
    monkeypatch.setattr("bottleneck.store.exchange.BLOCK_ROWS", 7)
    assert cache.to_arrow().equals(whole)
    assert cache.to_arrow(split="val").num_rows == N // 4
