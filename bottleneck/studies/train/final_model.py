"""The model of `train`: the chosen candidate fitted again on train and val, measured, and written."""

from __future__ import annotations

from typing import Any

import torch

from bottleneck.backbones.model_file import save_model
from bottleneck.errors import Note
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.heads.kept_aside import kept_aside
from bottleneck.heads.metrics import one_answer_notes
from bottleneck.studies.train.candidates import Candidate
from bottleneck.studies.train.request import Request
from bottleneck.training.inputs import statistics_of
from bottleneck.training.results import model_card
from bottleneck.trials.final_head import final_head
from bottleneck.trials.finetuning import final_network


def write_model(
    request: Request, chosen: Candidate, rows: list[dict[str, Any]], notes: list[Note]
) -> HeadArtifact:
    """Fit the chosen candidate on train and val, read test once, and write model and card.

    rows : the table of all that was tried. notes : those on the model are added.
    """
    task = chosen.task
    if chosen.tuning is not None:
        head, state = final_network(
            task, chosen.tuning, chosen.tried, request.records.folder, request.reporter
        )
    else:
        head = final_head(task, chosen.node, chosen.tried, request.reporter)
        arrays = statistics_of(task.cache)
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tried = {f"tried: {row['what']}, {row['backbone']}": f"{row['pooled']:.4f}" for row in rows}
    counts = {split: len(indices) for split, indices in task.rows.items()}
    settings = {
        "chosen": chosen.what,
        "fitted on": " and ".join(head.settings["fitted_on"]),
        "samples": ", ".join(f"{count:,} {split}" for split, count in counts.items()),
        "C": "–" if head.C is None else f"{head.C:g}",
        **tried,
    }
    notes += [
        *one_answer_notes("The model", "train", head.metrics["train"]),
        *kept_aside(request.model, head),
    ]
    save_model(request.model, head, state, model_card(head, request.model.name, settings, tuple(notes)))
    return head
