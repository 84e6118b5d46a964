"""The choice of an earlier run, kept while few samples have changed since: only its fit is done again.

Shapes: n judged samples.
"""

from __future__ import annotations

import hashlib

import numpy as np

from bottleneck.errors import Note
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


def kept_candidate(request: Request, tasks: dict[str, Task], clock: Clock) -> tuple[Candidate, Note] | None:
    """Return the candidate that an earlier run chose, tried on the samples of now, and a note on it.

    None where there was no choice, or the samples are the same, or more than `KEEP` of them have changed.
    """
    stored = request.records.read(CHOICE, request.fingerprint)
    if stored is None:
        return None
    values, arrays = stored
    backbone, node, kind = values["backbone"], values["node"], values["kind"]
    if backbone not in tasks or any(part not in tasks[backbone].cache.nodes for part in nodes_in(node)):
        return None
    before, now = arrays["samples"], _sample_digests(tasks[backbone])
    changed = len(np.setxor1d(before, now))
    if not 0 < changed <= KEEP * len(before):
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
    text = (
        f"The choice of an earlier run is kept, {candidate.what}: {changed:,} samples are new, gone or "
        f"changed, at most {KEEP:.0%} of {len(before):,}. {ANEW[kind]} anew; the other candidates are not "
        f"tried again. Delete {request.records.folder} to choose anew."
    )
    return candidate, Note("choice-kept", text, details={"changed": changed, "of": len(before)})


def keep_choice(request: Request, chosen: Candidate) -> None:
    """Store the choice, with the samples that it was made on."""
    values = {"backbone": chosen.backbone, "node": chosen.node, "kind": chosen.kind}
    request.records.write(CHOICE, request.fingerprint, values, {"samples": _sample_digests(chosen.task)})


def _sample_digests(task: Task) -> np.ndarray:
    """Return (n,) uint64, sorted: a digest of each judged sample's images, answer, split and group."""
    samples, names = task.samples, task.target.class_names
    images = task.cache.images.digest
    found = np.empty(len(task.judged), np.uint64)
    for number, row in enumerate(task.judged):
        value = task.target.values[row]
        answer = names[value] if task.target.kind == "class" else np.asarray(value).tobytes().hex()
        digest = hashlib.sha256(images[samples.image[row]].tobytes())
        digest.update(f"{answer}\0{samples.split[row]}".encode(errors="surrogatepass"))
        found[number] = int.from_bytes(digest.digest()[:8], "little")
    return np.sort(found)
