"""A network with its blocks, its nodes and the preprocessing of its weights.

    images ──► trunk ──► features at a node ──► top ──► logits

Shapes: B images, H × W pixels, C channels, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property

import torch
from torch import fx, nn

from bottleneck.backbones.blocks import Anatomy, Block, dissect
from bottleneck.backbones.extractor import Extractor, Pool
from bottleneck.backbones.graph import NetworkGraph, Shapes, layout_of, measure, split, trace
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, Note
from bottleneck.names import BOTTLENECK, DEFAULT_POOL, POOLS


class Backbone:
    """A pretrained or random network whose blocks and inner tensors can be addressed by name.

    Parameters
    ----------
    name : str
        As in the registry.
    module : torch.nn.Module
        The whole network, one image tensor (B, C, H, W) in, one tensor (B, classes) out. It is not copied. It
        is put into evaluation mode, and its in-place activations are made out of place.
    preprocess : Preprocess
        How images become its input.
    recipe : dict
        JSON: how to rebuild it (see `recipe`).
    class_names : sequence of str, optional
        Names of its outputs.
    untrained : set of str
        Names of the last layers' parameters that the weights lack; nodes that need them are refused.
    notes : sequence of Note
        What was decided when the weights were loaded.

    Raises
    ------
    BackboneError
        From the properties and methods: a network that cannot be traced, a node that it does not have.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        preprocess: Preprocess,
        recipe: dict,
        class_names: Sequence[str] | None = None,
        *,
        untrained: frozenset[str] = frozenset(),
        notes: Sequence[Note] = (),
    ) -> None:
        self.name = name
        self.module = module.eval()
        self.preprocess = preprocess
        self.recipe = recipe
        self.class_names = tuple(class_names) if class_names is not None else None
        self.untrained = untrained
        self.notes = tuple(notes)
        self._shapes: dict[int, Shapes] = {}
        for child in module.modules():
            if getattr(child, "inplace", False) is True:
                setattr(child, "inplace", False)  # noqa: B010  # nn.Module declares no such attribute

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        preprocess: Preprocess,
        *,
        name: str = "module",
        class_names: Sequence[str] | None = None,
    ) -> Backbone:
        """A backbone from your own network; its recipe identifies the weights but cannot rebuild it."""
        notes = in_float32(module)
        recipe = {
            "name": name,
            "weights": "module",
            "weights_sha256": state_sha256(module),
            "in_channels": preprocess.channels,
        }
        return cls(name, module, preprocess, recipe, class_names, notes=notes)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The stages from `stem` to `classifier`."""
        return self.anatomy.blocks

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """All names of all tensors, in execution order; `bottleneck` last."""
        return (*self.graph.by_name, BOTTLENECK)

    @cached_property
    def graph(self) -> NetworkGraph:
        """The network in evaluation mode."""
        return trace(self.module)

    @cached_property
    def anatomy(self) -> Anatomy:
        """Blocks and bottleneck, with their operations in the graph."""
        return dissect(self.module, self.graph, self._measure(self.preprocess))

    @cached_property
    def num_features(self) -> int:
        """D of the bottleneck at the network's own input size."""
        return self.node_shape(BOTTLENECK)[0][0]

    def block(self, index: int) -> Block:
        """A block by its index; negative ones count from the top."""
        if not -len(self.blocks) <= index < len(self.blocks):
            raise BackboneError(
                f"{self.name} has no block {index}; it has {len(self.blocks)}, "
                f"0 to {len(self.blocks) - 1} or −{len(self.blocks)} to −1.",
                f"See bottleneck inspect {self.name}.",
            )
        return self.blocks[index]

    def resolve(self, node: str | int) -> str:
        """The name that a node is stored under: the path of its block, else the shortest name of its tensor.

        Parameters
        ----------
        node : str or int
            A node, a block's name, or a block's index; negative ones count from the top (−1 the classifier).
            A block means the tensor that it ends with. If a node and a block have the same name, the node is
            meant.

        Raises
        ------
        BackboneError
            There is no such node; the message names similar ones.
        """
        if isinstance(node, int) or node.lstrip("-").isdigit():
            return self.block(int(node)).node
        if node == BOTTLENECK:
            return node
        if node in self.graph.by_name:
            return self._canonical[self.graph.by_name[node]]
        ends = {block.name: block.node for block in self.blocks}
        if node in ends:
            return ends[node]
        close = get_close_matches(node, [*ends, *self.nodes], n=4, cutoff=0.5)
        raise BackboneError(
            f"{self.name} has no node {node!r}"
            + (f"; close ones are {', '.join(dict.fromkeys(close))}." if close else "."),
            f"Its blocks are {', '.join(ends)}; see bottleneck inspect {self.name}.",
        )

    def aliases(self, node: str) -> tuple[str, ...]:
        """The other names that `resolve` takes for a stored name: of its tensor, and of the block it ends."""
        if node == BOTTLENECK:
            return ()
        tensor = self.graph.by_name[node]
        names = [name for name, operation in self.graph.by_name.items() if operation is tensor]
        count = len(self.blocks)
        for block in self.blocks:
            if block.node == node:
                names += [name for name in (block.name,) if name not in self.graph.by_name]
                names += [str(block.index), str(block.index - count)]
        return tuple(name for name in dict.fromkeys(names) if name != node)

    def split(self, node: str | int) -> tuple[nn.Module, nn.Module]:
        """Trunk and top: in evaluation mode, `top(trunk(x))` equals the network bit for bit (see `graph`).

        Parameters
        ----------
        node : str or int
            As in `resolve`; the trunk returns the node's tensor without a pool.

        Raises
        ------
        BackboneError
            The top would need more than this one tensor.
        """
        return split(self.module, self.graph, self._training_graph, self.operation(node))

    def extractor(self, nodes: Sequence[str], preprocess: Preprocess | None = None) -> Extractor:
        """The module that computes several nodes in one pass: uint8 (B, H, W, C) → a float32 tensor per node.

        Parameters
        ----------
        nodes : sequence of str
            NODE or NODE@POOL.
        preprocess : Preprocess, optional
            The network's own by default.
        """
        preprocess = preprocess or self.preprocess
        parts = [self._operation_and_pool(name, preprocess) for name in nodes]
        graph = self.graph.part(tuple(operation for operation, _ in parts))
        trunk = fx.GraphModule(self.module, graph, "Trunk")
        return Extractor(trunk, [pool for _, pool in parts], preprocess).eval()

    def node_shape(self, name: str, preprocess: Preprocess | None = None) -> tuple[tuple[int, ...], str]:
        """Shape of one row of NODE or NODE@POOL, and its layout ("NC", "NCHW", "NHWC", "NLC")."""
        _, pool = self._operation_and_pool(name, preprocess or self.preprocess)
        row = tuple(pool(torch.empty(1, *pool.row, device="meta")).shape[1:])
        return row, layout_of(row)

    def entries_above(self, *nodes: str) -> set[str]:
        """Names in the state dict that neither the bottleneck nor `nodes` need: the unused classifier's."""
        used = self._reads([self.operation(node) for node in (BOTTLENECK, *nodes)])
        return {name for name in self.module.state_dict() if not _within(name, used)}

    def _reads(self, operations: Sequence[fx.Node]) -> set[str]:
        """Paths of the layers and parameters that the tensors of `operations` are computed with."""
        needed = self.graph.ancestors(operations)
        return {str(node.target) for node in needed if node.op in ("call_module", "get_attr")}

    def operation(self, node: str | int) -> fx.Node:
        """The operation in `graph` that makes a node's tensor."""
        name = self.resolve(node)
        return self.anatomy.bottleneck if name == BOTTLENECK else self.graph.by_name[name]

    @cached_property
    def _canonical(self) -> dict[fx.Node, str]:
        ends = {end: block.node for end, block in zip(self.anatomy.ends, self.blocks, strict=True)}
        return self.graph.canonical | ends

    @cached_property
    def _training_graph(self) -> NetworkGraph:
        return trace(self.module, training=True)

    def _measure(self, preprocess: Preprocess) -> Shapes:
        size = preprocess.size
        if size not in self._shapes:
            self._shapes[size] = measure(self.module, self.graph, size, preprocess.channels)
        return self._shapes[size]

    def _require_trained(self, operation: fx.Node, node: str) -> None:
        """Refuse a tensor that is computed with parameters which the weights lack."""
        used = self._reads([operation]) if self.untrained else set()
        lacking = [name for name in sorted(self.untrained) if _within(name, used)]
        if lacking:
            raise BackboneError(
                f"{self.name} cannot give {node}: its weights lack {', '.join(lacking[:4])}.",
                f"Use a node below, such as {BOTTLENECK}, or weights with the last layer.",
            )

    def _operation_and_pool(self, name: str, preprocess: Preprocess) -> tuple[fx.Node, Pool]:
        """The operation and the pool that give NODE or NODE@POOL."""
        node, at, kind = name.partition("@")
        if at and kind not in POOLS:
            raise BackboneError(f"Unknown pool {kind!r} in {name!r}; expected one of {', '.join(POOLS)}.")
        operation = self.operation(node)
        self._require_trained(operation, node)
        if node == BOTTLENECK:
            pooled = kind or self.anatomy.native
            operation = self.anatomy.map if pooled else operation
            kind = pooled or "flatten"
        shapes = self._measure(preprocess)
        if operation not in shapes.rows:
            reason = shapes.failure or "its rows are not one per image"
            raise BackboneError(
                f"{self.name} cannot give {name} at {preprocess.size} × {preprocess.size} pixels: {reason}.",
                "Use another node, or the network's own --image-size.",
            )
        return operation, Pool(kind or DEFAULT_POOL, shapes.rows[operation])


def _within(name: str, paths: set[str]) -> bool:
    """Whether an entry of a state dict belongs to one of the layers or parameters at `paths`."""
    return any(name == path or name.startswith(f"{path}.") for path in paths)


def in_float32(module: nn.Module) -> list[Note]:
    """Convert a network of another precision to float32 in place, which a note reports."""
    tensors = [*module.parameters(), *module.buffers()]
    kinds = sorted(
        {str(t.dtype).removeprefix("torch.") for t in tensors if t.is_floating_point()} - {"float32"}
    )
    if not kinds:
        return []
    module.float()
    return [
        Note(
            "network-converted-to-float32",
            f"The network holds {' and '.join(kinds)} numbers; it is computed with in float32.",
            details={"dtypes": kinds},
        )
    ]


def state_sha256(module: nn.Module) -> str:
    """sha256 over the network's state: name, dtype, shape and bytes of every entry, sorted by name.

    It covers BatchNorm's statistics and does not depend on the file that the weights came from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
