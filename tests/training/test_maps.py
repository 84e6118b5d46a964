"""Maps that fine-tuning needs: made once, replaced where another type is needed, never lost on the way."""

import pytest

from bottleneck.errors import FingerprintError
from bottleneck.extraction import extract
from bottleneck.store.reader import FeatureCache
from bottleneck.training import maps
from bottleneck.training.maps import ensure_map

NODE = "features.block3@none"


@pytest.fixture
def cache(images, tmp_path):
    """A cache with a float16 map."""
    path = tmp_path / "c.h5"
    extract(images, path, backbone="small_cnn", nodes=("bottleneck", NODE), engine="torch")
    return path


def stored(cache):
    with FeatureCache(cache) as opened:
        return opened.nodes[NODE].dtype, len(opened.features(NODE))


def test_a_map_in_another_type_is_replaced(cache):
    assert stored(cache) == ("float16", 81)
    assert ensure_map(cache, NODE) == 0
    assert ensure_map(cache, NODE, dtype="float32") > 0
    assert stored(cache) == ("float32", 81)
    assert not list(cache.parent.glob("*.replaced"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_the_old_map_stays_where_the_new_one_is_not_finished(cache, monkeypatch, stop):
    def stopped(*arguments, **options):
        raise stop

    monkeypatch.setattr(maps, "extract", stopped)
    with pytest.raises((KeyboardInterrupt, OSError)):
        ensure_map(cache, NODE, dtype="float32")
    assert stored(cache) == ("float16", 81)


def test_other_views_than_those_cached_are_refused(images, tmp_path):
    path = tmp_path / "v.h5"
    extract(images, path, backbone="small_cnn", nodes=("bottleneck", NODE), engine="torch", views=2)
    assert ensure_map(path, NODE, views=2) == 0
    with pytest.raises(FingerprintError, match="count"):
        ensure_map(path, NODE, views=5)
