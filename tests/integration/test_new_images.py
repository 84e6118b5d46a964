"""`suggest` and `drift` on a folder: its features are computed as the cache's were, once, and kept."""

import shutil

from bottleneck import FeatureCache
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
