"""Sources of any form: what they are, what goes with their samples, and what is said of others."""

import csv
import io
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source, read_sources
from bottleneck.data.source import image_files
from bottleneck.errors import SourceError
from tests.helpers.encoded import image, tar_of


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    (tmp_path / "l.csv").write_text("image,label,note\n" + "".join(f"{i}.png,x{i},n{i}\n" for i in (2, 0, 3)))
    return tmp_path


def test_cells_go_with_their_samples(folder):
    source = read_source(folder / "l.csv", ReadConfig(inputs_only=True))
    assert source.cells == {"label": ["x2", "x0", "x3"], "note": ["n2", "n0", "n3"]}
    some = source.take(np.array([2, 0]))
    assert some.cells == {"label": ["x3", "x2"], "note": ["n3", "n2"]}
    assert [some.images[i] for i in some.samples.image[:, 0]] == ["3.png", "2.png"]
    masked = source.take(np.array([False, True, False]))
    assert masked.cells["note"] == ["n0"]
    assert read_source(folder / "l.csv").cells == {}


def test_a_row_without_its_image_takes_its_cells_along(folder):
    (folder / "0.png").unlink()
    source = read_source(folder / "l.csv", ReadConfig(inputs_only=True))
    assert source.samples.key.tolist() == ["2.png", "3.png"]
    assert source.cells["note"] == ["n2", "n3"]
    assert source.absent.keys() == {"0.png"}


def test_the_columns_in_use_go_with_the_samples(folder):
    samples = read_source(folder / "l.csv", ReadConfig(label_columns=("NOTE",))).samples
    assert samples.columns == {"image": ("image",), "label": ("NOTE",)}
    assert samples.take(np.array([0])).columns == samples.columns
    assert read_source(folder).samples.columns == {}


def test_image_files_in_a_row_are_one_source(folder, monkeypatch):
    monkeypatch.chdir(folder)
    of_a_head = ReadConfig(remembered={"image": ("image",)}, head_target=("kind", "class"), inputs_only=True)
    sources = read_sources(["0.png", "1.png", "l.csv", "3.png"], of_a_head)
    expected = [("0.png", "1.png"), ("0.png", "2.png", "3.png"), ("3.png",)]
    assert [source.images for source in sources] == expected
    with pytest.raises(SourceError, match="no image by its name"):
        image_files(["l.csv"])


@pytest.mark.parametrize("name", ["s.tar.gz", "S.TAR.GZ", "s.tgz", "s.7z", "s.rar"])
def test_a_packed_archive_says_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"packed")
    with pytest.raises(SourceError, match=r"none of these.* Unpack it and give the folder"):
        read_source(tmp_path / name)


@pytest.mark.parametrize("name", ["s.tar", "S.TAR", "s.Tar"])
def test_suffixes_of_sources_are_read_in_any_case(tmp_path, name):
    tar_of({"a/1.PNG": image(1), "b/2.Png": image(2)}, tmp_path / name)
    assert len(read_source(tmp_path / name).images) == 2


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="does not exist"):
        read_source(tmp_path / "no" / "where")
    shutil.rmtree(tmp_path)
    with pytest.raises(SourceError, match="does not exist"):
        read_source(tmp_path)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["0.png", "1.png", "sub/2.png", "gone.png"]),
        st.sampled_from(["", "train", "holdout", " "]),
        st.sampled_from(["", "a", "1.5", "a|b", "  "]),
        st.text('ab,;|" \u00e9', max_size=3),
    ),
    min_size=1,
    max_size=12,
)


@given(rows=ROWS, blank_names=st.booleans(), header=st.permutations(["image", "split", "label", "name"]))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_predictions_have_a_row_for_each_row_of_a_random_manifest(tmp_path, rows, blank_names, header):
    """Whatever its splits, labels and repetitions; each row with its own cells, in its place."""
    (tmp_path / "sub").mkdir(exist_ok=True)
    for name in ("0.png", "1.png", "sub/2.png"):
        (tmp_path / name).write_bytes(image(1))
    order = [["image", "split", "label", "name"].index(column) for column in header]
    rows = [("0.png", "", "", "first"), *rows]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *([row[at] for at in order] for row in rows)])
    (tmp_path / "r.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    config = ReadConfig(inputs_only=True, sample_column="name" if blank_names else None)
    source = read_source(tmp_path / "r.csv", config)
    present = [row for row in rows if row[0] != "gone.png"]
    assert [source.images[i] for i in source.samples.image[:, 0]] == [row[0] for row in present]
    for position, column in enumerate(("split", "label", "name"), 1):
        assert source.cells[column] == [row[position] or None for row in present]
    named = [row[3] if row[3].strip() else row[0] for row in present]
    assert source.samples.key.tolist() == (named if blank_names else [row[0] for row in present])
    assert set(source.absent) == {row[0] for row in rows} - {row[0] for row in present}
    assert source.samples.targets == {}
    assert not source.notes
