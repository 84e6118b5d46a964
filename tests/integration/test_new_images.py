"""`suggest` and `drift` on a folder: its features are computed as the cache's were, once, and kept."""

import shutil

from bottleneck import FeatureCache, extract
from tests.helpers.photographs import photograph


def test_a_folder_is_extracted_as_the_cache_was_and_only_once(fitted, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "새 사진"
    folder.mkdir()
    for number in range(24):
        photograph(number % 3, 100 + number).save(folder / f"{number:02}.jpg", quality=92)
    (folder / "broken.png").write_text("no image")
    shutil.copy(fitted.source / "bees" / "001.jpg", folder / "copy.jpg")
    first = run("suggest", fitted.cache, folder, "--n", 5, "-o", "to_label.csv", "--json").json
    assert first["candidates"] == 24
    assert len(first["suggestions"]) == 5
    assert [each["image"] for each in first["failed"]] == ["broken.png"]
    assert not first["backtest"]["done"]
    with FeatureCache(first["features"]) as new, FeatureCache(fitted.cache) as old:
        assert new.vector_fingerprint("bottleneck") == old.vector_fingerprint("bottleneck")
    written = (tmp_path / first["features"]).stat().st_mtime_ns
    found = run("drift", fitted.cache, folder, "--json").json
    assert (found["new"], found["copies"]) == (24, 1)
    assert found["p_value"] > 0.05
    assert (tmp_path / first["features"]).stat().st_mtime_ns == written
    shown = run("drift", fitted.cache, folder)
    assert "No difference is shown" in shown.out
    same = run("suggest", fitted.cache, fitted.source)
    assert same.code == 1
    assert "none is new" in same.err or "All 30 samples" in same.err


def test_a_manifest_is_read_by_the_columns_of_the_cache_and_keeps_its_own_labels_and_splits(
    tmp_path, run, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    small = {"image_size": 64, "engine": "torch"}
    for name, seed in (("old", 0), ("new", 50)):
        folder = tmp_path / name
        folder.mkdir()
        lines = ["사진 경로,kind,age"]
        for number in range(24):
            photograph(number % 2, seed + number).save(folder / f"{number:02}.png")
            lines.append(f"{number:02}.png,{'ab'[number % 2]},{number}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    extract("old/old.csv", "old.h5", image_columns=["사진 경로"], label_columns=["kind"], **small)
    reading = {"image_columns": ["사진 경로"], "label_columns": ["age"], "regression": ["age"]}
    own = extract("new/new.csv", **small, **reading, val_fraction=0.25).cache
    with FeatureCache(own) as cache:
        before = cache.samples
    for command in ("drift", "suggest"):
        found = run(command, "old.h5", "new/new.csv", "--engine", "torch", "--json").json
        assert found["features"] == own
        assert not {"splits-changed", "no-label-column"} & {note["code"] for note in found["notes"]}
    with FeatureCache(own) as cache:
        after = cache.samples
    assert after.targets["age"].kind == "regression"
    assert after.split.tolist() == before.split.tolist()
    (tmp_path / "new" / "other.csv").write_text(
        (tmp_path / "new" / "new.csv").read_text("utf-8").replace("사진 경로", "where"), "utf-8"
    )
    refused = run("drift", "old.h5", "new/other.csv", "--engine", "torch")
    assert "--image-column where" in refused.err
    assert run("drift", "old.h5", "new/other.csv", "--engine", "torch", "--image-column", "where").code == 0
    refused = run("drift", "old.h5", own, "--image-column", "where")
    assert (refused.code, "is a cache" in refused.err) == (1, True)
