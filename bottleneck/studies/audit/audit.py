"""What is wrong with the data of a cache: labels, copies, leaks between splits, outliers, hopeless classes.

    held-out probabilities ──► label errors, classes that cannot be told apart
    distances of features  ──► copies, leaks between splits, outliers

Nothing is changed: the result names what a person should look at.

Shapes: n judged samples, I images, K classes, L labels of a multi-label target.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bottleneck.data.table_file import csv_lines
from bottleneck.errors import FitError, Note, refuse_strict
from bottleneck.files import write_whole
from bottleneck.fitting.labels import relabelled
from bottleneck.heads.artifact import load_head
from bottleneck.heads.metrics import wilson_interval
from bottleneck.progress import SILENT, Reporter
from bottleneck.samples import Target
from bottleneck.store.reader import FeatureCache
from bottleneck.store.tables import as_bytes
from bottleneck.studies.audit.images import (
    NEIGHBOURS,
    beyond_fence,
    centred,
    near_pairs,
    neighbourhood,
    outlier_scores,
)
from bottleneck.studies.audit.label_errors import Judged, LabelQuality, fitted, from_head
from bottleneck.studies.study_config import AuditConfig
from bottleneck.trials.evidence import difference
from bottleneck.trials.heads import artifact_of, evidence_of, fit_on, measured, outputs_of
from bottleneck.trials.task import Task, task_of

SHOWN_NEIGHBOURS = 3
THRESHOLDS = ("cosine", "ratio", "fence", "confusion", "thin")
Issue = dict[str, Any]  # {flag, …, items: [{…, score, flag}]} of one kind


@dataclass(frozen=True)
class AuditResult:
    """Result of `audit`. The fields of issues are dicts with `flag`, the number of flagged ones, and `items`.

    label_issues : items {sample, split, given, suggested, score, flag, neighbours}, the worst first; `score`
        is the held-out probability of the given label, of all its mean.
    duplicates : items {images, exact, cosine}: pairs of images that are the same or nearly.
    leaks : pairs of them in two splits, and groups in two; with the accuracy on test with and without them.
    outliers : items {image, split, score}: the mean distance to the nearest images of train.
    confusable : items {classes, score, interval}: the share of the two classes' samples that are held for the
        other one.
    thin : items {class, train}: classes with few samples in train.
    failures : reason by image that gave no row.
    repair : what the labels of `--repair` brought; None without them.
    """

    cache: str
    target: str
    node: str
    samples: int
    label_issues: Issue
    duplicates: Issue
    leaks: Issue
    outliers: Issue
    confusable: Issue
    thin: Issue
    failures: dict[str, str]
    thresholds: dict[str, float]
    repair: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    notes: list[Note] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of `bottleneck audit --json`."""
        return {**vars(self), "notes": [note.to_json() for note in self.notes]}


def audit(
    cache: str | os.PathLike[str],
    *,
    head: str | os.PathLike[str] | None = None,
    target: str | None = AuditConfig.target,
    node: str = AuditConfig.node,
    cosine: float = AuditConfig.cosine,
    ratio: float = AuditConfig.ratio,
    fence: float = AuditConfig.fence,
    confusion: float = AuditConfig.confusion,
    thin: int = AuditConfig.thin,
    cv: int = AuditConfig.cv,
    seed: int = AuditConfig.seed,
    fix: str | os.PathLike[str] | None = None,
    repair: str | os.PathLike[str] | None = None,
    strict: bool = False,
    reporter: Reporter = SILENT,
) -> AuditResult:
    """Look for wrong labels, copies, leaks between splits, outliers and hopeless classes in a cache.

    Parameters
    ----------
    cache : path of a feature cache.
    head : head file with its out-of-fold file beside it, whose probabilities judge the labels. Without one, a
        logistic head is fitted with cross-validation on `node`.
    target, node, cosine, ratio, fence, confusion, thin, cv, seed : see `AuditConfig`.
    fix : .csv file to write: every sample with its label, the suggested one where the label is flagged. After
        a person has looked, `fit-head --labels` and `repair` take it.
    repair : labels file, as `fit-head --labels` takes it. Heads with the old and with these labels are
        compared on the test samples, both with these labels.
    strict : refuse decisions that change what is measured.

    Raises
    ------
    CacheError
        There is no such cache or node.
    FitError
        The labels cannot be judged: none, one class, a regression, too few samples for folds.
    ArtifactError
        The head has no out-of-fold file, or was fitted on other features or other samples.
    """
    started = time.perf_counter()
    config = AuditConfig(target, node, cosine, ratio, fence, confusion, thin, cv, seed)
    with FeatureCache(cache) as opened:
        if head is None and not opened.samples.targets:
            return _without_labels(opened, config, reporter, started)
        judge = None if head is None else load_head(head)
        task = task_of(opened, config.target if judge is None else judge.target, cv=cv, seed=seed)
        if task.target.kind == "regression":
            raise FitError(
                f"Target {task.target.name!r} is a number; an audit judges classes.",
                "Name another target with --target.",
            )
        refuse_strict(task.notes, strict)
        if judge is None:
            judged = fitted(task, config.node, reporter)
        else:
            judged = from_head(task, judge, Path(os.fspath(head or "")))
        quality = judged.quality()
        compared = config.node if config.node in opened.nodes else judged.node
        copies = _copies(opened, compared, config, reporter)
        split_of = _splits_of_images(opened)
        labels = _label_issues(judged, quality, reporter)
        result = AuditResult(
            cache=str(cache),
            target=task.target.name,
            node=judged.node,
            samples=len(judged.rows),
            label_issues=labels,
            duplicates=_duplicates(opened, copies),
            leaks=_leaks(judged, copies, split_of),
            outliers=_outliers(opened, compared, split_of, config, reporter),
            confusable=_confusable(judged, config),
            thin=_thin(task, config),
            failures=dict(opened.failures),
            thresholds={name: getattr(config, name) for name in THRESHOLDS},
            repair=None if repair is None else _repaired(task, judged.node, repair, reporter),
            files={} if fix is None else {"fix": _write_fix(judged, quality, Path(fix))},
            notes=list(task.notes),
        )
    return replace(result, seconds=time.perf_counter() - started)


def _without_labels(
    cache: FeatureCache, config: AuditConfig, reporter: Reporter, started: float
) -> AuditResult:
    """Return what can be said of a cache that has no labels: copies, and images that are like no others."""
    cache.require_rows()
    copies, split_of = _copies(cache, config.node, config, reporter), _splits_of_images(cache)
    leaks = _leaking_copies(copies, split_of)
    nothing: Issue = {"flag": 0, "score": 0.0, "items": []}
    text = f"{cache.path} has no labels: only copies, leaks of images and outliers are looked for."
    return AuditResult(
        cache=str(cache.path),
        target="",
        node=config.node,
        samples=0,
        label_issues=nothing,
        duplicates=_duplicates(cache, copies),
        leaks={"flag": len(leaks), "score": len(leaks) / len(cache.images), "items": leaks},
        outliers=_outliers(cache, config.node, split_of, config, reporter),
        confusable=nothing,
        thin=nothing,
        failures=dict(cache.failures),
        thresholds={name: getattr(config, name) for name in THRESHOLDS},
        seconds=time.perf_counter() - started,
        notes=[Note("no-labels", text)],
    )


def _duplicates(cache: FeatureCache, copies: list[dict[str, Any]]) -> Issue:
    return {"flag": len(copies), "score": len(copies) / len(cache.images), "items": copies}


def _leaking_copies(copies: list[dict[str, Any]], split_of: dict[str, set[str]]) -> list[dict[str, Any]]:
    """Return the copies of which the images are in more than one split."""
    found = []
    for copy in copies:
        splits = set().union(*(split_of.get(image, set()) for image in copy["images"]))
        if len(splits) > 1:
            found.append(copy | {"splits": sorted(splits)})
    return found


def _label_issues(judged: Judged, quality: LabelQuality, reporter: Reporter) -> Issue:
    """Return the judged labels, the most suspicious first; the flagged ones with their nearest samples."""
    answers, samples = judged.answers, judged.task.samples
    keys, splits, names = samples.key[judged.rows], samples.split[judged.rows], answers.class_names
    items: list[dict[str, Any]] = []
    if answers.kind == "class":
        for i in np.argsort(quality.score, kind="stable"):
            items.append(
                {
                    "sample": keys[i],
                    "split": splits[i],
                    "given": names[answers.values[i]],
                    "suggested": names[quality.suggested[i]],
                    "score": float(quality.score[i]),
                    "flag": bool(quality.flag[i]),
                }
            )
    else:
        order = np.argsort(quality.score, axis=None, kind="stable")
        for i, k in zip(*np.unravel_index(order, quality.score.shape), strict=True):
            given, suggested = (
                ("not " if not bit else "") + names[k]
                for bit in (answers.values[i, k], quality.suggested[i, k])
            )
            items.append(
                {
                    "sample": keys[i],
                    "split": splits[i],
                    "label": names[k],
                    "given": given,
                    "suggested": suggested,
                    "score": float(quality.score[i, k]),
                    "flag": bool(quality.flag[i, k]),
                }
            )
    flagged = [item for item in items if item["flag"]]
    _add_neighbours(judged, flagged, reporter)
    return {"flag": len(flagged), "score": float(quality.score.mean()), "items": items}


def _add_neighbours(judged: Judged, flagged: list[dict[str, Any]], reporter: Reporter) -> None:
    """Add to each flagged item the samples of train that are nearest to it, with their labels."""
    if not flagged:
        return
    task, train = judged.task, judged.task.rows["train"]
    row_of = {key: row for row, key in enumerate(task.samples.key)}
    rows = np.array([row_of[item["sample"]] for item in flagged])
    both, place = np.unique(np.concatenate([rows, train]), return_inverse=True)
    features = centred(task.cache.sample_rows(judged.node, both))
    near = neighbourhood(features, place[len(rows) :], reporter)
    for item, at in zip(flagged, place, strict=False):
        nearest = [both[i] for i in near.index[at, :SHOWN_NEIGHBOURS] if i >= 0]
        item["neighbours"] = [
            {"sample": task.samples.key[row], "given": _label(task.target, row)} for row in nearest
        ]


def _label(target: Target, row: int) -> str:
    """Return the label of a sample, several of them joined by |."""
    if target.kind == "class":
        return target.class_names[target.values[row]]
    return "|".join(target.class_names[k] for k in np.flatnonzero(target.values[row] == 1))


def _copies(cache: FeatureCache, node: str, config: AuditConfig, reporter: Reporter) -> list[dict[str, Any]]:
    """Return pairs of images that have the same bytes, or nearly the same features."""
    keys, digests = cache.images.key, as_bytes(cache.images.digest)
    first_of: dict[bytes, int] = {}
    items = []
    for row, digest in enumerate(digests):
        first = first_of.setdefault(digest, row)
        if first != row:
            items.append({"images": [keys[first], keys[row]], "exact": True, "cosine": 1.0})
    distinct = np.array(sorted(first_of.values()))
    if len(distinct) > NEIGHBOURS:
        features = centred(cache.features(cache.vectors(node)[0].name), distinct)
        near = neighbourhood(features, reporter=reporter)
        for a, b in near_pairs(near, config.cosine, config.ratio):
            distance = near.distance[a][near.index[a] == b]
            distance = distance if len(distance) else near.distance[b][near.index[b] == a]
            pair = [keys[distinct[a]], keys[distinct[b]]]
            items.append({"images": pair, "exact": False, "cosine": float(1 - distance[0])})
    return items


def _splits_of_images(cache: FeatureCache) -> dict[str, set[str]]:
    """Return the splits in which each image is, by key."""
    splits: dict[str, set[str]] = {}
    keys, samples = cache.images.key, cache.samples
    for images, split in zip(samples.image, samples.split, strict=True):
        for image in images:
            splits.setdefault(keys[image], set()).add(split)
    return splits


def _leaks(judged: Judged, copies: list[dict[str, Any]], split_of: dict[str, set[str]]) -> Issue:
    """Return copies and groups that are in two splits, and the accuracy on test without them."""
    task, items = judged.task, _leaking_copies(copies, split_of)
    leaked = {image for item in items for image in item["images"]}
    groups: set[str] = set()
    if task.samples.group is not None:
        splits_of_group: dict[str, set[str]] = {}
        for group, split in zip(task.samples.group, task.samples.split, strict=True):
            splits_of_group.setdefault(str(group), set()).add(split)
        groups = {group for group, splits in splits_of_group.items() if len(splits) > 1}
        items += [{"group": group, "splits": sorted(splits_of_group[group])} for group in sorted(groups)]
    result: Issue = {"flag": len(items), "score": len(leaked) / max(1, len(split_of)), "items": items}
    if "test" in task.rows:
        rows = task.rows["test"]
        keys = task.cache.images.key[task.samples.image[rows]]
        out = np.array([any(key in leaked for key in each) for each in keys], bool)
        if groups and task.samples.group is not None:
            out |= np.isin(task.samples.group[rows].astype(str), sorted(groups))
        outputs = outputs_of(task, judged.head, rows)
        for name, chosen in (("test_accuracy", np.full(len(rows), True)), ("test_accuracy_without", ~out)):
            if chosen.any():
                link, temperature = judged.head.link, judged.head.temperature
                figures = measured(task, rows[chosen], outputs[chosen], link, temperature)
                result[name] = figures["accuracy"]
                result[f"{name}_ci95"] = figures["accuracy_ci95"]
        result["test_samples_leaked"] = int(out.sum())
    return result


def _outliers(
    cache: FeatureCache, node: str, split_of: dict[str, set[str]], config: AuditConfig, reporter: Reporter
) -> Issue:
    """Return the images by their distance to those of train, the farthest first."""
    keys = cache.images.key
    train = np.flatnonzero(["train" in split_of.get(key, ()) for key in keys])
    if len(train) <= NEIGHBOURS:
        return {"flag": 0, "score": 0.0, "items": []}
    features = centred(cache.features(cache.vectors(node)[0].name))
    scores = outlier_scores(neighbourhood(features, train, reporter))
    flag = beyond_fence(scores, config.fence)
    items = [
        {
            "image": keys[i],
            "split": "+".join(sorted(split_of.get(keys[i], ()))),
            "score": float(scores[i]),
            "flag": bool(flag[i]),
        }
        for i in np.argsort(-scores, kind="stable")
    ]
    return {"flag": int(flag.sum()), "score": float(scores.mean()), "items": items}


def _confusable(judged: Judged, config: AuditConfig) -> Issue:
    """Return pairs of classes whose samples are often held for the other one, the worst first."""
    answers, p = judged.answers, judged.probabilities
    if answers.kind != "class":
        return {"flag": 0, "score": 0.0, "items": []}
    counts, items = np.bincount(answers.values, minlength=p.shape[1]), list[dict[str, Any]]()
    top = np.zeros((p.shape[1],) * 2, np.int64)
    np.add.at(top, (answers.values, p.argmax(axis=1)), 1)
    for a, b in zip(*np.nonzero(np.triu(top + top.T, 1)), strict=True):
        n, wrong = int(counts[a] + counts[b]), int(top[a, b] + top[b, a])
        low, high = wilson_interval(wrong, n)
        items.append(
            {
                "classes": [answers.class_names[a], answers.class_names[b]],
                "score": wrong / n,
                "interval": [low, high],
                "samples": n,
                "flag": low > config.confusion,
            }
        )
    items.sort(key=lambda item: -item["score"])
    overall = float((p.argmax(axis=1) != answers.values).mean())
    return {"flag": sum(item["flag"] for item in items), "score": overall, "items": items}


def _thin(task: Task, config: AuditConfig) -> Issue:
    """Return the classes by the number of their samples in train, the fewest first."""
    names, values = task.target.class_names, task.target.values[task.rows["train"]]
    one_class = task.target.kind == "class"
    counts = np.bincount(values, minlength=len(names)) if one_class else values.sum(axis=0)
    items = [
        {"class": names[k], "score": int(counts[k]), "flag": bool(counts[k] < config.thin)}
        for k in np.argsort(counts, kind="stable")
    ]
    return {"flag": sum(item["flag"] for item in items), "score": int(counts.min()), "items": items}


def _write_fix(judged: Judged, quality: LabelQuality, path: Path) -> str:
    """Write every labelled sample with its label, or the suggested one where it is flagged; flagged first."""
    answers, samples = judged.answers, judged.task.samples
    if answers.kind != "class":
        raise FitError("--fix writes one class a sample; a multi-label target has several labels.")
    labels = np.where(quality.flag, quality.suggested, answers.values)
    order = np.lexsort((quality.score, ~quality.flag))
    rows = [(samples.key[judged.rows[i]], answers.class_names[labels[i]]) for i in order]
    lines = csv_lines([("sample", answers.name), *rows], raw=True)
    write_whole(path, "".join(lines).encode())
    return str(path)


def _repaired(task: Task, node: str, labels: str | os.PathLike[str], reporter: Reporter) -> dict[str, Any]:
    """Fit heads with the old and with the new labels, and compare them on test by the new labels."""
    name = task.target.name
    samples, notes = relabelled(task.samples, task.cache.images.key, labels, targets=(name,))
    new = samples.targets[name]
    if new.kind != task.target.kind:
        raise FitError(
            f"{labels} makes {name!r} a {new.kind} target; the cache has a {task.target.kind} one."
        )
    unknown = sorted(set(new.class_names) - set(task.target.class_names))
    if unknown:
        raise FitError(f"{labels} has classes that train of the cache lacks: {', '.join(unknown[:5])}.")
    if "test" not in task.rows:
        raise FitError(
            "There is no test split, on which a repair could be measured.",
            "Extract with --test-fraction 0.2 to set one aside.",
        )
    code_of = {each: code for code, each in enumerate(task.target.class_names)}
    codes = np.array([*(code_of[each] for each in new.class_names), -1])[new.values]
    values = np.where(codes >= 0, codes, task.target.values)
    repaired = replace(task, target=replace(task.target, values=values))
    rows = task.rows["test"]
    judged = []
    for each in (task, repaired):
        problem, train = each.problem(), each.rows["train"]
        head = artifact_of(each, node, train, fit_on(each, node, train, problem, reporter=reporter), problem)
        judged.append(evidence_of(repaired, rows, outputs_of(repaired, head, rows)))
    gain = difference(judged[1], judged[0])
    return {
        "labels": str(labels),
        "changed": int((values != task.target.values).sum()),
        "changed_in_test": int((values[rows] != task.target.values[rows]).sum()),
        "test_accuracy_before": judged[0].mean,
        "test_accuracy_after": judged[1].mean,
        "gain": gain.gain,
        "gain_ci95": [gain.gain - 1.96 * gain.error, gain.gain + 1.96 * gain.error],
        "n": gain.n,
        "notes": [note.to_json() for note in notes],
    }
