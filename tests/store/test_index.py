"""The sorted index finds what a dictionary finds, also where prefixes, keys and runs collide."""

import numpy as np
import pytest

from bottleneck.files import FileStat
from bottleneck.store import index
from bottleneck.store.index import Added, Records, Runs, first_equal, hashes_of, repeated
from bottleneck.store.tables import ImageTable, by_code_point, decode, encode


def entries(random, count, values=50):
    """Digests of few values, half of which share the bytes by which they are sorted."""
    drawn = random.integers(0, values, count)
    out = np.zeros((count, 32), np.uint8)
    out[:, 0], out[:, 31] = drawn // 2, drawn
    return out


@pytest.mark.parametrize("seed", range(5))
def test_first_and_last_are_those_of_dictionaries(seed):
    random, runs = np.random.default_rng(seed), Runs()
    first, last, added = {}, {}, 0
    for _ in range(12):  # of different sizes, so that some runs are joined and others stay
        block = entries(random, int(random.integers(0, 40)))
        runs.add(block)
        for number, entry in enumerate(block, added):
            first.setdefault(entry.tobytes(), number)
            last[entry.tobytes()] = number
        added += len(block)
        wanted = entries(random, 60, 70)
        keys = [entry.tobytes() for entry in wanted]
        assert runs.find(wanted).tolist() == [first.get(key, -1) for key in keys]
        assert runs.find(wanted, last=True).tolist() == [last.get(key, -1) for key in keys]
        assert np.flatnonzero(runs.distinct()).tolist() == sorted(last.values())
    assert len(runs) == added


def test_repeated_entries_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr(index, "BLOCK", 3)
    random = np.random.default_rng(0)
    every = entries(random, 40)
    seen, again = {}, []
    for number, entry in enumerate(every):
        if seen.setdefault(entry.tobytes(), number) != number:
            again.append(number)
    assert repeated(every).tolist() == again
    assert first_equal(every).tolist() == [seen[entry.tobytes()] for entry in every]
    assert repeated(every[:0]).tolist() == []


@pytest.mark.parametrize("key", ["가/나.jpg", "a\udcff.jpg", "x" * 300, "🦊", ""])
def test_a_key_and_its_bytes_as_stored_have_one_hash(key):
    assert hashes_of([key]).tobytes() == hashes_of(encode([key, "longer than the key"])[:1]).tobytes()


def test_a_key_that_is_stored_with_a_replacement_is_not_found_under_another():
    lone = "a\ud800.jpg"
    assert len({hashes_of([key]).tobytes() for key in (lone, "a\ud801.jpg", decode(encode([lone]))[0])}) == 3


def test_digests_of_a_run_are_known_in_the_set_and_in_runs(monkeypatch):
    monkeypatch.setattr(index, "BLOCK", 4)
    added, digests = Added(), [bytes([number]) * 32 for number in range(11)]
    for start in range(0, 11, 3):
        added.add(digests[start : start + 3])
    assert all(digest in added for digest in digests)
    assert bytes([99]) * 32 not in added


def images(*rows):
    return ImageTable.of([(key, bytes([digest]) * 32, FileStat(digest)) for key, digest in rows])


def test_of_several_records_the_last_counts_until_it_is_dropped():
    records = Records()
    records.add(images(("a", 1), ("b", 2)))
    records.add(images(("a", 3)))
    at = records.find(hashes_of(["a", "b", "c"]))
    assert at.tolist() == [2, 1, -1]
    assert records.digest[at[:2], 0].tolist() == [3, 2]
    assert records.stat[at[:2], 0].tolist() == [3, 2]
    assert records.positions().tolist() == [1, 2]
    records.drop(at)
    assert records.find(hashes_of(["a", "b"])).tolist() == [-1, -1]
    assert records.positions().tolist() == []


def test_names_are_put_in_the_order_of_their_texts():
    names = ["b", "a", "가", "\ue000", "🦊", "z\udcff", "a/b", "a b"]
    ordered = encode(names)[np.argsort(by_code_point(encode(names)), kind="stable")]
    assert decode(ordered).tolist() == sorted(names)
