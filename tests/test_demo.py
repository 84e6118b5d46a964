"""`bottleneck.demo`: the whole chain, on few images and a small network."""

from pathlib import Path

import bottleneck.demo
from bottleneck.demo import demo
from bottleneck.extraction.extract import extract
from bottleneck.store.reader import FeatureCache
from tests.helpers.digits import few_digits


def test_the_demo_predicts_test_images_and_ends_with_a_page(tmp_path, monkeypatch):
    small = {"backbone": "small_cnn", "engine": "torch", "image_size": 64}
    monkeypatch.setattr(bottleneck.demo, "NODES", ("features.block3@avg2", "bottleneck"))
    monkeypatch.setattr(bottleneck.demo, "write_digits", few_digits)
    monkeypatch.setattr(
        bottleneck.demo, "extract", lambda *given, **options: extract(*given, **options, **small)
    )
    result = demo(tmp_path / "demo")
    with FeatureCache(tmp_path / "demo/digits.h5") as cache:
        split = dict(zip(map(str, cache.images.key), cache.samples.split, strict=True))
    shown = [Path(row["image"]).relative_to(tmp_path / "demo/digits") for row in result["predictions"]]
    assert [split[key.as_posix()] for key in shown] == ["test"] * 5
    assert len({key.parent for key in shown}) == 5
    page = Path(result["report"]).read_text("utf-8")
    assert page.startswith("<!doctype html>")
    assert f"bottleneck report {result['chosen']['path']}" in page
    assert (result["images"], result["evaluation"]["n"]) == (150, list(split.values()).count("test"))
    assert {note.code for note in result["notes"]} >= {"c-grid-extended", "reference-images"}
