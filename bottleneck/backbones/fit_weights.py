"""Find the network in a weights file by what fits: its prefix, its spelling, its first and last layer.

A file rarely holds exactly the entries of a network: training wraps it (`module.`, `model.`, `backbone.` …),
libraries spell its layers in other ways, its last layer is left out or made for other classes. What computes
the features must be there, with its name and shape; whatever else is decided is a note.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.families.architecture import Architecture
from bottleneck.backbones.weights import (
    NamedState,
    adapt_channels,
    classes_in,
    first_convolution,
    load_weights,
    read_checkpoint,
    reshaped_entries,
)
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, Note, listed

_TRAINING_STATE = ("n_averaged", "queue", "queue_ptr", "center", "mask_token")  # beside a network's layers
_COUNTER = "num_batches_tracked"  # of BatchNorm: old files lack it, and features do not need it
# Modules that training puts around a part of a network.
_INNER_WRAPPER = re.compile(r"(^|\.)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGES = ("teacher", "ema", "momentum", "target")  # in a prefix: the averaged one of two copies


@dataclass(frozen=True)
class FittedWeights:
    """A network with its weights.

    preprocess : of its images; grey if its first layer is.
    published_classes : whether its last layer has the published classes: of a file, their number.
    untrained : names of the last layer's entries that the file lacks; they are zero.
    notes : what was decided.
    """

    module: nn.Module
    preprocess: Preprocess
    published_classes: bool
    untrained: frozenset[str] = frozenset()
    notes: tuple[Note, ...] = ()


def load_file(architecture: Architecture, file: str, in_channels: int) -> FittedWeights:
    """Build `architecture` with the weights in `file`.

    Raises
    ------
    BackboneError
        The file cannot be read, or holds no network of this architecture for these images.
    """
    states = read_checkpoint(file)
    refused: BackboneError | None = None
    for chosen in states:
        try:
            fitted = _fit(architecture, chosen, file, in_channels)
        except BackboneError as error:
            refused = refused or error
            continue
        others = [".".join(other.path) for other in states if other is not chosen]
        return _with_note_of_choice(fitted, chosen, others, file)
    assert refused is not None  # there is at least one state
    raise refused


def _with_note_of_choice(
    fitted: FittedWeights, chosen: NamedState, others: list[str], file: str
) -> FittedWeights:
    if not others:
        return fitted
    name = ".".join(chosen.path)
    averaged = f"the averaged weights {name} are" if chosen.averaged else f"{name} is"
    note = Note(
        "weights-entry-chosen",
        f"{file} holds several sets of weights: {averaged} loaded, not {listed(others)}.",
        details={"chosen": name, "others": others},
    )
    return replace(fitted, notes=(note, *fitted.notes))


@dataclass
class _Match:
    """Entries of a file under the names of a network.

    ignored : names in the file that are not under the prefix.
    problem : number of entries of the network that are missing or have another shape.
    """

    state: dict[str, Tensor]
    prefix: str
    ignored: list[str]
    problems: int = 0
    notes: list[Note] = field(default_factory=list)


def _fit(architecture: Architecture, chosen: NamedState, file: str, in_channels: int) -> FittedWeights:
    module = architecture.build_unfilled()
    match = _best_match(architecture, module, chosen.state, file)
    classes = classes_in(module, match.state)
    if classes is not None:
        rebuilt = architecture.build_unfilled(classes)
        classes = None if classes_in(rebuilt, match.state) else classes  # a user's network has its own number
    if classes is not None:
        module = rebuilt
        match.notes.append(
            Note(
                "last-layer-of-other-classes",
                f"The last layer in {file} has {classes} outputs; it is loaded so, without names of classes.",
                details={"outputs": classes},
            )
        )
    preprocess = _fit_first_layer(architecture, module, match.state, file, in_channels)
    expected = module.state_dict()
    as_in_file = dict(match.state)
    untrained = _drop_last_layer(architecture, module, preprocess, match, file)
    if any(name not in match.state and name not in untrained for name in _needed(expected)):
        load_weights(module, as_in_file, file, architecture.name)  # raises: another network
    _check_values(match.state, expected, file, match.notes)
    filled = match.state | {name: torch.zeros_like(expected[name]) for name in untrained}
    load_weights(module, filled, file, architecture.name)
    return FittedWeights(
        module=module,
        preprocess=preprocess,
        published_classes=classes is None and not untrained,
        untrained=frozenset(untrained),
        notes=tuple(match.notes),
    )


def _best_match(
    architecture: Architecture, module: nn.Module, state: Mapping[str, Tensor], file: str
) -> _Match:
    """The entries as they are or in another spelling, whichever fits better."""
    expected = module.state_dict()
    matches = []
    for prefix in _prefixes(state, expected):
        match = _match(dict(state), prefix, expected)
        matches.append(match)
        for respelt in _respelt(architecture, match.state, module) if match.problems else ():
            again = _match(respelt, "", expected)
            matches.append(_Match(again.state, prefix, match.ignored, again.problems))
    best = min(matches, key=lambda match: match.problems + len(match.ignored))
    if best.prefix:
        rival = next(
            (m.prefix for m in matches if m.prefix != best.prefix and m.problems == best.problems), None
        )
        beside = f", not {rival!r}, which fits as well" if rival else ""
        best.notes.append(
            Note(
                "weights-prefix-removed",
                f"The network stands in {file} under the prefix {best.prefix!r}{beside}; it was removed.",
                details={"prefix": best.prefix},
            )
        )
    if best.ignored:
        best.notes.append(
            Note(
                "weights-entries-ignored",
                f"Entries of {file} beside the network were ignored ({len(best.ignored)}): "
                f"{listed(best.ignored)}.",
                details={"entries": best.ignored},
            )
        )
    return best


def _match(state: dict[str, Tensor], prefix: str, expected: Mapping[str, Tensor]) -> _Match:
    inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    for name in [name for name in inside if name not in expected and name.endswith(_COUNTER)]:
        del inside[name]
    misfits = [name for name in _needed(expected) if name not in inside]
    misfits += reshaped_entries(inside, expected)
    misfits += [name for name in inside if name not in expected]
    ignored = [name for name in state if not name.startswith(prefix)]
    return _Match(inside, prefix, ignored, len(misfits))


def _needed(names: Iterable[str]) -> list[str]:
    """The names without BatchNorm's counters."""
    return [name for name in names if not name.endswith(_COUNTER)]


def _respelt(
    architecture: Architecture, state: dict[str, Tensor], module: nn.Module
) -> Iterator[dict[str, Tensor]]:
    """The state under the names that it may have in `module`."""
    yield {_INNER_WRAPPER.sub(r"\1", name): value for name, value in state.items()}
    for child, _ in module.named_children():  # the state of one part of the network, such as `features`
        yield {f"{child}.{name}": value for name, value in state.items()}
    if architecture.respelt is not None:
        with suppress(Exception):  # a translation fails on names that it does not know
            yield dict(architecture.respelt(dict(state), module))


def _prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which entries of the network stand, those of the most entries first.

    Of prefixes with equally many entries the averaged copy is preferred, then the first in the file. The
    prefix that all names share may hide another spelling.
    """
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in expected:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most]
    best.sort(key=lambda prefix: not any(word in prefix for word in _AVERAGES) if prefix else -1)
    return list(dict.fromkeys([*best, _shared_prefix(list(state)), ""]))


def _shared_prefix(names: list[str]) -> str:
    """The wrappers around all names: `module.model.` of `module.model.a.weight`, `module.model.b.bias`."""
    shared = ""
    while True:
        heads = {name.removeprefix(shared).partition(".")[0] for name in names}
        head = heads.pop()
        if heads or not all(name.startswith(f"{shared}{head}.") for name in names):
            return shared
        shared += f"{head}."


def _fit_first_layer(
    architecture: Architecture, module: nn.Module, state: dict[str, Tensor], file: str, in_channels: int
) -> Preprocess:
    """Give `module` the first layer that the file has, and return the preprocessing for its images."""
    preprocess, first = architecture.preprocess, first_convolution(module)
    if first is None:
        return preprocess
    name = next(name for name, value in module.named_parameters() if value is first.weight)
    theirs = state.get(name)
    if theirs is None or theirs.dim() != first.weight.dim() or theirs.shape[1] == first.weight.shape[1]:
        return preprocess
    if theirs.shape[1] not in (1, 3, 4) or theirs.shape[::2] != first.weight.shape[::2] or first.groups != 1:
        return preprocess  # of another shape altogether; reported with the others
    if theirs.shape[1] != in_channels:
        raise BackboneError(
            f"The first layer in {file} takes images of {theirs.shape[1]} channels, expected {in_channels}.",
            f"Add --in-channels {theirs.shape[1]}.",
        )
    preprocess = adapt_channels(module, preprocess, in_channels)
    if first.bias is not None and f"{name.removesuffix('weight')}bias" not in state:
        state[f"{name.removesuffix('weight')}bias"] = torch.zeros_like(first.bias)  # as adapted networks have
    return preprocess


def _drop_last_layer(
    architecture: Architecture, module: nn.Module, preprocess: Preprocess, match: _Match, file: str
) -> list[str]:
    """Drop entries above the features that do not fit; return the names of those that are then missing."""
    expected, state = module.state_dict(), match.state
    missing = [name for name in expected if name not in state]
    reshaped = reshaped_entries(state, expected)
    unknown = [name for name in state if name not in expected]
    if not [name for name in missing if not name.endswith(_COUNTER)] and not reshaped and not unknown:
        return []
    above = Backbone(architecture.name, module, preprocess, {}).entries_above()
    roots = _roots(above, expected)
    children = dict(module.named_children())
    theirs, foreign = [], []
    for name in unknown:
        top, dot, _ = name.partition(".")
        if name.startswith(roots) and roots:
            theirs.append(name)
        elif (dot and top not in children and not top.isdigit()) or name in _TRAINING_STATE:
            foreign.append(name)
    dropped = [name for name in reshaped if name in above]
    for name in [*theirs, *foreign, *dropped]:
        del state[name]
    untrained = [name for name in expected if name in above and name not in state]
    lacking = _needed(untrained)
    if lacking:
        other = [*theirs, *dropped]
        what = f"has another last layer ({listed(other)}), ignored:" if other else "lacks the last layer:"
        match.notes.append(
            Note(
                "last-layer-ignored",
                f"{file} {what} features do not need {listed(lacking)} of {architecture.name}, "
                "nodes above them cannot be given.",
                details={"entries": lacking},
            )
        )
    elif theirs:
        foreign = [*theirs, *foreign]
    if foreign:
        match.notes.append(
            Note(
                "weights-entries-ignored",
                f"Entries of {file} that {architecture.name} does not have were ignored ({len(foreign)}): "
                f"{listed(foreign)}.",
                details={"entries": foreign},
            )
        )
    return untrained if lacking else []


def _roots(above: set[str], expected: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Paths, ending in a dot, of the largest modules that hold only entries above the features."""
    holds: defaultdict[str, set[str]] = defaultdict(set)
    for name in expected:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            holds[".".join(parts[:depth]) + "."].add(name)
    return tuple(path for path, names in holds.items() if names <= above)


def _check_values(
    state: dict[str, Tensor], expected: Mapping[str, Tensor], file: str, notes: list[Note]
) -> None:
    """Refuse values that no network computes with; note those that are converted to float32."""
    floats = {n: value for n, value in state.items() if n in expected and expected[n].is_floating_point()}
    others = [name for name, value in floats.items() if not value.is_floating_point()]
    if others:
        raise BackboneError(
            f"The weights in {file} are no floating-point numbers: {others[0]} is "
            f"{_dtype(floats[others[0]])}, as in a quantised network.",
            "Give the float32 weights; --precision int8 quantises them here.",
        )
    broken = [name for name, value in floats.items() if not torch.isfinite(value.float()).all()]
    if broken:
        raise BackboneError(
            f"The weights in {file} hold NaN or infinite values in {len(broken)} entries ({listed(broken)}).",
            "The training that wrote them diverged; give an earlier checkpoint.",
        )
    kinds = sorted({_dtype(value) for value in floats.values()} - {"float32"})
    if kinds:
        notes.append(
            Note(
                "weights-converted-to-float32",
                f"The weights in {file} are {' and '.join(kinds)}; they are computed with as float32.",
                details={"dtypes": kinds},
            )
        )


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")
