"""How far an engine's numbers may lie from eager float32, and how the distance is measured.

Shapes: an engine gives one array (B, …) per node, B images. Each row is compared as a whole: values near
zero are judged against the size of their row, and a faint row is not hidden by a strong neighbour.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# DESIGN §5: the largest relative difference of a row that each precision may show.
BOUNDS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 3e-2}
INT8_COSINE = 0.98


def relative_difference(rows: np.ndarray, reference: np.ndarray) -> float:
    """Largest ‖row − reference‖ / ‖reference‖ over the rows; NaN or infinite values give infinity."""
    rows, reference = _flat(rows), _flat(reference)
    distance = np.linalg.norm(rows - reference, axis=1)
    size = np.linalg.norm(reference, axis=1)
    ratio = np.divide(distance, size, out=np.where(distance == 0, 0.0, np.inf), where=size > 0)
    return float(np.nan_to_num(ratio, nan=np.inf).max(initial=0.0))


def mean_cosine(rows: np.ndarray, reference: np.ndarray) -> float:
    """Mean cosine between rows and reference; rows that are zero or not finite count as −1, unless equal."""
    rows, reference = _flat(rows), _flat(reference)
    product = (rows * reference).sum(axis=1)
    sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(reference, axis=1)
    equal = (rows == reference).all(axis=1).astype(float) * 2 - 1
    cosine = np.divide(product, sizes, out=equal, where=sizes > 0)
    return float(np.nan_to_num(cosine, nan=-1.0).mean()) if len(cosine) else 1.0


def measure(
    outputs: Sequence[np.ndarray], reference: Sequence[np.ndarray], precision: str
) -> dict[int, float]:
    """Agreement of each node's rows with eager float32: a cosine for int8, else a relative difference.

    Parameters
    ----------
    outputs, reference : sequences of arrays of shape (B, …), one per node
    precision : "fp32", "bf16", "fp16" or "int8"
    """
    if [np.shape(a) for a in outputs] != [np.shape(a) for a in reference]:
        return {index: -1.0 if precision == "int8" else float("inf") for index in range(len(reference))}
    distance = mean_cosine if precision == "int8" else relative_difference
    with np.errstate(invalid="ignore"):  # of infinities; what comes out is out of bounds
        return {index: distance(a, b) for index, (a, b) in enumerate(zip(outputs, reference, strict=True))}


def complaint(agreement: dict[int, float], precision: str) -> str:
    """What is out of bounds, as a clause for a message; empty where everything is within."""
    if precision == "int8":
        worst = min(agreement.values(), default=1.0)
        found = f"cosine {worst:.4f} with float32, at least {INT8_COSINE} is needed"
        return "" if worst >= INT8_COSINE else found
    worst = max(agreement.values(), default=0.0)
    bound = BOUNDS[precision]
    found = f"relative difference {worst:.1e} from eager float32, at most {bound:.0e} is allowed"
    return "" if worst <= bound else found


def _flat(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    return rows.reshape(len(rows), -1)
