"""Quantised graphs of one float32 graph, with the ranges of activations that are measured once for all."""

import bottleneck.engines.int8 as module
from bottleneck.engines.int8 import quantised
from bottleneck.engines.reference import Eager
from tests.helpers.networks import WideAtFirst, photos


def test_ranges_are_measured_once_and_each_graph_is_as_if_made_alone(monkeypatch):
    images = photos(6)
    graph = Eager(WideAtFirst, images, 1, "Tiny").exported()
    fed = []

    class Counted(module._Images):
        def get_next(self):
            fed.append(super().get_next())
            return fed[-1]

    alone = [next(quantised(graph, images, [count])) for count in (0, 3)]
    monkeypatch.setattr(module, "_Images", Counted)
    assert list(quantised(graph, images, [0, 3])) == alone
    assert alone[0] != alone[1]
    assert len(fed) == len(images) + 1  # and None at the end
