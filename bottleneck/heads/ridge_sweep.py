"""All ridge heads of a call: every penalty × fold of a target in closed form, one chosen, refit included.

Shapes: n samples, V rows (views) of a sample, D features, C outputs, G values of C, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bottleneck.heads.basis import standardisation, unchanged
from bottleneck.heads.crew import Crew
from bottleneck.heads.design import Design, build_design, streamed_like
from bottleneck.heads.least_squares import Moments, Path, moments_by_fold, ridge_path
from bottleneck.heads.questions import Question, class_factors
from bottleneck.heads.rows import RowReader, block_size
from bottleneck.heads.sweep import DEFAULT, Fitted, SweepConfig
from bottleneck.heads.tally import tally_of
from bottleneck.heads.tasks import NO_FOLD
from bottleneck.progress import Progress, silent
from bottleneck.samples import UNLABELLED


def ridge_sweep(
    rows: RowReader,
    questions: Sequence[Question],
    Cs: Sequence[float],
    config: SweepConfig = DEFAULT,
    plain: RowReader | None = None,
    progress: Progress = silent,
) -> list[Fitted]:
    """Fit all questions by least squares; arguments and result are those of `sweep.sweep`, C = 1/λ.

    Classes and labels are asked as −1 and 1, one output each; the values of a regression as they are.
    """
    with Crew(config.device) as crew:
        n = len(questions[0].fold)
        views = rows.shape[0] // n
        standard = unchanged(rows.shape[1])
        if config.standardize:
            standard = standardisation(rows, crew, block_size(rows.shape[1]), None, config.dtype)
        design, order = build_design(rows, standard, crew, config.memory, None, config.dtype)
        scored: Design = design
        if plain is not None:
            scored = streamed_like(design, plain)
        with progress("Fitting ridge heads", total=len(questions), unit="targets") as advance:
            found = []
            for question in questions:
                found.append(_one(question, design, scored, crew, sorted(Cs), order // views, views, config))
                advance(1)
        return found


def _one(
    question: Question,
    design: Design,
    scored: Design,
    crew: Crew,
    Cs: Sequence[float],
    sample: np.ndarray,
    views: int,
    config: SweepConfig,
) -> Fitted:
    """sample : (n · V,), the sample of each row of the design."""
    folds = int(question.fold.max(initial=NO_FOLD)) + 1
    answers, weights = _answers(question)
    parts = moments_by_fold(
        design, crew, answers[sample], weights[sample] / views, question.fold[sample], folds
    )
    whole = parts[-1] if not folds else _sum(parts)
    paths = [ridge_path(whole.less(part)) for part in parts[:-1]]
    scores = held = None
    chosen = len(Cs) - 1
    if folds:
        tally = tally_of(question.target, question.fold, folds, question.link)
        for _ in Cs:
            tally.begin()
        for samples, number, x in _held_rows(design, scored, crew, question.fold, sample):
            coef, intercept = _grid(paths[number], Cs, design, scored)
            for place in range(len(Cs)):
                tally.add(samples, x @ coef[place].T + intercept[place], place)
        scores = tally.scores(Cs)
        chosen = scores.choose(config.one_standard_error)
        held = np.full((len(question.fold), answers.shape[1]), np.nan, np.float32)
        for samples, number, x in _held_rows(design, scored, crew, question.fold, sample):
            coef, intercept = _grid(paths[number], Cs[chosen : chosen + 1], design, scored)
            held[samples] = x @ coef[0].T + intercept[0]
    coef, intercept = ridge_path(whole).at(1 / Cs[chosen])
    raw, offset = design.standard.fold(design.from_blocks(coef), intercept)
    return Fitted(raw, offset, design.standard, Cs[chosen], question.link, scores, held, True)


def _answers(question: Question) -> tuple[np.ndarray, np.ndarray]:
    """(n, C) float64 answers and (n,) weights, 0 where there is no label."""
    target, seen = question.target, question.target.labelled
    weights = np.ones(len(seen)) if question.sample_weight is None else question.sample_weight
    if target.kind == "regression":
        return np.where(seen, target.values, 0.0)[:, None], np.where(seen, weights, 0.0)
    if target.kind == "multilabel":
        return np.where(target.values == 1, 1.0, -1.0), np.where(seen, weights, 0.0)
    codes = np.where(target.values == UNLABELLED, 0, target.values)
    factor = class_factors(question.class_weight, codes, seen)
    answers = np.where(codes[:, None] == np.arange(question.outputs), 1.0, -1.0)
    return answers, np.where(seen, weights * factor[codes], 0.0)


def _sum(parts: Sequence[Moments]) -> Moments:
    return Moments(*(sum(values) for values in zip(*(part.parts() for part in parts), strict=True)))


def _grid(path: Path, Cs: Sequence[float], design: Design, scored: Design) -> tuple[np.ndarray, np.ndarray]:
    """coef (G, C, D) float32 as they multiply the blocks of `scored`, intercept (G, C)."""
    found = [path.at(1 / C) for C in Cs]
    coef = np.stack([coef for coef, _ in found])
    if scored is not design:
        coef = np.stack([design.from_blocks(part) for part in coef])
    return coef.astype(np.float32), np.stack([intercept for _, intercept in found]).astype(np.float32)


def _held_rows(design: Design, scored: Design, crew: Crew, fold: np.ndarray, sample: np.ndarray):
    """(samples (B,), their fold, rows (B, D)) of all blocks, fold by fold within a block."""
    order = sample if scored is design else np.arange(len(fold))
    for start, stop in scored.blocks():
        x = scored.read(start, stop).numpy(force=True)
        samples = order[start:stop]
        for number in np.unique(fold[samples]):
            if number != NO_FOLD:
                here = fold[samples] == number
                yield samples[here], int(number), x[here]
