"""`advise` from cache to page on a few tiny images and a random network, with the shortest of trainings."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.cli.main import group
from bottleneck.errors import BottleneckError, CacheError, FitError
from bottleneck.extraction.extract import extract
from bottleneck.progress import SILENT
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.layout import statistics_path
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.advise import strategies
from bottleneck.studies.advise.advise import advise
from bottleneck.studies.advise.recommendation import EARLY, FINETUNE, HEAD, RULES, SCENARIOS, SCRATCH
from bottleneck.studies.advise.trial import UserCache, make_trial, trial_source
from bottleneck.studies.class_task import class_target
from bottleneck.studies.study_config import AdviseConfig
from tests.helpers.stripes import write_stripes


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("advise")
    with pytest.MonkeyPatch.context() as patch:  # nothing is exported to onnxruntime, which takes its time
        patch.setattr("bottleneck.engines.base._candidates", lambda *asked: [[("torch", "fp32")]])
        write_stripes(folder / "stripes", images=10, val=5)
        extract(folder / "stripes", folder / "stripes.h5", backbone="resnet18", weights="none", image_size=32)
        yield folder / "stripes.h5"


@pytest.fixture(scope="module")
def advised(cache):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "EPOCHS": 1,
            "SCRATCH_EPOCHS": 1,
        }.items():
            patch.setattr(strategies, name, value)
        words = ["advise", str(cache), "-o", str(cache.parent / "advice"), "--budget", "60", "--json"]
        shown = CliRunner().invoke(group, words, catch_exceptions=False)
    return json.loads(shown.stdout)


def test_a_network_without_batchnorm_from_a_weights_file_is_judged_by_its_classifier(tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.engines.base._candidates", lambda *asked: [[("torch", "fp32")]])
    for name, value in {"EPOCHS": 1, "SCRATCH_EPOCHS": 1, "UNFROZEN": (1,)}.items():
        monkeypatch.setattr(strategies, name, value)
    weights = str(tmp_path / "squeeze.pth")
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), weights)
    write_stripes(tmp_path / "stripes", images=10, val=5)
    cache = tmp_path / "stripes.h5"
    extract(tmp_path / "stripes", cache, backbone="squeezenet1_1", weights=weights, image_size=64)
    found = advise(cache, tmp_path / "advice", budget=60, weights=weights)
    assert found.similarity.measure == "classifier behaviour"
    assert "has no BatchNorm statistics" in found.similarity.text
    tuned = next(attempt for attempt in found.attempts if attempt.strategy == FINETUNE)
    assert f"--unfreeze 1 --weights {weights}" in tuned.command


def test_commands_can_be_given_to_a_shell_whatever_the_names():
    user = UserCache(Path("my cache.h5"), "'/our photos'", "the label", ("bottleneck",), LoadOptions())
    head = {"target": "the label", "node": "blocks.3", "head": "logistic"}
    words = shlex.split(user.finetune_command(head, 1))
    assert {"my cache.h5", "/our photos", "the label"} <= set(words)


def test_the_head_that_is_proposed_for_fine_tuning_is_the_one_that_is_fitted_before(
    cache, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = Path("우리 사진 (1).h5")
    shutil.copy(cache, path)
    shutil.copy(statistics_path(cache), statistics_path(path))
    user = UserCache(path, "stripes", "label", ("bottleneck",), LoadOptions())
    head = {"node": "bottleneck", "head": "logistic"}
    fit, tune = user.finetune_command(head, 1).split(" && ")
    shown = CliRunner().invoke(
        group, [*shlex.split(fit)[1:], "--C", "1", "--cv", "2"], catch_exceptions=False
    )
    assert shown.exit_code == 0, shown.output
    assert Path(shlex.split(tune)[4]).is_file()


def test_commands_name_the_manifest_and_its_columns_so_that_no_sample_loses_its_label(tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.engines.base._candidates", lambda *asked: [[("torch", "fp32")]])
    write_stripes(tmp_path / "stripes", images=4, val=2)
    files = sorted((tmp_path / "stripes").rglob("*.png"))
    lines = [f"{file.relative_to(tmp_path)},{file.parent.name},{file.parent.parent.name}" for file in files]
    (tmp_path / "my list.csv").write_text("\n".join(["image,kind of stripe,part", *lines]) + "\n")
    path, columns = tmp_path / "list.h5", {"label_columns": ["kind of stripe"], "split_column": "part"}
    extract(
        tmp_path / "my list.csv",
        path,
        backbone="small_cnn",
        weights="none",
        depth=1,
        image_size=32,
        **columns,
    )
    trial = make_trial(path, tmp_path / "advice", AdviseConfig(), LoadOptions(), SILENT)
    node = next(node for node in trial.nodes if node != "bottleneck")
    with FeatureCache(path) as before:
        samples = before.samples
    with CacheFile(path) as file:
        assert "--label-column 'kind of stripe' --split-column part -o" in file.mend
    command, *_ = trial.user.fit_command(node).split(" && ")
    shown = CliRunner().invoke(group, shlex.split(command)[1:], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    with FeatureCache(path) as after:
        assert node in after.nodes
        assert after.samples.split.tolist() == samples.split.tolist()
        target, old = after.samples.targets["kind of stripe"], samples.targets["kind of stripe"]
        assert [target.answer(row) for row in range(len(samples))] == list(
            map(old.answer, range(len(samples)))
        )


def test_advice_has_what_was_promised(advised):
    assert set(advised) >= {"scenario", "size", "similarity", "recommendation", "rules", "evidence", "figure"}
    assert advised["scenario"] in SCENARIOS
    assert advised["size"]["per_class"] == 10
    assert advised["similarity"] is None  # random weights
    assert set(advised["rules"]) == set(RULES)
    with Image.open(advised["figure"]) as page:
        assert page.format == "PNG"


def test_every_strategy_is_tried_and_one_of_them_recommended(advised):
    tried = advised["evidence"]["attempts"]
    strategies = [attempt["strategy"] for attempt in tried]
    assert list(dict.fromkeys(strategies)) == [HEAD, EARLY, FINETUNE, SCRATCH]
    assert advised["recommendation"] in tried
    for attempt in tried:
        if attempt["strategy"] in (HEAD, EARLY):  # all 40 samples of train, 18 of val by the budget
            pooled = (40 * attempt["cv_accuracy"] + 18 * attempt["accuracy"]["val"]) / 58
        else:
            pooled = attempt["accuracy"]["val"]
        assert attempt["pooled"] == pytest.approx(pooled)
    assert advised["recommendation"]["command"].startswith("bottleneck ")


def test_the_probe_curve_goes_up_the_network_and_every_node_is_scored(advised):
    nodes = [head["node"] for head in advised["evidence"]["probe_curve"]]
    assert nodes == [
        *(f"{node}@avg2" for node in ("maxpool", "layer1", "layer2", "layer3", "layer4")),
        "bottleneck",
    ]
    assert set(advised["evidence"]["scores"]) == set(nodes)


def test_the_users_cache_is_only_read(cache, advised):
    with FeatureCache(cache) as opened:
        assert list(opened.nodes) == ["bottleneck"]


def test_a_trial_keeps_each_class_its_share_and_never_more_than_its_budget(cache):
    with FeatureCache(cache) as opened:
        source = trial_source(opened, "label", budget=40)
        splits = source.samples.split
        codes = source.samples.targets["label"].values
        assert (splits == "train").sum() == 28
        assert (splits == "val").sum() == 12
        assert np.bincount(codes[splits == "train"]).tolist() == [7, 7, 7, 7]
        assert set(opened.images.key) >= set(source.images)


def test_targets_without_classes_are_named(cache):
    with FeatureCache(cache) as opened, pytest.raises(FitError, match=r"label \(class\)"):
        class_target(opened, "age")


def test_a_budget_that_shows_nothing_is_refused(cache):
    with pytest.raises(BottleneckError, match="budget is 3"):
        advise(cache, budget=3)


def test_images_that_are_gone_are_named(cache):
    image = cache.parent / "stripes" / "train" / "class0" / "0.png"
    hidden = image.rename(image.with_suffix(".hidden"))
    try:
        with pytest.raises(CacheError, match=r"1 of \d+ images .* is gone: train/class0/0\.png"):
            advise(cache, budget=60)
    finally:
        hidden.rename(image)
