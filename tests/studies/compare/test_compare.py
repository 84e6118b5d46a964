"""Comparisons: every trial is run once, kept, and chosen among on val."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from bottleneck.errors import FitError, StrictError
from bottleneck.extraction.extract import extract
from bottleneck.heads.metrics import wilson_interval
from bottleneck.progress import SILENT
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.compare.compare import answers, choose_row, compare, summarise
from bottleneck.studies.compare.runs import Trials
from bottleneck.studies.compare.stored_runs import CompareRun, store_run, stored_runs
from bottleneck.training.config import LEAST_STEPS, CompareConfig
from bottleneck.trials.evidence import Evidence
from tests.helpers.recorder import Recorder

QUICK = {"epochs": 1, "batch_size": 64, "device": "cpu"}


def run(unfreeze, init="head", val=0.8, test=0.8, shots="all", seed=0, depth=None):
    """A run that is right on the first samples of 200 on val and on test."""
    accuracy, keys = {"val": val, "test": test}, np.arange(200).astype(str)
    hits = {split: np.arange(200) < round(200 * share) for split, share in accuracy.items()}
    evidence = {split: Evidence(keys, right.astype(float), 1.0 - right) for split, right in hits.items()}
    return CompareRun(
        unfreeze, init, shots, seed, depth, accuracy, 100, 5, 1.0, blocks=unfreeze, evidence=evidence
    )


def test_a_comparison_runs_every_trial_and_goes_on_where_it_was(made_cache, tmp_path, monkeypatch):
    options = {"unfreeze": (0, 1), "shots": (4, "all"), "seeds": 2, "scratch": (2,), **QUICK}
    done = []
    original = Trials._run

    def counted(self, trial, inputs):
        done.append(trial)
        if len(done) == 4:
            raise KeyboardInterrupt
        return original(self, trial, inputs)

    monkeypatch.setattr(Trials, "_run", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(made_cache, tmp_path / "runs", **options)
    result = compare(made_cache, tmp_path / "runs", **options)
    # head alone: 2 draws of 4 shots, 1 with all; 2 starts × 2 shots × 2 seeds; from scratch 2 × 2
    assert len(result.runs) == 3 + 8 + 4
    assert len(done) == len(result.runs) + 1, "three runs were kept, the fourth was done again"
    assert {each.epochs for each in result.runs if each.unfreeze != 0} == {1}, "as many as were asked for"
    few = [each for each in result.runs if each.shots == 4]
    assert {each.n for each in few} == {12}
    assert set(result.runs[0].accuracy) == {"train", "val", "test"}
    assert result.chosen.shots == "all"
    assert len(result.rule) == 2, "one block and the network from scratch were held against what was chosen"
    assert result.chosen.name in result.rule[-1]
    stored = stored_runs(tmp_path / "runs")
    assert {each.trial: each.accuracy for each in stored} == {
        each.trial: {split: pytest.approx(value) for split, value in each.accuracy.items()}
        for each in result.runs
    }
    assert all(each.evidence["val"].mean == pytest.approx(each.accuracy["val"]) for each in stored)
    assert {item.question for item in result.answers} >= {
        "Is fine-tuning worth it?",
        "Is transfer worth it with these data?",
    }
    json.dumps(result.to_json())


def test_labels_of_a_file_are_compared_on(made_cache, tmp_path):
    with FeatureCache(made_cache) as cache:
        keys = list(cache.samples.key)
    rows = [f"{key},{'warm' if '/red/' in key else 'cold'}" for key in [*keys, "elsewhere.png"]]
    (tmp_path / "warmth.csv").write_text("\n".join(["image,warmth", *rows]))
    options = {"unfreeze": (0, 1), "init": ("head",), "seeds": 1, "labels": tmp_path / "warmth.csv", **QUICK}
    result = compare(made_cache, tmp_path / "runs", **options)
    assert len(result.runs) == 2
    assert min(run.accuracy["val"] for run in result.runs) > 0.6, "two classes, one of them two thirds"
    assert "names no sample" in str(result.notes[0])


def test_a_cache_without_labels_is_told_where_they_may_come_from(images, tmp_path):
    cache = tmp_path / "c.h5"
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(3):
        shutil.copy(images / f"train/red/{number}.png", flat)
    extract(flat, cache, backbone="small_cnn", engine="torch")
    with pytest.raises(FitError, match="holds no labels") as refused:
        compare(cache, tmp_path / "runs", **QUICK)
    assert "--labels FILE" in refused.value.hint


def test_few_samples_get_more_epochs_where_none_are_asked_for(made_cache, tmp_path):
    trials = Trials(made_cache, CompareConfig(), tmp_path, SILENT)
    few, many = trials.settings(0, 32), trials.settings(0, 100_000)
    assert few.epochs * -(-32 // few.batch_size) >= LEAST_STEPS
    assert many == trials.config


def test_more_shots_than_any_class_has_are_refused(made_cache, tmp_path):
    with pytest.raises(FitError, match="shots is 500, but no class has more than 14 samples"):
        compare(made_cache, tmp_path / "runs", shots=(5, 500), **QUICK)


def test_a_comparison_says_first_what_it_will_cost(made_cache, tmp_path):
    recorder = Recorder()
    options = {"unfreeze": (0, 1), "init": ("head",), "seeds": 1, "scratch": (2,), **QUICK}
    with Trials(made_cache, CompareConfig(**options, extend=False), tmp_path, recorder) as trials:
        planned = trials.trials()
        costs = [trials.estimate([trial]) for trial in planned]
        before = [tensor.clone() for tensor in trials.network.backbone.module.state_dict().values()]
        both = trials.estimate([planned[1], planned[1]])
        after = list(trials.network.backbone.module.state_dict().values())
    assert costs[0] == 0, "the head is there"
    assert min(costs[1:]) > 0
    assert both > 0
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "nothing has been learnt"
    compare(made_cache, tmp_path / "runs", reporter=recorder, **options)
    compare(made_cache, tmp_path / "runs", reporter=recorder, **options)
    assert "3 of 3 runs are to be done: at most" in recorder.told[-2]
    assert "0 of 3 runs are to be done: at most 0 s" in recorder.told[-1]


def test_the_choice_is_by_val_never_by_test_and_with_the_most_samples():
    runs = [
        run(1, val=0.9, test=0.7),
        run(2, val=0.8, test=0.99),
        run(1, val=0.95, shots=5),
    ]
    chosen, _ = choose_row(summarise(runs, "test", 200))
    assert (chosen.unfreeze, chosen.shots) == (1, "all")


def test_what_is_better_on_val_by_less_than_the_noise_of_pairs_is_not_chosen():
    rows = summarise([run(0, val=0.9), run(1, val=0.905), run(2, val=0.905)], "test", 200)
    chosen, steps = choose_row(rows)
    assert chosen.name == "head only"
    assert [step.difference.gain for step in steps] == [pytest.approx(1 / 200)] * 2
    rows = summarise([run(0, val=0.9), run(1, val=0.93), run(1, val=0.94, depth=4)], "test", 200)
    assert choose_row(rows)[0].depth == 4, "the simplest is tried first, whatever beats it replaces it"


def test_means_and_intervals_over_seeds():
    rows = summarise([run(1, test=0.8), run(1, test=0.9, seed=1)], "test", 200)
    assert len(rows) == 1
    assert rows[0].accuracy["test"] == pytest.approx(0.85)
    assert rows[0].spread == pytest.approx(0.05)
    assert rows[0].interval[0] < 0.85 < rows[0].interval[1]


def test_stored_runs_are_read_whatever_the_encoding_of_the_machine(tmp_path):
    unread = replace(run(1), unread="1 image could not be read: 그림/개.png", evidence={})
    store_run(tmp_path, "settings", unread, [unread])
    code = (
        "import sys; from pathlib import Path; from bottleneck.studies.compare.stored_runs import stored_runs"
    )
    code += "; print(ascii(stored_runs(Path(sys.argv[1]))[0].unread))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code, str(tmp_path)]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == ascii(unread.unread), shown.stderr


def test_the_interval_is_of_the_samples_that_a_run_could_read():
    few = run(1, test=0.8)
    judged = few.evidence["test"]
    part = Evidence(judged.keys[:50], judged.score[:50], judged.loss[:50])
    rows = summarise([replace(few, evidence={**few.evidence, "test": part})], "test", 200)
    assert rows[0].interval == wilson_interval(40, 50)


def test_seeds_are_averaged_sample_by_sample_also_where_other_images_could_be_read():
    first, second = run(1, val=0.5), run(1, val=0.5, seed=1)
    kept = {
        0: slice(20, None),
        1: np.r_[150:200, 0:150],
    }  # the second run has other samples, in another order
    parts = [
        replace(
            one,
            evidence={"val": Evidence(*(getattr(one.evidence["val"], name)[kept[seed]] for name in names))},
        )
        for seed, one in enumerate((first, second))
        for names in [("keys", "score", "loss")]
    ]
    (row,) = summarise(parts, "val", 200)
    judged = row.evidence["val"]
    assert judged.keys.tolist() == first.evidence["val"].keys[20:].tolist()
    assert judged.score.tolist() == first.evidence["val"].score[20:].tolist()
    assert judged.loss.tolist() == first.evidence["val"].loss[20:].tolist()


@pytest.mark.parametrize(
    ("second", "verdict"), [(0.81, "cannot tell"), (0.99, "2 blocks, from the head is better")]
)
def test_answers_say_when_the_data_cannot_tell(second, verdict):
    rows = summarise([run(1, test=0.8), run(2, test=second)], "test", 200)
    found = {item.question: item.answer for item in answers(rows, rows[1], "test")}
    assert verdict in found["One block or two?"]


def test_what_lies_deeper_is_held_against_the_head():
    rows = summarise([run(0, test=0.8), run(1, test=0.81), run(4, val=0.9, test=0.99)], "test", 200)
    found = {item.question: item.answer for item in answers(rows, choose_row(rows)[0], "test")}
    assert found["Is going deeper worth it?"].startswith("4 blocks, from the head is better: ")
    shallow = {item.question for item in answers(rows[:2], rows[1], "test")}
    assert "Is going deeper worth it?" not in shallow


@pytest.mark.parametrize("bad", [{"shots": (0,)}, {"seeds": 0}, {"unfreeze": (-1,)}])
def test_impossible_comparisons_are_refused(bad):
    with pytest.raises(FitError, match=next(iter(bad))):
        CompareConfig(**bad)


def test_each_trial_starts_from_what_it_names(made_cache, tmp_path):
    config = CompareConfig(unfreeze=(1,), seeds=1, extend=False, **QUICK)
    with Trials(made_cache, config, tmp_path, SILENT) as trials, trials._inputs(1) as inputs:
        starts = {
            trial.init: trials._job(trial, trials.splits, inputs).network.classifier[-1].weight
            for trial in trials.trials()
        }
    assert starts["head"].abs().max() > 0
    assert starts["random"].abs().max() == 0, "a new last layer prefers no class"


def test_trials_whose_batches_are_joined_say_so_and_a_batch_size_of_one_is_refused(made_cache, tmp_path):
    options = {"unfreeze": (0,), "scratch": (2,), "shots": (3,), "seeds": 1, "extend": False}
    joined = CompareConfig(batch_size=2, **options)
    with Trials(made_cache, joined, tmp_path, SILENT) as trials:
        assert [note.code for note in trials.batch_notes(trials.trials())] == ["last-batch-joined"]
    with (
        Trials(made_cache, CompareConfig(batch_size=1, **options), tmp_path, SILENT) as trials,
        pytest.raises(FitError, match="batch_size is 1"),
    ):
        trials.batch_notes(trials.trials())


def write_codes(cache, path):
    """Labels by image: a code of two digits, and the same with a second label in some cells."""
    with FeatureCache(cache) as opened:
        keys = list(opened.samples.key)
    rows = [f"{key},{10 + ('/red/' in key)},{'warm|red' if '/red/' in key else 'cold'}" for key in keys]
    path.write_text("\n".join(["image,code,words", *rows]))
    return path


def test_labels_of_a_file_are_read_as_fit_head_reads_them(made_cache, tmp_path):
    labels = write_codes(made_cache, tmp_path / "codes.csv")
    with FeatureCache(made_cache) as opened:
        warm = sum("/red/" in key for key in opened.samples.key)

    def counted(**options):
        config = CompareConfig(labels=labels, **options)
        trials = Trials(made_cache, config, tmp_path, SILENT)
        target = trials.splits.table.targets[trials.target]
        return dict(zip(target.class_names, np.bincount(target.values), strict=True))

    assert counted(target="code", classes=("code",)) == {"10": 81 - warm, "11": warm}
    assert counted(target="words") == {"cold": 81 - warm, "warm|red": warm}
    with pytest.raises(FitError, match="'words' is of kind multilabel"):
        counted(target="words", label_separator="|")
    with pytest.raises(FitError, match="'code' is of kind regression"):
        counted(target="code", regression=("code",))


def test_classes_with_fewer_samples_than_shots_are_told_or_refused(made_cache, tmp_path):
    with FeatureCache(made_cache) as opened:
        train = [key for key in opened.samples.key if key.startswith("train/red")]
        keys = [key for key in opened.samples.key if key not in train[:10]]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join(["image,colour", *(f"{key},{key.split('/')[1]}" for key in keys)]))
    options = {"unfreeze": (0,), "shots": (5,), "seeds": 1, "labels": labels, **QUICK}
    result = compare(made_cache, tmp_path / "runs", **options)
    (note,) = [note for note in result.notes if note.code == "fewer-shots"]
    assert note.details == {"shots": 5, "classes": {"red": 4}}
    again = compare(made_cache, tmp_path / "runs", **options)
    assert [note.details for note in again.notes if note.code == "runs-reused"] == [{"runs": 1}]
    with pytest.raises(StrictError):
        compare(made_cache, tmp_path / "strict", strict=True, **options)
    assert not (tmp_path / "strict").exists()
