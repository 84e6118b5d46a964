"""predict and evaluate say when they do not know: --reject, --coverage and --unknown."""

import csv
from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from bottleneck import FeatureCache, evaluate, fit_heads, load_model, predict
from bottleneck.cli.main import group
from bottleneck.errors import ArtifactError, BottleneckError, CacheError, StrictError
from bottleneck.fitting.calibrated import novelty_on
from bottleneck.heads.artifact import load_head
from bottleneck.heads.novelty import fit_novelty
from bottleneck.heads.row_blocks import SelectedRows
from bottleneck.models.unknown import separation
from bottleneck.samples import SampleTable
from tests.helpers.caches import D, class_target, write_cache
from tests.helpers.photographs import write_photographs

RUN = {"engine": "torch"}


@pytest.fixture(scope="module")
def fitted(made_cache, tmp_path_factory):
    """A head on coloured noise, and photographs of other classes."""
    folder = tmp_path_factory.mktemp("trust")
    head = fit_heads(made_cache, output=folder, C=0.1).heads[0]["path"]
    return head, write_photographs(folder / "others", classes=("dots", "모름"), each=6)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A head on a cache of drawn rows of three classes, and a cache of rows of a fourth."""
    folder, random = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    codes = np.arange(240) % 4
    rows = np.abs(random.normal(2 * np.eye(4, D)[codes], 0.5)).astype(np.float32)
    names = ("개", "b", "c", "d")
    known = codes < 3
    split = np.array(["train", "test"], object)[np.repeat([0, 1], [135, 45])]
    first = write_cache(folder / "known.h5", rows[known], [class_target(codes[known], names=names)], split)
    other = write_cache(folder / "other.h5", rows[~known], [class_target(codes[~known], names=names)])
    return fit_heads(first, output=folder, C=0.1).heads[0]["path"], first, other


def codes(result):
    return {note.code for note in result["notes"]}


def test_rejected_samples_are_unknown_and_keep_what_was_predicted(fitted, images):
    head, others = fitted
    plain = predict(head, images / "test", others, **RUN)["predictions"]
    found = predict(head, images / "test", others, reject=0.1, coverage=0.8, **RUN)
    limit, novelty = found["novelty_threshold"], load_head(head).novelty
    assert (found["reject"], found["coverage"], limit) == (0.1, 0.8, novelty.threshold(0.1))
    assert {record["known"] for record in found["predictions"]} == {True, False}
    for record, before in zip(found["predictions"], plain, strict=True):
        assert record["predicted"] == before["label"]
        assert record["label"] == ("unknown" if record["novelty"] > limit else before["label"])
        assert record["known"] == (record["novelty"] <= limit)
        assert (record["top"], record["confidence"]) == (before["top"], before["confidence"])
        ranked = [each["label"] for each in before["top"]]
        assert record["set"] == ranked[: len(record["set"])] != []
    assert not any(record["known"] for record in found["predictions"][15:])
    assert load_model(head, **RUN).predict(images / "test", reject=0.1, coverage=0.8)[0]["set"]


def test_cached_features_and_images_say_the_same(fitted, made_cache, images):
    head, others = fitted
    cached = evaluate(head, made_cache, unknown=others, coverage=0.8, **RUN)
    read = evaluate(head, images, unknown=others, coverage=0.8, **RUN)
    for key in ("auroc", "rejected", "measured_coverage", "mean_set_size", "set_sizes", "unknown_rejected"):
        assert cached[key] == pytest.approx(read[key], abs=1e-6)
    assert (cached["unknown_n"], cached["reject"], cached["unknown_rejected"]) == (12, 0.05, 1.0)


def test_a_class_that_was_left_out_is_told_from_the_others(drawn):
    head, known, other = drawn
    found = evaluate(head, known, unknown=other, coverage=0.9)
    assert found["auroc"] > 0.9
    assert sum(found["set_sizes"].values()) == found["n"] == 45
    low, high = found["measured_coverage_ci95"]
    assert low <= found["measured_coverage"] <= high
    assert codes(found).isdisjoint({"reject-rate-off", "unknown-images-of-known-classes"})


def test_the_figures_are_those_of_their_definitions():
    """AUROC of scikit-learn; the false positive rate by counting, at the last threshold that keeps 95 %."""
    random = np.random.default_rng(0)
    known, unknown = random.normal(0, 1, 90).round(1), random.normal(1, 1, 60).round(1)
    p, q = random.random((90, 3)), random.random((60, 3))
    found = separation(known, unknown, p, q)
    largest = roc_auc_score([1] * 90 + [0] * 60, [*p.max(axis=1), *q.max(axis=1)])
    assert found["auroc_of_largest_probability"] == pytest.approx(largest)
    assert found["auroc"] == pytest.approx(roc_auc_score([0] * 90 + [1] * 60, [*known, *unknown]))
    limit = max(limit for limit in unknown if (unknown >= limit).mean() >= 0.95)
    assert found["fpr_at_95_tpr"] == (known >= limit).mean()
    for name in ("auroc", "fpr_at_95_tpr"):
        low, high = found[f"{name}_ci95"]
        assert low < found[name] < high
    apart = separation(known, unknown + 10, p, q)
    assert (apart["auroc"], apart["fpr_at_95_tpr"]) == (1, 0)
    assert apart["fpr_at_95_tpr_ci95"][1] > 0.03, "90 samples do not show that none is ever rejected"


def test_unknown_images_that_seem_better_known_are_told(fitted, made_cache):
    """Most of the unknown ones are those of training here, which are nearer than test is."""
    found = evaluate(fitted[0], made_cache, split="test", unknown=made_cache)
    assert found["auroc_ci95"][1] < 0.5
    assert "unknown-nearer-than-known" in codes(found)


def test_failed_images_of_one_name_are_listed_for_both_sources(fitted, images, tmp_path, monkeypatch):
    head, others = fitted
    broken = next(copytree(images / "test", tmp_path / "known").iterdir()) / "broken.png"
    broken.write_bytes(b"")
    key = broken.relative_to(tmp_path / "known").as_posix()
    monkeypatch.setattr("bottleneck.models.evaluate.measure_unknown", lambda *_: ({}, {key: "lost"}, []))
    result = evaluate(head, tmp_path / "known", unknown=others, **RUN)
    found = result["failed"]
    assert [each["image"] for each in found] == [key, key]
    assert found[1]["error"] == "lost"
    told = [note.message for note in result["notes"] if note.code == "images-unread"]
    assert told == [
        f"Images that are not measured: 1; the first is {key}: {found[0]['error']}.",
        f"Images given as unknown that are not measured: 1; the first is {key}: lost.",
    ]
    with pytest.raises(StrictError, match="Images that are not measured: 1"):
        evaluate(head, tmp_path / "known", strict=True, **RUN)


@pytest.mark.parametrize(
    ("finished", "error", "text"),
    [(False, CacheError, "extraction was interrupted"), (True, BottleneckError, "has no samples")],
)
def test_unknown_without_samples_is_refused(drawn, monkeypatch, finished, error, text):
    """A cache of an interrupted extraction, and the file of one map."""
    head, known, other = drawn
    none = replace(FeatureCache(other).samples.take(np.zeros(0, np.int64)), finished=finished)
    samples = FeatureCache.samples.fget
    monkeypatch.setattr(
        FeatureCache, "samples", property(lambda cache: none if cache.path == other else samples(cache))
    )
    with pytest.raises(error, match=text):
        evaluate(head, known, unknown=other)


def test_known_images_that_are_given_as_unknown_are_told(fitted, made_cache, images):
    found = evaluate(fitted[0], made_cache, unknown=made_cache)
    assert {"unknown-images-known", "unknown-images-of-known-classes"} <= codes(found)
    (note,) = (note for note in found["notes"] if note.code == "unknown-images-known")
    assert note.details == {"fitted_on": 42, "measured": 15}


def test_other_samples_than_those_of_training_break_the_promises_and_it_is_told(fitted, made_cache, tmp_path):
    head = load_head(fitted[0])
    narrow = replace(head.novelty, scores=head.novelty.scores / 100)
    model = load_model(fitted[0], **RUN)
    model.head = replace(head, novelty=narrow, conformal=replace(head.conformal, scores=np.zeros(40)))
    found = evaluate(model, made_cache, reject=0.1, coverage=0.9)
    assert {"reject-rate-off", "coverage-off"} <= codes(found)
    assert found["rejected"] == 1.0


def test_labels_and_quantities_can_be_rejected_but_have_no_sets(listed, tmp_path):
    for target, kind in (("tags", list), ("weight", float)):
        classifier = load_model(listed.heads[target], **RUN)
        novelty = classifier.head.novelty
        half = np.median([r["novelty"] for r in classifier.predict(listed.manifest, reject=0.5)])
        classifier.head = replace(classifier.head, novelty=replace(novelty, scores=np.array([half] * 9)))
        output = tmp_path / f"{target}.csv"
        found = predict(classifier, listed.manifest, reject=0.5, output=output)["predictions"]
        rejected = [record for record in found if not record["known"]]
        assert 0 < len(rejected) < len(found)
        assert {str(record["label"]) for record in rejected} == {"['unknown']" if kind is list else "unknown"}
        assert all(isinstance(record["predicted"], kind) for record in found)
        with open(output, newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        assert [line["known"] == "true" for line in lines] == [record["known"] for record in found]
        with pytest.raises(ArtifactError, match=r"--coverage makes sets of classes; .* Leave --coverage out"):
            predict(classifier, listed.manifest, coverage=0.9)


def test_a_class_named_unknown_is_told(fitted, images):
    model = load_model(fitted[0], **RUN)
    model.head = replace(model.head, class_names=("unknown", "b", "c"))
    assert "class-named-unknown" in codes(predict(model, images / "test", reject=0.1))
    assert "coverage-without-flip" in codes(predict(model, images / "test", coverage=0.8, flip=True))


WITHOUT = {
    "an old head": ({}, {"reject": 0.1}, "--reject: an earlier version wrote it.* Fit it again"),
    "an old head, sets": ({}, {"coverage": 0.8}, "--coverage: an earlier version wrote it.* Fit it again"),
    "a trained network": (
        {"node_fingerprint": "", "settings": {"finetuned": {}}},
        {"reject": 0.1},
        "network of this model was trained.* Use a head",
    ),
    "a trained network, sets": (
        {"node_fingerprint": "", "settings": {"finetuned": {}}},
        {"coverage": 0.8},
        "but val, which chose it.* Use a model of bottleneck train",
    ),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_a_head_without_the_data_says_so_and_what_to_do(case, fitted, images):
    changes, options, message = WITHOUT[case]
    model = load_model(fitted[0], **RUN)
    model.head = replace(model.head, novelty=None, conformal=None, **changes)
    with pytest.raises(ArtifactError, match=message):
        predict(model, images / "test", **options)


@pytest.mark.parametrize(
    "options", [{"reject": 0}, {"reject": 1.0}, {"coverage": float("nan")}, {"coverage": -1}]
)
def test_shares_are_between_0_and_1(fitted, images, options):
    with pytest.raises(BottleneckError, match="expected a share between 0 and 1"):
        predict(fitted[0], images / "test", **options)


def test_groups_equal_images_and_covariates_are_kept_apart(listed):
    """Samples of one group or with equal bytes are one unit, and covariates take no part."""
    with FeatureCache(listed.cache) as cache:
        rows, samples = np.arange(20), cache.samples
        alone = novelty_on(cache, samples, "bottleneck", rows)
        width = cache.node("bottleneck").shape[0]
        assert alone.blocks == ((0, width),)
        group = np.array(["a", "b"] * (len(samples) // 2 + 1), object)[: len(samples)]
        fields = {name: getattr(samples, name) for name in SampleTable.__dataclass_fields__}
        grouped = novelty_on(cache, SampleTable(**fields | {"group": group}), "bottleneck", rows)
        reader = SelectedRows(cache.sample_rows("bottleneck"), rows)
        expected = fit_novelty(reader, alone.blocks, rows % 2)
    assert (grouped.scores == expected.scores).all()
    assert grouped.scores.mean() > alone.scores.mean()


def test_the_commands_show_it_within_80_columns(fitted, drawn, images):
    head, others = fitted
    fitted_on_drawn, known, other = drawn
    for arguments in (
        (
            "predict",
            head,
            images / "test",
            others,
            "--reject",
            "0.1",
            "--coverage",
            "0.8",
            "--engine",
            "torch",
        ),
        ("evaluate", fitted_on_drawn, known, "--unknown", other, "--coverage", 0.8),
    ):
        result = CliRunner().invoke(group, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        tables = [line for line in result.stdout.splitlines() if line[:1] in "│┃┏└┡"]
        assert tables
        assert max(map(len, tables)) <= 80
    assert "AUROC of novelty" in result.stdout
