"""Labels of a file, joined to the samples of a cache: `fit_heads(labels=…)`."""

import csv
import os

import numpy as np
import pytest

from bottleneck.errors import CacheError, FitError, Note, SourceError
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.fitting.labels import relabelled
from bottleneck.store.reader import FeatureCache
from tests.helpers.caches import D, class_target, write_cache
from tests.helpers.problems import features


class TestLabelsFile:
    """--labels FILE"""

    @pytest.fixture
    def cache(self, tmp_path):
        self.X, self.y = features(90, D, 3)
        return write_cache(tmp_path / "x.h5", self.X, [class_target(self.y)])

    def write(self, tmp_path, rows, name="labels.csv"):
        path = tmp_path / name
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        return path

    def test_labels_join_by_image(self, cache, tmp_path):
        rows = [("image", "sex", "site")]
        rows += [(f"./그림/{i:03d}.png", "fm"[int(self.y[i] > 0)], f"s{i % 9}") for i in range(5, 90)]
        rows.append(("elsewhere.png", "f", "s0"))
        labels = self.write(tmp_path, rows)
        result = fit_heads(cache, labels=labels, group="site", C=0.1, output=tmp_path / "heads")
        (record,) = result.heads
        assert (record["target"], record["n"]) == ("sex", 85)
        assert record["cv_accuracy"] > 0.6
        assert any("1 of 86 rows" in str(note) for note in result.notes)
        assert any("5 of 90 samples" in str(note) for note in result.notes)
        with np.load(record["out_of_fold"]) as kept:
            site = np.arange(5, 90) % 9
            assert all(len(set(kept["fold"][site == s])) == 1 for s in range(9))

    def test_labels_in_decomposed_letters(self, cache, tmp_path):
        import unicodedata

        rows = [("sample", "odd")]
        rows += [(unicodedata.normalize("NFD", f"그림/{i:03d}.png"), f"o{i % 2}") for i in range(90)]
        labels = self.write(tmp_path, rows)
        assert fit_heads(cache, labels=labels, C=0.1, output=tmp_path / "heads").heads[0]["n"] == 90

    def test_columns_are_found_by_any_spelling_and_a_split_column_is_no_target(self, cache, tmp_path):
        rows = [("Image ", " Sex", "Split", "SITE")]
        rows += [(f"그림/{i:03d}.png", "fm"[int(self.y[i] > 0)], "train", f"s{i % 9}") for i in range(90)]
        labels = self.write(tmp_path, rows)
        result = fit_heads(cache, labels=labels, group="site", C=0.1, output=tmp_path / "heads")
        assert [record["target"] for record in result.heads] == ["Sex"]
        result = fit_heads(cache, labels=labels, targets=["sex"], C=0.1, output=tmp_path / "heads")
        assert [record["target"] for record in result.heads] == ["sex"]
        told = {note.code: note for note in result.notes if isinstance(note, Note)}
        assert told["split-column-unused"].changes_result
        assert told["column-found-by-other-spelling"].details["column"] in ("Image ", " Sex")

    def test_repeated_rows_are_one_label_with_a_note(self, cache, tmp_path):
        rows = [("image", "sex"), *((f"그림/{i:03d}.png", "fm"[i % 2]) for i in (*range(90), 3, 4))]
        result = fit_heads(cache, labels=self.write(tmp_path, rows), C=0.1, output=tmp_path / "heads")
        assert result.heads[0]["n"] == 90
        assert "rows 91, 92." in str(result.notes[0])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([("image", "sex"), ("a.png", "f"), ("b.png", "m")], "join to nothing"),
            ([("name", "sex"), ("그림/000.png", "f")], "expected one of sample, key, image, file_name"),
            ([("image", "sex"), ("그림/000.png", "f"), ("그림/000.png", "m")], "twice, in rows 1, 2"),
            ([("image",), ("그림/000.png",)], "no column of labels"),
        ],
    )
    def test_what_cannot_be_joined(self, cache, tmp_path, rows, message):
        with pytest.raises(FitError, match=message):
            fit_heads(cache, labels=self.write(tmp_path, rows), output=tmp_path / "heads")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
    def test_what_is_no_file(self, cache, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "folder").mkdir()
        for name, what in (("pipe", "a pipe or a device"), ("folder", "a folder")):
            with pytest.raises(FitError, match=f"{name} is {what}; expected a table of labels"):
                fit_heads(cache, labels=tmp_path / name, output=tmp_path / "heads")
        with pytest.raises(CacheError, match="pipe is a pipe or a device; expected a feature cache"):
            fit_heads(tmp_path / "pipe", output=tmp_path / "heads")

    def test_a_cache_without_samples_is_refused(self, cache, tmp_path):
        """As the file of one map is."""
        path = self.write(tmp_path, [("image", "sex"), ("그림/000.png", "f")])
        with FeatureCache(cache) as opened:
            none = opened.samples.take(np.zeros(0, np.int64))
            with pytest.raises(FitError, match="the cache has no samples"):
                relabelled(none, opened.images.key, path)

    def test_what_joins_to_nothing_says_how_to_go_on(self, cache, tmp_path):
        rows = [(i, f"그림/{i:03d}.png", "fm"[i % 2]) for i in range(90)]
        labels = self.write(tmp_path, [("sample", "image", "sex"), *rows])
        with pytest.raises(FitError, match="Remove that column to join by 'image'"):
            fit_heads(cache, labels=labels, output=tmp_path / "heads")
        labels = self.write(tmp_path, [("image", "sex"), *((name[3:], sex) for _, name, sex in rows)])
        with pytest.raises(FitError, match="in full, with their folders"):
            fit_heads(cache, labels=labels, output=tmp_path / "heads")

    def test_samples_without_a_group_are_refused(self, cache, tmp_path):
        """They would be one group. Rows that name no sample need none."""
        rows = [("image", "sex", "site")]
        rows += [(f"그림/{i:03d}.png", "fm"[i % 2], f"s{i % 9}") for i in range(90)]
        rows[3] = (*rows[3][:2], "")
        rows[5] = (*rows[5][:2], " ")
        rows.append(("elsewhere.png", "f", ""))
        labels = self.write(tmp_path, rows)
        with pytest.raises(FitError, match=r"'site' of labels\.csv names no group in rows 3, 5; expected"):
            fit_heads(cache, labels=labels, group="site", output=tmp_path / "heads")

    def test_no_such_file_or_group(self, cache, tmp_path):
        with pytest.raises(FitError, match="no labels file"):
            fit_heads(cache, labels=tmp_path / "gone.csv", output=tmp_path)
        with pytest.raises(FitError, match="column of a labels file"):
            fit_heads(cache, group="site", output=tmp_path)
        rows = [("image", "sex"), *((f"그림/{i:03d}.png", "fm"[i % 2]) for i in range(90))]
        with pytest.raises(FitError, match="no column 'site'"):
            fit_heads(cache, labels=self.write(tmp_path, rows), group="site", output=tmp_path)
        with pytest.raises(SourceError, match="no rows"):
            fit_heads(cache, labels=self.write(tmp_path, [("image", "sex")]), output=tmp_path)
