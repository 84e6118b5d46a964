"""A run that ends early loses nothing that it computed, and neither do those who read meanwhile."""

import os

import h5py
import pytest

from bottleneck.errors import CacheError
from bottleneck.fitting.labels import relabelled
from bottleneck.store.cachefile import CacheFile
from bottleneck.store.parts import read_log
from bottleneck.store.reader import FeatureCache
from bottleneck.store.writer import CacheWriter
from bottleneck.studies.class_task import class_target
from bottleneck.trials.task import task_of
from tests.helpers.world import MAP, ROOT, SPEC, A, B, content, digest_of, row_of


def test_an_interrupted_run_goes_on_where_its_last_commit_was(path, world, monkeypatch):
    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 2)
    with CacheWriter(path, SPEC, [A, MAP], ROOT) as writer:
        world.feed(writer, stop_after=7)
    done = set(world.computed)
    world.computed.clear()
    world.extract(path, [A, MAP])
    assert done
    assert not done & set(world.computed)
    assert content(path) == world.expected([A, MAP])


@pytest.mark.parametrize("consolidate", [True, False])
def test_a_run_of_more_parts_than_are_open_at_once_loses_none(path, world, monkeypatch, consolidate):
    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 1)
    monkeypatch.setattr("bottleneck.store.cachefile.MAX_OPEN", 2)
    with CacheWriter(path, SPEC, [A, MAP], ROOT) as writer:
        world.feed(writer, stop_after=7)
    assert len(read_log(path.parent / "cache.h5.parts").parts) > 2
    done = set(world.computed)
    world.computed.clear()
    world.extract(path, [A, MAP], consolidate=consolidate)
    assert not done & set(world.computed)
    assert content(path) == world.expected([A, MAP])
    assert world.extract(path, [A, MAP], consolidate=consolidate).computed == 0


def test_a_closed_file_is_no_file_without_rows(path, world):
    world.extract(path, [A])
    file = CacheFile(path)
    file.close()
    for read in (lambda: file.images, lambda: file.failures, lambda: file.samples):
        with pytest.raises(ValueError, match="is closed"):
            read()


def test_rows_stay_in_parts_where_asked_and_are_consolidated_later(path, world):
    world.extract(path, [A, MAP], consolidate=False)
    assert not path.exists()
    assert content(path) == world.expected([A, MAP])
    log = (path.parent / "cache.h5.parts" / "log").read_bytes()
    assert world.extract(path, [A, MAP], consolidate=False).computed == 0
    assert (path.parent / "cache.h5.parts" / "log").read_bytes() == log
    world.put("c/new.jpg", b"new")
    assert world.extract(path, [A, MAP], consolidate=False).computed == 1
    assert content(path) == world.expected([A, MAP])
    assert world.extract(path, [A]).computed == 0
    assert content(path) == world.expected([A])
    assert not (path.parent / "cache.h5.parts").exists()


def test_a_reader_goes_on_reading_what_it_opened(path, world):
    world.extract(path, [A, MAP])
    before = content(path)
    with FeatureCache(path) as cache:
        del world.files["a/0003.jpg"]
        world.put("a/0000.jpg", b"changed", 99)
        world.extract(path, [A, B, MAP])
        assert cache.features(A.name).read(0, 99).tobytes() == before[A.name]
        assert cache.features(MAP.name).read(0, 99).tobytes() == before[MAP.name]
        assert B.name not in cache.nodes
    assert content(path) == world.expected([A, B, MAP])


def test_the_old_main_file_beside_the_new_map_lacks_no_row(path, world, monkeypatch):
    """A reader may open the two between the two renames; so may a run that follows a kill there."""
    world.extract(path, [A, MAP])
    before = content(path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("bottleneck.store.consolidate.write_main", stop)
    del world.files["a/0003.jpg"]
    world.put("c/new.jpg", b"new")
    with pytest.raises(KeyboardInterrupt):
        world.extract(path, [A, MAP])
    assert content(path) == before
    monkeypatch.undo()
    world.computed.clear()
    world.extract(path, [A, MAP])
    assert world.computed == []
    assert content(path) == world.expected([A, MAP])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_whatever_ends_a_run_keeps_the_rows_computed(path, world, error):
    def end_early():
        with CacheWriter(path, SPEC, [A], ROOT) as writer:
            world.feed(writer)
            raise error

    with pytest.raises(error):
        end_early()
    world.computed.clear()
    world.extract(path)
    assert world.computed == []


def test_a_run_that_only_planned_leaves_nothing(path, world):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        writer.fail("absent.jpg", "There is no such file.")
        writer.plan(world.keys, [world.stat(key) for key in world.keys])
    assert os.listdir(path.parent) == []


def test_a_second_writer_is_told_who_the_first_is(path, world):
    with CacheWriter(path, SPEC, [A], ROOT):
        with pytest.raises(CacheError, match=f"process {os.getpid()}.* is at work") as caught:
            CacheWriter(path, SPEC, [A], ROOT)
        assert caught.value.hint
    world.extract(path)


def test_a_lock_file_that_nobody_holds_is_no_obstacle(path, world):
    (path.parent / "cache.h5.lock").write_text("4711")
    assert world.extract(path).images == 11


def test_a_reader_of_parts_that_finish_meanwhile_reads_the_finished_file(path, world, monkeypatch):
    world.extract(path, [A], consolidate=False)
    expected = world.expected([A])

    def finish(folder):
        monkeypatch.undo()
        world.extract(path, [A])
        raise CacheError("The parts are gone.")

    monkeypatch.setattr("bottleneck.store.reader.read_log", finish)
    assert content(path) == expected
    assert path.exists()


def test_the_parts_folder_itself_can_be_read(path, world, monkeypatch):
    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 3)
    world.extract(path, [A])
    before = content(path)
    world.put("c/new.jpg", b"new")
    world.put("c/bad.jpg", b"bad too")
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        world.feed(writer)
    assert content(path) == before  # the finished file stands first
    with FeatureCache(path.with_name("cache.h5.parts")) as cache:
        assert not cache.finished
        assert list(cache.images.key) == ["c/new.jpg"]
        assert len(cache.samples) == 0
        assert list(cache.failures) == ["c/bad.jpg"]
        assert (cache.features(A.name).read(0, 1)[0] == row_of(digest_of(b"new"), A)).all()


def test_temporaries_of_a_killed_run_go_and_those_of_another_cache_stay(path, world):
    """NAME--X.h5 may be another cache, which then has a lock file of its own."""
    folder = path.parent
    stale = ["cache.h5.0123abcd.new", "cache.h5.new", "cache--blocks.3.h5.0123abcd.new"]
    others = [
        "cache--resnet50.h5.0123abcd.new",
        "cache--resnet50.h5.lock",
        "other.h5.0123abcd.new",
        "cache.h5.new.txt",
    ]
    for name in (*stale, *others):
        (folder / name).touch()
    world.extract(path, [A])
    assert sorted(os.listdir(folder)) == sorted([*others, "cache.h5", "cache.h5.lock"])


def test_foreign_files_in_the_parts_folder_are_left_and_named(path, world):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        world.feed(writer)
    folder, outside = path.with_name("cache.h5.parts"), path.with_name("outside")
    outside.mkdir()
    kept = {"notes.txt", "part-x.h5", "deep", "part-0123456789abcdef.h5", "table-0123456789abcdef.h5.new"}
    (outside / "precious").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / "part-x.h5").write_text("mine")
    (folder / "deep").mkdir()
    (folder / "deep" / "part-0123456789abcdef.h5").write_text("mine")
    (folder / "part-0123456789abcdef.h5").symlink_to(outside / "precious")
    (folder / "table-0123456789abcdef.h5.new").symlink_to(outside)
    (folder / "part-00000000000000aa.h5").write_text("torn, and the run's own")
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        world.feed(writer)
        writer.finish(world.samples())
        assert set(writer.notes[0].details["files"]) == kept
    assert set(os.listdir(folder)) == kept
    assert (outside / "precious").read_text() == "mine"
    assert content(path) == world.expected([A])


@pytest.mark.parametrize("name", ["cache.h5.parts", "cache.h5.parts/log"])
def test_a_link_in_place_of_the_parts_folder_or_its_log_is_refused(path, world, name):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        world.feed(writer)
    link, real = path.parent / name, path.parent / "real"
    link.rename(real)
    link.symlink_to(real)
    before = sorted(os.listdir(path.parent))
    for use in (lambda: CacheWriter(path, SPEC, [A], ROOT), lambda: FeatureCache(path)):
        with pytest.raises(CacheError, match="is a link"):
            use()
    assert sorted(os.listdir(path.parent)) == before
    assert real.exists()
    assert link.is_symlink()


def test_a_link_named_pid_is_not_written_through(path, world):
    folder, precious = path.with_name("cache.h5.parts"), path.with_name("precious")
    precious.write_text("mine")
    folder.mkdir()
    (folder / "pid").symlink_to(precious)
    world.extract(path)
    assert precious.read_text() == "mine"
    assert (folder / "pid").is_symlink()


def test_a_part_that_is_a_link_is_refused(path, world):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        world.feed(writer)
    part = next(path.with_name("cache.h5.parts").glob("part-*.h5"))
    part.rename(path.with_name("elsewhere.h5"))
    part.symlink_to(path.with_name("elsewhere.h5"))
    with pytest.raises(CacheError, match="is a link"):
        CacheWriter(path, SPEC, [A], ROOT)
    assert part.is_symlink()


DAMAGES = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "one bit": lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
    "longer": lambda data: data + b"x",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["part", "table"])
def test_a_damaged_part_is_set_aside_told_and_computed_again(path, world, monkeypatch, kind, damage):
    monkeypatch.setattr("bottleneck.store.committer.PART_ROWS", 3)
    world.extract(path, [A], consolidate=False)
    victim = min(path.with_name("cache.h5.parts").glob(f"{kind}-*.h5"))
    with h5py.File(victim) as file:
        lost = [(A.name, row.tobytes()) for row in file["images/digest"][...]] if kind == "part" else []
    victim.write_bytes(DAMAGES[damage](victim.read_bytes()))
    world.computed.clear()
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        notes = writer.plan(world.keys, [world.stat(key) for key in world.keys]).notes
        world.feed(writer)
        writer.finish(world.samples())
    assert [(note.code, note.details) for note in notes] == [("part-damaged", {"file": str(victim)})]
    assert sorted(world.computed) == sorted(lost)
    assert content(path) == world.expected([A])
    assert sorted(os.listdir(path.parent)) == ["cache.h5", "cache.h5.lock"]


def test_a_reader_refuses_a_damaged_part_and_names_the_command(path, world):
    world.extract(path, [A], consolidate=False)
    victim = min(path.with_name("cache.h5.parts").glob("part-*.h5"))
    size = victim.stat().st_size
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(CacheError, match=f"is damaged: it has {size - 1:,} of {size:,} bytes") as caught:
        FeatureCache(path)
    assert "`bottleneck extract`" in caught.value.hint


def test_the_rows_of_an_interrupted_run_are_not_taken_for_a_whole_source(path, world):
    with CacheWriter(path, SPEC, [A], ROOT) as writer:
        world.feed(writer, stop_after=7)
    with FeatureCache(path) as cache:
        (note,) = cache.samples.part_notes()
        assert (note.code, note.changes_result) == ("extraction-unfinished", True)
        for judge in (lambda: task_of(cache, None, cv=2, seed=0), lambda: class_target(cache, None)):
            with pytest.raises(CacheError, match="its extraction was interrupted"):
                judge()
        with pytest.raises(CacheError, match="its extraction was interrupted"):
            relabelled(cache.samples, cache.images.key, "labels.csv")
    world.extract(path, [A])
    with FeatureCache(path) as cache:
        assert cache.samples.part_notes() == []
