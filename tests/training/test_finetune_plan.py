"""Maps that fine-tuning needs: made once, replaced where another type is needed, never lost on the way."""

import shutil
import signal

import pytest
from PIL import Image

from bottleneck.errors import CacheError, FingerprintError
from bottleneck.extraction.extract import extract
from bottleneck.store.lock import CacheLock
from bottleneck.store.reader import FeatureCache
from bottleneck.training import finetune_plan
from bottleneck.training.finetune_plan import ensure_map
from tests.helpers.fitted_cache import copied
from tests.helpers.forked import exit_code
from tests.helpers.killed_training import killed_before_the_new_map

NODE = "features.block3@none"


@pytest.fixture
def cache(half_cache, tmp_path):
    """A cache with a float16 map."""
    return copied(half_cache, tmp_path)


def stored(cache):
    with FeatureCache(cache) as opened:
        return opened.nodes[NODE].dtype, len(opened.features(NODE))


def test_the_rows_of_added_images_are_added_to_the_map(images, tmp_path):
    folder, cache = shutil.copytree(images, tmp_path / "images"), tmp_path / "c.h5"
    options = {"backbone": "small_cnn", "engine": "torch"}
    extract(folder, cache, nodes=("bottleneck", NODE), **options)
    with Image.open(next((folder / "train").rglob("*.png"))) as image:
        image.rotate(90).save(folder / "train" / "turned.png")
    new = folder / "train" / "new"
    new.mkdir()
    (folder / "train" / "turned.png").rename(new / "turned.png")
    extract(folder, cache, nodes=("bottleneck",), **options)
    with FeatureCache(cache) as opened:
        assert not opened.has_all_rows(NODE)
    assert ensure_map(cache, NODE) > 0
    assert stored(cache) == ("float16", 82)
    assert ensure_map(cache, NODE) == 0


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

    monkeypatch.setattr(finetune_plan, "run_prepared", stopped)
    with pytest.raises(stop if isinstance(stop, type) else type(stop)):
        ensure_map(cache, NODE, dtype="float32")
    assert stored(cache) == ("float16", 81)


@pytest.mark.parametrize("finished", [True, False])
def test_what_a_kill_left_is_used_or_removed(cache, finished):
    (place,) = cache.parent.glob("c--*.h5")
    aside = place.with_name(place.name + ".replaced")
    shutil.copy(place, aside)
    if not finished:
        place.unlink()
    assert ensure_map(cache, NODE) == 0, "the map is there"
    assert stored(cache) == ("float16", 81)
    assert not aside.exists()


def test_a_kill_before_the_new_map_was_there_costs_nothing(cache):
    assert exit_code(killed_before_the_new_map, cache, NODE) == -signal.SIGKILL
    with FeatureCache(cache) as opened:
        assert NODE not in opened.nodes
    assert ensure_map(cache, NODE, dtype="float32") > 0
    assert stored(cache) == ("float32", 81)
    assert not list(cache.parent.glob("*.replaced"))


def test_the_map_of_a_cache_whose_name_begins_alike_is_left_alone(cache):
    (place,) = cache.parent.glob("c--*.h5")
    other = cache.with_name("c--more--features.block3.h5.replaced")
    shutil.copy(place, other)
    assert ensure_map(cache, NODE) == 0
    assert other.exists()


def test_a_map_that_another_run_has_set_aside_is_left_to_it(cache):
    (place,) = cache.parent.glob("c--*.h5")
    aside = place.rename(place.with_name(place.name + ".replaced"))
    with CacheLock(cache), pytest.raises(CacheError, match="is at work"):
        ensure_map(cache, NODE)
    assert aside.exists()


def test_other_views_than_those_cached_are_refused(viewed_cache, tmp_path):
    path = copied(viewed_cache, tmp_path)
    assert ensure_map(path, NODE, views=2) == 0
    with pytest.raises(FingerprintError, match="count"):
        ensure_map(path, NODE, views=5)
