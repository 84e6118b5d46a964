"""Completion of words in a shell that only a file knows: the nodes of the cache that was typed before."""

from __future__ import annotations

from contextlib import suppress

import click

from bottleneck.errors import BottleneckError
from bottleneck.names import SIDE_BY_SIDE


def complete_node(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    """Return the nodes of the command's cache that begin with `typed`; none if there is no such cache.

    Of A+B the last part is completed.
    """
    from bottleneck.store.reader import FeatureCache

    # Before an option without its value, click has not yet given the arguments their names.
    given = context.params.get("cache") or next(iter(context.params.get("caches") or context.args), None)
    if given is None:
        return []
    before, plus, part = typed.rpartition(SIDE_BY_SIDE)
    with suppress(BottleneckError, OSError), FeatureCache(given) as cache:
        return [f"{before}{plus}{name}" for name in sorted(cache.nodes) if name.startswith(part)]
    return []
