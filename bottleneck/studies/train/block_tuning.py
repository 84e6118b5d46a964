"""One block fine-tuned below a head, as a candidate of `train`, where the evidence says that it may pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bottleneck.backbones.recipe import LoadOptions
from bottleneck.errors import Note
from bottleneck.fitting.head_files import file_name
from bottleneck.studies.train.budget import Clock
from bottleneck.studies.train.candidates import FINETUNED, HEAD, NODE, Candidate
from bottleneck.studies.train.request import Request
from bottleneck.trials.evidence import Evidence, choose
from bottleneck.trials.finetuning import Allows, Tuning, epochs_for, try_finetuning

TUNE_ABOVE = 0.03  # share of samples that the best head is wrong on; guessed, see docs/DECISIONS.md


def try_tuning(
    request: Request, candidates: Sequence[Candidate], best: Candidate, clock: Clock
) -> tuple[list[Candidate], list[Note]]:
    """Fine-tune one block below the head that the rule chooses among those on single nodes.

    Returns
    -------
    The candidate, or none and a note that says why.
    """
    reason = _not_tuned(request, best)
    if reason is not None:
        return [], [_note(reason)]
    heads = [each for each in candidates if each.backbone == best.backbone and each.kind in (HEAD, NODE)]
    start, _ = choose([each.contender(False) for each in heads])
    head = heads[start]

    def allows(seconds: float) -> bool:
        return clock.allows(2 * seconds)  # the final network is trained once more

    if not allows(clock.per_image * len(head.task.cache.images)):
        return [], [_note("there is no time to extract the map that it would be trained from")]
    tuned = tuned_candidate(request, head, best.tried.evidence, allows)
    return ([], [_note(tuned)]) if isinstance(tuned, str) else ([tuned], [])


def tuned_candidate(
    request: Request, head: Candidate, against: Evidence | None, allows: Allows
) -> Candidate | str:
    """Try one block tuned below `head`, as `trials.finetuning.try_finetuning` does, or say why it was not."""
    task, node = head.task, head.node
    load = LoadOptions(request.extraction.weights, request.extraction.trust_code)
    tuning = Tuning(
        node, 1, head.tried.settings["C"], load, request.config.seed, epochs_for(len(task.judged))
    )
    name = file_name(head.backbone, task.target.name, node, "1")
    tried = try_finetuning(task, tuning, against, request.records, name, allows, request.reporter)
    if isinstance(tried, str):
        return tried
    what = f"one block tuned below the head on {node}"
    return replace(head, kind=FINETUNED, tried=tried, what=what, tuning=tuning)


def _not_tuned(request: Request, best: Candidate) -> str | None:
    """Return why no block is tuned: `Request.not_tuned`, or in "auto" that the best head makes few errors."""
    reason = request.not_tuned(best.task.target, len(best.task.rows["train"]))
    auto = request.config.finetune == "auto"
    if reason is None and auto and 1 - best.tried.evidence.mean < TUNE_ABOVE:
        return f"the best head is wrong on less than {TUNE_ABOVE:.0%} of the samples"
    return reason


def _note(reason: str) -> Note:
    return Note("not-finetuned", f"Nothing was fine-tuned: {reason}.", details={"reason": reason})
