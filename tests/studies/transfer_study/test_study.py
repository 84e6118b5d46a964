"""The transfer study on a few tiny images: what is trained, frozen, resumed and refused."""

import csv
import json
import signal
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from bottleneck.cli.main import group
from bottleneck.data.config import ReadConfig
from bottleneck.errors import (
    BackboneError,
    BottleneckError,
    FingerprintError,
    FitError,
    SourceError,
    StrictError,
)
from bottleneck.samples import ArrayRows
from bottleneck.studies.study_config import StudyConfig
from bottleneck.studies.transfer_study.networks import build_network
from bottleneck.studies.transfer_study.protocol import Run, class_halves, plan_runs, read_images
from bottleneck.studies.transfer_study.runs import Runner
from bottleneck.studies.transfer_study.study import transfer_study
from tests.helpers.forked import started
from tests.helpers.stripes import write_stripes

SMALL = {
    "image_size": 16,
    "in_channels": 1,
    "width": 4,
    "epochs": 4,
    "batch_size": 4,
    "lr": 0.1,
    "shares": (0.75,),
}
FLAGS = [
    word
    for name, value in SMALL.items()
    if name != "shares"
    for word in (f"--{name.replace('_', '-')}", value)
]
FLAGS = [str(word) for word in (*FLAGS, "--share", *SMALL["shares"])]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("stripes"), images=16, val=8)


@pytest.fixture(scope="module")
def study(source, tmp_path_factory):
    return transfer_study(source, tmp_path_factory.mktemp("study"), seeds=2, **SMALL)


def test_every_kind_is_trained_for_every_seed_and_depth(study):
    planned = plan_runs(study.config, len(study.layers))
    assert study.trained == len(planned) == 2 * (2 + 5 * 7 + 2)
    values = study.to_json()
    assert [len(values["curves"][kind]) for kind in ("baseB", "BnB", "random")] == [1, 7, 7]
    assert {len(point["values"]) for curve in values["curves"].values() for point in curve} == {2}
    assert all(run.val_images == len(run.hits) == 16 for run in study.results)
    assert all(run.accuracy == run.hits.mean() for run in study.results)
    with open(values["csv"], newline="") as file:
        assert len(list(csv.DictReader(file))) == len(planned)


def test_differences_are_paired_with_the_base_of_the_same_seed_and_target(study):
    accuracy = {(run.seed, run.kind, run.n, run.share): run.accuracy for run in study.results}
    for name, minuend, subtrahend in (("base-BnB", "baseB", "BnB"), ("AnB+-base", "AnB+", "baseB")):
        for point in study.to_json()["differences"][name]:
            expected = [
                accuracy[seed, minuend, 0 if "base" in minuend else point["n"], 1.0]
                - accuracy[seed, subtrahend, 0 if "base" in subtrahend else point["n"], 1.0]
                for seed in range(2)
            ]
            assert point["values"] == pytest.approx(expected)
            assert point["mean"] == pytest.approx(np.mean(expected))


def test_a_study_that_was_stopped_trains_only_what_is_missing(study, source):
    before = {
        run.name: study.folder.joinpath(f"{run.name}.json").read_bytes() for run in plan_runs(study.config, 8)
    }
    gone = ["seed1-BnB-3", "seed0-AnB+-7-share0.75"]
    for name in gone:
        (study.folder / f"{name}.json").unlink()
    again = transfer_study(source, study.folder, seeds=2, **SMALL)
    assert again.trained == 2
    for name, content in before.items():
        now = json.loads((study.folder / f"{name}.json").read_bytes())
        assert now["accuracy"] == json.loads(content)["accuracy"], name


def test_the_command_resumes_draws_and_prints_json(study, source, monkeypatch):
    words = ["transfer-study", str(source), "-o", str(study.folder), "--seeds", "2", "--json", *FLAGS]
    shown = CliRunner().invoke(group, words, catch_exceptions=False)
    values = json.loads(shown.stdout)
    assert values["trained"] == 0
    assert set(values["curves"]) == {"baseA", "baseB", "BnB", "BnB+", "AnB", "AnB+", "random"}
    with Image.open(values["figure"]) as picture:
        assert picture.format == "PNG"
    monkeypatch.setattr("bottleneck.report.studies.transfer_figure", lambda study, path: path)
    people = CliRunner().invoke(group, [word for word in words if word != "--json"], catch_exceptions=False)
    assert "co-adaptation" in people.stdout or "selffer" in people.stdout


def test_nothing_is_left_but_results_and_base_networks(study):
    names = {path.name for path in study.folder.iterdir()}
    runs = plan_runs(study.config, len(study.layers))
    expected = {f"{run.name}.json" for run in runs} | {
        f"{run.name}.safetensors" for run in runs if run.n == 0
    }
    assert names - {"study.lock", "figure.png"} == expected | {"study.json", "runs.csv"}


def test_a_study_that_is_killed_goes_on_with_the_next_run(study, source, tmp_path):
    process = started(transfer_study, source, tmp_path, seeds=1, **SMALL)
    while len(list(tmp_path.glob("seed*.json"))) < 6 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed*.json")}
    again = transfer_study(source, tmp_path, seeds=1, **SMALL)
    assert len(kept) + again.trained == len(again.results) == len(study.results) / 2
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    assert [run.correct for run in again.results] == [run.correct for run in study.results if run.seed == 0]


def test_images_that_tell_nothing_end_with_the_base_that_did_not_learn(tmp_path):
    rng = np.random.default_rng(0)
    for path in write_stripes(tmp_path / "images", images=8, val=8).rglob("*.png"):
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
    with pytest.raises(
        FitError, match=r"seed0-base[AB] \(0\.\d+ on 16 val images, where guessing gives 0\.500"
    ):
        transfer_study(tmp_path / "images", tmp_path / "study", seeds=1, **SMALL)
    assert not list((tmp_path / "study").glob("*BnB*"))


def test_another_setting_is_not_mixed_in(study, source):
    with pytest.raises(FingerprintError, match="epochs"):
        transfer_study(source, study.folder, seeds=2, **{**SMALL, "epochs": 3})


def test_other_images_are_not_mixed_in(study, tmp_path):
    other = write_stripes(tmp_path, classes=5)
    with pytest.raises(FingerprintError, match="images"):
        transfer_study(other, study.folder, seeds=2, **SMALL)


@pytest.fixture
def runner(source, tmp_path):
    config = StudyConfig(seeds=1, **SMALL)
    network = build_network(config.network, 2, size=16, channels=1, width=4)
    images = read_images(source, network.preprocess, tmp_path, ReadConfig())
    halves = [{"A": np.array([0, 1]), "B": np.array([2, 3])}]
    runner = Runner(config, images, halves, tmp_path)
    for kind in ("baseA", "baseB"):
        runner.train(Run(0, kind))
    return runner


@pytest.mark.parametrize("n", [1, 5, 7])
def test_cached_activations_say_what_the_base_network_says(runner, n):
    run = Run(0, "AnB", n)
    network = runner._network(run)
    base = build_network("alexnet8", 2, size=16, channels=1, width=4)
    base.module.load_state_dict(load_file(runner.folder / "seed0-baseA.safetensors"))
    samples = runner._samples(run)
    val = samples["val"].image[:, 0]
    rows = runner._rows(run, network, samples)
    expected = base.prefix(n).eval()(torch.from_numpy(runner.images.pixels[val]))
    assert torch.equal(torch.from_numpy(rows.take(val).copy()), expected)


def test_runs_side_by_side_are_those_that_come_one_by_one(runner):
    runs = [Run(0, kind, n) for kind in ("AnB", "BnB+", "random") for n in (2, 6)]
    found = []
    for runner.at_once in (1, 3):
        found.append({run: result.correct for run, result in runner.train_all(runs)})
    assert found[0] == found[1]
    assert set(found[0]) == set(runs)


def test_copies_differ_from_their_base_only_above_n(runner):
    base = load_file(runner.folder / "seed0-baseB.safetensors")
    network = runner._network(Run(0, "BnB+", 3))
    copied = [name for name in base if name.split(".")[0] in network.layers[:3]]
    assert len({name.split(".")[0] for name in copied}) == 3
    for name in copied:
        assert torch.equal(network.module.state_dict()[name], base[name]), name
    assert not torch.equal(network.module.state_dict()["conv4.0.weight"], base["conv4.0.weight"])


@pytest.fixture(scope="module")
def resnet():
    return build_network("resnet18", 2, size=32, channels=3, seed=1)


def test_a_backbone_is_cut_between_its_blocks(resnet):
    assert resnet.layers == ("stem", "layer1", "layer2", "layer3", "layer4", "classifier")
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    resnet.module.eval()
    for n in range(1, 6):
        assert torch.equal(resnet.suffix(n)(resnet.prefix(n)(pixels)), resnet.suffix(0)(pixels))


def test_frozen_blocks_of_a_backbone_stay_as_they_were(resnet, source, tmp_path):
    config = StudyConfig(seeds=1, network="resnet18", image_size=32, epochs=1, lr=0.01, shares=())
    images = read_images(source, resnet.preprocess, tmp_path, ReadConfig())
    runner = Runner(config, images, [{"A": np.array([0, 1]), "B": np.array([2, 3])}], tmp_path)
    base = {name: tensor.clone() for name, tensor in resnet.module.state_dict().items()}
    save_file(base, tmp_path / "seed0-baseA.safetensors")
    run = Run(0, "AnB", 3)
    network = runner._network(run)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    samples = runner._samples(run)
    runner._fit(run, network.suffix(3), runner._rows(run, network, samples), samples)
    frozen = set(network.cuts[3][0].state_dict())
    assert frozen
    for name in frozen:
        assert torch.equal(network.module.state_dict()[name], base[name]), name
    assert not torch.equal(
        network.module.state_dict()["layer4.0.conv1.weight"], before["layer4.0.conv1.weight"]
    )


def test_a_network_with_too_few_layers_is_refused(monkeypatch):
    monkeypatch.setattr("bottleneck.studies.transfer_study.networks.FEWEST_LAYERS", 9)
    with pytest.raises(BackboneError, match=r"resnet18 has 6 layers.* needs 9"):
        build_network("resnet18", 2, size=32, channels=3)


def test_a_network_that_does_not_take_the_images_names_its_own_size():
    with pytest.raises(BackboneError, match=r"small_cnn does not take images of 96 .*--image-size 224"):
        build_network("small_cnn", 2, size=96, channels=3)


@pytest.mark.parametrize("size", [16, 32, 96, 224])
def test_alexnet_fits_its_images(size):
    network = build_network("alexnet8", 5, size=size, channels=3, width=2)
    pixels = torch.zeros((2, size, size, 3), dtype=torch.uint8)
    assert network.suffix(0)(pixels).shape == (2, 5)
    assert len(network.layers) == 8


def test_halves_are_disjoint_and_drawn_anew_for_each_seed():
    names = [str(k) for k in range(11)]
    drawn = [class_halves(names, seed) for seed in range(3)]
    for a, b in (halves.values() for halves in drawn):
        assert sorted([*a, *b]) == list(range(11))
        assert abs(len(a) - len(b)) <= 1
    assert not np.array_equal(drawn[0]["A"], drawn[1]["A"])
    halves = class_halves(names, 0, (["1", "0"], ["5", "9", "7"]))
    assert halves["A"].tolist() == [0, 1]
    assert halves["B"].tolist() == [5, 7, 9]


@pytest.mark.parametrize(
    ("names", "given", "named"),
    [
        (["a", "b", "c"], None, "has 3"),
        (["a", "b", "c", "d"], (["a", "b"], ["c", "x"]), "'x'"),
        (["a", "b", "c", "d"], (["a", "b"], ["b", "c"]), "both halves"),
        (["a", "b", "c", "d"], (["a"], ["b", "c"]), "1 and 2"),
    ],
)
def test_halves_that_cannot_be_are_named(names, given, named):
    with pytest.raises(SourceError, match=named):
        class_halves(names, 0, given)


def test_a_class_with_too_few_images_is_named(tmp_path):
    source = write_stripes(tmp_path / "images")
    for path in (source / "train" / "class2").iterdir():
        if path.name != "0.png":
            path.unlink()
    with pytest.raises(SourceError, match=r"'class2' of half [AB] has 1 image "):
        transfer_study(source, tmp_path / "study", seeds=1, **SMALL)


def test_without_val_a_quarter_of_train_is_set_aside(tmp_path):
    source = write_stripes(tmp_path / "images", val=0)
    network = build_network("alexnet8", 2, size=16, channels=1, width=2)
    images = read_images(source, network.preprocess, tmp_path, ReadConfig())
    assert [int(images.val[images.codes == k].sum()) for k in range(4)] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("options", "error"), [({"image_size": 8}, BackboneError), ({"seeds": 0}, BottleneckError)]
)
def test_settings_that_cannot_be_are_refused(source, tmp_path, options, error):
    with pytest.raises(error):
        transfer_study(source, tmp_path, **{**SMALL, **options})


def test_batches_of_one_image_are_joined_in_every_run_and_told(tmp_path):
    source = write_stripes(tmp_path / "images", images=5, val=4)
    for name in ("class0", "class2"):
        (source / "train" / name / "0.png").unlink()
    options = {**SMALL, "epochs": 1, "batch_size": 2, "shares": ()}
    network = build_network("alexnet8", 2, size=16, channels=1, width=4)
    images = read_images(source, network.preprocess, tmp_path, ReadConfig())
    names = (["class0", "class1"], ["class2", "class3"])
    halves = class_halves(images.class_names, 0, names)
    runner = Runner(StudyConfig(seeds=1, **options), images, [halves], tmp_path)
    (note,) = runner.notes(plan_runs(runner.config, 8))
    assert (note.code, note.details["largest"]) == ("last-batch-joined", 3)
    assert runner.train(Run(0, "baseA")).images == 9
    runner.config = StudyConfig(seeds=1, **{**options, "batch_size": 1})
    with pytest.raises(FitError, match="batch_size is 1"):
        runner.notes(plan_runs(runner.config, 8))
    with pytest.raises(StrictError, match="Some batches have 3 samples"):
        transfer_study(source, tmp_path / "s", seeds=1, halves=names, strict=True, **options)


def test_dropout_follows_the_seed_where_runs_come_one_by_one(runner):
    run = Run(0, "baseA")
    samples = runner._samples(run)
    runner.at_once = 1
    found = []
    for state in (1, 2):
        torch.manual_seed(5)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(256, 2))
        torch.manual_seed(state)
        runner._fit(run, module, ArrayRows(runner.images.pixels.astype(np.float32) / 255), samples)
        found.append(module[2].weight.detach().clone())
    assert torch.equal(*found)
