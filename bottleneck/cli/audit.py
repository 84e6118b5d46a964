"""`bottleneck audit`: what is wrong with the data of a cache."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

import click
from rich.console import RenderableType

from bottleneck.cli.completion import complete_node
from bottleneck.cli.options import flags_of, strict_option
from bottleneck.cli.terminal import Command, Terminal, shows_results, table
from bottleneck.errors import counted
from bottleneck.studies.study_config import ODD, AuditConfig

if TYPE_CHECKING:
    from bottleneck.studies.audit.audit import AuditResult

SHOWN = 10
JUDGED_BY = ("head", "target", "node", "doubt", "precision", "cv", "seed")  # options that a next run repeats
flag = flags_of(AuditConfig)


class Limit(click.ParamType):
    """A threshold as KIND=NUMBER."""

    name = "kind=number"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        kind, _, number = str(value).partition("=")
        try:
            limit = float(number)
        except ValueError:
            limit = -1.0
        if kind not in ODD or not 0 <= limit <= 1:
            shown = ", ".join(ODD)
            self.fail(f"{value!r} is not KIND=NUMBER with a number from 0 to 1; kinds: {shown}.", param, ctx)
        return kind, limit


@click.command(cls=Command)
@click.argument("cache", type=click.Path())
@click.option(
    "--head",
    type=click.Path(),
    show_default="a logistic head is fitted with cross-validation",
    help="Head file with its out-of-fold file beside it, whose probabilities judge the labels.",
)
@flag("--target", show_default="the first one", help="Target (column of labels) that is judged.")
@flag("--node", shell_complete=complete_node, help="Node whose features are compared.")
@flag(
    "--doubt",
    type=click.FloatRange(0, 1),
    help="Least probability with which a flagged label is wrong; fewer are flagged with a larger one.",
)
@flag(
    "--precision",
    type=click.FloatRange(0, 1),
    help="Least mean probability with which flagged labels are wrong, the precision that is expected.",
)
@flag("--cosine", type=click.FloatRange(0, 1), help="Least cosine of images that are nearly the same.")
@flag(
    "--ratio",
    type=click.FloatRange(0, 1),
    help="Copies are at most this share as far apart as an image and its tenth neighbour are.",
)
@flag(
    "--fence",
    type=click.FloatRange(0),
    help="Interquartile ranges above the third quartile from which an image is an outlier.",
)
@flag(
    "--confusion",
    type=click.FloatRange(0, 1),
    help="Two classes cannot be told apart if this share of their samples is predicted as the other.",
)
@flag("--thin", type=click.IntRange(0), help="Number of samples in train that a class should have.")
@click.option(
    "--odd",
    type=Limit(),
    multiple=True,
    show_default=" ".join(f"{kind}={limit:g}" for kind, limit in ODD.items()),
    help="Score from 0 to 1 below which an image is odd, such as dark=0.2; 0 for never; may be repeated.",
)
@flag("--cv", type=click.IntRange(2), help="Number of folds of the head that is fitted.")
@flag("--seed", type=int, help="Seed of the folds.")
@click.option(
    "--fix", type=click.Path(), help="Write a labels file with the suggested labels to this .csv file."
)
@click.option(
    "--repair", type=click.Path(), help="Labels file: measure on test what its labels bring to a head."
)
@strict_option
@shows_results
def command(terminal: Terminal, cache: str, odd: tuple[tuple[str, float], ...], **options: Any) -> None:
    """Look in CACHE for wrong labels, copies, leaks between splits, outliers, odd images, hopeless classes.

    Nothing is changed. What is flagged should be looked at by a person.
    """
    from bottleneck.studies.audit.audit import audit

    result = audit(cache, odd=dict(odd), reporter=terminal, **options)
    given = {name: options[name] for name in JUDGED_BY if options[name] != getattr(AuditConfig, name, None)}
    words = [quote(cache), *(f"--{name} {quote(str(value))}" for name, value in given.items())]
    terminal.result(result.to_json(), *_shown(result, cache, f"bottleneck audit {' '.join(words)}"))


def _shown(result: AuditResult, cache: str, again: str) -> list[RenderableType]:
    """Return a summary, and the worst of each kind. again : the command without --fix and --repair."""
    summary = [
        ("labels that are probably wrong", result.label_issues["flag"], result.samples),
        ("pairs of copies", result.duplicates["flag"], None),
        ("leaks between splits", result.leaks["flag"], None),
        ("outliers", result.outliers["flag"], len(result.outliers["items"]) or None),
        ("pairs of classes that cannot be told apart", result.confusable["flag"], None),
        ("thin classes", result.thin["flag"], len(result.thin["items"])),
        (
            "odd images",
            result.odd["flag"] if result.odd["measured"] else None,
            result.odd["measured"] or None,
        ),
        ("images that failed", len(result.failures), None),
    ]
    parts: list[RenderableType] = [
        table(f"Audit of {cache} by {result.node}", ("", "flagged", "of"), summary)
    ]
    kinds = (
        (result.label_issues, "Labels", ("sample", "given", "suggested", "wrong")),
        (result.outliers, "Outliers", ("image", "split", "score")),
        (result.odd, "Odd images", ("image", "kinds")),
        (result.thin, "Thin classes", ("class", "score")),
    )
    for issue, title, columns in kinds:
        flagged = [item for item in issue["items"] if item["flag"]]
        rows = [[_cell(item, column) for column in columns] for item in flagged[:SHOWN]]
        if rows:
            parts += [table(title, columns, rows), *_more(len(flagged))]
    if result.duplicates["items"]:
        copies = list(result.duplicates["items"])
        leaks = {tuple(item["images"]) for item in result.leaks["items"] if "images" in item}
        copies.sort(key=lambda item: "labels" not in item)
        rows = [
            [
                *item["images"],
                item["cosine"],
                " or ".join(map(str, item.get("labels", ()))),
                "in two splits" if tuple(item["images"]) in leaks else "",
            ]
            for item in copies[:SHOWN]
        ]
        of_copies = ("image", "and", "cosine", "labels", "")
        parts += [table("Copies", of_copies, rows), *_more(len(copies))]
    confusable = [item for item in result.confusable["items"] if item["flag"]]
    if confusable:
        rows = [[*item["classes"], item["score"]] for item in confusable[:SHOWN]]
        parts.append(table("Classes that cannot be told apart", ("class", "and", "score"), rows))
    parts += _figures(result, again)
    return parts


def _cell(item: dict[str, Any], column: str) -> Any:
    """Return a cell; of the kinds of an odd image, each with its score."""
    if column != "kinds":
        return item[column]
    return ", ".join(f"{kind} {item['scores'][kind]:.2g}" for kind in item["kinds"])


def _figures(result: AuditResult, again: str) -> list[str]:
    lines = []
    if result.label_issues["flag"]:
        share, expected = result.label_issues["share"], result.label_issues["expected_wrong"]
        lines.append(
            f"By the model of wrong labels, {share:.1%} of all are wrong, and {expected:.0f} of "
            f"{_labels(result.label_issues['flag'])}."
        )
    if test := result.label_issues.get("self_test"):
        lines.append(
            f"Of {counted(test['changed'], 'label')} changed at random as a test, {test['found']:,} would "
            "be flagged."
        )
    if result.failures:
        rows = [f"{key}: {reason}" for key, reason in [*result.failures.items()][:SHOWN]]
        lines += ["Images that failed:", *rows, *_more(len(result.failures))]
    if result.leaks.get("test_samples_leaked") and "test_accuracy_without" in result.leaks:
        leaks = result.leaks
        lines.append(
            f"Accuracy on test: {_with_interval(leaks, 'test_accuracy')}; without "
            f"{counted(leaks['test_samples_leaked'], 'leaked sample')}: "
            f"{_with_interval(leaks, 'test_accuracy_without')}."
        )
    if result.repair is not None:
        repair, (low, high) = result.repair, result.repair["gain_ci95"]
        lines.append(
            f"Repair: {counted(repair['changed'], 'label')} changed. Accuracy on test, by the new labels: "
            f"{repair['test_accuracy_before']:.4f} before, {repair['test_accuracy_after']:.4f} after "
            f"(gain {repair['gain']:+.4f}, 95 % interval {low:+.4f} … {high:+.4f})."
        )
    flagged, fix = result.label_issues["flag"], result.files.get("fix")
    if fix and not flagged:
        lines.append(f"{fix} has all labels as they are: none is probably wrong.")
    elif fix:
        lines.append(f"{fix} has {_labels(flagged)} first: look before you use it.")
        if "test_accuracy" in result.leaks:
            lines.append(f"Next: {again} --repair {quote(fix)}")
        else:
            lines.append(
                "--repair measures what they bring on a test split: extract with --test-fraction 0.2."
            )
    elif flagged and "label" not in result.label_issues["items"][0]:  # no multi-label target
        lines.append(f"Next: {again} --fix labels.csv")
    return lines


def _labels(flagged: int) -> str:
    return counted(flagged, "flagged label")


def _with_interval(figures: dict[str, Any], name: str) -> str:
    low, high = figures[f"{name}_ci95"]
    return f"{figures[name]:.4f} ({low:.4f} … {high:.4f})"


def _more(count: int) -> list[str]:
    return [f"… and {count - SHOWN:,} more; --json has them all."] if count > SHOWN else []
