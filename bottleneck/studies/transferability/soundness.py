"""Which runs of a transfer study count: nothing is learnt from copies of a network that learnt nothing.

A seed whose base network of A or of B is no better than guessing is left out as a whole, and so is a run that
diverged. A copy that ends no better than guessing counts, since that may be what its layers are worth; it is
named, because its training may have failed instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bottleneck.errors import FitError
from bottleneck.studies.transferability.plan import Run
from bottleneck.studies.transferability.runs import RunResult


def sound(results: Sequence[RunResult]) -> list[RunResult]:
    """The runs that count."""
    lost = {each.seed for each in _unlearnt(results) if each.share == 1}
    lost_shares = {(each.seed, each.share) for each in _unlearnt(results)}
    return [
        each
        for each in results
        if not (each.diverged or each.seed in lost or (each.seed, each.share) in lost_shares)
    ]


def may_follow(run: Run, usable: Sequence[RunResult]) -> bool:
    """Whether `run` is a base, or its seed has base networks, that of its share included, in `usable`."""
    have = {(each.kind, each.share) for each in usable if each.seed == run.seed}
    return run.n == 0 or {("baseA", 1.0), ("baseB", 1.0), ("baseA", run.share)} <= have


def complaints(results: Sequence[RunResult]) -> list[str]:
    """A sentence on every run that is left out, and on those that guess."""
    named = []
    for base in _unlearnt(results):
        lost = f"Seed {base.seed}"
        if base.share < 1:
            lost = f"Transfer from {base.share:.0%} of A in seed {base.seed}"
        named.append(f"{lost} is left out: base network {base.kind[-1]} did not learn ({_accuracy(base)}).")
    diverged = [each for each in results if each.n and each.diverged]
    guessing = [each for each in sound(results) if each.n and each.kind != "random" and not each.learnt]
    for title, runs in (
        ("Diverged and left out", diverged),
        ("No better than guessing, but counted", guessing),
    ):
        if runs:
            named.append(f"{title}: {', '.join(_name(each) for each in runs)}.")
    return named


def require_sound(results: Sequence[RunResult], folder: Path) -> None:
    """Raise FitError where no seed is left."""
    if sound(results):
        return
    base = next(each for each in _unlearnt(results) if each.share == 1)
    raise FitError(
        f"In none of the seeds did both base networks learn; the first that failed is {_name(base)} "
        f"({_accuracy(base)}).",
        f"Try a lower --lr, more --epochs or more images in another folder than {folder} (-o).",
    )


def _unlearnt(results: Sequence[RunResult]) -> list[RunResult]:
    return [each for each in results if each.n == 0 and not each.learnt]


def _accuracy(base: RunResult) -> str:
    if base.diverged:
        return "its training diverged"
    return f"{base.accuracy:.3f} on {base.val_images} val images, where guessing gives {1 / base.classes:.3f}"


def _name(each: RunResult) -> str:
    return Run(each.seed, each.kind, each.n, each.share).name
