"""Inspect a network: blocks and their costs, modules and their indices, parameters, what would be trained.

Only shapes are used, so that a network without weights (`registry.outline`) will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import prod
from typing import Self

from timm.layers.drop import DropPath
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from bottleneck.backbones.backbone import Backbone
from bottleneck.backbones.graph import measure
from bottleneck.backbones.registry import new_classifier
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, Note
from bottleneck.names import BOTTLENECK

_FLOAT16 = 2  # bytes of one value in a cache


@dataclass(frozen=True)
class BlockRow:
    """One block.

    trainable : number of parameters with a gradient. macs : multiplications with addition for one image.
    shape : of its output for one image. cached_bytes : size of that in a float16 cache.
    """

    index: int
    name: str
    node: str
    parameters: int
    trainable: int
    shape: tuple[int, ...]
    macs: int
    cached_bytes: int


@dataclass(frozen=True)
class ModuleRow:
    """One module; `index` is its position in its parent, `features[9]`."""

    path: str
    index: str
    type: str
    parameters: int


@dataclass(frozen=True)
class StateRow:
    """One parameter or buffer of the state dict."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool


@dataclass(frozen=True)
class Inspection:
    """The result of `bottleneck inspect`.

    images, covariates : of a sample, for a new classifier; classifier : its layers.
    features : width of the bottleneck. bottleneck_node, bottleneck_rule : what it is made from, and how.
    modules, state : None if not requested.
    """

    name: str
    weights: str
    image_size: int
    in_channels: int
    parameters: int
    trainable: int
    macs: int
    features: int
    bottleneck_node: str
    bottleneck_rule: str
    blocks: list[BlockRow]
    modules: list[ModuleRow] | None = None
    state: list[StateRow] | None = None
    notes: tuple[Note, ...] = ()
    images: int = 1
    covariates: int = 0
    classifier: tuple[str, ...] | None = None

    def to_json(self) -> dict:
        """The JSON object of `bottleneck inspect --json`, without the parts that were not requested."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return {**values, "notes": [note.to_json() for note in self.notes]}


def inspect_backbone(
    backbone: Backbone,
    *,
    preprocess: Preprocess | None = None,
    freeze_to: str | int | None = None,
    free: Sequence[str] = (),
    modules: bool = False,
    state: bool = False,
    images: int | None = None,
    covariates: int | None = None,
    classes: int | None = None,
) -> Inspection:
    """List a network's blocks with their costs, and on request its modules, parameters and buffers.

    Parameters
    ----------
    preprocess : Preprocess, optional
        For shapes and costs at another image size.
    freeze_to : str or int, optional
        Count as trainable what lies above this node.
    free : sequence of str
        Count as trainable only these: module paths, indices (`features.9`), blocks or ranges of them (`3-4`).
    modules, state : bool
        Whether to list every module; every parameter and buffer.
    images, covariates, classes : int, optional
        If one is given, the network is shown with the classifier that `scratch` trains on so many images and
        numbers per sample (1, 0 and 2 by default) in place of its own.

    Raises
    ------
    BackboneError
        Unknown nodes or modules, `freeze_to` and `free` together, or a network that refuses the image size.
    """
    preprocess = preprocess or backbone.preprocess
    choose_trained(backbone, freeze_to, free)
    rows, shown = _block_rows(backbone, preprocess), None
    sizes = {name: parameter.numel() for name, parameter in backbone.module.named_parameters()}
    beside = sum(sizes.values()) - sum(row.parameters for row in rows)  # parameters that are in no block
    free_beside = sum(sizes[name] for name in trainable(backbone)) - sum(row.trainable for row in rows)
    features = prod(backbone.node_shape(BOTTLENECK, preprocess)[0])
    if images or covariates or classes:
        layers = new_classifier(backbone.name, (images or 1) * features + (covariates or 0), classes or 2)
        shown, old = layer_texts(layers), rows.pop() if rows[-1].name == "classifier" else None
        rows.append(_classifier_row(len(rows), layers, frozen=old is not None and not old.trainable))
    return Inspection(
        name=backbone.name,
        weights=backbone.recipe["weights"],
        image_size=preprocess.size,
        in_channels=preprocess.channels,
        parameters=beside + sum(row.parameters for row in rows),
        trainable=free_beside + sum(row.trainable for row in rows),
        macs=(images or 1) * sum(row.macs for row in rows[:-1]) + rows[-1].macs,
        features=features,
        bottleneck_node=backbone.graph.canonical[backbone.anatomy.map],
        bottleneck_rule=backbone.anatomy.rule,
        blocks=rows,
        modules=_module_rows(backbone.module) if modules else None,
        state=_state_rows(backbone.module) if state else None,
        notes=backbone.notes,
        images=images or 1,
        covariates=covariates or 0,
        classifier=shown,
    )


def layer_texts(classifier: nn.Sequential) -> tuple[str, ...]:
    """Its layers with their widths, such as "Linear(57600, 128)"."""
    texts = []
    for layer in classifier:
        match layer:
            case nn.Linear():
                widths = f"({layer.in_features}, {layer.out_features})"
            case nn.BatchNorm1d():
                widths = f"({layer.num_features})"
            case nn.Dropout():
                widths = f"({layer.p:g})"
            case _:
                widths = ""
        texts.append(f"{type(layer).__name__}{widths}")
    return tuple(texts)


def _classifier_row(index: int, classifier: nn.Sequential, frozen: bool) -> BlockRow:
    """The row of a new classifier."""
    count = sum(value.numel() for value in classifier.parameters())
    linear = [layer for layer in classifier if isinstance(layer, nn.Linear)]
    outputs = linear[-1].out_features
    return BlockRow(
        index=index,
        name="classifier",
        node="classifier",
        parameters=count,
        trainable=0 if frozen else count,
        shape=(outputs,),
        macs=sum(layer.in_features * layer.out_features for layer in linear),
        cached_bytes=_FLOAT16 * outputs,
    )


def choose_trained(backbone: Backbone, freeze_to: str | int | None, free: Sequence[str]) -> None:
    """Let what lies above the node `freeze_to` be trained, or the modules and blocks `free`, else everything.

    Raises BackboneError for both together, and for unknown ones.
    """
    if freeze_to is not None and free:
        raise BackboneError("--freeze-to and --free both choose what is trained; give one of them.")
    freeze(backbone, freeze_to)
    if free:
        _free_only(backbone, free)


def freeze(backbone: Backbone, up_to: str | int | None) -> None:
    """Freeze everything up to and including a node; what lies above is trainable, whatever it was before.

    Frozen parameters have no gradient, frozen BatchNorm keeps its statistics (see `batchnorm`), and dropout
    and stochastic depth are off, also after `.train()` on the network or on one of its halves. (Dropout that
    is written as a function, not a module, follows the mode of the module that calls it.)

    Parameters
    ----------
    up_to : str, int or None
        A node, a block or its index (see `Backbone.resolve`); with None the whole network is trainable.

    Raises
    ------
    BackboneError
        There is no such node.
    """
    below = backbone.graph.ancestors([backbone.operation(up_to)]) if up_to is not None else set()
    frozen = _targets(below)
    free = _targets(node for node in backbone.graph.graph.nodes if node not in below) - frozen
    for name, parameter in backbone.module.named_parameters():
        parameter.requires_grad_(any(_inside(name, target) for target in free))
    for name, module in backbone.module.named_modules():
        if isinstance(module, _VARYING):
            _fix(module, any(_inside(name, target) for target in frozen))


def trainable(backbone: Backbone) -> list[str]:
    """Names of the parameters that have a gradient."""
    return [name for name, parameter in backbone.module.named_parameters() if parameter.requires_grad]


# Modules whose training mode changes their state or their output.
_VARYING = (_BatchNorm, _DropoutNd, StochasticDepth, DropPath)


class _Fixed(nn.Module):
    """Base class of a layer that stays in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


@cache
def _fixed_class(kind: type) -> type:
    # The name of the module is kept: torch.fx tells layers of torch from modules to trace through by it.
    return type(kind.__name__, (_Fixed, kind), {"__module__": kind.__module__})


def _fix(module: nn.Module, fixed: bool) -> None:
    """Change the class of a layer and not the layer itself: its parameters, name and hooks stay the same."""
    if fixed and not isinstance(module, _Fixed):
        module.__class__ = _fixed_class(type(module))  # type: ignore[arg-type]  # mypy takes it as unhashable
        module.eval()
    elif not fixed and isinstance(module, _Fixed):
        module.__class__ = type(module).__bases__[1]


def _targets(nodes: Iterable[fx.Node]) -> set[str]:
    """Paths of the modules that operations call and of the parameters that they read."""
    return {str(node.target) for node in nodes if node.op in ("call_module", "get_attr")}


def _inside(name: str, path: str) -> bool:
    return name == path or name.startswith(path + ".")


def block_parameters(backbone: Backbone) -> list[list[str]]:
    """Names of each block's parameters; a parameter that several blocks use counts for the first of them."""
    names = list(dict(backbone.module.named_parameters()))
    taken: set[str] = set()
    blocks = []
    for operations in _operations(backbone):
        targets = _targets(operations)
        used = [n for n in names if n not in taken and any(_inside(n, target) for target in targets)]
        taken.update(used)
        blocks.append(used)
    return blocks


def _operations(backbone: Backbone) -> list[set[fx.Node]]:
    """Operations of each block: those that its end needs and that no earlier block's end needs."""
    done: set[fx.Node] = set()
    blocks = []
    for end in backbone.anatomy.ends:
        needed = backbone.graph.ancestors([end]) - done
        done |= needed
        blocks.append(needed)
    return blocks


def _block_rows(backbone: Backbone, preprocess: Preprocess) -> list[BlockRow]:
    shapes = measure(backbone.module, backbone.graph, preprocess.size, preprocess.channels, macs=True)
    sizes = {name: parameter.numel() for name, parameter in backbone.module.named_parameters()}
    free = set(trainable(backbone))
    rows = []
    parts = zip(
        backbone.blocks, backbone.anatomy.ends, block_parameters(backbone), _operations(backbone), strict=True
    )
    for block, end, parameters, operations in parts:
        if end not in shapes.rows:
            raise BackboneError(
                f"{backbone.name} does not accept {preprocess.size} × {preprocess.size} pixels: "
                f"{shapes.failure or f'{block.node} does not give one row per image'}."
            )
        shape = shapes.rows[end]
        rows.append(
            BlockRow(
                index=block.index,
                name=block.name,
                node=block.node,
                parameters=sum(sizes[name] for name in parameters),
                trainable=sum(sizes[name] for name in parameters if name in free),
                shape=shape,
                macs=sum(shapes.macs.get(node, 0) for node in operations),
                cached_bytes=_FLOAT16 * prod(shape),
            )
        )
    return rows


def _module_rows(module: nn.Module) -> list[ModuleRow]:
    rows = []
    for path, parent in module.named_modules():
        for index, (name, child) in enumerate(parent.named_children()):
            rows.append(
                ModuleRow(
                    path=f"{path}.{name}".lstrip("."),
                    index=f"{path}[{index}]",
                    type=type(child).__name__,
                    parameters=sum(p.numel() for p in child.parameters()),
                )
            )
    return rows


def _state_rows(module: nn.Module) -> list[StateRow]:
    parameters = dict(module.named_parameters())
    return [
        StateRow(
            name=name,
            kind="parameter" if name in parameters else "buffer",
            shape=tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            requires_grad=name in parameters and parameters[name].requires_grad,
        )
        for name, value in module.state_dict().items()
    ]


def _free_only(backbone: Backbone, references: Sequence[str]) -> None:
    """Make only the parameters of the given modules and blocks trainable."""
    by_block = block_parameters(backbone)
    chosen: set[str] = set()
    for reference in references:
        first, dash, last = reference.partition("-")
        if first.isdigit() and (not dash or last.isdigit()):
            indices = range(int(first), int(last or first) + 1)
            chosen.update(name for i in indices for name in by_block[backbone.block(i).index])
            continue
        path = _module_path(backbone.module, reference)
        block = next((b for b in backbone.blocks if b.name == reference), None)
        if path is not None:
            chosen.update(name for name, _ in backbone.module.named_parameters() if _inside(name, path))
        elif block is not None:
            chosen.update(by_block[block.index])
        else:
            raise BackboneError(
                f"{backbone.name} has no module or block {reference!r}.",
                f"See bottleneck inspect {backbone.name} --modules.",
            )
    for name, parameter in backbone.module.named_parameters():
        parameter.requires_grad_(name in chosen)


def _module_path(module: nn.Module, reference: str) -> str | None:
    """The path of a module given by names or indices; DenseNet's `features.9` is features.transition3."""
    path = []
    for part in reference.replace("[", ".").replace("]", "").split("."):
        children = dict(module.named_children())
        if part not in children and part.isdigit() and int(part) < len(children):
            part = list(children)[int(part)]
        if part not in children:
            return None
        module = children[part]
        path.append(part)
    return ".".join(path)
