"""Fine-tuning from a cache: it starts as the head, is never worse, and leaves frozen things alone."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
import torch

from bottleneck.backbones.model_file import STATISTICS, read_network
from bottleneck.engines.reference import COSINES
from bottleneck.errors import BackboneError, CacheError, FingerprintError, FitError, ImageError, StrictError
from bottleneck.extraction.extract import extract
from bottleneck.fitting.fit_heads import fit_heads
from bottleneck.heads.artifact import load_head
from bottleneck.models.evaluate import evaluate
from bottleneck.progress import SILENT
from bottleneck.store import layout
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.compare.compare import compare
from bottleneck.training.config import FinetuneConfig
from bottleneck.training.finetune import checked_start, find_learning_rate, finetune
from bottleneck.training.finetune_plan import open_job, plan_finetuning
from bottleneck.training.inputs import backbone_of
from bottleneck.trials.heads import head_on
from bottleneck.trials.task import task_of
from tests.helpers.fitted_cache import copied, write_images
from tests.helpers.forked import exit_code
from tests.helpers.killed_training import FRESH, RESUMED, finetuned
from tests.helpers.recorder import Recorder

QUICK = {"epochs": 3, "batch_size": 8, "device": "cpu"}


@pytest.fixture
def cache(made_cache, tmp_path):
    """A copy of the cache that a test may change."""
    return copied(made_cache, tmp_path)


def test_it_starts_at_the_heads_logits_and_is_never_worse(cache, made_head, tmp_path):
    result = finetune(cache, made_head, tmp_path / "m.safetensors", **QUICK)
    assert result.max_logit_difference_at_start <= 1e-4
    assert result.finetuned_accuracy["val"] >= result.head_accuracy["val"]
    assert set(result.finetuned_accuracy) == {"train", "val", "test"}
    assert [record.epoch for record in result.epochs] == list(range(len(result.epochs)))
    assert result.unfrozen == ("block4",)
    history = json.loads((tmp_path / "m.history.json").read_text())
    assert history["kept"] == result.kept
    assert "`blue`, `green`, `red`" in (tmp_path / "m.md").read_text()


def test_it_starts_from_features_in_int8_with_the_map_that_int8_cannot_give(images, tmp_path, monkeypatch):
    path = tmp_path / "c.h5"
    extract(images, path, backbone="small_cnn", depth=2, image_size=32, precision="int8", force=True)
    (head,) = fit_heads(path, output=tmp_path / "heads").heads
    monkeypatch.setitem(COSINES, "int8", 1.1)  # no engine reaches it
    result = finetune(path, head["path"], tmp_path / "m.safetensors", **QUICK)
    codes = [note.code for note in result.notes]
    assert codes.count("map-precision") == 1
    assert "map-in-float32" not in codes, "its rounding is not what differs"
    with FeatureCache(path) as cache:
        (place,) = [node for node in cache.nodes.values() if node.is_map]
        assert (place.precision, place.dtype, cache.node("bottleneck").precision) == (
            "fp32",
            "float16",
            "int8",
        )
    assert result.max_logit_difference_at_start > 0
    assert result.finetuned_accuracy["val"] >= result.head_accuracy["val"]


def find_notes(cache, head):
    """What is said of a head before training starts from it."""
    config = FinetuneConfig(**QUICK)
    plan = plan_finetuning(cache, head, config)
    with open_job(plan, config, cache.parent, SILENT) as run:
        return checked_start(plan, run, config)[1]


def test_a_head_whose_logits_are_too_small_for_the_loss_is_said_first(cache, tmp_path):
    head, larger = (fit_heads(cache, C=C, output=tmp_path / f"{C}").heads[0]["path"] for C in (1e-7, 1e-3))
    result = finetune(cache, head, tmp_path / "m.safetensors", **{**QUICK, "epochs": 1})
    assert result.max_logit_difference_at_start <= 1e-4, "what it starts at is the head all the same"
    (note,) = [note.message for note in result.notes if note.code == "start-faint"]
    assert "training starts almost anew" in note
    command = re.search("bottleneck fit-head .* --target label --node bottleneck --C ([0-9.e-]+)`", note)
    assert 1e-6 < float(command[1]) < 1e-2
    assert find_notes(cache, larger) == ()
    other = replace(load_head(head), kind="nearest-mean", C=None).save(tmp_path / "other.safetensors")
    (note,) = find_notes(cache, other)
    assert note.message.endswith("--node bottleneck --head logistic`.")


def test_the_head_is_what_is_saved_where_nothing_beats_it(cache, made_head, tmp_path):
    result = finetune(cache, made_head, tmp_path / "m.safetensors", lr=1e-12, **QUICK)
    before, after = load_head(made_head), load_head(tmp_path / "m.safetensors")
    assert result.kept == "head"
    assert "head-kept" in [note.code for note in result.notes]
    kinds = {name.rpartition(".")[2] for name in read_network(tmp_path / "m.safetensors")}
    assert kinds <= set(STATISTICS)
    assert all(np.array_equal(before.arrays[name], after.arrays[name]) for name in before.arrays)
    assert result.finetuned_accuracy == result.head_accuracy


def test_what_is_frozen_stays_to_the_bit(cache, made_head, tmp_path):
    path = tmp_path / "m.safetensors"
    result = finetune(cache, made_head, path, lr=0.05, epochs=6, batch_size=8, label_smoothing=0.2)
    assert result.kept == "finetuned", "the problem is made so that training helps"
    with FeatureCache(cache) as opened:
        original = backbone_of(opened).module.state_dict()
    changed = {name for name, tensor in read_network(path).items() if not torch.equal(tensor, original[name])}
    assert changed
    buffers = {name for name in original if name.rpartition(".")[2].startswith(("running", "num_batches"))}
    assert buffers
    assert not changed & buffers
    assert all(name.startswith("features.block4.") for name in changed)


def test_the_saved_model_says_of_images_what_training_said(cache, made_head, images, tmp_path):
    path = tmp_path / "m.safetensors"
    result = finetune(cache, made_head, path, lr=0.05, epochs=6, batch_size=8, label_smoothing=0.2)
    for split in ("val", "test"):
        found = evaluate(path, images, split=split, engine="torch")
        assert found["accuracy"] == pytest.approx(result.finetuned_accuracy[split])
        assert found["log_loss"] == pytest.approx(result.metrics[split]["log_loss"], rel=1e-3)


def test_a_killed_run_comes_to_the_same_bits(cache, made_head, tmp_path):
    def run(name, kill=None):
        return exit_code(finetuned, cache, made_head, tmp_path / name, kill)

    assert run("whole.safetensors") == FRESH
    assert run("cut.safetensors", kill=9) == -9
    assert run("cut.safetensors") == RESUMED
    whole, cut = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert not (tmp_path / "cut.checkpoint.safetensors").exists()


def test_a_diverging_run_stops_and_says_what_to_try(cache, made_head, tmp_path):
    result = finetune(cache, made_head, tmp_path / "m.safetensors", lr=500.0, **QUICK)
    assert result.stopped == "diverged"
    assert result.images_per_second > 0
    (note,) = [note for note in result.notes if note.code == "loss-diverged"]
    assert "Try --lr 50" in note.message
    with pytest.raises(StrictError, match="The loss diverged"):
        finetune(cache, made_head, tmp_path / "n.safetensors", lr=500.0, strict=True, **QUICK)
    assert not (tmp_path / "n.safetensors").exists()
    assert result.finetuned_accuracy["val"] >= result.head_accuracy["val"]


@pytest.mark.parametrize(
    "options", [{"views": 2}, {"augment": "live"}, {"unfreeze": "all"}, {"memory": 50_000}]
)
def test_other_feeds_start_at_the_head_as_well(made_cache, viewed_cache, made_head, tmp_path, options):
    cache = copied(viewed_cache if "views" in options else made_cache, tmp_path)
    result = finetune(cache, made_head, tmp_path / "m.safetensors", **{**QUICK, **options, "epochs": 1})
    assert result.max_logit_difference_at_start <= 2e-2
    assert result.input == ("pixels" if "unfreeze" in options else "features.block3@none")
    assert not list(tmp_path.glob(".pixels*"))


def test_a_map_that_is_missing_is_extracted_after_its_cost_is_told(cache, made_head, tmp_path):
    recorder = Recorder()
    result = finetune(
        cache, made_head, tmp_path / "m.safetensors", unfreeze=2, reporter=recorder, **{**QUICK, "epochs": 1}
    )
    assert "features.block2@none of 81 images once" in recorder.told[0]
    assert "on disk" in recorder.told[0]
    assert result.map_seconds > 0
    with FeatureCache(cache) as opened:
        assert {"bottleneck", "features.block2@none", "features.block3@none"} <= set(opened.nodes)
        assert len(opened.samples) == 81


def test_a_missing_map_of_images_that_are_gone(made_head, tmp_path):
    folder = write_images(tmp_path / "images")
    cache = tmp_path / "c.h5"
    extract(folder, cache, backbone="small_cnn", engine="torch")
    (folder / "train" / "red" / "3.png").unlink()
    with FeatureCache(cache) as opened:
        task = task_of(opened, None, cv=5, seed=0)
        head = head_on(task, "bottleneck", task.rows["train"], 1e-2).save(tmp_path / "h.safetensors")
    with pytest.raises(CacheError, match=r"1 of 81 images .* is gone: train/red/3.png"):
        finetune(cache, head, **QUICK)
    with FeatureCache(cache) as opened:
        assert len(opened.images.key) == 81


def test_the_head_of_another_cache_is_refused_by_the_fields_that_differ(cache, made_head, tmp_path):
    head = load_head(made_head)
    other = replace(head, preprocess={**head.preprocess, "size": 64}, node_fingerprint="another")
    path, cache = other.save(tmp_path / "h.safetensors"), cache.rename(tmp_path / "my cache.h5")
    for refused_by in (partial(finetune, cache, path, **QUICK), partial(evaluate, path, cache)):
        with pytest.raises(FingerprintError, match=r"preprocess\.size differ") as refused:
            refused_by()
        assert f"bottleneck fit-head '{cache}'" in refused.value.hint


def test_more_blocks_than_there_are(cache, made_head):
    with pytest.raises(BackboneError, match="Cannot unfreeze 9 blocks"):
        finetune(cache, made_head, unfreeze=9, **QUICK)


def test_a_start_that_is_not_the_heads_is_refused(cache, made_head, tmp_path):
    path = cache.parent / "c--features.block3.h5"
    with h5py.File(path, "r+") as file:
        rows = next(iter(file["features"].values()))
        rows[...] = rows[...] * 1.5
        del file["crc32_features"]  # else the rows would be found damaged
        layout.seal(file)
    with pytest.raises(FitError, match="Before the first step the network's logits differ"):
        finetune(cache, made_head, tmp_path / "m.safetensors", **QUICK)


def test_a_learning_rate_is_found(cache, made_head):
    found = find_learning_rate(cache, made_head, FinetuneConfig(batch_size=8, device="cpu"))
    assert 1e-6 <= found.lr <= 10
    assert list(found.rates) == sorted(found.rates)
    assert len(found.rates) == len(found.losses)


def test_val_is_carved_where_there_is_none_and_the_start_has_not_seen_it(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 20, "test": 5})
    cache = tmp_path / "c.h5"
    nodes = ("bottleneck", "block3@none")
    extract(folder, cache, backbone="small_cnn", nodes=nodes, engine="torch")
    with FeatureCache(cache) as opened:
        task = task_of(opened, None, cv=5, seed=0)
        head = head_on(task, "bottleneck", task.rows["train"], 1e-2)
    result = finetune(cache, head.save(tmp_path / "h.safetensors"), tmp_path / "m.safetensors", **QUICK)
    assert result.n == {"train": 48, "val": 12, "test": 15}
    codes = {note.code: note for note in result.notes}
    assert codes["val-taken-from-train"].details == {"val": 12, "train": 48}
    assert codes["start-fitted-again"].changes_result
    with pytest.raises(StrictError, match="training starts from a logistic head"):
        finetune(cache, tmp_path / "h.safetensors", tmp_path / "n.safetensors", strict=True, **QUICK)


def write_warmth(images, path, splits=("train", "val", "test")):
    """Labels of another question, by image: is it warm? Its pictures lie on three sites."""
    keys = [key.relative_to(images).as_posix() for key in sorted(images.rglob("*.png"))]
    rows = [f"{key},{'warm' if '/red/' in key else 'cold'},s{number % 3}" for number, key in enumerate(keys)]
    wanted = [row for row in rows if row.startswith(splits)]
    path.write_text("\n".join(["image,warmth,site", *wanted, "elsewhere.png,warm,s0"]))
    return path


def test_labels_of_a_file_are_fitted_tuned_and_measured_alike(cache, images, tmp_path):
    labels = write_warmth(images, tmp_path / "warmth.csv")
    head = fit_heads(cache, labels=labels, group="site", C=1e-2, output=tmp_path / "heads").heads[0]
    model = tmp_path / "m.safetensors"
    result = finetune(cache, head["path"], model, labels=labels, group="site", **QUICK)
    assert (result.target, result.classes) == ("warmth", ("cold", "warm"))
    assert result.max_logit_difference_at_start <= 1e-4
    assert result.head_accuracy == pytest.approx(head["accuracy"])
    assert any("1 of 82 rows of warmth.csv names no sample" in str(note) for note in result.notes)
    found = evaluate(model, cache, labels=labels, split="test")
    assert found["accuracy"] == pytest.approx(result.finetuned_accuracy["test"])


def test_groups_of_the_file_stay_whole_where_val_is_carved(tmp_path):
    images = write_images(tmp_path / "images", {"train": 15})
    cache, labels = tmp_path / "c.h5", write_warmth(images, tmp_path / "warmth.csv")
    extract(images, cache, backbone="small_cnn", nodes=("bottleneck", "block3@none"), engine="torch")
    asked = {"labels": labels, "group": "site"}
    head = fit_heads(cache, **asked, C=1e-2, output=tmp_path / "heads").heads[0]["path"]
    result = finetune(cache, head, tmp_path / "m.safetensors", **asked, **{**QUICK, "epochs": 1})
    assert result.n == {"train": 30, "val": 15}, "one of three sites, where a fifth was asked for"


def test_a_head_on_labels_of_a_file_asks_for_them(cache, images, tmp_path):
    labels = write_warmth(images, tmp_path / "warmth.csv")
    head = fit_heads(cache, labels=labels, C=1e-2, output=tmp_path / "my heads").heads[0]["path"]
    with pytest.raises(FitError, match="target 'warmth'; the cache has: 'label'") as refused:
        finetune(cache, head, tmp_path / "m.safetensors", **QUICK)
    assert f"bottleneck finetune {cache} --head '{head}' --labels FILE" in refused.value.hint


def test_a_cache_that_changed_while_a_run_was_prepared_is_refused(cache, made_head, images, tmp_path):
    config = FinetuneConfig(**QUICK)
    plan = plan_finetuning(cache, made_head, config)
    fewer = shutil.copytree(images, tmp_path / "fewer")
    (fewer / "train" / "red" / "0.png").unlink()
    for path in cache.parent.glob("c*"):
        path.unlink()
    extract(fewer, cache, backbone="small_cnn", nodes=("bottleneck", "block3@none"), engine="torch")
    job = open_job(plan, config, tmp_path, SILENT)
    with pytest.raises(CacheError, match="changed while the run was being prepared"), job:
        pass


def test_maps_are_extracted_without_the_images_that_broke(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 8, "val": 4})
    cache = tmp_path / "c.h5"
    extract(folder, cache, backbone="small_cnn", engine="torch")
    head = fit_heads(cache, C=1e-3, output=tmp_path / "heads").heads[0]["path"]
    (folder / "train" / "red" / "3.png").write_bytes(b"no image at all")
    result = finetune(cache, head, tmp_path / "m.safetensors", **{**QUICK, "epochs": 1})
    assert result.n == {"train": 23, "val": 12}
    (note,) = [note for note in result.notes if note.code == "images-unread"]
    assert note.details == {"samples": 1}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A cache, its head, and one image of it that broke later."""
    tmp_path = tmp_path_factory.mktemp("broken")
    folder = write_images(tmp_path / "images", {"train": 8, "val": 4})
    cache = tmp_path / "c.h5"
    extract(folder, cache, backbone="small_cnn", nodes=("bottleneck", "block3@none"), engine="torch")
    head = fit_heads(cache, C=1e-3, output=tmp_path / "heads").heads[0]["path"]
    (folder / "train" / "red" / "3.png").write_bytes(b"no image at all")
    return cache, head


def unread(notes):
    return [
        (note.code, note.changes_result, note.details, "train/red/3.png" in note.message)
        for note in notes
        if note.code.endswith("-unread")
    ]


@pytest.mark.parametrize(
    ("options", "n", "code"),
    [
        ({"unfreeze": "all"}, 23, "images-unread"),
        ({"unfreeze": "all", "augment": "live"}, 23, "images-unread"),
        ({"augment": "live"}, 24, "views-unread"),
    ],
)
def test_training_on_images_goes_on_without_those_that_broke(broken, tmp_path, options, n, code):
    settings = {**QUICK, "epochs": 1, **options}
    result = finetune(*broken, tmp_path / "m.safetensors", **settings)
    assert result.n == {"train": n, "val": 12}
    assert unread(result.notes) == [(code, True, {"images": 1}, True)]
    with pytest.raises(StrictError, match="1 image could not be read"):
        finetune(*broken, tmp_path / "n.safetensors", strict=True, **settings)
    assert not (tmp_path / "n.safetensors").exists()


def test_a_comparison_from_scratch_goes_on_without_the_images_that_broke(broken, tmp_path):
    options = {"unfreeze": (0,), "scratch": (3,), "seeds": 1, **QUICK, "epochs": 1}
    for _ in range(2):  # the second time the runs are read
        result = compare(broken[0], tmp_path / "runs", **options)
        assert [(run.unfreeze, run.n) for run in result.runs] == [(0, 24), ("scratch", 23)]
        assert unread(result.notes) == [("images-unread", True, {"runs": 1}, True)]


def test_training_on_images_ends_where_none_can_be_read(broken, tmp_path):
    for path in (broken[0].parent / "images").rglob("*.png"):  # the last test of this fixture
        path.write_bytes(b"no image at all")
    with pytest.raises(FitError, match="None of the 24 train samples has images that can be read: "):
        finetune(*broken, tmp_path / "m.safetensors", unfreeze="all", **QUICK)
    with pytest.raises(ImageError, match=r"png cannot be read: "):
        finetune(*broken, tmp_path / "m.safetensors", augment="live", **QUICK)


def test_a_comparison_goes_on_without_the_images_that_broke(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 8, "val": 4})
    cache = tmp_path / "c.h5"
    extract(folder, cache, backbone="small_cnn", engine="torch")
    (folder / "train" / "red" / "3.png").write_bytes(b"no image at all")
    options = {"unfreeze": (1,), "init": ("head",), "seeds": 1, **QUICK, "epochs": 1}
    result = compare(cache, tmp_path / "runs", **options)
    assert result.runs[0].n == 23
    assert [note.details for note in result.notes if note.code == "images-unread"] == [{"samples": 1}]
