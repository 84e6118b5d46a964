"""How the features were computed that a head learnt from, and notes where other ones are computed."""

from __future__ import annotations

from itertools import product
from typing import Any

from bottleneck.errors import EngineError, Note
from bottleneck.extraction.config import EngineConfig
from bottleneck.heads.artifact import HeadArtifact
from bottleneck.names import DTYPES, default_pool, nodes_in
from bottleneck.store.spec import CacheSpec, NodeSpec, vector_fingerprint

UNCALIBRATED = ("fp32", "fp16", "bf16")  # precisions of features that may have no calibration
MOST_NODES = 3  # of which all combinations of precision and type are tried; of more, one for all nodes alike


def how_computed(head: HeadArtifact) -> dict[str, dict[str, Any]] | None:
    """Return `head.computed`, or what the fingerprint of a head of an earlier release tells in its place.

    None where it tells nothing: features in int8, or in bf16 of OpenVINO, have a calibration in theirs, and
    more than `MOST_NODES` nodes may differ from each other.
    """
    nodes = nodes_in(head.node)
    if head.computed or not head.node_fingerprint:
        return head.computed
    spec = CacheSpec(head.backbone, head.preprocess)
    ways = [_uncalibrated(name) for name in nodes]
    for parts in product(*ways) if len(nodes) <= MOST_NODES else zip(*ways, strict=True):
        if vector_fingerprint(parts, spec) == head.node_fingerprint:
            return {
                part.name: {"precision": part.precision, "calibration": None}
                for part in parts
                if not part.computed_exactly
            }
    return None


def _uncalibrated(name: str) -> list[NodeSpec]:
    """Return all descriptions that a vector node may have without a calibration; their width is any."""
    node, _, pool = name.partition("@")
    pool = pool or default_pool(node)
    return [NodeSpec(node, pool, (1,), *way) for way in product(DTYPES, UNCALIBRATED)]


def require_calibration_of(head: HeadArtifact, config: EngineConfig) -> None:
    """Raise EngineError where the user asks for int8 without force, and the head did not learn in it.

    It would be calibrated on the images to predict, so that a prediction depends on the other images.
    """
    computed = how_computed(head) or {}
    if config.precision != "int8" or config.force:
        return
    if any(computed.get(node, {}).get("precision") != "int8" for node in nodes_in(head.node)):
        raise EngineError(
            "--precision int8 is calibrated on the images that a head learns from, and this one did not "
            "learn in it. Here it would be calibrated on the images to predict, and each prediction would "
            "depend on the other images.",
            "Leave --precision out; or `bottleneck extract` the training images with --precision int8 into "
            "another cache and fit a head there, which computes int8 by itself. --force calibrates on the "
            "images to predict.",
        )


def unknown_notes(head: HeadArtifact) -> list[Note]:
    """Return a note where it is not known how the features were computed that a head learnt from."""
    if how_computed(head) is not None:
        return []
    text = (
        "The head's file does not say in which precision the features that it learnt from were computed, at "
        f"{' and '.join(nodes_in(head.node))}: an earlier release wrote it. They may be in int8, or in bf16 "
        "of OpenVINO, and differ from those that are computed now: fit the head again with "
        "`bottleneck fit-head`."
    )
    return [Note("precision-not-recorded", text, True, {"node": head.node})]


def float32_notes(head: HeadArtifact, what: str) -> list[Note]:
    """Return notes on features that a head learnt from and that `what` has in another precision, or may have.

    what : the subject of the notes, which computes them in float32 alone
    """
    notes, computed = unknown_notes(head), how_computed(head) or {}
    for precision in sorted({record["precision"] for record in computed.values()}):
        nodes = [node for node in nodes_in(head.node) if computed.get(node, {}).get("precision") == precision]
        text = (
            f"{what} computes the features of {' and '.join(nodes)} in fp32; those that were learnt from are "
            f"in {precision}."
        )
        details = {"nodes": nodes, "precision": "fp32", "learnt_from": precision}
        notes.append(Note("node-in-other-precision", text, True, details))
    return notes
