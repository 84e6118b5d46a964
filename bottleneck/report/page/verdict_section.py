"""The first two sections: how good the model is with its worst problems, and what it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any

from bottleneck import __version__
from bottleneck.errors import counted, verb
from bottleneck.names import SPLITS
from bottleneck.records import is_number
from bottleneck.report.page.blocks import (
    Block,
    Command,
    Figure,
    Figures,
    Interval,
    Problem,
    Problems,
    Prose,
    Section,
    Table,
)
from bottleneck.report.page.held_out import FOLDS, Judged
from bottleneck.report.page.inputs import Fitted, Inputs
from bottleneck.report.page.model_section import stored
from bottleneck.store.reader import FeatureCache

SHOWN = 3  # problems
WIDE = 0.1  # of an interval from which it is called wide
LONGEST = 300  # characters of a value


def verdict_section(
    inputs: Inputs,
    main: Fitted | None,
    found: Judged | None,
    cache: FeatureCache | None,
    problems: Sequence[Problem],
) -> Section:
    """Return accuracy with its interval, the worst three problems and the next command."""
    if main is None:
        return _of_data(inputs, cache, problems)
    split, metrics = stored(main)
    if found is not None:
        split, metrics = found.of, found.metrics
    all_problems = [*problems, *_of_measurement(main, found, split, metrics, cache)]
    worst = sorted(all_problems, key=lambda each: -each.weight)[:SHOWN]
    worst = [_with_command(each, inputs, cache) for each in worst]
    blocks: list[Block] = [
        Figures("figures", text=f"Measured on {split}." if split else "", figures=_figures(metrics))
    ]
    blocks.append(Problems("problems", "What to look at first", problems=worst))
    if not worst:
        blocks[-1] = Prose("problems", "What to look at first", "Nothing stands out in what was measured.")
    blocks.append(Command("next", "Next", command=_next(main, worst, cache)))
    return Section("verdict", "Verdict", blocks)


def _of_data(inputs: Inputs, cache: FeatureCache | None, problems: Sequence[Problem]) -> Section:
    """Return what can be said without a head."""
    blocks: list[Block] = []
    if cache is not None:
        labels = [each for each in cache.samples.targets.values() if each.labelled.any()]
        classes = len(labels[0].class_names) if labels else 0
        figures = [Figure("images", f"{len(cache.images):,}")]
        if classes:
            figures.append(Figure("classes", f"{classes:,}", f"of target {labels[0].name}"))
        blocks.append(
            Figures("figures", text="No head is among the paths: nothing is measured yet.", figures=figures)
        )
        worst = [
            _with_command(each, inputs, cache)
            for each in sorted(problems, key=lambda each: -each.weight)[:SHOWN]
        ]
        if worst:
            blocks.append(Problems("problems", "What to look at first", problems=worst))
        path = quote(str(cache.path))
        command = (
            f"bottleneck fit-head {path}" if labels else f"bottleneck similar {path} --all --threshold 0.98"
        )
        if labels and classes == 1:
            command = cache.extract_command()
            blocks.append(
                Prose("one-class", text="There is one class only: a classifier needs a second one.")
            )
        blocks.append(Command("next", "Next", command=command))
    missing = "" if blocks else "Nothing was measured by what the paths name."
    return Section("verdict", "Verdict", blocks, missing)


def _figures(metrics: Mapping[str, Any]) -> list[Figure]:
    """Return the large numbers of a target's kind."""
    if not metrics:
        return []
    n = counted(metrics["n"], "sample") if is_number(metrics.get("n")) else ""
    if is_number(metrics.get("accuracy")):
        low, high = metrics.get("accuracy_ci95", (None, None))
        value = float(metrics["accuracy"])
        interval = Interval(value, low, high) if is_number(low) and is_number(high) else None
        hint = f"95 % interval {low:.1%} to {high:.1%}, {n}" if interval else n
        several = "mean_average_precision" in metrics
        label = "of all label answers are right" if several else "accuracy"
        found = [Figure(label, f"{value:.1%}", hint, interval)]
        counts = metrics.get("confusion")
        if counts and is_number(metrics.get("n")):
            common = max(sum(row) for row in counts) / max(1, metrics["n"])
            found.append(Figure("by always naming the commonest class", f"{common:.1%}", "the baseline"))
        if is_number(metrics.get("balanced_accuracy")):
            found.append(
                Figure("balanced accuracy", f"{metrics['balanced_accuracy']:.1%}", "mean over classes")
            )
        if several and is_number(metrics.get("exact_match")):
            found.append(Figure("have all labels right", f"{metrics['exact_match']:.1%}", "exact match"))
        return found
    found = []
    if is_number(metrics.get("r2")):
        found.append(Figure("R²", f"{metrics['r2']:.3f}", f"share of the variance that is explained, {n}"))
    if is_number(metrics.get("mae")):
        found.append(Figure("mean absolute error", f"{metrics['mae']:.4g}", "in the unit of the target"))
    if is_number(metrics.get("rmse")):
        found.append(Figure("root mean squared error", f"{metrics['rmse']:.4g}", ""))
    return found


def _of_measurement(
    main: Fitted,
    found: Judged | None,
    split: str,
    metrics: Mapping[str, Any],
    cache: FeatureCache | None,
) -> list[Problem]:
    """Return what is wrong with the measurement itself."""
    problems = []
    has_test = cache is not None and (cache.samples.split == "test").any()
    if (found is not None and found.learnt) or (found is None and split == "the train split"):
        problems.append(
            Problem(
                2.0,
                "Measured on images that it has learnt from",
                "The figures say nothing of new images. Set some aside with --test-fraction 0.2.",
                cache.extract_command("--test-fraction 0.2") if cache and not has_test else "",
            )
        )
    elif found is not None and found.split in main.head.settings.get("chosen_on", ()):
        text = "It chose this model, so expect a little less on new images. A test split would confirm it."
        problems.append(Problem(0.08, f"The {found.split} split chose this model", text))
    elif found is not None and found.split == FOLDS:
        text = "Cross-validation chose the head on the same images, so a test split would confirm the figure."
        problems.append(Problem(0.03, "No split was set aside for a test", text))
    bounds = metrics.get("accuracy_ci95")
    if bounds and is_number(metrics.get("n")) and bounds[1] - bounds[0] > WIDE:
        text = (
            f"With {counted(metrics['n'], 'sample')} the accuracy may be from {bounds[0]:.0%} to "
            f"{bounds[1]:.0%}."
        )
        problems.append(Problem(float(bounds[1] - bounds[0]), "The measurement is coarse", text))
    counts = metrics.get("confusion")
    if counts and is_number(metrics.get("accuracy")) and len(counts) > 1:
        common = max(sum(row) for row in counts) / max(1, sum(map(sum, counts)))
        if metrics["accuracy"] <= common:
            text = f"Always naming the commonest class is right for {common:.0%}."
            problems.append(Problem(1.5, "The model is no better than the commonest class", text))
    elif counts and len(counts) == 1:
        problems.append(Problem(1.5, "There is one class only", "Nothing can be told apart."))
    return [*problems, *_unmeasured(main.head.class_names, counts or (), split)]


def _unmeasured(names: Sequence[str], counts: Sequence[Sequence[int]], split: str) -> list[Problem]:
    """Return a problem that names the classes without a sample. counts : (K, K), confusions by true class."""
    absent = [name for name, row in zip(names, counts, strict=False) if not sum(row)]
    if not absent:
        return []
    more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
    text = f"{split[:1].upper()}{split[1:]} has no sample of {', '.join(absent[:SHOWN])}{more}. "
    are = verb(len(absent))
    headline = f"{len(absent):,} of {counted(len(names), 'class', 'classes')} {are} not measured"
    return [Problem(len(absent) / len(names), headline, text + "The figures say nothing of them.")]


def _with_command(problem: Problem, inputs: Inputs, cache: FeatureCache | None) -> Problem:
    """Fill in the command of a problem that names only which one it is; none where it was run already."""
    if problem.command != "audit":
        return problem
    run = cache is not None and any(
        str(each.get("cache")) == str(cache.path) for each in inputs.results.get("audit", ())
    )
    command = f"bottleneck audit {quote(str(cache.path))}" if cache is not None and not run else ""
    return Problem(problem.weight, problem.headline, problem.detail, command)


def _next(main: Fitted, worst: Sequence[Problem], cache: FeatureCache | None) -> str:
    """Return the command that helps most: that of the worst problem, else the use of the model."""
    return next(
        (each.command for each in worst if each.command), f"bottleneck predict {quote(str(main.path))} IMAGES"
    )


def provenance_section(
    inputs: Inputs, main: Fitted | None, cache: FeatureCache | None, command: str, seed: int
) -> Section:
    """Return what the page was made from, and by what. seed : of the map."""
    rows: list[list[Any]] = [
        ["made with", f"bottleneck {__version__}"],
        ["date", f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"],
    ]
    if command:
        rows.append(["command", command])
    rows += [["paths", ", ".join(inputs.given)], ["seed of the map", seed]]
    blocks: list[Block] = [Table("page", "This page", columns=("what", "value"), rows=rows, sortable=False)]
    if main is not None:
        blocks.append(_model(main))
    blocks += [_cache(each, each is cache and len(inputs.caches) > 1) for each in inputs.caches]
    return Section("provenance", "Provenance", blocks)


def _model(main: Fitted) -> Table:
    head = main.head
    rows: list[list[Any]] = [
        ["file", str(main.path)],
        ["kind", head.kind],
        ["target", f"{head.target}, {head.target_kind}"],
        ["classes", f"{len(head.class_names):,}" if head.class_names else "–"],
        ["node", head.node],
        ["features of a sample", f"{head.n_features:,}"],
        ["training samples", f"{head.n_train:,}"],
        ["C", "–" if head.C is None else f"{head.C:.4g}"],
        ["seed of the folds", "not recorded" if head.seed is None else head.seed],
        ["temperature", f"{head.temperature:.4g}"],
        ["fingerprint of the cache", head.fingerprint],
        ["fingerprint of the node", head.node_fingerprint or "of its own network"],
        ["made with", f"bottleneck {head.version}"],
        *(
            [f"setting {name}", _text(value)]
            for name, value in head.settings.items()
            if value not in (None, {}, [])
        ),
        *([f"training {name}", _text(value)] for name, value in (main.history.get("settings") or {}).items()),
    ]
    return Table("model-file", "Model", columns=("what", "value"), rows=rows, sortable=False, shown=9)


def _cache(cache: FeatureCache, shown: bool) -> Table:
    """Return what a cache was made with."""
    engines, nodes, split = cache.engines, cache.nodes.values(), cache.samples.split
    names = sorted({engine or "not recorded" for each in engines.values() for engine in each})
    counts = {name: int((split == name).sum()) for name in SPLITS}
    rows: list[list[Any]] = [
        ["file", str(cache.path)],
        ["source", cache.source],
        ["made with", cache.created_with],
        ["fingerprint", cache.fingerprint],
        ["splits", ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "–"],
        ["engine", ", ".join(names)],
        ["precision", ", ".join(sorted({node.precision for node in nodes}))],
        *([f"network {name}", _text(value)] for name, value in cache.spec.backbone.items()),
        *([f"images {name}", _text(value)] for name, value in cache.spec.preprocess.items()),
        *(
            [
                f"node {name}",
                f"{' × '.join(map(str, node.shape))} {node.dtype}, computed in {node.precision} by engine "
                + ", ".join(engine or "not recorded" for engine in engines[name]),
            ]
            for name, node in cache.nodes.items()
        ),
    ]
    if not cache.finished:
        rows.append(["state", "unfinished: the rows that were committed so far"])
    caption = f"Cache {Path(cache.path).name}" + (", shown here" if shown else "")
    return Table("cache", caption, columns=("what", "value"), rows=rows, sortable=False, shown=11)


def _text(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"
