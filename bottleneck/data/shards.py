"""Which shard of a source a process takes, and which one a sample belongs to.

The shards of a source are disjoint and complete. A hash of a sample's group decides its shard, or of the key
of its first image where there are no groups: samples of one group or of one image are never divided, and the
order of the samples makes no difference. Splits and classes are those of the whole source, so that the merged
shards are what one process writes.

An image is computed in two shards only where samples of different groups, or first images, have it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bottleneck.errors import SourceError, counted
from bottleneck.samples import MOST_SHARDS, SampleTable

AUTO = "auto"
SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
TORCHRUN = ("RANK", "WORLD_SIZE")
ENCODED = 1 << 16  # texts at a time
FORM = "expected I/N with I from 1 to N, such as 2/8, or auto"


def shard_number(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int, str]:
    """Return (I, N, where both were found) of "I/N", or of the environment where `text` is "auto".

    environment : variables of a Slurm array (`sbatch --array=1-N`) or of torchrun, whose RANK counts from 0.

    Raises
    ------
    SourceError
        `text` has another form, I is outside 1 to N, or the environment names no shard, or two.
    """
    if text != AUTO:
        found = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
        if found is None:
            raise SourceError(f"--shard is {text!r}; {FORM}.")
        return _checked(int(found[1]), int(found[2]), f"--shard {text}")
    named = [pair for pair in (SLURM, TORCHRUN) if all(environment.get(name) for name in pair)]
    if len(named) != 1:
        why = "both are set" if named else "neither is set"
        raise SourceError(
            f"--shard auto takes the shard from {' and '.join(SLURM)}, or {' and '.join(TORCHRUN)}; {why}.",
            "Give it as --shard I/N.",
        )
    names = named[0]
    index, N = (_number(environment, name) for name in names)
    if names == SLURM:
        first = _number(environment, "SLURM_ARRAY_TASK_MIN", "1")
        step = max(1, _number(environment, "SLURM_ARRAY_TASK_STEP", "1"))
        if (index - first) % step or (index - first) // step >= N:
            raise SourceError(
                f"The numbers of the Slurm array are not evenly spaced: {index} is none of {N} from {first} "
                f"in steps of {step}.",
                "Use sbatch --array=1-N, or give --shard I/N.",
            )
        index = (index - first) // step
    where = f"{names[0]}={environment[names[0]]} and {names[1]}={environment[names[1]]}"
    return _checked(index + 1, N, where)


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not re.fullmatch("[0-9]{1,9}", text):
        raise SourceError(
            f"The environment variable {name} is {text!r}; expected a whole number.", "Give --shard I/N."
        )
    return int(text)


def _checked(number: int, of: int, where: str) -> tuple[int, int, str]:
    if not 1 <= number <= of:
        raise SourceError(f"{where} asks for shard {number} of {of}; {FORM}.")
    if of > MOST_SHARDS:
        raise SourceError(f"{where} asks for {counted(of, 'shard')}; expected at most {MOST_SHARDS:,}.")
    return number, of, where


def shards_of(images: Sequence[str], samples: SampleTable, of: int) -> np.ndarray:
    """Return the shard (S,), 1 to `of`, of each sample. images : the keys to which `samples.image` points."""
    if samples.group is None:
        return np.array([shard_of(images[first], of) for first in samples.image[:, 0].tolist()], np.int64)
    return np.array([shard_of(group, of) for group in samples.group], np.int64)


def shared_images(samples: SampleTable, inside: np.ndarray) -> int:
    """Return how many images samples `inside` (S,) bool have in common with the others."""
    return len(np.intersect1d(samples.image[inside], samples.image[~inside]))


def shard_of(name: str, of: int) -> int:
    """Return the shard, 1 to `of`, of a group or of the key of an image."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % of + 1


def plan_of(images: Sequence[str], samples: SampleTable) -> dict[str, str]:
    """Return a sha256 of each part of a whole source, by name. Shards of one source have equal ones.

    images : the keys to which `samples.image` points.
    """
    targets = [samples.targets[name] for name in sorted(samples.targets)]
    parts: dict[str, tuple[Any, list[np.ndarray]]] = {
        "images": (list(images), []),
        "samples": (samples.key.tolist(), [samples.image]),
        "splits": (samples.split.tolist(), []),
        "groups": (None if samples.group is None else samples.group.tolist(), []),
        "labels": (
            [(target.name, target.kind, target.class_names) for target in targets],
            [target.values for target in targets],
        ),
        "covariates": (samples.covariate_names, [samples.covariates]),
        "assignment": ("first image" if samples.group is None else "group", []),
    }
    return {name: _sha256(values, arrays) for name, (values, arrays) in parts.items()}


def _sha256(values: Any, arrays: Sequence[np.ndarray]) -> str:
    """Return the sha256 of the JSON of `values`, of which lists are encoded in steps, and of arrays."""
    total = hashlib.sha256()
    if isinstance(values, list):
        for start in range(0, max(1, len(values)), ENCODED):
            part = json.dumps(values[start : start + ENCODED])[1:-1]
            total.update(f"{', ' if start else '['}{part}".encode())
        total.update(b"]")
    else:
        total.update(json.dumps(values).encode())
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
