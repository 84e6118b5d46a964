"""Tables come back from their columns as they were, whatever the names."""

from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from bottleneck.errors import CacheError
from bottleneck.files import FileStat
from bottleneck.samples import SampleTable, Target
from bottleneck.store.spec import link_name, name_of_link
from bottleneck.store.tables import (
    IMAGE_COLUMNS,
    Failure,
    ImageTable,
    decode,
    encode,
    failure_columns,
    failures_of,
    objects,
    sample_columns,
    sample_flags,
    samples_of,
    without_failed,
)

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
INT64 = st.integers(-(2**63), 2**63 - 1)
STATS = st.builds(FileStat, INT64, INT64, INT64, INT64)
ROWS = st.lists(st.tuples(NAMES, st.binary(min_size=32, max_size=32), STATS), max_size=6)


def test_flags_name_the_columns_that_no_default_finds():
    usual = {"image": ("image",), "label": ("label",), "split": ("split",)}
    assert sample_flags(usual, {}) == ""
    rest = {"group": ("group",), "sample": ("sample",), "covariate": ("covariate",), "separator": ("|",)}
    assert sample_flags(usual | rest, {}) == (
        " --group group --sample-column sample --covariate covariate --label-separator '|'"
    )
    others = {"image": ("file_name",), "label": ("label", "the class"), "split": ("fold",)}
    assert sample_flags(others, {}) == (
        " --image-column file_name --label-column label --label-column 'the class' --split-column fold"
    )


def test_what_was_set_aside_comes_back_and_is_named_by_flags():
    aside = {"val": 0.2, "test": 0.1, "seed": 3}
    table = SampleTable(objects(["s"]), np.array([[0]]), objects(["val"]), set_aside=aside)
    assert samples_of(sample_columns(table)).set_aside == aside
    assert sample_flags({}, aside) == " --val-fraction 0.2 --test-fraction 0.1 --seed 3"
    assert sample_flags({}, {"test": 0.25, "seed": 0}) == " --test-fraction 0.25"


@pytest.mark.parametrize(
    "record", ["[]", '{"val": 2}', '{"val": "0.2"}', '{"dev": 0.2}', '{"seed": "1; echo"}']
)
def test_what_cannot_have_been_set_aside_is_damage(record):
    columns = sample_columns(SampleTable(objects(["s"]), np.array([[0]]), objects(["val"])))
    columns["samples/split"] = replace(columns["samples/split"], attributes={"set_aside": record})
    with pytest.raises(CacheError, match="what was set aside is"):
        samples_of(columns)


@given(st.lists(NAMES))
def test_names_survive(names):
    assert list(decode(encode(names))) == names


@given(NAMES)
def test_links_are_one_path_component_and_give_the_name_back(name):
    link = link_name(name)
    assert "/" not in link
    assert link != "."
    assert name_of_link(link) == name


@given(NAMES, NAMES)
def test_two_names_never_share_a_link(a, b):
    assert (link_name(a) == link_name(b)) == (a == b)


def test_a_nul_is_refused():
    with pytest.raises(CacheError, match="NUL"):
        encode(["a\0b"])


@given(ROWS)
def test_images_survive(rows):
    columns = ImageTable.of(rows).columns()
    table = ImageTable.of_columns({name: columns[f"images/{name}"].values for name in IMAGE_COLUMNS})
    assert list(table.rows()) == rows


def test_images_of_format_version_1_have_no_ctime_and_no_inode():
    columns = ImageTable.of([("a", b"1" * 32, FileStat(1, 2, 3, 4))]).columns()
    old = {name: columns[f"images/{name}"].values for name in ("key", "digest", "size", "mtime_ns")}
    assert list(ImageTable.of_columns(old).rows()) == [("a", b"1" * 32, FileStat(1, 2, -1, -1))]


@given(ROWS, NAMES)
def test_failures_survive(rows, reason):
    failures = [Failure(key, reason, *rest, passing=len(key) % 2 == 0) for key, *rest in rows]
    columns = {
        path.removeprefix("failures/"): column.values for path, column in failure_columns(failures).items()
    }
    assert failures_of(columns) == failures


def table():
    targets = {
        "a/b": Target("a/b", "class", np.array([0, -1]), ("x", "한글")),
        ".": Target(".", "multilabel", np.array([[1, 0], [255, 255]], np.uint8), ("sun", "sea")),
        "age %2F": Target("age %2F", "regression", np.array([1.5, np.nan])),
    }
    return SampleTable(
        key=objects(["s", "사진 😀"]),
        image=np.array([[0, 1], [2, 2]]),
        split=objects(["train", "test"]),
        targets=targets,
        covariates=np.array([[1.0], [np.nan]]),
        covariate_names=("age",),
        group=objects(["g", "g"]),
    )


def test_samples_survive():
    before, after = table(), samples_of(sample_columns(table()))
    for name in ("key", "image", "split", "covariates", "group"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    assert after.covariate_names == before.covariate_names
    assert after.targets.keys() == before.targets.keys()
    for name, target in before.targets.items():
        np.testing.assert_array_equal(after.targets[name].values, target.values)
        assert (after.targets[name].kind, after.targets[name].class_names) == (
            target.kind,
            target.class_names,
        )


def test_samples_without_group_or_covariates_survive():
    before = SampleTable(objects(["s"]), np.array([[0]]), objects(["val"]))
    after = samples_of(sample_columns(before))
    assert (after.group, after.targets, after.covariates.shape) == (None, {}, (1, 0))


def test_samples_with_a_failed_image_go_and_the_others_follow_their_images():
    kept = without_failed(table(), np.array([5, -1, 3]))
    assert list(kept.key) == ["사진 😀"]
    assert kept.image.tolist() == [[3, 3]]


@pytest.mark.parametrize(
    ("attributes", "values"),
    [
        ({"kind": "colour", "class_names": "[]"}, np.zeros(1, np.int64)),
        ({"kind": "class", "class_names": "[1]"}, np.zeros(1, np.int64)),
        ({"kind": "class", "class_names": '["x"]'}, np.zeros(1, np.uint8)),
        ({"kind": "class", "class_names": '["x"]'}, np.ones(1, np.int64)),
        ({"kind": "multilabel", "class_names": '["x"]'}, np.full((1, 1), 2, np.uint8)),
        ({"kind": "multilabel", "class_names": '["x", "y"]'}, np.ones((1, 1), np.uint8)),
        ({"kind": "regression", "class_names": "[]"}, np.array([np.inf])),
    ],
)
def test_labels_outside_their_range_are_refused(attributes, values):
    columns = sample_columns(SampleTable(objects(["s"]), np.array([[0]]), objects(["val"])))
    columns["labels/label"] = type(columns["samples/key"])(values, attributes)
    with pytest.raises(CacheError):
        samples_of(columns)
