"""The examples run as they say: most on few images and a small network, some whole."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

import bottleneck
from bottleneck.extraction.extract import extract
from tests.helpers.digits import few_digits
from tests.helpers.photographs import write_photographs

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


def quick_extract(*given, **options):
    """`extract` without the time that an engine takes to build."""
    return extract(*given, **options, engine="torch")


def load_quick(name, monkeypatch):
    """An example as a module, with its own network and images."""
    example = load(name)
    monkeypatch.setattr(example, "extract", quick_extract)
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


def figures(text):
    """The decimal numbers of a text."""
    return [float(number) for number in re.findall(r"\b\d\.\d+", text)]


def test_targets_of_all_kinds_are_learnt(tmp_path, monkeypatch, capsys):
    load_quick("targets", monkeypatch).main(tmp_path)
    tags, ink = capsys.readouterr().out.splitlines()
    assert tags.split()[:2] == ["tags", "logistic"]
    assert ink.split()[:2] == ["ink", "ridge"]
    assert figures(tags)[0] > 0.9
    assert figures(ink)[0] > 0.7


def test_a_network_of_ones_own_gives_features(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    load("own_network").main(tmp_path)
    early, end, predicted = capsys.readouterr().out.splitlines()
    assert figures(early)[0] > figures(end)[0] > 0.8
    assert predicted.endswith("is a 3")


def test_active_learning_computes_images_once(tmp_path, monkeypatch, capsys):
    load_quick("active_learning", monkeypatch).main(tmp_path, rounds=1)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(" 20 labels, 400 images computed: ")
    assert second.startswith(" 40 labels,   0 images computed: ")
    assert figures(second)[0] > 0.75


@pytest.mark.long
def test_four_images_tell_more_than_one(tmp_path, monkeypatch, capsys):
    load_quick("several_images", monkeypatch).main(tmp_path)
    one, four, with_numbers = (figures(line)[0] for line in capsys.readouterr().out.splitlines())
    assert min(four, with_numbers) > one + 0.1


@pytest.mark.long
def test_a_grid_search_prefers_the_early_node(tmp_path, capsys):
    load("search").main(tmp_path)
    best, *batches = capsys.readouterr().out.splitlines()
    assert best.startswith("best: blocks.3@avg2, ")
    assert figures(best)[-1] > 0.9
    assert batches == ["batch: features (100, 320), targets (100,)"] * 2


def split_photographs(folder):
    """`folder/SPLIT/CLASS/NUMBER.jpg`, two classes."""
    for split in ("train", "validation"):
        write_photographs(folder / split, ("cats", "dogs"))
    return folder


@pytest.mark.long
def test_cats_and_dogs_are_beside_the_published_figures(tmp_path, monkeypatch, capsys):
    example = load_quick("cats_and_dogs", monkeypatch)
    example.main(tmp_path / "digits", epochs=1)
    assert "published" not in capsys.readouterr().out
    example.main(tmp_path / "photos", split_photographs(tmp_path / "source"), epochs=1)
    *ours, kept, epochs = capsys.readouterr().out.splitlines()
    assert [figures(line)[1] for line in ours] == [0.80, 0.90, 0.94]
    assert kept.startswith("kept: ")
    assert epochs.endswith("here 1")


@pytest.mark.long
def test_the_notebook_runs():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("0 computed, 200 reused" in text for text in texts)


def test_the_cells_of_the_notebook_run_and_are_stored_without_outputs(monkeypatch, capsys):
    notebook = json.loads((EXAMPLES / "tour.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.setattr(bottleneck, "extract", quick_extract, raising=False)
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    shown = capsys.readouterr().out
    assert "0 computed, 200 reused" in shown
    assert names["found"]["accuracy"] > 0.85
