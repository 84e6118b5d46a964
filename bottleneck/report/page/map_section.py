"""The section with the map: samples as points of a plane, coloured by class, mistakes ringed.

Shapes: S samples, n of them.
"""

from __future__ import annotations

import numpy as np

from bottleneck.errors import BottleneckError, Note, counted, verb
from bottleneck.names import BOTTLENECK, nodes_in
from bottleneck.progress import Reporter
from bottleneck.report.page.blocks import Map, Section
from bottleneck.report.page.held_out import Judged
from bottleneck.report.page.pictures import POINT, Pictures
from bottleneck.store.reader import FeatureCache
from bottleneck.studies.embedding.plane import MOST, PCA_NAME, TSNE_NAME, drawn_samples, label_codes, plane_of


def map_section(
    cache: FeatureCache | None, found: Judged | None, pictures: Pictures, seed: int, reporter: Reporter
) -> Section:
    """Return the section, with notes."""
    if cache is None or len(cache.samples) < 2:
        return Section("map", "Map", missing="No cache with samples is among the paths.")
    node = _node(cache, found)
    if node is None:
        command = cache.extract_command(f"--node {BOTTLENECK}")
        missing = f"The cache has no vectors, only maps. This adds them: {command}"
        return Section("map", "Map", missing=missing)
    samples = cache.samples
    wrong = np.zeros(0, np.int64)
    if found is not None and found.head.target_kind == "class":
        wrong = found.rows[found.error > 0]
    chosen = drawn_samples(samples, wrong, MOST, seed)
    try:
        plane = plane_of(cache.sample_rows(node), chosen, seed, reporter)
    except BottleneckError as error:
        return Section("map", "Map", missing=f"No map could be drawn: {error.message}")
    codes, names = label_codes(samples, None if found is None else found.head.target)
    if not names:
        target = next((name for name, each in samples.targets.items() if each.kind == "class"), None)
        codes, names = label_codes(samples, target)
    predicted = np.full(len(samples), -1)
    if found is not None and found.head.target_kind == "class":
        code_of = {name: code for code, name in enumerate(names)}
        own = np.array([code_of.get(name, -1) for name in found.head.class_names], np.int64)
        predicted[found.rows] = own[found.predicted]
    notes = list(plane.notes)
    text = f"By the features of {node}. PCA shows {sum(plane.explained):.0%} of their variance."
    if len(chosen) < len(samples):
        drawn = (
            f"{len(chosen):,} of {counted(len(samples), 'sample')} {verb(len(chosen))} "
            "drawn, mistakes first, evenly of the classes."
        )
        notes.append(
            Note("map-sampled", f"Map: {drawn}", details={"samples": len(chosen), "of": len(samples)})
        )
        text += f" {drawn}"
    if (predicted >= 0).any():
        text += " A ring is a mistake."
    text += " Distances between far clusters of t-SNE mean nothing." if TSNE_NAME in plane.positions else ""
    order = [name for name in (TSNE_NAME, PCA_NAME) if name in plane.positions]
    images = cache.images.key[samples.image[chosen, 0]]
    wrong_set = set(wrong.tolist())
    block = Map(
        "map",
        "",
        text,
        positions={name: plane.positions[name] for name in order},
        classes=names,
        colour=codes[chosen].tolist(),
        predicted=predicted[chosen].tolist(),
        split=samples.split[chosen].tolist(),
        pictures=[
            pictures.want(name, POINT + 0.5 * (row in wrong_set))
            for row, name in zip(chosen.tolist(), images, strict=True)
        ],
    )
    return Section("map", "Map", [block], notes=notes)


def _node(cache: FeatureCache, found: Judged | None) -> str | None:
    """Return the vector node that the head takes, else the bottleneck or the first one."""
    names = cache.vector_names
    wanted = [] if found is None else [found.head.node, *nodes_in(found.head.node)]
    for name in (*wanted, BOTTLENECK):
        stored = cache.stored_name(name)
        if stored in names:
            return stored
    return next(iter(names), None)
