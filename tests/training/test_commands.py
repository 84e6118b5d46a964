"""The commands that train, as a user meets them: what they print, what they leave, what they refuse."""

import io
import json
import math
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bottleneck.cli.main import main
from bottleneck.store.reader import FeatureCache
from tests.helpers.fitted_cache import write_images

TRAINED = [
    "--lr",
    "0.05",
    "--epochs",
    "6",
    "--batch-size",
    "8",
    "--label-smoothing",
    "0.2",
    "--device",
    "cpu",
]
EPOCH = ["--epochs", "1", "--batch-size", "8", "--device", "cpu"]


def run(*arguments):
    """Run a command line in this process: `code`, `out`, `err`."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["bottleneck", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return SimpleNamespace(code=stop.value.code, out=out.getvalue(), err=err.getvalue())


def answer(*arguments):
    """The JSON object on stdout."""
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.fixture(scope="module")
def trained(made_cache, made_head, tmp_path_factory):
    """What finetune printed, and the folder of its model."""
    folder = tmp_path_factory.mktemp("trained")
    events = ["--tensorboard", folder / "events"]
    found = answer(
        "finetune", made_cache, "--head", made_head, "-o", folder / "m.safetensors", *TRAINED, *events
    )
    assert found["kept"] == "finetuned", "the problem is made so that training helps"
    return found, folder


def head_rates(epochs, steps=6, lr=0.05):
    """The head's rate at the last step of each epoch: 42 samples in batches of 8, warm-up over a tenth."""
    rising, all_steps = round(epochs * steps * 0.1), epochs * steps
    done = {epoch: epoch * steps - 1 - rising for epoch in range(1, epochs + 1)}
    return {e: lr * (1 + math.cos(math.pi * step / (all_steps - rising))) / 2 for e, step in done.items()}


def test_finetune_says_what_is_kept_and_leaves_card_history_curves_and_events(trained):
    found, folder = trained
    assert found["max_logit_difference_at_start"] <= 1e-4
    assert found["finetuned_accuracy"]["val"] >= found["head_accuracy"]["val"]
    stored = json.loads((folder / "m.history.json").read_text())
    assert len(stored["epochs"]) == len(found["epochs"])
    rates = {record["epoch"]: record["learning_rates"] for record in stored["epochs"][1:]}
    expected = {epoch: {"head": rate, "block4": 0.1 * rate} for epoch, rate in head_rates(6).items()}
    assert {epoch: pytest.approx(values) for epoch, values in expected.items()} == rates
    assert {group["name"]: group["learning_rate"] for group in stored["groups"]} == pytest.approx(
        {"head": 0.05, "block4": 0.005}
    )
    card = (folder / "m.md").read_text()
    assert "val (chose the model)" in card
    assert "block4" in card
    with Image.open(found["figure"]) as picture:
        assert min(picture.size) > 300
    events = EventAccumulator(str(folder / "events")).Reload()
    recorded = {event.step: event.value for event in events.Scalars("accuracy/val")}
    assert recorded == pytest.approx({record["epoch"]: record["val_accuracy"] for record in found["epochs"]})
    assert "loss/train" in events.Tags()["scalars"]
    for name, share in (("head", 1.0), ("block4", 0.1)):
        logged = {event.step: event.value for event in events.Scalars(f"learning rate/{name}")}
        assert logged == pytest.approx(
            {epoch: share * rate for epoch, rate in head_rates(6).items()}, rel=1e-5
        )


def test_a_trained_network_is_a_backbone_of_its_own(trained, images, tmp_path):
    model, flags = trained[1] / "m.safetensors", ["-o", tmp_path / "c.h5", "--engine", "torch"]
    extracted = answer("extract", images, "--backbone", model, *flags)
    assert extracted["failed"] == 0
    (head,) = answer("fit-head", tmp_path / "c.h5", "-o", tmp_path / "heads", "--C", "1e-3")["heads"]
    assert head["accuracy"]["train"] > 0.5
    with FeatureCache(tmp_path / "c.h5") as cache:
        assert cache.spec.backbone["name"] == "small_cnn"


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_trained_network_is_exported(trained, tmp_path, format):
    found = answer("export", trained[1] / "m.safetensors", "--format", format, "-o", tmp_path / "m")
    assert found["max_difference"] <= 1e-4
    assert found["classes"] == ["blue", "green", "red"]
    assert (tmp_path / "m").stat().st_size > 1000


def test_predict_with_a_model_says_what_evaluate_counts(trained, images, made_cache):
    model = trained[1] / "m.safetensors"
    found = answer("predict", model, images / "test", "--engine", "torch")["predictions"]
    right = sum(record["image"].split("/")[0] == record["label"] for record in found)
    assert right / len(found) == pytest.approx(answer("evaluate", model, made_cache)["accuracy"])


def test_predict_writes_what_a_parquet_manifest_lists(trained, images, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    names = ["test/red/0.png", "test/blue/1.png"]
    parquet.write_table(pyarrow.table({"image": names}), images / "some.parquet")
    output = tmp_path / "out.jsonl"
    try:
        answer(
            "predict",
            trained[1] / "m.safetensors",
            images / "some.parquet",
            "-o",
            output,
            "--engine",
            "torch",
        )
    finally:
        (images / "some.parquet").unlink()
    assert [json.loads(line)["image"] for line in output.read_text().splitlines()] == names


def test_predict_from_a_url(trained, images):
    model = trained[1] / "m.safetensors"
    found = answer("predict", model, (images / "test" / "red").as_uri(), "--engine", "torch")
    assert len(found["predictions"]) == 5


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a log on stderr."""

    def log_message(self, *arguments):
        pass


def test_predict_from_web_addresses(trained, images, tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=images)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        here = f"http://127.0.0.1:{server.server_port}"
        (tmp_path / "list.csv").write_text(f"image\n{here}/test/blue/1.png\n{here}/test/blue/99.png\n")
        model = trained[1] / "m.safetensors"
        by_web = answer(
            "predict", model, f"{here}/test/red/0.png", tmp_path / "list.csv", "--engine", "torch"
        )
        server.shutdown()
        thread.join()
    by_path = answer(
        "predict", model, images / "test/red/0.png", images / "test/blue/1.png", "--engine", "torch"
    )
    names = [f"{here}/test/red/0.png", f"{here}/test/blue/1.png"]
    assert [row["image"] for row in by_web["predictions"]] == names
    assert [row["confidence"] for row in by_web["predictions"]] == [
        pytest.approx(row["confidence"], abs=1e-5) for row in by_path["predictions"]
    ]
    (failed,) = by_web["failed"]
    assert failed["image"].endswith("99.png")
    assert "404" in failed["error"]


def test_scratch_shows_its_table(images, tmp_path):
    path = tmp_path / "my models" / "my model.safetensors"
    result = run("scratch", images, "-o", path, "--image-size", "48", "--depth", "2", *EPOCH)
    assert result.code == 0, result.err
    assert "chose the epoch" in result.out
    assert path.exists()
    assert f"Next: bottleneck predict '{path}' IMAGES" in result.out
    assert "bottleneck predict 'my model.safetensors' IMAGES" in path.with_suffix(".md").read_text()


def test_compare_shows_a_table_its_answers_and_a_picture(made_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("bottleneck.training.config.LEAST_STEPS", 1)
    flags = ["--unfreeze", "0,1", "--init", "head", "--seeds", "1", "--epochs", "1", "--batch-size", "32"]
    result = run("compare", made_cache, "-o", tmp_path / "runs", *flags)
    assert result.code == 0, result.err
    assert "Is fine-tuning worth it?" in result.out
    assert (tmp_path / "runs" / "compare.png").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--unfreeze", "9"], "Cannot unfreeze 9 blocks"),
        (["--unfreeze", "blocks.99"], "blocks.99"),
        (["--views", "2", "--augment", "live"], "two ways to one end"),
    ],
)
def test_finetune_refuses_in_one_line(made_cache, made_head, flags, said):
    result = run("finetune", made_cache, "--head", made_head, *flags, *EPOCH)
    assert result.code == 1
    assert said in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_a_diverging_loss_is_said_with_a_rate_to_try(made_cache, made_head, tmp_path):
    result = run(
        "finetune", made_cache, "--head", made_head, "-o", tmp_path / "m.safetensors", *EPOCH, "--lr", "500"
    )
    assert result.code == 0, result.err
    assert "Try --lr 50" in " ".join(result.out.split())


def test_val_that_cannot_be_carved(made_head, tmp_path):
    folder = write_images(tmp_path / "images", {"train": 1})
    result = run("scratch", folder, "-o", tmp_path / "m.safetensors", *EPOCH)
    assert result.code == 1
    assert "There is no val split, and 3 train samples cannot give one" in " ".join(result.err.split())


@pytest.mark.parametrize("more", [[], ["--augment", "live", "--memory", "2000000"]])
def test_a_rate_is_found_and_drawn_by_a_process_that_ends(made_cache, made_head, tmp_path, more, long):
    if more and not long:
        pytest.skip("runs the whole network in every step: run with --long")
    words = ["finetune", made_cache, "--head", made_head, "--find-lr", tmp_path / "lr.png", *EPOCH, *more]
    command = [sys.executable, "-m", "bottleneck", *map(str, words), "--allow-local", "--json"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert 1e-7 <= json.loads(ended.stdout)["lr"] <= 1
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.format == "PNG"
