"""Images that end the workers that compute them are named, and those beside them get their rows."""

import pytest

from bottleneck import extract
from bottleneck.errors import ClusterError
from bottleneck.extraction import ray_pool
from bottleneck.extraction.ray_task import Part
from tests.helpers.ray_nodes import rows_of, write_images
from tests.helpers.tiny_network import NET

pytest.importorskip("ray", reason="needs the extra ray")

COUNT = 40


@pytest.fixture(autouse=True)
def few_restarts(monkeypatch):
    monkeypatch.setattr(ray_pool, "RESTARTS", 0)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("source") / "images", COUNT)


def test_an_image_that_ends_its_workers_is_a_failure_and_no_other_is(nodes, images, tmp_path):
    extract(images, tmp_path / "alone.h5", **NET)
    nodes.poison("0017.png", "0018.png", "0030.png")
    result = extract(images, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert (result.computed, result.failed) == (COUNT - 3, 3)
    assert set(result.failures) == {"0017.png", "0018.png", "0030.png"}
    assert all("ends each Ray worker that computes it" in reason for reason in result.failures.values())
    rows, _ = rows_of(tmp_path / "ray.h5")
    expected, _ = rows_of(tmp_path / "alone.h5")
    assert rows == {key: row for key, row in expected.items() if key not in result.failures}
    nodes.repair()
    again = extract(images, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert (again.computed, again.failed) == (3, 0)
    assert rows_of(tmp_path / "ray.h5") == rows_of(tmp_path / "alone.h5")


def test_many_such_images_end_the_run_in_one_line(nodes, images, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_pool, "MOST_DEADLY", 1)
    nodes.poison("0017.png", "0025.png", "0030.png")
    with pytest.raises(ClusterError, match="2 images ended each Ray worker") as caught:
        extract(images, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert "without --ray" in caught.value.hint


def test_nodes_on_which_every_batch_ends_its_worker_are_given_up(nodes, images, tmp_path):
    nodes.poison(*(f"{number:04}.png" for number in range(4, COUNT)))
    with pytest.raises(ClusterError, match=r"No Ray worker can take part: .* ended at its work: "):
        extract(images, tmp_path / "ray.h5", ray=nodes.address, **NET)


def test_a_part_is_divided_into_its_images():
    part = Part((5, 7), ("b", "c"), {"b": 1}, {"c": 2})
    assert part.singles() == [
        Part((5,), ("b",), {"b": 1}, {"c": 2}),
        Part((7,), ("c",), {"b": 1}, {"c": 2}),
    ]
