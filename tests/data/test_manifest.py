"""Manifests: columns, targets, splits, covariates, and errors that name the rows."""

import csv as csv_module
import io
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bottleneck.data.config import ReadConfig
from bottleneck.data.read_source import read_source
from bottleneck.errors import SourceError

NAMES = ("a.png", "b.png", "c.png", "sub/d.png")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in NAMES:
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    return tmp_path


def csv(folder, text, **columns):
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return read_source(folder / "list.csv", ReadConfig(**columns))


def jsonl(folder, rows, **columns):
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_source(folder / "list.jsonl", ReadConfig(**columns))


def parquet(folder, rows, **columns):
    """Written by way of Arrow's JSON reader: from Python lists it would import pandas, with its warning."""
    arrow_json = pytest.importorskip("pyarrow.json")
    from pyarrow.parquet import write_table

    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_table(arrow_json.read_json(io.BytesIO(text.encode())), folder / "list.parquet")
    return read_source(folder / "list.parquet", ReadConfig(**columns))


def names(target):
    return [target.class_names[code] if code >= 0 else None for code in target.values]


def test_images_are_sorted_and_samples_stay_in_their_order(folder):
    source = csv(folder, "image,label\nsub/d.png,x\n./a.png,y\nb.png,x\n")
    assert source.root == str(folder)
    assert source.images == ("a.png", "b.png", "sub/d.png")
    assert source.samples.key.tolist() == ["sub/d.png", "a.png", "b.png"]
    assert source.samples.image.tolist() == [[2], [0], [1]]
    assert names(source.samples.targets["label"]) == ["x", "y", "x"]
    assert source.samples.split.tolist() == ["train"] * 3
    assert all(source.read(key) for key in source.images)


def test_the_three_formats_say_the_same(folder):
    rows = [{"image": name, "label": label, "age": 3} for name, label in zip(NAMES, "xyxy", strict=True)]
    text = "image,label,age\n" + "".join(f"{row['image']},{row['label']},3\n" for row in rows)
    sources = [
        csv(folder, text, covariate_columns=["age"]),
        jsonl(folder, rows, covariate_columns=["age"]),
        parquet(folder, rows, covariate_columns=["age"]),
    ]
    for source in sources:
        assert source.images == NAMES
        assert names(source.samples.targets["label"]) == ["x", "y", "x", "y"]
        assert source.samples.covariates.tolist() == [[3.0]] * 4


def test_parquet_without_pyarrow_says_what_to_install(folder, monkeypatch):
    (folder / "list.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r"pip install 'bottleneck-features\[parquet\]'"):
        read_source(folder / "list.parquet")


def test_parquet_with_embedded_images_leaves_them_unread(folder):
    rows = [{"file_name": "a.png", "image": {"bytes": "x", "path": "a.png"}, "tags": ["x", "y"]}]
    source = parquet(folder, rows, label_columns=["tags"])
    assert source.images == ("a.png",)
    assert source.samples.targets["tags"].kind == "multilabel"


def test_a_parquet_without_rows_is_refused(folder):
    with pytest.raises(SourceError, match="no rows"):
        parquet(folder, [{"other": {"nested": 1}}])


def test_file_name_is_the_second_default(folder):
    assert csv(folder, "file_name\na.png\n").images == ("a.png",)
    assert csv(folder, "file_name,image\na.png,b.png\n").images == ("b.png",)


def test_columns_by_name(folder):
    source = csv(
        folder,
        "photo,species,sex,fold,patient\na.png,x,m,train,p1\nb.png,y,f,VALID,p2\nc.png,x,f,test,p1\n",
        image_columns=["photo"],
        label_columns=["species", "sex"],
        split_column="fold",
        group_column="patient",
    )
    assert list(source.samples.targets) == ["species", "sex"]
    assert names(source.samples.targets["sex"]) == ["m", "f", "f"]
    assert source.samples.split.tolist() == ["train", "val", "test"]
    assert source.samples.group.tolist() == ["p1", "p2", "p1"]


def codes(source):
    return [note.code for note in source.notes]


@pytest.mark.parametrize("header", ["split", " split", "Split", "SPLIT ", "\tsplit"])
def test_a_column_called_split_is_the_split_column(folder, header):
    source = csv(folder, f"image,{header}\na.png,train\nb.png, Dev \nc.png,TEST\n")
    assert source.samples.split.tolist() == ["train", "val", "test"]
    assert source.columns["split"] == (header,)
    assert codes(source) == (["column-found-by-other-spelling"] if header != "split" else [])


@pytest.mark.parametrize(
    ("cells", "got"),
    [
        (["train", "holdout", "test"], "'holdout' in row 2"),
        (["train", "", "test"], "a blank cell in row 2"),
        (["train", "  ", "unlabeled"], "a blank cell, 'unlabeled' in rows 2, 3"),
        (["0", "1", "2"], "'0', '1', '2' in rows 1, 2, 3"),
        (["fold1", "dev", "train"], "'fold1' in row 1"),
        (["1.0", "1.0", "1.0"], "'1.0' in rows 1, 2, 3"),
    ],
)
def test_a_cell_that_names_no_split_is_an_error_with_its_row(folder, cells, got):
    rows = "".join(f"{name},{cell}\n" for name, cell in zip(NAMES, cells, strict=False))
    with pytest.raises(SourceError, match=f"{got}; expected one of train.*in place of codes.*rename"):
        csv(folder, "image,Split\n" + rows)


@pytest.mark.parametrize("cell", [None, 0, True, ["train"], {"train": 1}, float("nan")])
def test_a_typed_cell_that_names_no_split_is_an_error_too(folder, cell):
    with pytest.raises(SourceError, match=r"in row 2; expected one of train"):
        jsonl(folder, [{"image": "a.png", "split": "train"}, {"image": "b.png", "split": cell}])


def test_columns_are_found_without_regard_to_case_and_spaces_and_told(folder):
    source = csv(
        folder,
        " Image ,LABEL,Patient,Âge\na.png,x,p1,3\nb.png,y,p2,4\n",
        group_column="patient ",
        covariate_columns=["âge"],
    )
    assert list(source.samples.targets) == ["label"]
    assert source.samples.covariate_names == ("âge",)
    assert source.samples.covariates.tolist() == [[3.0], [4.0]]
    assert source.samples.group.tolist() == ["p1", "p2"]
    assert source.columns == {
        "image": (" Image ",),
        "label": ("LABEL",),
        "group": ("Patient",),
        "covariate": ("Âge",),
        "unused": (),
    }
    assert codes(source) == ["column-found-by-other-spelling"] * 4
    assert not any(note.changes_result for note in source.notes)


def test_two_columns_of_one_name_but_for_case(folder):
    with pytest.raises(SourceError, match=r"no column 'label' but 'Label' and 'LABEL'.*Rename"):
        csv(folder, "image,Label,LABEL\na.png,x,y\n")
    source = csv(folder, "image,label,Label\na.png,x,y\n")
    assert source.samples.targets["label"].class_names == ("x",)
    assert codes(source) == ["column-passed-over"]


@pytest.mark.parametrize(
    ("header", "offered"),
    [
        ("path,label", "path"),
        ("label,where", "where"),  # by its cells
        ("imgage,label", "imgage"),
        ("file path,label", "'file path'"),
        ("file `id`,label", "'file `id`'"),  # a shell would run it in double quotes
    ],
)
def test_without_an_image_column_close_names_are_offered(folder, header, offered):
    row = {"label": "x"}
    rows = ",".join(row.get(name, "a.png") for name in header.split(","))
    with pytest.raises(SourceError, match=re.escape(f"--image-column {offered}.")):
        csv(folder, f"{header}\n{rows}\n")


@pytest.mark.parametrize("name", ["labels", "Class", "lable", "species", "image_class"])
def test_without_a_label_column_close_names_are_offered(folder, name):
    (note,) = csv(folder, f"image,width,{name}\na.png,2,x\n").notes
    assert note.code == "no-label-column"
    assert f"--label-column {name}." in note.message


def test_a_column_of_splits_under_another_name_is_told(folder):
    text = "image,label,subset\na.png,x,train\nb.png,y,test\n"
    (note,) = csv(folder, text).notes
    assert (note.code, note.changes_result) == ("split-column-unused", True)
    assert "--split-column subset" in note.message
    assert csv(folder, text, split_column="subset").notes == ()


def test_a_user_or_a_head_decides_whether_numbers_are_classes(folder):
    text = "image,label\na.png,1.1\nb.png,1.25\n"
    source = csv(folder, text)
    assert source.samples.targets["label"].kind == "regression"
    assert codes(source) == ["numbers-read-as-regression"]
    for config in ({"classes": ["label"]}, {"head_target": ("label", "class")}):
        source = csv(folder, text, **config)
        assert source.samples.targets["label"].class_names == ("1.1", "1.25")
        assert source.notes == ()
    assert csv(folder, text, regression=["label"]).notes == ()
    assert csv(folder, "image\na.png\n", head_target=("label", "class")).samples.targets == {}
    with pytest.raises(SourceError, match=r"--classes names 'age'.*--label-column age"):
        csv(folder, text, classes=["age"])


def test_a_column_of_an_unknown_role_that_a_head_remembers_is_left_out(folder):
    source = csv(folder, "image,label\na.png,x\n", remembered={"mask": ("image",), "label": ("label",)})
    assert source.samples.targets["label"].class_names == ("x",)


@pytest.mark.parametrize(
    "cells", [("1.1", "1.25"), ("1.1", "1.2") * 5, ("none", "ant"), ("ant,red", "bee,red"), ("[1]", "[2]")]
)
def test_a_note_names_a_column_as_a_shell_takes_it(folder, cells):
    rows = "".join(f'{"ab"[i % 2]}.png,"{cell}",{i}\n' for i, cell in enumerate(cells))
    source = csv(
        folder, f"image,the class,number\n{rows}", label_columns=["the class"], sample_column="number"
    )
    assert any("'the class'" in word for note in source.notes for word in note.message.split("--")[1:])


def test_true_is_one_class_in_every_format(folder):
    rows = [{"image": "a.png", "label": True}, {"image": "b.png", "label": False}]
    text = "image,label\na.png,True\nb.png,FALSE\n"
    for source in (csv(folder, text), jsonl(folder, rows), parquet(folder, rows)):
        assert names(source.samples.targets["label"]) == ["true", "false"]
        assert source.notes == ()


def test_several_images_and_covariates(folder):
    source = csv(
        folder,
        "front,back,age,dose\na.png,b.png,61,0.5\nc.png,a.png,-3,1e-3\n",
        image_columns=["front", "back"],
        covariate_columns=["age", "dose"],
    )
    assert source.images == ("a.png", "b.png", "c.png")
    assert source.samples.image.tolist() == [[0, 1], [2, 0]]
    assert source.samples.key.tolist() == ["a.png|b.png", "c.png|a.png"]
    assert source.samples.covariate_names == ("age", "dose")
    assert source.samples.covariates.tolist() == [[61.0, 0.5], [-3.0, 0.001]]


@pytest.mark.parametrize("cell", ["", "n/a", "nan", "inf", "1_000", "١"])
def test_covariates_that_are_no_finite_numbers_are_named_by_row(folder, cell):
    text = f"image,age\na.png,1\nb.png,{cell}\nc.png,2\nsub/d.png,{cell}\n"
    with pytest.raises(SourceError, match=r"'age'.*rows 2, 4;"):
        csv(folder, text, covariate_columns=["age"])


def test_a_sample_column_allows_an_image_twice(folder):
    source = csv(folder, "id,image\ns1,a.png\ns2,a.png\n", sample_column="id")
    assert source.images == ("a.png",)
    assert source.samples.key.tolist() == ["s1", "s2"]
    assert source.samples.image.tolist() == [[0], [0]]


def test_duplicate_sample_keys_are_named_by_row(folder):
    with pytest.raises(SourceError, match=r"'a\.png' in rows 1, 3\."):
        csv(folder, "image\na.png\nb.png\n./a.png\n")
    with pytest.raises(SourceError, match="'s' in rows 1, 2"):
        csv(folder, "id,image\ns,a.png\ns,b.png\n", sample_column="id")


def test_rows_equal_in_every_column_are_one_sample_with_a_note(folder):
    source = csv(folder, "image,label\na.png,x\nb.png,y\na.png,x\na.png,x\n")
    assert source.samples.key.tolist() == ["a.png", "b.png"]
    (note,) = source.notes
    assert (note.code, note.changes_result) == ("repeated-rows", True)
    assert "2 rows of list.csv" in note.message
    assert "rows 3, 4." in note.message
    with pytest.raises(SourceError, match=r"'a\.png' in rows 1, 3\."):
        csv(folder, "image,label\na.png,x\na.png,x\na.png,y\n")
    rows = [{"image": "a.png", "label": ["x"]}, {"image": "a.png", "label": ["x"]}]
    assert len(jsonl(folder, rows).samples) == 1


def test_absent_images_are_failures_and_the_rest_goes_on(folder):
    (folder / "odd.png").mkdir()
    source = csv(folder, "image,label\nzz.png,only-here\na.png,x\nodd.png,y\nb.png,y\n")
    assert source.images == ("a.png", "b.png")
    assert source.samples.key.tolist() == ["a.png", "b.png"]
    assert source.samples.image.tolist() == [[0], [1]]
    assert list(source.absent) == ["odd.png", "zz.png"]
    assert "folder" in source.absent["odd.png"]
    target = source.samples.targets["label"]
    assert target.class_names == ("only-here", "x", "y")  # codes do not hang on which files are there
    assert names(target) == ["x", "y"]
    (note,) = source.notes
    assert (note.code, note.details["classes"]) == ("classes-without-samples", ["only-here"])


def test_a_sample_that_lacks_one_of_its_images_is_left_out(folder):
    source = csv(folder, "f,b\na.png,zz.png\nb.png,c.png\n", image_columns=["f", "b"])
    assert source.images == ("b.png", "c.png")
    assert source.samples.key.tolist() == ["b.png|c.png"]
    assert list(source.absent) == ["zz.png"]


def test_nothing_there_at_all_says_where_it_was_looked_for(folder):
    with pytest.raises(SourceError, match=r"None of the 2 images.*x\.png.*relative to"):
        csv(folder, "image\nx.png\ny.png\n")


def test_paths_above_below_and_absolute(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    Image.new("RGB", (2, 2)).save(other / "o.png")
    text = f"image\n../{folder.name}/a.png\n{folder}/b.png\n{other}/o.png\nsub//./d.png\n"
    source = csv(folder, text)
    assert source.images == tuple(sorted((f"../{folder.name}/a.png", "b.png", f"{other}/o.png", "sub/d.png")))
    assert all(source.read(key) for key in source.images)


def test_names_in_any_script(folder):
    name = '사진 🐝, "quoted".png'
    Image.new("RGB", (2, 2)).save(folder / name)
    (folder / "list.csv").write_bytes(
        b"\xef\xbb\xbfimage,label\r\n" + ('"' + name.replace('"', '""') + '",벌\r\n').encode()
    )
    source = read_source(folder / "list.csv")
    assert source.images == (name,)
    assert source.samples.targets["label"].class_names == ("벌",)


def test_names_that_are_not_unicode_are_failures(folder):
    source = jsonl(folder, [{"image": "a.png"}, {"image": "\ud800.png"}, {"image": "n\0.png"}])
    assert source.images == ("a.png",)
    assert len(source.absent) == 2
    assert all(key.encode() for key in source.absent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("image\n", "no rows"),
        ("image,image\na.png,b.png\n", "two columns named 'image'"),
        (
            "image,label\na.png\nb.png,x,y\n",
            r"but rows 1, 2 have another number of cells; row 1 has 1\. Give .* quotes",
        ),
        ("path,label\na.png,x\n", r"columns path, label.*--image-column"),
        ('image\n"a.png\n', "not CSV"),
        ("image\na.png\n,\n", "rows? 2|cells"),
    ],
)
def test_a_csv_that_is_none(folder, text, message):
    with pytest.raises(SourceError, match=message):
        csv(folder, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a.png"}\n{"image": \n', "line 2"),
        ('["a.png"]\n', "line 1"),
        ('{"image": "a.png"}\n{"label": "x"}\n', "names no image in row 2"),
        ('{"image": 7}\n', "names no image in row 1"),
        ("[" * 100_000, "line 1"),
    ],
)
def test_a_jsonl_that_is_none(folder, text, message):
    (folder / "list.jsonl").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_source(folder / "list.jsonl")


def test_text_that_is_not_utf8_is_named_by_line(folder):
    (folder / "list.csv").write_bytes("image,label\na.png,x\nb.png,café\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"not UTF-8.*line 3"):
        read_source(folder / "list.csv")


def test_a_parquet_that_is_none(folder):
    pytest.importorskip("pyarrow")
    (folder / "list.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(SourceError, match="Parquet"):
        read_source(folder / "list.parquet")


def test_an_unknown_column_suggests_a_close_one(folder):
    with pytest.raises(SourceError, match=r"no column 'lable'.*Did you mean 'label'"):
        csv(folder, "image,label\na.png,x\n", label_columns=["lable"])


def test_unknown_splits_and_missing_groups_are_named_by_row(folder):
    with pytest.raises(SourceError, match=r"'holdout' in row 2; expected one of train"):
        csv(folder, "image,part\na.png,train\nb.png,holdout\n", split_column="part")
    with pytest.raises(SourceError, match=r"'who' names no group in row 1"):
        csv(folder, "image,who\na.png,\nb.png,x\n", group_column="who")
    with pytest.raises(SourceError, match=r"'who' names no group in row 2"):
        csv(folder, "image,who\na.png,x\nb.png,  \n", group_column="who")


def test_a_manifest_that_does_not_exist(folder):
    with pytest.raises(SourceError, match="does not exist"):
        read_source(folder / "nothing.csv")


def test_limit_keeps_each_class_its_share(folder):
    for number in range(40):
        Image.new("RGB", (2, 2)).save(folder / f"{number:02}.png")
    rows = "".join(f"{number:02}.png,{'rare' if number % 4 == 3 else 'common'}\n" for number in range(40))
    source = csv(folder, "image,label\n" + rows)
    few = read_source(folder / "list.csv", ReadConfig(limit=8))
    assert names(few.samples.targets["label"]).count("rare") == 2
    assert len(few.images) == 8
    assert set(few.images) < set(source.images)
    assert few.samples.key.tolist() == [few.images[row] for (row,) in few.samples.image.tolist()]
    assert read_source(folder / "list.csv", ReadConfig(limit=8)).images == few.images
    assert read_source(folder / "list.csv", ReadConfig(limit=400)).images == source.images
    assert np.ptp([int(key[:2]) for key in few.images]) > 25  # spread over the whole, not its start
    with pytest.raises(SourceError, match="--limit is 0"):
        read_source(folder / "list.csv", ReadConfig(limit=0))


WORDS = {"train": "train", "Training": "train", " VAL": "val", "dev": "val", "val ": "val", "TEST": "test"}
NO_SPLITS = ("", " ", "0", "1", "holdout", "trainval", "unlabeled", "train,val")
CASES = (str, str.upper, str.title)
HEADERS = st.tuples(
    *(
        st.sampled_from([f"{space}{case(name)}{space}" for case in CASES for space in ("", " ")])
        for name in ("image", "label", "split")
    )
)
LABELS = st.sampled_from(
    [
        *("cat", "Cat", "dog", " dog", "1", "01", "1.0", "1e0", "True", "true", "ant|red", "NA"),
        *("  ", "caf\u00e9", "cafe\u0301"),
    ]
)
ROWS = st.lists(
    st.tuples(st.sampled_from((*NAMES, "gone.png")), LABELS, st.sampled_from(tuple(WORDS))),
    min_size=2,
    unique_by=lambda row: row[0],
)


def as_csv(header, rows, order):
    """The table as the csv module writes it, its columns in this order."""
    text = io.StringIO(newline="")
    csv_module.writer(text).writerows([[row[column] for column in order] for row in (header, *rows)])
    return text.getvalue()


random_manifests = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@random_manifests
@given(ROWS, st.lists(st.integers(0, 5)), HEADERS, st.permutations(range(3)))
def test_no_sample_of_a_random_manifest_is_lost_or_moved_without_a_note(folder, rows, again, header, order):
    more = [rows[number % len(rows)] for number in again]
    source = csv(folder, as_csv(header, rows + more, order), classes=["label"])
    present = [row for row in rows if row[0] != "gone.png"]
    told = set(codes(source))
    assert source.samples.key.tolist() == [name for name, _, _ in present]
    assert source.samples.split.tolist() == [WORDS[split] for _, _, split in present]
    read = names(source.samples.targets["label"])
    assert read == [label.replace("True", "true") if label.strip() else None for _, label, _ in present]
    texts = {label for _, label, _ in rows}
    assert ("repeated-rows" in told) == bool(more)
    assert list(source.absent) == ["gone.png"] * (len(rows) - len(present))
    assert ("column-found-by-other-spelling" in told) == (header != ("image", "label", "split"))
    assert ("classes-merged" in told) == (texts >= {"True", "true"})
    alike = ({"cat", "Cat"}, {"dog", " dog"}, {"caf\u00e9", "cafe\u0301"})
    assert ("class-names-alike" in told) == any(texts >= pair for pair in alike)
    assert ("blank-labels" in told) == ("  " in texts)
    assert ("splits-merged" in told) == any(
        len({split.strip().lower() for _, _, split in rows if WORDS[split] == name}) > 1
        for name in ("train", "val", "test")
    )
    lost = {label.replace("True", "true") for label in texts - {"  "}}.difference(read)
    assert ("classes-without-samples" in told) == bool(lost)


@random_manifests
@given(ROWS, st.data(), HEADERS, st.permutations(range(3)))
def test_a_random_manifest_with_one_cell_that_names_no_split_is_an_error(folder, rows, data, header, order):
    number = data.draw(st.integers(1, len(rows)))
    name, label, _ = rows[number - 1]
    rows[number - 1] = (name, label, data.draw(st.sampled_from(NO_SPLITS)))
    with pytest.raises(SourceError, match=f"in row {number}; expected one of train"):
        csv(folder, as_csv(header, rows, order))


@random_manifests
@given(ROWS, st.data(), HEADERS, st.permutations(range(3)))
def test_a_random_manifest_with_an_image_of_two_labels_is_an_error(folder, rows, data, header, order):
    number = data.draw(st.integers(1, len(rows)))
    name, label, split = rows[number - 1]
    rows.append((name, f"another {label}", split))
    with pytest.raises(SourceError, match=f"Duplicate sample keys: '{name}' in rows {number}, {len(rows)}"):
        csv(folder, as_csv(header, rows, order))


@random_manifests
@given(ROWS, HEADERS, st.permutations(range(3)))
def test_the_labels_of_a_random_manifest_are_split_at_the_separator_alone(folder, rows, header, order):
    source = csv(folder, as_csv(header, rows, order), label_separator="|")
    target = source.samples.targets["label"]
    for (_, label, _), row in zip([row for row in rows if row[0] != "gone.png"], target.values, strict=True):
        read = {name for name, present in zip(target.class_names, row, strict=True) if present}
        if label.strip():
            assert read == {part.strip().replace("True", "true") for part in label.split("|")}
        else:
            assert (row == 255).all()


@pytest.mark.parametrize("column", ["partition", "Set", "is_train", "data_split"])
@pytest.mark.parametrize("cells", [["train", "test"], ["train", "holdout"], ["val", ""]])
def test_a_column_that_seems_to_name_splits_is_told(folder, column, cells):
    """It is not called split; one odd cell does not hide what it is."""
    source = csv(folder, f"image,label,{column}\na.png,x,{cells[0]}\nb.png,y,{cells[1]}\n")
    (note,) = (note for note in source.notes if note.code == "split-column-unused")
    assert note.details == {"column": column}
    assert note.changes_result
    assert f"--split-column {column}" in note.message


def test_a_column_of_other_words_is_none_of_splits(folder):
    source = csv(folder, "image,label,remark,fold\na.png,x,train,1\nb.png,y,blurred,2\nc.png,y,dark,3\n")
    assert codes(source) == []


def test_words_of_one_split_are_told(folder):
    source = csv(folder, "image,label,split\na.png,x,train\nb.png,y,dev\nc.png,y,Val \nsub/d.png,x,valid\n")
    assert source.samples.split.tolist() == ["train", "val", "val", "val"]
    (note,) = (note for note in source.notes if note.code == "splits-merged")
    assert note.details == {"split": "val", "names": ["dev", "val", "valid"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.png,x\nb.png,y\n", r"first row of list\.csv names the image 'a\.png'.* Add a first row"),
        ("image;label\na.png;x\n", "separated by ';'; expected commas"),
        ("image\tlabel\na.png\tx\n", r"separated by '\\t'; expected commas"),
        ("image,label,age\na.png,x,\n", r"Covariate 'age' is blank in row 1"),
    ],
)
def test_what_looks_like_another_table_is_said(folder, text, said):
    with pytest.raises(SourceError, match=said):
        csv(folder, text, **({"covariate_columns": ["age"]} if "age" in text else {}))


def test_a_table_in_another_encoding_says_what_to_do(folder):
    (folder / "list.csv").write_bytes("image,label\na.png,caf\u00e9\n".encode("cp1252"))
    with pytest.raises(SourceError, match=r"not UTF-8 text \(line 2\).* Save it as UTF-8"):
        read_source(folder / "list.csv")


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        (" a.png", "a.png"),
        ("a.png  ", "a.png"),
        ("sub\\d.png", "sub/d.png"),
        (".\\sub\\d.png", "sub/d.png"),
        ("sub / d.png", "sub/d.png"),
        ("caf\u00e9.png", "cafe\u0301.png"),
        ("e\u0301te\u0301.png", "\u00e9t\u00e9.png"),
        (" sub\\\uac1c.png", "sub/\u1100\u1162.png"),
    ],
)
def test_a_path_in_another_spelling_is_found_and_told(folder, cell, file):
    """From another system or a spreadsheet: the file is there under a name that looks the same."""
    Image.new("RGB", (2, 2)).save(folder / file)
    source = csv(folder, f'image,label\n"{cell}",x\nb.png,y\n')
    assert source.images == tuple(sorted([file, "b.png"]))
    assert source.samples.key.tolist() == [file, "b.png"]
    assert source.absent == {}
    (note,) = source.notes
    assert (note.code, note.details) == ("paths-found-by-other-spelling", {"paths": 1})
    given = csv(folder, f'image,label\n"{cell}",x\nb.png,y\n', inputs_only=True)
    assert given.images == source.images
    assert given.samples.key[1] == "b.png"
    assert given.samples.key[0] != file  # predictions keep the name that was given


def test_a_path_of_its_own_spelling_comes_first(folder):
    """Two files whose names look the same are two images; nothing is guessed where the file is there."""
    for name in (" a.png", "caf\u00e9.png", "cafe\u0301.png"):
        Image.new("RGB", (2, 2)).save(folder / name)
    source = csv(folder, "image,label\n a.png,x\na.png,y\ncaf\u00e9.png,x\ncafe\u0301.png,y\n")
    assert source.samples.key.tolist() == [" a.png", "a.png", "caf\u00e9.png", "cafe\u0301.png"]
    assert source.notes == ()


def test_one_file_in_two_spellings_is_an_error(folder):
    with pytest.raises(SourceError, match=r"Duplicate sample keys: 'a\.png' in rows 1, 2"):
        csv(folder, "image,label\na.png,x\n a.png,y\n")
    with pytest.raises(SourceError, match="None of the 1 image "):
        csv(folder, "image,label\n../a.png,x\n")
