"""The choice of an earlier run, kept while few samples have changed since: only its fit is done again.

Shapes: n judged samples.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from bottleneck.errors import Note, counted
from bottleneck.models.scoring import has_mirrors
from bottleneck.names import nodes_in
from bottleneck.studies.train.block_tuning import tuned_candidate
from bottleneck.studies.train.budget import Clock
from bottleneck.studies.train.candidates import COMBINED, FINETUNED, FLIPPED, HEAD, NODE, Candidate
from bottleneck.studies.train.head_trials import flip_candidate, head_candidate
from bottleneck.studies.train.request import Request
from bottleneck.trials.task import Task

CHOICE = "choice"  # the record
ANEW = {  # by kind, what the kept candidate costs
    **dict.fromkeys((HEAD, NODE, COMBINED), "Its head is fitted"),
    FLIPPED: "Its head is fitted",
    FINETUNED: "Its map is extracted for new images, and head and block are trained",
}
KEEP = 0.25  # share of samples that may change before the choice is made anew


def kept_candidate(
    request: Request, tasks: dict[str, Task], clock: Clock
) -> tuple[Candidate, list[dict[str, Any]], Note] | None:
    """Return the candidate that an earlier run chose, tried on the samples of now; its table; and a note.

    The table is of all that the earlier run tried, without the chosen one. None where there was no choice, or
    the samples are the same, or more than `KEEP` of them have changed; where samples that chose are in test
    now, which would no longer be new to the choice; and where the user refuses decisions.
    """
    stored = request.records.read(CHOICE, request.fingerprint)
    if stored is None or request.strict:
        return None
    values, arrays = stored
    backbone, node, kind = values["backbone"], values["node"], values["kind"]
    if backbone not in tasks or any(part not in tasks[backbone].cache.nodes for part in nodes_in(node)):
        return None
    task = tasks[backbone]
    now, test = (
        _sample_digests(task, rows) for rows in (task.judged, task.rows.get("test", np.zeros(0, np.int64)))
    )
    if _moved(arrays["images"], now["images"], test["images"]):
        return None
    change = _changes(arrays, now)
    changed, of = sum(change.values()), len(arrays["samples"])
    if not 0 < changed <= KEEP * of:
        return None
    candidate = head_candidate(request, tasks[backbone], backbone, node, clock)
    if kind == FLIPPED:
        if not has_mirrors(candidate.task.cache, node):
            return None
        candidate = flip_candidate(request, candidate)
    elif kind == FINETUNED:
        tuned = tuned_candidate(request, candidate, None, lambda seconds: clock.allows(2 * seconds))
        if isinstance(tuned, str):  # there is no time for it
            return None
        candidate = tuned
    told = ", ".join(f"{count:,} {what}" for what, count in change.items() if count)
    text = (
        f"The choice of an earlier run is kept, {candidate.what}: {told} since then, at most {KEEP:.0%} of "
        f"its {counted(of, 'sample')}. {ANEW[kind]} anew; the other candidates are not tried again, and "
        "the table has "
        f"their figures of then{_classes_then(values, task)}. Delete {request.records.folder} to choose anew."
    )
    earlier = [{**row, "chosen": False, "earlier": True} for row in values["table"] if not row["chosen"]]
    return candidate, earlier, Note("choice-kept", text, True, {"changed": changed, "of": of, **change})


def keep_choice(request: Request, chosen: Candidate, table: list[dict[str, Any]]) -> None:
    """Store the choice, with the samples that it was made on and the table of all that was tried."""
    task = chosen.task
    values = {"backbone": chosen.backbone, "node": chosen.node, "kind": chosen.kind, "table": table}
    values |= {"classes": list(task.target.class_names)}
    request.records.write(CHOICE, request.fingerprint, values, _sample_digests(task, task.judged))


def _classes_then(values: Mapping[str, Any], task: Task) -> str:
    """Return what the table's figures lack where its classes were others; nothing of an older record."""
    then, now = values.get("classes"), task.target.class_names
    if then is None or set(then) == set(now):
        return ""
    return f", of {counted(len(then), 'class', 'classes')}, while those of the model are of {len(now):,}"


def _moved(before: np.ndarray, now: np.ndarray, test: np.ndarray) -> bool:
    """Return whether a sample that chose is now in test and no longer among those that choose.

    before, now, test : digests of the images of samples that chose then, that choose now, and of test now.
    """
    return bool((np.isin(test, before) & ~np.isin(test, now)).any())


def _changes(before: Mapping[str, np.ndarray], now: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return how many samples are new, gone or relabelled; one with another answer or split is one change."""
    pairs = [Counter(zip(of["images"].tolist(), of["samples"].tolist(), strict=True)) for of in (before, now)]
    gone, new = pairs[0] - pairs[1], pairs[1] - pairs[0]
    images = [Counter[int](), Counter[int]()]
    for counts, found in zip(images, (gone, new), strict=True):
        for (image, _), count in found.items():
            counts[image] += count
    relabelled = (images[0] & images[1]).total()
    return {"new": new.total() - relabelled, "gone": gone.total() - relabelled, "relabelled": relabelled}


def _sample_digests(task: Task, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return of each of the samples `rows` (n,) uint64 digests: of its images; of these, answer and split."""
    samples, names = task.samples, task.target.class_names
    images = task.cache.images.digest
    found = {name: np.empty(len(rows), np.uint64) for name in ("images", "samples")}
    for number, row in enumerate(rows):
        value = task.target.values[row]
        answer = names[value] if task.target.kind == "class" else np.asarray(value).tobytes().hex()
        digest = hashlib.sha256(images[samples.image[row]].tobytes())
        found["images"][number] = int.from_bytes(digest.digest()[:8], "little")
        digest.update(f"{answer}\0{samples.split[row]}".encode(errors="surrogatepass"))
        found["samples"][number] = int.from_bytes(digest.digest()[:8], "little")
    return found
