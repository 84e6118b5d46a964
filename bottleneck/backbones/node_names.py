"""Names of nodes as users type them → names under which a cache stores their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bottleneck.errors import BottleneckError, Note
from bottleneck.names import SIDE_BY_SIDE, nodes_in
from bottleneck.store.reader import FeatureCache
from bottleneck.store.spec import alias_note

if TYPE_CHECKING:  # torch's graphs take two seconds to import, which most caches do not need
    from bottleneck.backbones.backbone import Backbone


def stored_nodes(cache: FeatureCache, names: Sequence[str]) -> tuple[list[str], list[Note]]:
    """Return the stored name of each node (or of A+B), and a note for each that has another name there.

    A cache knows the other names of its nodes; one that was written before they were stored is asked through
    its network, which is built without its weights. A name that is unknown there too is returned as it is.
    """
    network: Backbone | None = None
    stored, notes = [], []
    for name in names:
        parts = []
        for part in (name,) if name in cache.nodes else nodes_in(name):
            found = cache.stored_name(part)
            if found is None:
                network = network or _structure(cache)
                found = part if network is None else _resolved(cache, network, part)
            parts.append(found)
        stored.append(SIDE_BY_SIDE.join(parts))
        if stored[-1] != name:
            notes.append(alias_note(name, stored[-1]))
    return stored, notes


def _structure(cache: FeatureCache) -> Backbone | None:
    """Return the network of a cache without its weights; None where it cannot be built here."""
    from bottleneck.backbones.registry import load_backbone

    recipe = cache.spec.backbone
    variant = {name: recipe[name] for name in ("in_channels", "depth", "image_size") if name in recipe}
    try:
        return load_backbone(recipe["name"], weights="none", **variant)
    except (BottleneckError, KeyError, TypeError):
        return None


def _resolved(cache: FeatureCache, network: Backbone, name: str) -> str:
    """Return the stored name of what `name` is in the network; `name` itself if it is nothing there."""
    node, at, pool = name.partition("@")
    try:
        asked = f"{network.resolve(node)}{at}{pool}"
    except BottleneckError:
        return name
    return cache.stored_name(asked) or name
