"""The route of `train`: extract, try, choose, fit again, read test once.

    source ──► every stage's features, in one pass ──► heads on each ──► heads on the best, side by side
    ──► choice by pooled evidence ──► the chosen one again, on train and val ──► test, once
    ──► model, card, table of all that was tried

Everything is kept in a folder beside the model, `MODEL.work`: caches, finished trials, the choice. A run that
was killed goes on where it was.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from bottleneck.errors import CacheError, Note, refuse_strict
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.train.block_tuning import try_tuning
from bottleneck.studies.train.budget import Clock
from bottleneck.studies.train.candidates import Candidate
from bottleneck.studies.train.features import extract_all
from bottleneck.studies.train.final_model import write_model
from bottleneck.studies.train.head_trials import try_flip, try_heads
from bottleneck.studies.train.kept_choice import keep_choice, kept_candidate
from bottleneck.studies.train.request import Request
from bottleneck.studies.train.result import (
    TrainResult,
    choice_note,
    copies_notes,
    result_of,
    split_notes,
    write_tables,
)
from bottleneck.trials.evidence import choose
from bottleneck.trials.task import Task, task_of

OTHER_COMMANDS = ("bottleneck extract", "--source-moved", "with -o")  # in hints that are for `extract`


def run(request: Request, started: float) -> TrainResult:
    """Do everything, and write model, card and tables. started : by `time.perf_counter`."""
    try:
        return _run(request, started)
    except CacheError as error:
        if any(other in error.hint for other in OTHER_COMMANDS):
            place = "another file with --cache" if request.cache else "the model another name with -o"
            paths = " and ".join(str(path) for path in request.paths.values())
            error.hint = f"Give {place}; or delete {paths}, and all features are computed again."
        raise


def _run(request: Request, started: float) -> TrainResult:
    config = request.config
    request.require_learnable()
    clock = Clock(started, config.minutes)
    extracted, notes = extract_all(request, clock)
    with ExitStack() as stack:
        caches = {name: stack.enter_context(FeatureCache(request.paths[name])) for name in request.backbones}
        tasks = {
            name: task_of(cache, config.target, cv=config.cv, seed=config.seed)
            for name, cache in caches.items()
        }
        notes += [note for task in tasks.values() for note in task.notes]
        refuse_strict(notes, request.strict)
        candidates, earlier, told = _candidates(request, tasks, clock)
        index, steps = choose([each.contender(request.several) for each in candidates])
        chosen = candidates[index]
        rows = [each.to_json(i == index) for i, each in enumerate(candidates)] + (earlier or [])
        if earlier is None:  # else it was kept itself
            keep_choice(request, chosen, rows)
        notes += [*told, *split_notes(chosen.task), *copies_notes(chosen.task), choice_note(chosen, steps)]
        notes = list({note.message: note for note in notes}.values())
        head = write_model(request, chosen, rows, notes)
    files = write_tables(request.model, rows, chosen.task.metric)
    return result_of(request, head, chosen, rows, steps, extracted, files, notes, started)


def _candidates(
    request: Request, tasks: dict[str, Task], clock: Clock
) -> tuple[list[Candidate], list[dict[str, Any]] | None, list[Note]]:
    """Try the candidates that the time allows; the kept one alone where an earlier choice stands.

    Rows of the earlier table, which has the other ones, follow the candidates, None without such a choice;
    then notes.
    """
    kept = kept_candidate(request, tasks, clock)
    if kept is not None:
        candidate, earlier, note = kept
        return [candidate], earlier, [note]
    heads, left_out = try_heads(request, tasks, clock)
    refuse_strict(left_out, request.strict)
    flipped, no_flip = try_flip(request, _chosen(request, heads), clock)
    refuse_strict(no_flip, request.strict)
    heads += flipped
    tuned, reason = try_tuning(request, heads, _chosen(request, heads), clock)
    return [*heads, *tuned], None, [*left_out, *no_flip, *reason]


def _chosen(request: Request, candidates: list[Candidate]) -> Candidate:
    index, _ = choose([each.contender(request.several) for each in candidates])
    return candidates[index]
