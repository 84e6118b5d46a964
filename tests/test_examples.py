"""The examples run as they say, on few images and a small network."""

import importlib.util
from pathlib import Path

from bottleneck.extraction.extract import extract
from tests.helpers.digits import few_digits

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def load_small(name, monkeypatch):
    """An example as a module, that takes few images and a small network."""
    example = load(name)
    monkeypatch.setattr(example, "write_digits", few_digits)
    small = {"backbone": "small_cnn", "engine": "torch", "image_size": 64}
    monkeypatch.setattr(example, "extract", lambda *given, **options: extract(*given, **options, **small))
    return example


def test_estimators_saves_a_head_that_is_as_accurate(tmp_path, monkeypatch, capsys):
    load_small("estimators", monkeypatch).main(tmp_path)
    alone, pipeline, saved = capsys.readouterr().out.splitlines()
    assert pipeline.startswith("behind PCA: ")
    assert alone.removeprefix("head alone: ").removesuffix(" on test") == saved.removeprefix("saved head: ")


def test_heads_answers_both_questions_on_every_node(tmp_path, monkeypatch, capsys):
    example = load_small("heads", monkeypatch)
    nodes = ("features.block3@avg2", "bottleneck")
    monkeypatch.setattr(example, "NODES", nodes)
    example.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    questions = {tuple(line.split()[:2]) for line in lines[:4]}
    assert questions == {(target, node) for node in nodes for target in ("numeral", "parity")}
    assert all("images per class" in line for line in lines[4:8])
    assert all(Path(name).exists() for name in lines[8].split()[1:])
