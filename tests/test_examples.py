"""The examples run as they say, on few images and a small network."""

import importlib.util
import re
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from bottleneck.cli.extract import command as extract_command
from bottleneck.cli.fit_head import command as fit_command
from bottleneck.extraction.extract import extract
from tests.helpers.digits import few_digits

EXAMPLES = Path(__file__).parents[1] / "examples"
README = EXAMPLES.with_name("README.md")


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


def messy_folder(photos):
    """The folder of the README: a wrapping folder, a class without images, a broken image, other files."""
    random = np.random.default_rng(0)
    counts = {"train/ants": 12, "train/bees": 12, "val/ants": 6, "val/bees": 6, "val/wasps": 1}
    for folder, count in counts.items():
        (photos / "pictures" / folder).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / "pictures" / folder / f"{number}.png")
    whole = (photos / "pictures/train/ants/0.png").read_bytes()
    (photos / "pictures/train/ants/cut.png").write_bytes(whole[:20])
    (photos / "pictures/train/flies").mkdir()
    for name in ("notes.txt", "pictures/Thumbs.db", "pictures/train/flies/1.heif0"):
        (photos / name).write_text("x")


def test_the_readme_shows_what_a_messy_folder_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    messy_folder(tmp_path / "photos")
    small = ["--backbone", "small_cnn", "--weights", "none", "--engine", "torch", "--image-size", "64"]
    printed = [
        CliRunner().invoke(extract_command, ["photos", "-o", "photos.h5", *small]).stdout,
        CliRunner().invoke(fit_command, ["photos.h5"]).stdout,
    ]
    section = README.read_text("utf-8").split("## A messy folder")[1].split("```")[1]
    shown = [part for part in re.split(r"^\$ .*$", section, flags=re.M) if part.strip()]
    assert len(shown) == 2
    for text, output in zip(shown, printed, strict=True):
        for part in text.split("…"):
            assert " ".join(part.split()) in " ".join(output.split())
