"""The choice of an earlier run, kept while few samples have changed since: only its fit is done again.

Shapes: n judged samples.
"""

from __future__ import annotations

import hashlib

import numpy as np

from bottleneck.errors import Note
from bottleneck.names import nodes_in
from bottleneck.studies.train.candidates import FINETUNED, Candidate
from bottleneck.studies.train.request import Request
from bottleneck.trials.task import Task

CHOICE = "choice"  # the record
KEEP = 0.25  # share of samples that may change before the choice is made anew


def kept_choice(request: Request, tasks: dict[str, Task]) -> tuple[str, str, Note] | None:
    """Return backbone and node of an earlier choice, if the samples have changed, but by little."""
    stored = request.records.read(CHOICE, request.fingerprint)
    if stored is None:
        return None
    values, arrays = stored
    backbone, node = values["backbone"], values["node"]
    if values["kind"] == FINETUNED:
        return None
    if backbone not in tasks or any(part not in tasks[backbone].cache.nodes for part in nodes_in(node)):
        return None
    before, now = arrays["samples"], _sample_digests(tasks[backbone])
    changed = len(np.setxor1d(before, now))
    if not 0 < changed <= KEEP * len(before):
        return None
    text = (
        f"The choice of an earlier run is kept, head on {node}: {changed:,} samples are new, gone or "
        f"changed, at most {KEEP:.0%} of {len(before):,}. Delete {request.records.folder} to choose anew."
    )
    return backbone, node, Note("choice-kept", text, details={"changed": changed, "of": len(before)})


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
