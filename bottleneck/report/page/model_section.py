"""The section on the model: confusions, classes, calibration, groups, mistakes with their neighbours.

Shapes: n judged samples, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.errors import BottleneckError, Note, counted, verb
from bottleneck.heads.metrics import ECE_BINS, wilson_interval
from bottleneck.names import nodes_in
from bottleneck.report.page.blocks import (
    Block,
    Chart,
    Confusion,
    Gallery,
    Interval,
    Item,
    Problem,
    Section,
    Series,
    Table,
)
from bottleneck.report.page.held_out import Judged
from bottleneck.report.page.inputs import Fitted
from bottleneck.report.page.pictures import CELL, HIT, LEGEND, MISTAKE, Pictures, overlays
from bottleneck.samples import ArrayRows
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.similar.neighbours import NONE, nearest

SHOWN = 24  # mistakes and uncertain samples
EXPLAINED = 9  # mistakes, as many as are shown at first
PER_CELL = 18  # images of a cell of the confusion matrix
MOST_CELL_IMAGES = 4000
NEIGHBOURS = 3
MOST_COMPARED = 100_000  # training images among which neighbours are searched
MOST_GROUPS = 50
SURE = 0.9
LEAST_OF_CLASS = 3  # measured samples from which a class's recall is called bad


def model_section(
    fitted: Fitted | None,
    found: Judged | None,
    cache: FeatureCache | None,
    pictures: Pictures,
    options: LoadOptions,
) -> Section:
    """Return the section, with its problems and notes."""
    if fitted is None:
        missing = (
            "No head or model is among the paths. Fit one with bottleneck fit-head, or use bottleneck train."
        )
        return Section("model", "Model", missing=missing)
    if found is None or cache is None:
        split, metrics = stored(fitted)
        blocks = metric_blocks(metrics, split)
        why = "" if blocks else "The file has no metrics, and nothing was measured."
        return Section("model", "Model", blocks, why, class_problems(metrics, split))
    numbers = [pictures.want(name, HIT) for name in _images(cache, found.rows)]
    blocks = metric_blocks(found.metrics, found.of, _cells(found, numbers, pictures))
    problems = class_problems(found.metrics, found.of)
    if found.head.target_kind == "class":
        blocks.append(reliability(found))
        problems += _calibration(found)
    if found.head.target_kind == "regression":
        blocks.append(_against_truth(found))
    if cache.samples.group is not None:
        table, worse = groups(found, cache.samples.group)
        blocks.append(table)
        problems += worse
    near = Neighbours(cache, found, pictures)
    orders = _orders(found)
    first = orders[0][2][:EXPLAINED]
    looked, notes = dict[int, int](), list[Note]()
    if len(first) and found.head.target_kind == "class":
        looked, notes = overlays(fitted.path, cache, found.rows[first], options, pictures)
    blocks += galleries(found, cache, pictures, near, looked)
    return Section("model", "Model", blocks, problems=problems, notes=[*near.notes, *notes])


def stored(fitted: Fitted) -> tuple[str, dict[str, Any]]:
    """Return the figures in a head's file of what it has not learnt from, else of train; {} for none."""
    words = {"cv": "held-out folds of the training images"}
    for name in ("test", "cv", "val", "train"):
        if metrics := fitted.head.metrics.get(name):
            return words.get(name, f"the {name} split"), dict(metrics)
    return "", {}


def _images(cache: FeatureCache, rows: np.ndarray) -> list[str]:
    """Return the key of the first image of each sample."""
    return list(cache.images.key[cache.samples.image[rows, 0]])


def _cells(found: Judged, numbers: Sequence[int], pictures: Pictures) -> dict[tuple[int, int], list[int]]:
    """Return the images of each cell of the confusion matrix, the surest first; mistakes before the rest."""
    if found.head.target_kind != "class":
        return {}
    confidence = found.scores.max(axis=1)
    wrong = found.predicted != found.answers
    cells: dict[tuple[int, int], list[int]] = {}
    used = 0
    for i in np.lexsort((-confidence, ~wrong)):
        cell = cells.setdefault((int(found.answers[i]), int(found.predicted[i])), [])
        if len(cell) < PER_CELL and used < MOST_CELL_IMAGES:
            cell.append(pictures.want(pictures.names[numbers[i]], CELL if wrong[i] else HIT))
            used += 1
    return cells


def metric_blocks(
    metrics: Mapping[str, Any], of: str, cells: dict[tuple[int, int], list[int]] | None = None
) -> list[Block]:
    """Return the confusion matrix and the table of classes of metrics as `evaluate` reports them."""
    blocks: list[Block] = []
    if (counts := metrics.get("confusion")) and metrics.get("classes"):
        text = f"Rows are true classes, columns predicted ones, on {of}."
        blocks.append(
            Confusion(
                "confusion", "Confusions", text, classes=metrics["classes"], counts=counts, cells=cells or {}
            )
        )
    if per_class := metrics.get("per_class"):
        found = "recall" if metrics.get("confusion") else "found"
        rows = [
            [each["name"], each["n"], _recall(each), each["precision"], each["f1"]]
            for each in sorted(per_class, key=lambda each: (each["n"] == 0, each["recall"] or 0.0))
        ]
        note = f"Recall is the share of a class that was found, with its 95 % interval; measured on {of}."
        columns = ("class", "samples", found, "precision", "F1")
        blocks.append(Table("classes", "By class", columns=columns, rows=rows, note=note))
    return blocks


def _recall(each: Mapping[str, Any]) -> Interval | None:
    if not each["n"]:
        return None
    low, high = wilson_interval(each["recall"] * each["n"], each["n"])
    return Interval(each["recall"], low, high)


def class_problems(metrics: Mapping[str, Any], of: str) -> list[Problem]:
    """Return the class that is worst found, and the pair that is most often confused."""
    problems = []
    per_class = [each for each in metrics.get("per_class", ()) if each["n"] >= LEAST_OF_CLASS]
    accuracy = metrics.get("accuracy")
    if len(per_class) > 1 and accuracy is not None:
        worst = min(per_class, key=lambda each: each["recall"])
        lost = worst["recall"] - accuracy
        if lost < -0.02:
            hits = round(worst["recall"] * worst["n"])
            text = f"{worst['recall']:.0%} are found; of all classes together {accuracy:.0%}."
            headline = f"{worst['name']} is found least: {hits:,} of {worst['n']:,}"
            problems.append(Problem(-lost, headline, text))
    if metrics.get("confusion"):
        counts = np.array(metrics["confusion"])
        wrong = counts - np.diag(np.diag(counts))
        if wrong.sum() > 1:
            both = np.triu(wrong + wrong.T, 1)
            a, b = np.unravel_index(both.argmax(), both.shape)
            names = metrics["classes"]
            share = both[a, b] / wrong.sum()
            if len(names) > 2:
                problems.append(
                    Problem(
                        0.5 * float(both[a, b] / max(1, counts[[a, b]].sum())) + 0.2 * float(share),
                        f"{names[a]} and {names[b]} are confused {both[a, b]:,} times",
                        f"That is {share:.0%} of all mistakes on {of}. Look at them under Model.",
                    )
                )
    return problems


def reliability(found: Judged) -> Chart:
    """Return accuracy by confidence in equal bins, with 95 % intervals, against perfect calibration."""
    confidence, hits = found.scores.max(axis=1), found.predicted == found.answers
    where = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    x, y, low, high = [], [], [], []
    for k in range(ECE_BINS):
        inside = where == k
        if n := int(inside.sum()):
            bounds = wilson_interval(int(hits[inside].sum()), n)
            x.append(float(confidence[inside].mean()))
            y.append(float(hits[inside].mean()))
            low.append(bounds[0])
            high.append(bounds[1])
    series = (
        Series("this model, with 95 % intervals", x, y, low, high),
        Series("perfectly calibrated", (0.0, 1.0), (0.0, 1.0), drawn="reference"),
    )
    text = (
        f"Of the answers given with a confidence of 80 %, 80 % should be right. The mean distance is "
        f"{found.metrics['ece']:.3f}; on {found.of}."
    )
    return Chart(
        "reliability",
        "Confidence and accuracy",
        text,
        x_label="confidence",
        y_label="accuracy",
        series=series,
        y_range=(0.0, 1.0),
    )


def _calibration(found: Judged) -> list[Problem]:
    problems = []
    ece, n = found.metrics["ece"], len(found.rows)
    if ece > 0.05 + 0.5 / np.sqrt(n):
        sure = float(found.scores.max(axis=1).mean())
        what = "too sure of itself" if sure > found.metrics["accuracy"] else "less sure than it could be"
        text = f"Its mean confidence is {sure:.0%}, its accuracy {found.metrics['accuracy']:.0%}."
        problems.append(Problem(float(ece), f"The model is {what}", text))
    wrong = (found.predicted != found.answers) & (found.scores.max(axis=1) >= SURE)
    if count := int(wrong.sum()):
        text = "Either they are unlike the training images, or their labels are wrong: an audit tells which."
        problems.append(
            Problem(
                count / n + 0.02,
                f"Mistakes that are made with {SURE:.0%} confidence or more: {count:,}",
                text,
                "audit",
            )
        )
    return problems


def _against_truth(found: Judged) -> Chart:
    """Return predicted against true values."""
    low, high = (float(f(np.concatenate([found.answers, found.scores]))) for f in (np.min, np.max))
    chosen = np.linspace(0, len(found.rows) - 1, min(2000, len(found.rows))).astype(int)
    series = (
        Series("samples", found.answers[chosen].tolist(), found.scores[chosen].tolist(), drawn="points"),
        Series("equal", (low, high), (low, high), drawn="reference"),
    )
    return Chart(
        "values",
        "Predicted and true values",
        f"On {found.of}.",
        x_label=f"true {found.head.target}",
        y_label=f"predicted {found.head.target}",
        series=series,
    )


def groups(found: Judged, group: np.ndarray) -> tuple[Table, list[Problem]]:
    """Return the accuracy by group of the samples, the worst first, and a problem where one falls behind."""
    names, code = np.unique(group[found.rows].astype(str), return_inverse=True)
    counts = np.bincount(code)
    mean = np.bincount(code, found.error) / counts
    regression = found.head.target_kind == "regression"
    order = np.lexsort((-counts, -mean))
    rows: list[list[Any]] = []
    problems: list[Problem] = []
    for g in order[:MOST_GROUPS]:
        cell: Any = float(mean[g])
        if not regression:
            low, high = wilson_interval((1 - mean[g]) * counts[g], int(counts[g]))
            cell = Interval(float(1 - mean[g]), low, high)
            overall = float(1 - found.error.mean())
            if high < overall and not problems:
                text = (
                    f"{names[g]} has {1 - mean[g]:.0%} of {counted(counts[g], 'sample')}, all groups "
                    f"{overall:.0%}."
                )
                problems.append(Problem(overall - float(1 - mean[g]), f"Group {names[g]} falls behind", text))
        rows.append([names[g], int(counts[g]), cell])
    column = "mean error" if regression else "accuracy"
    more = f"The worst {MOST_GROUPS} of {counted(len(names), 'group')}." if len(names) > MOST_GROUPS else ""
    table = Table("groups", "By group", columns=("group", "samples", column), rows=rows, note=more)
    return table, problems


class Neighbours:
    """The training images that are nearest to images of the cache, by its features.

    notes : on what was left out.
    """

    def __init__(self, cache: FeatureCache, found: Judged, pictures: Pictures) -> None:
        self.notes: list[Note] = []
        self._cache, self._pictures, self._target = cache, pictures, found.head.target
        names = cache.vector_names
        one = nodes_in(found.head.node)[0]
        self._node = cache.stored_name(one) if cache.stored_name(one) in names else next(iter(names), None)
        train = np.unique(cache.samples.image[cache.samples.split == "train", 0])
        if len(train) > MOST_COMPARED:
            train = train[np.linspace(0, len(train) - 1, MOST_COMPARED).astype(int)]
            text = f"The nearest training images are searched among {MOST_COMPARED:,} of them, evenly drawn."
            self.notes.append(Note("neighbours-sampled", text, details={"images": MOST_COMPARED}))
        self._train = train

    def of(self, rows: np.ndarray) -> list[list[tuple[int, str]]]:
        """Return for the samples `rows` (n,) the picture numbers of their neighbours, with their labels."""
        nothing: list[list[tuple[int, str]]] = [[] for _ in rows]
        if self._node is None or not len(self._train) or not len(rows):
            return nothing
        cache = self._cache
        images = cache.samples.image[rows, 0]
        try:
            features = cache.features(self._node)
            exclude = np.searchsorted(self._train, images)
            inside = exclude < len(self._train)
            inside[inside] = self._train[exclude[inside]] == images[inside]
            index, _ = nearest(
                ArrayRows(features.take(self._train)),
                ArrayRows(features.take(images)),
                NEIGHBOURS,
                np.where(inside, exclude, NONE),
            )
        except BottleneckError as error:
            self.notes.append(Note("no-neighbours", f"No nearest training images: {error.message}"))
            return nothing
        label = self._labels()
        return [
            [
                (self._pictures.want(cache.images.key[i], MISTAKE - 0.5), label.get(int(i), ""))
                for i in self._train[each[each >= 0]]
            ]
            for each in index
        ]

    def _labels(self) -> dict[int, str]:
        """Return the class of each image by the head's target, or by the only one; none of other kinds."""
        samples = self._cache.samples
        targets = list(samples.targets.values())
        target = samples.targets.get(self._target, targets[0] if len(targets) == 1 else None)
        if target is None or target.kind != "class":
            return {}
        pairs = zip(samples.image[:, 0].tolist(), target.values.tolist(), strict=True)
        return {image: target.class_names[code] for image, code in pairs if code >= 0}


def galleries(
    found: Judged, cache: FeatureCache, pictures: Pictures, near: Neighbours, looked: Mapping[int, int]
) -> list[Block]:
    """Return the surest mistakes and the least certain samples, each with its nearest training images.

    looked : numbers of overlays by sample.
    """
    kind, names = found.head.target_kind, found.head.class_names
    blocks: list[Block] = []
    for name, caption, order, text in _orders(found):
        chosen = order[:SHOWN]
        keys, neighbours = _images(cache, found.rows[chosen]), near.of(found.rows[chosen])
        items = []
        for i, key, beside in zip(chosen, keys, neighbours, strict=True):
            lines: tuple[str, ...]
            if kind == "class":
                lines = (
                    f"is {names[found.answers[i]]}",
                    f"predicted {names[found.predicted[i]]}, {found.scores[i].max():.0%}",
                )
            elif kind == "multilabel":
                lines = tuple(
                    f"{what} {', '.join(names[k] for k in np.flatnonzero(bits)) or '–'}"
                    for what, bits in (("is", found.answers[i] == 1), ("predicted", found.predicted[i] == 1))
                )
            else:
                lines = (f"is {found.answers[i]:.4g}", f"predicted {found.scores[i]:.4g}")
            shown = looked.get(int(found.rows[i]))
            items.append(Item(pictures.want(key, MISTAKE), lines, beside, shown))
        if items:
            label = "nearest training images"
            text += f" {LEGEND}" if any(item.overlay is not None for item in items) else ""
            blocks.append(Gallery(name, caption, text, items=items, near_label=label))
    return blocks


def _orders(found: Judged) -> list[tuple[str, str, np.ndarray, str]]:
    """Return name, caption, order of the samples and text of each gallery."""
    wrong = np.flatnonzero(found.error > 0)
    if found.head.target_kind == "regression":
        order = np.argsort(-found.error, kind="stable")
        return [
            ("mistakes", "Largest errors", order, f"Largest first, of {len(found.rows):,} on {found.of}.")
        ]
    if found.head.target_kind == "multilabel":
        order = wrong[np.argsort(-found.error[wrong], kind="stable")]
        text = (
            f"{len(order):,} of {counted(len(found.rows), 'sample')} "
            f"{verb(len(order), 'has', 'have')} a wrong label; on {found.of}."
        )
        return [("mistakes", "Samples with most wrong labels", order, text)]
    confidence = found.scores.max(axis=1)
    sure = wrong[np.argsort(-confidence[wrong], kind="stable")]
    text = f"{min(SHOWN, len(sure)):,} of {counted(len(sure), 'mistake')}, the surest first; on {found.of}."
    doubt = np.argsort(confidence, kind="stable")
    return [
        ("mistakes", "Surest mistakes", sure, text),
        ("uncertain", "Least certain images", doubt, "Right or wrong, these were hardest to tell."),
    ]
