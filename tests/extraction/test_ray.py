"""On a Ray cluster the cache is the one that a single process writes, whatever ends or refuses on the way.

The cluster has two nodes on this machine. The second one has faults, which a test switches on by files.
"""

import json
import os
import runpy
import signal
import socket
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image

import bottleneck
from bottleneck import extract
from bottleneck.cli.extract import command
from bottleneck.data.kept_images import KeptImages
from bottleneck.data.read_source import read_source
from bottleneck.errors import BottleneckError, ClusterError
from bottleneck.extraction import ray_actor, ray_cluster, ray_pool, ray_trunk
from bottleneck.extraction.config import ExtractConfig
from bottleneck.extraction.ray_cluster import ClusterNode, Size, sizes_of
from bottleneck.extraction.survey import survey
from tests.helpers.ray_nodes import (
    AfterImages,
    marked,
    rows_of,
    started_driver,
    wait_for_a_commit,
    write_images,
)
from tests.helpers.tiny_network import NET
from tests.helpers.web_server import serving

pytest.importorskip("ray", reason="needs the extra ray")


EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_cluster.py"


@pytest.fixture
def when_all_started(monkeypatch):
    """Let a run begin when all its workers have started, so that each gets batches, and do something then."""
    actions = []

    def wait(pool):
        while any(slot.info is None for slot in pool._slots):
            list(pool._step({}))
        for action in actions:
            action()

    monkeypatch.setattr(ray_pool.Pool, "wait", wait)
    return actions.append


def codes(result):
    return [note.code for note in result.notes]


def alone(folder, tmp_path):
    """The cache that one process writes."""
    extract(folder, tmp_path / "alone.h5", **NET)
    return tmp_path / "alone.h5"


@pytest.mark.parametrize("count", [1, 7, 33])
def test_the_cache_is_bit_for_bit_that_of_one_process(nodes, tmp_path, count):
    folder = write_images(tmp_path / "images", count)
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert (result.computed, result.engine) == (count, "onnxruntime")
    assert (tmp_path / "ray.h5").read_bytes() == alone(folder, tmp_path).read_bytes()
    assert "ray-workers" in codes(result)


def test_workers_load_the_network_where_the_engine_is_torch(nodes, tmp_path):
    folder = write_images(tmp_path / "images", 9)
    net = {"backbone": "small_cnn", "weights": "none", "engine": "torch", "image_size": 64, "depth": 1}
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, ray_workers=1, **net)
    extract(folder, tmp_path / "alone.h5", **net)
    assert result.engine == "torch"
    assert (tmp_path / "ray.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()


def test_broken_images_copies_and_views_are_as_in_one_process(nodes, tmp_path):
    folder = write_images(tmp_path / "images", 18)
    for number in (0, 9):
        (folder / f"{number:04}.png").write_bytes(b"no image")
    for number in (1, 12, 17):  # copies within one batch and in others
        (folder / f"{number:04}b.png").write_bytes((folder / f"{number:04}.png").read_bytes())
    results = [
        extract(folder, tmp_path / f"{name}.h5", ray=address, views=2, **NET)
        for name, address in (("alone", None), ("ray", nodes.address))
    ]
    ours, theirs = ((r.images, r.computed, r.reused, r.failures, r.views) for r in results)
    assert ours == theirs
    assert rows_of(tmp_path / "alone.h5") == rows_of(tmp_path / "ray.h5")


def test_large_jpegs_are_decoded_at_part_of_their_size_by_workers_too(nodes, tmp_path):
    folder, random = write_images(tmp_path / "images", 6), np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
    scaled = {**NET, "decoding": "scaled", "force": True}
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, **scaled)
    extract(folder, tmp_path / "scaled.h5", **scaled)
    assert "decoding-scaled" in codes(result)
    assert "ray-workers" in codes(result)
    rows, _ = rows_of(tmp_path / "ray.h5")
    assert rows == rows_of(tmp_path / "scaled.h5")[0]
    exact, _ = rows_of(alone(folder, tmp_path))
    assert {key for key in rows if rows[key] != exact[key]} == {f"{number}.jpg" for number in range(10)}


def test_a_worker_whose_process_is_killed_starts_again_and_repeats_its_batches(
    nodes, when_all_started, tmp_path
):
    folder = write_images(tmp_path / "images", 60)
    when_all_started(lambda: nodes.switch("kill"))
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert not (nodes.faults / "kill").exists()  # so one process was killed
    assert (result.computed, result.failed) == (60, 0)
    assert rows_of(tmp_path / "ray.h5") == rows_of(alone(folder, tmp_path))


def test_the_batches_of_a_node_that_goes_away_are_given_to_others(nodes, when_all_started, tmp_path):
    folder = write_images(tmp_path / "images", 40)
    when_all_started(lambda: nodes.switch("hold"))  # it has batches when it goes
    lose = AfterImages(4, nodes.remove)
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, reporter=lose, **NET)
    assert result.computed == 40
    assert rows_of(tmp_path / "ray.h5") == rows_of(alone(folder, tmp_path))


def test_a_slow_worker_delays_its_own_batches_alone(nodes, when_all_started, tmp_path):
    """It is held until all others are done, which they would never be if they waited for it."""
    folder = write_images(tmp_path / "images", 60)
    when_all_started(lambda: nodes.switch("hold"))
    others = 60 - ray_pool.AT_WORK * NET["batch_size"]
    release = AfterImages(others, lambda: nodes.switch("hold", on=False))
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, reporter=release, **NET)
    assert result.computed == 60
    assert not (nodes.faults / "hold").exists()


def test_a_worker_with_other_rows_refuses_and_is_named(nodes, when_all_started, tmp_path):
    folder = write_images(tmp_path / "images", 9)
    nodes.switch("wrong")
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert result.computed == 9
    (note,) = (note for note in result.notes if note.code == "ray-workers-refused")
    assert "has other rows than the driver: relative difference" in note.message
    assert rows_of(tmp_path / "ray.h5") == rows_of(alone(folder, tmp_path))


def test_a_node_that_comes_late_gets_a_worker_and_batches(nodes, when_all_started, monkeypatch, tmp_path):
    folder, pools = write_images(tmp_path / "images", 60), []
    monkeypatch.setattr(ray_pool.Pool, "__enter__", lambda pool: pools.append(pool) or pool)

    def come():
        nodes.add()
        while sum(slot.info is not None for slot in pools[0]._slots) < 3:
            list(pools[0]._step({}))

    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, reporter=AfterImages(4, come), **NET)
    (note,) = (note for note in result.notes if note.code == "ray-workers")
    assert note.details["nodes"] == 3
    assert sum(note.details["images_by_address"].values()) == result.computed == 60
    assert rows_of(tmp_path / "ray.h5") == rows_of(alone(folder, tmp_path))
    nodes.remove()


def test_more_workers_than_cpus_do_not_hold_up_the_others_and_are_told(nodes, tmp_path):
    folder = write_images(tmp_path / "images", 9)
    result = extract(folder, tmp_path / "ray.h5", ray=nodes.address, ray_workers=40, **NET)
    (note,) = (note for note in result.notes if note.code == "ray-workers-unstarted")
    assert result.computed == 9
    assert note.details["unstarted"] >= 38
    assert note.message.endswith("each waits for 1 CPU free on one node.")


def test_workers_with_another_package_refuse_and_nothing_is_computed(nodes, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", 3)
    monkeypatch.setattr(
        ray_trunk, "package_versions", lambda names: dict.fromkeys(names, "0.1") | {"Pillow": "0.2"}
    )
    with pytest.raises(ClusterError, match=r"No Ray worker can take part: .* instead of 0\.1") as caught:
        extract(folder, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert "Pillow" in str(caught.value)
    assert "run extract again" in caught.value.hint


def test_a_source_that_the_workers_cannot_read_is_named(nodes, tmp_path):
    """Files in the memory of the driver stand for a folder that only its machine has."""
    memory = fsspec.filesystem("memory")
    for path in write_images(tmp_path / "images", 3).iterdir():
        memory.pipe_file(f"/ray-source/{path.name}", path.read_bytes())
    with pytest.raises(ClusterError, match=r"\(node \w+\) cannot read memory://ray-source/0000\.png: "):
        extract("memory://ray-source", tmp_path / "ray.h5", ray=nodes.address, **NET)


def test_gpus_that_no_node_has_are_refused(nodes, tmp_path):
    folder = write_images(tmp_path / "images", 1)
    with pytest.raises(ClusterError, match="--gpus-per-worker is 1, and no node"):
        extract(folder, tmp_path / "ray.h5", ray=nodes.address, gpus_per_worker=1, **NET)


def test_an_object_store_that_is_too_small_is_refused(nodes, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", 1)
    monkeypatch.setattr(ray_trunk, "living_nodes", lambda: [ClusterNode("a", "host", 1, 0.0, 100)])
    with pytest.raises(ClusterError, match="An object store of the Ray cluster has 0 MiB") as caught:
        extract(folder, tmp_path / "ray.h5", ray=nodes.address, **NET)
    assert "--object-store-memory" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGINT, 128 + signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_a_driver_that_is_stopped_resumes(nodes, tmp_path, number, code):
    folder, cache = write_images(tmp_path / "images", 60), tmp_path / "ray.h5"
    nodes.switch("slow")
    driver = started_driver(folder, cache, nodes.address)
    wait_for_a_commit(cache, driver)
    driver.send_signal(number)
    out, told = driver.communicate()
    assert (driver.returncode, out) == (code, "")
    assert number == signal.SIGKILL or told.endswith("run the same command again to continue.\n")
    result = extract(folder, cache, ray=nodes.address, **NET)
    assert result.images == 60
    assert 0 < result.computed < 60
    assert rows_of(cache) == rows_of(alone(folder, tmp_path))


@pytest.mark.parametrize(("given", "used"), [(None, "0"), ("5", "5")])
def test_a_ray_that_is_started_here_has_the_priority_of_the_command(given, used, tmp_path, monkeypatch):
    name, seen = "RAY_worker_niceness", []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if given:
        monkeypatch.setenv(name, given)
    monkeypatch.setattr(ray_cluster, "_of_this_machine", lambda: None)
    monkeypatch.setattr(ray_cluster, "_init", lambda where, **options: seen.append(os.environ.get(name)))
    (note,) = ray_cluster._connect("auto", str(tmp_path))
    assert (note.code, seen, os.environ.get(name)) == ("ray-local", [used], given)


def test_ray_that_was_started_for_a_run_ends_with_it(tmp_path, monkeypatch):
    """Also where the path of the temporary folder is too long for a socket; it prints and leaves nothing."""
    folder, long = write_images(tmp_path / "images", 5), tmp_path / ("t" * 80)
    long.mkdir()
    mark = f"{os.getpid()}-{time.time_ns()}"
    places = {"TMPDIR": str(long), "RAY_TMPDIR": str(long), "RAY_ADDRESS": "", "MARK": mark}
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    places |= {"HOME": str(tmp_path)}
    driver = started_driver(folder, tmp_path / "ray.h5", "auto", **places)
    out, told = driver.communicate()
    assert driver.returncode == 0, told
    assert [note["code"] for note in json.loads(out)["notes"]] == ["ray-local", "ray-workers"]
    assert told.splitlines()[0] == "Ray: 1 worker on 1 node."
    assert "ray" not in "".join(told.splitlines()[1:]).lower()
    assert not [path for folder in (long, tmp_path) for path in folder.iterdir() if path.name == ".ray"]
    assert not [path for path in long.iterdir() if "ray" in path.name]
    assert wait_until(lambda: not [each for each in psutil.process_iter() if marked(each, "MARK", mark)])


def test_a_cluster_that_is_not_needed_is_not_asked_and_that_is_told(tmp_path):
    folder = write_images(tmp_path / "images", 3)
    cache = alone(folder, tmp_path)
    assert codes(extract(folder, cache, ray="127.0.0.1:1", **NET)) == ["ray-not-used"]


def wait_until(condition):
    """Whether a condition becomes true within a minute."""
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


def test_the_example_runs_on_any_cluster(nodes, tmp_path, capsys, monkeypatch):
    example = runpy.run_path(str(EXAMPLE))["main"]
    monkeypatch.setitem(example.__globals__, "write_digits", lambda folder: write_images(folder, 9))
    monkeypatch.setitem(example.__globals__, "extract", partial(extract, **NET))
    example(tmp_path, nodes.address)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "9 images, onnxruntime"
    assert printed[1].startswith("Note: Computed on Ray by workers on ")
    assert printed[-1] == "bit for bit the cache of one process"


# No cluster is needed for what follows.


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "No Ray cluster answers at 127.0.0.1:1: Connection refused"),
        ("cluster.invalid:6379", "No Ray cluster answers at cluster.invalid:6379: "),
        ("ray://host:10001", "is an address of Ray's client"),
        ("host:port", "host:port is no address"),
        ("127.0.0.1:70000", "is no address"),
    ],
)
def test_an_address_without_a_cluster_is_refused_at_once(tmp_path, address, reason):
    folder = write_images(tmp_path / "images", 1)
    with pytest.raises(ClusterError, match=reason) as caught:
        extract(folder, tmp_path / "ray.h5", ray=address, **NET)
    assert caught.value.hint


def test_what_answers_and_is_no_ray_is_refused_at_once(tmp_path, monkeypatch):
    """Ray itself would try for minutes."""
    monkeypatch.setattr(ray_cluster, "ANSWER_SECONDS", 0.2)
    folder = write_images(tmp_path / "images", 1)
    with serving() as web, socket.create_server(("127.0.0.1", 0)) as silent:
        for port, reason in ((web.server_port, "is no Ray cluster"), (silent.getsockname()[1], "timed out")):
            with pytest.raises(ClusterError, match=f"at 127.0.0.1:{port}.*{reason}"):
                extract(folder, tmp_path / "ray.h5", ray=f"127.0.0.1:{port}", **NET)


def test_a_worker_with_another_bottleneck_refuses_before_it_imports_it():
    worker = ray_actor.actor_class()("0.0.1", 1, False)
    worker.build([])
    assert worker.refusal == f"has bottleneck {bottleneck.__version__} instead of 0.0.1"


def test_without_ray_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", 1)
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    with pytest.raises(ClusterError, match="Ray, which is not installed") as caught:
        extract(folder, tmp_path / "ray.h5", ray="auto", **NET)
    assert "bottleneck-features[ray]" in caught.value.hint


def test_other_versions_than_the_cluster_s_are_named(tmp_path, monkeypatch):
    import ray

    def refuse(**options):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1\n    Python: 3.9\n")

    monkeypatch.setattr(ray, "init", refuse)
    folder = write_images(tmp_path / "images", 1)
    with pytest.raises(ClusterError, match=r"other versions of Ray or Python: .*Ray: 2\.1 Python: 3\.9"):
        extract(folder, tmp_path / "ray.h5", ray="auto", **NET)


@pytest.mark.parametrize("handled", [True, False])
def test_a_run_that_is_stopped_while_ray_starts_ends_as_elsewhere(handled, tmp_path, monkeypatch):
    """Ray's handler of SIGTERM, set at the start of `init`, exits with the signal's number."""
    import ray

    def ours(number, frame):
        raise KeyboardInterrupt(number)

    def stopped(**options):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "init", stopped)
    folder = write_images(tmp_path / "images", 1)
    before = signal.signal(signal.SIGTERM, ours if handled else signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt if handled else SystemExit) as caught:
            extract(folder, tmp_path / "ray.h5", ray="auto", **NET)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.args == (signal.SIGTERM,)


def test_what_answers_like_ray_and_is_no_head_is_tried_twice(tmp_path, monkeypatch):
    """As a port of another service of a cluster; Ray itself would try for a quarter of an hour."""
    ray = pytest.importorskip("ray")
    constants = pytest.importorskip("ray._private.ray_constants")
    before = constants.NUM_REDIS_GET_RETRIES

    def refuse(**options):
        raise RuntimeError(f"no head after {constants.NUM_REDIS_GET_RETRIES} tries")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray_cluster, "_require_answer", lambda address: None)
    folder = write_images(tmp_path / "images", 1)
    with pytest.raises(ClusterError, match="10001 cannot be used: no head after 2 tries"):
        extract(folder, tmp_path / "ray.h5", ray="127.0.0.1:10001", **NET)
    assert before == constants.NUM_REDIS_GET_RETRIES


def test_a_cluster_that_wants_a_token_says_so(tmp_path, monkeypatch):
    """The one of this machine gets the user's, which Ray takes for the address auto alone."""
    import ray

    asked = []

    def refuse(**options):
        asked.append(options["address"])
        raise RuntimeError("Failed to connect to GCS. Traceback:\nray.exceptions.AuthenticationError: RPC\n")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray_cluster, "_of_this_machine", lambda: "127.0.0.1:6379")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = write_images(tmp_path / "images", 1)
    with pytest.raises(ClusterError, match="wants a token") as caught:
        extract(folder, tmp_path / "ray.h5", ray="auto", **NET)
    assert "RAY_AUTH_MODE=token" in caught.value.hint
    assert asked == ["127.0.0.1:6379", "auto"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ray": "auto", "ray_workers": 0}, "--ray-workers is 0; expected 1 or more"),
        ({"ray": "auto", "gpus_per_worker": 1.5}, "--gpus-per-worker is 1.5; expected a part of one GPU"),
        ({"ray": "auto", "gpus_per_worker": -1}, "--gpus-per-worker is -1"),
        ({"ray_workers": 2}, "--ray-workers is for workers of a Ray cluster"),
        ({"gpus_per_worker": 1}, "--gpus-per-worker is for workers of a Ray cluster"),
        ({"ray": "auto", "device": "cuda"}, "--device cuda is for workers with GPUs"),
        ({"ray": "auto", "shard": "1/2"}, "--ray shares the whole source"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, options, message):
    folder = write_images(tmp_path / "images", 8)
    with pytest.raises(BottleneckError, match=message):
        extract(folder, tmp_path / "ray.h5", **NET, **options)


def test_the_flags_say_where_the_source_belongs(tmp_path):
    refused = CliRunner().invoke(command, ["--ray", str(tmp_path)])
    assert refused.exit_code == 2
    assert "Put SOURCE before --ray" in refused.output
    assert CliRunner().invoke(command, [str(tmp_path), "--ray", "--ray-workers", "0"]).exit_code == 2


def test_images_that_are_to_be_kept_here_are_not_read_by_workers(tmp_path):
    folder = write_images(tmp_path / "images", 3)
    source = replace(read_source(folder), kept=KeptImages(tmp_path / "kept"))
    with pytest.raises(BottleneckError, match="--cache-images keeps"):
        ray_trunk.for_workers(ExtractConfig(ray="auto"), source)


def test_a_survey_for_a_cluster_reaches_none(tmp_path):
    folder = write_images(tmp_path / "images", 3)
    config = ExtractConfig(backbone="small_cnn", weights="none", image_size=64, depth=1, ray="127.0.0.1:1")
    assert survey(folder, tmp_path / "ray.h5", config).to_read == 3


def test_workers_share_the_nodes_that_can_take_them():
    cpu, small, gpu, none = (
        ClusterNode("a", "a", 16, 0.0, 0),
        ClusterNode("b", "b", 4, 0.0, 0),
        ClusterNode("c", "c", 8, 2.0, 0),
        ClusterNode("d", "d", 0, 4.0, 0),
    )
    assert sizes_of([cpu, small, none], None, 0) == [Size(16, 0.0, cpu), Size(4, 0.0, small)]
    assert sizes_of([cpu, small], 4, 0) == [Size(2, 0)] * 4
    assert sizes_of([cpu], 40, 0) == [Size(1, 0)] * 40
    assert sizes_of([cpu, gpu], None, 1) == [Size(16, 0.0, cpu), Size(4, 1, gpu), Size(4, 1, gpu)]
    assert sizes_of([cpu, gpu], 2, 0.5) == [Size(4, 0.5)] * 2


def test_a_ray_that_prints_elsewhere_is_used_all_the_same(monkeypatch):
    """The function that is replaced is private to Ray; versions may lack it."""
    worker = pytest.importorskip("ray._private.worker")
    monkeypatch.delattr(worker, "print_to_stdstream")
    with ray_cluster._nothing_printed():
        pass
    assert not hasattr(worker, "print_to_stdstream")


def test_a_cluster_whose_head_is_gone_is_an_error_of_one_line(monkeypatch):
    import ray

    def nodes():
        raise ray.exceptions.RaySystemError("Failed to connect to GCS.")

    monkeypatch.setattr(ray, "nodes", nodes)
    with pytest.raises(ClusterError, match=r"does not answer any more.*GCS"):
        ray_cluster.living_nodes()
