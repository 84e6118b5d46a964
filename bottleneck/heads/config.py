"""Settings of fitting heads, without torch: the grid of C, and how a sweep over it is run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bottleneck.errors import FitError
from bottleneck.names import SCALES

AUTO_C = tuple(10.0 ** (step / 2 - 6) for step in range(13))  # "auto": from 1e-6 to 1
FURTHEST = (1e-10, 1e4)  # the values of C up to which "auto" is extended where the best is at an end
DECADE = 2  # steps of the grid
DEFAULT_MEMORY = 4 << 30
TOLERANCE = 1e-5  # relative to the objective; 1e-4 is promised, since slow heads may stop early


@dataclass(frozen=True)
class SweepConfig:
    """How a sweep over C is run."""

    memory: int = DEFAULT_MEMORY  # bytes for rows and work
    device: str = "cpu"  # a torch device
    tol: float = TOLERANCE  # relative tolerance of each objective
    standardize: bool = True  # False fits features as they are
    one_standard_error: bool = False  # see `cross_validation.Scores.choose`
    scales: str = SCALES[0]  # "auto" chooses one for each block of inputs, "equal" is 1
    dtype: type = np.float32  # of the rows in memory and of all products
    components: int | None = None  # principal components that logistic heads are fitted on; None is all


DEFAULT = SweepConfig()


def beyond(Cs: Sequence[float], best: int) -> tuple[float, ...]:
    """Return the next decade of C beyond that end of an ascending grid at which its index `best` is.

    Empty where `best` is inside, or where the grid ends at `FURTHEST`. The steps are those of `AUTO_C`.
    """
    if 0 < best < len(Cs) - 1:
        return ()
    sign = -1 if best == 0 else 1
    last = round(DECADE * math.log10(Cs[best]))
    more = [10.0 ** ((last + sign * step) / DECADE) for step in range(1, DECADE + 1)]
    return tuple(sorted(value for value in more if FURTHEST[0] <= value <= FURTHEST[1]))


def is_auto(C: object) -> bool:
    """Return whether the grid of C is chosen, and extended, by the fit."""
    return isinstance(C, str) and C == "auto"


def grid_of(C: str | float | Iterable[float]) -> tuple[float, ...]:
    """Return the ascending values of C for "auto" (`AUTO_C`), one number or several.

    Raises
    ------
    FitError
        A value is not a positive number.
    """
    if isinstance(C, str):
        values = set(AUTO_C) if is_auto(C) else set()
    else:
        values = {float(value) for value in (C if isinstance(C, Iterable) else (C,))}
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise FitError(f"C is {C!r}; expected auto, a positive number or several.")
    return tuple(sorted(values))
