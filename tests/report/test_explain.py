"""`explain`: overlays at the image's own size and orientation, the sheet, the JSON, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bottleneck import explain, extract, fit_heads, predict
from bottleneck.cli.main import group
from bottleneck.data.preprocess import Preprocess
from bottleneck.data.source import image_files
from bottleneck.errors import BackboneError, BottleneckError
from bottleneck.heads.artifact import load_head
from bottleneck.models.attribution import Explainer
from bottleneck.models.classifier import load_model
from bottleneck.report.overlays import laid_over, overlay
from tests.helpers.contributions import by_pixel

ORIENTATION = 0x0112
SQUARE = Preprocess(64, 64, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Twelve images of two classes, named in Hangul too, and a head on two nodes of the small CNN."""
    folder, random = tmp_path_factory.mktemp("explain"), np.random.default_rng(0)
    for number in range(12):
        name = ("개미", "bees")[number % 2]
        pixels = random.integers(60, 120, (48, 64, 3), dtype=np.uint8)
        pixels[24:, :32, number % 2] += 90
        path = folder / "images" / name / f"사진 {number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    nodes = ["features.block1", "features.block2@avg2"]
    options = {"backbone": "small_cnn", "engine": "torch", "image_size": 48}
    extract(folder / "images", folder / "c.h5", nodes=nodes, **options)
    (head,) = fit_heads(folder / "c.h5", nodes=["+".join(nodes)], output=folder / "heads", cv=2).heads
    return folder, head["path"], sorted(map(str, (folder / "images").rglob("*.png")))


def test_the_command_writes_overlays_sheet_and_json(fitted, tmp_path):
    _, head, images = fitted
    sheet = tmp_path / "s.png"
    arguments = ["explain", head, *images[:2], "--class", "개미", "-o", str(sheet), "--json"]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    values = json.loads(result.stdout)
    assert values["sheet"] == str(sheet)
    with Image.open(sheet) as drawn:
        assert drawn.width <= 800
    expected = {record["image"]: record for record in predict(head, *images[:2])["predictions"]}
    assert {one["class"] for one in values["maps"]} >= {"개미"}
    for one in values["maps"]:
        path = Path(one["path"])
        assert path.parent == tmp_path / "s"
        with Image.open(path) as overlay:
            assert overlay.size == (64, 48)
        assert one["intercept"] + one["sum"] == pytest.approx(one["logit"], abs=1e-4)
        nodes = one["images"][0]["nodes"]
        assert [node["node"] for node in nodes] == ["features.block1", "features.block2@avg2"]
        total = sum(np.sum(node["contributions"]) for node in nodes)
        assert total == pytest.approx(one["sum"], abs=1e-6)
        assert one["predicted"] == (one["class"] == expected[one["image"]]["label"])
        if one["predicted"]:
            assert one["confidence"] == pytest.approx(expected[one["image"]]["confidence"], abs=1e-3)


def test_tables_for_people_say_where_the_pictures_are(fitted, tmp_path, monkeypatch):
    _, head, images = fitted
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(group, ["explain", head, images[0]], catch_exceptions=False)
    assert "Sheet: explained.png" in result.stdout
    assert (tmp_path / "explained.png").is_file()
    assert len(list((tmp_path / "explained").iterdir())) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_overlay_is_upright_as_the_image_is(fitted, tmp_path, orientation):
    """The same photograph, stored turned with its EXIF tag, has the same overlay as the upright one."""
    _, head, images = fitted
    upright = Image.open(images[0])
    turned = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }[orientation](upright)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / "turned.png"
    turned.save(path, exif=exif)
    model = load_model(head)
    drawn = []
    for name in (images[0], str(path)):
        source = image_files([name])
        (one,) = Explainer(model).explain(source)
        drawn.append(np.asarray(overlay(one, source, model.trunk.preprocess)))
    assert drawn[0].shape == (48, 64, 3)
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("size", [(200, 100), (100, 200), (64, 64), (37, 301)])
@pytest.mark.parametrize("resize", [64, 96])
def test_contributions_are_drawn_where_the_network_saw_them(size, resize):
    """A map that is positive in its lower left quarter alone colours that quarter of the central square."""
    width, height = size
    contributions = np.zeros((64, 64))
    contributions[32:, :32] = 1
    preprocess = replace(SQUARE, resize=resize)
    drawn = laid_over(contributions, Image.new("RGB", size, (128,) * 3), preprocess)
    assert drawn.size == size
    pixels = np.asarray(drawn).astype(int)
    rows, columns = np.nonzero(pixels[..., 0] - pixels[..., 2] > 60)
    side = min(size) * 64 / resize  # of the square that the network sees
    left, bottom = (width - side) / 2, (height + side) / 2
    assert columns.min() == pytest.approx(left, abs=2.5)
    assert columns.max() == pytest.approx(left + side / 2, abs=0.02 * side + 2)
    assert rows.max() == pytest.approx(bottom, abs=2.5)
    assert rows.min() == pytest.approx(bottom - side / 2, abs=0.02 * side + 2)


def test_for_is_brighter_and_against_is_darker_in_grey(tmp_path):
    contributions = np.zeros((64, 64))
    contributions[:20], contributions[-20:] = 1, -1
    drawn = laid_over(contributions, Image.new("RGB", (64, 64), (200, 30, 90)), SQUARE)
    grey = np.asarray(drawn.convert("L")).astype(int)
    assert grey[5].mean() > grey[32].mean() + 40
    assert grey[-5].mean() < grey[32].mean() - 40


def test_an_overlay_can_be_small(fitted):
    _, head, images = fitted
    model, source = load_model(head), image_files(images[:1])
    (one,) = Explainer(model).explain(source)
    assert overlay(one, source, model.trunk.preprocess, side=16).size == (16, 12)


def test_what_is_no_image_is_named(fitted, tmp_path):
    _, head, images = fitted
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    result = explain(head, images[0], broken, output=None)
    assert list(result.failed) == [str(broken)]
    assert [note.code for note in result.notes if note.changes_result] == ["images-unread"]
    with pytest.raises(
        BottleneckError, match=r"None of 1 image could be explained; the first: .*broken\.jpg"
    ):
        explain(head, broken, output=None)
    with pytest.raises(BottleneckError, match=r"another suffix than \.png"):
        explain(head, images[0], output="x.jpg")


def test_a_network_whose_weights_are_gone_is_an_error(fitted, tmp_path):
    _, path, images = fitted
    head = load_head(path)
    lost = head.save(tmp_path / "h.safetensors")
    with pytest.raises(BackboneError, match="BatchNorm statistics of the random small_cnn are missing"):
        explain(lost, images[0], output=None)


def _images_decided_by_a_quadrant(folder, ground, mark, count, seed):
    """Images of two classes that differ inside their lower left quadrant alone, away from its border."""
    random, ramp = np.random.default_rng(seed), np.arange(32)
    for number in range(count):
        image = 128 + random.normal(0, ground, (96, 96, 3))
        inside, second = image[60:92, 4:36], number % 2
        if mark == "colour":
            inside[..., 0] += random.uniform(40, 70) * (1 if second else -1)
        else:
            stripes = 40 * np.sign(np.sin(ramp * np.pi / 4 + random.uniform(0, 6)))
            inside += (stripes[None, :] if second else stripes[:, None])[..., None]
        path = folder / ("one", "two")[second] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)


def _share_in_quadrant(values):
    """Return the share of the positive contributions (n, n) that is in the lower left quarter."""
    positive, half = np.maximum(values, 0), len(values) // 2
    return positive[half:, :half].sum() / positive.sum()


@pytest.mark.parametrize("mark", ["colour", "stripes"])
def test_the_quadrant_that_decides_has_the_contribution(tmp_path, mark):
    """Compared with the mean map of training, for both classes: on an even ground for all pools and an early
    and a late node; on noise for the head that knows places, in cells in which the noise of places cancels.
    """
    options = {"backbone": "small_cnn", "engine": "torch", "image_size": 96, "crop": 1.0}
    pools = [f"features.block1@{pool}" for pool in ("avg", "avg2", "avg3", "flatten")]
    designs = [(0.0, [*pools, "features.block3"]), *([(6.0, pools[3:])] if mark == "colour" else [])]
    for ground, nodes in designs:
        folder = tmp_path / f"{ground}"
        _images_decided_by_a_quadrant(folder / "train", ground, mark, 60, 0)
        _images_decided_by_a_quadrant(folder / "new", ground, mark, 6, 1)
        extract(folder / "train", folder / "c.h5", nodes=nodes, **options)
        heads = fit_heads(folder / "c.h5", output=folder / "heads", cv=2).heads
        assert len(heads) == len(nodes)
        for head in heads:
            found = explain(head["path"], folder / "new", reference=folder / "c.h5", output=None)
            assert {one.label for one in found.maps} == {"one", "two"}
            assert len({round(one.intercept, 4) for one in found.maps}) == 2  # one for each class
            for one in found.maps:
                assert one.intercept + sum(one.sums) == pytest.approx(one.logit, abs=1e-4)
                cells = by_pixel(one)
                if ground:
                    cells = cells.reshape(4, 24, 4, 24).sum((1, 3))
                assert _share_in_quadrant(cells) >= 0.95


def test_a_reference_is_a_cache_by_its_suffix_in_any_case(fitted, tmp_path):
    folder, head, images = fitted
    (tmp_path / "C.H5").write_bytes((folder / "c.h5").read_bytes())
    one, other = (
        explain(head, images[0], reference=path, output=None) for path in (folder / "c.h5", tmp_path / "C.H5")
    )
    assert [each.sums for each in one.maps] == [each.sums for each in other.maps]


def test_reference_images_are_named_and_refused_for_an_approximation(fitted, tmp_path):
    folder, head, images = fitted
    result = explain(head, images[0], reference=folder / "images", output=None)
    (note,) = (note for note in result.notes if note.code == "reference-images")
    assert "12 of 12 samples of images" in note.message
    assert result.failed == {}
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    with pytest.raises(BottleneckError, match=r"None of the images of broken\.png can be read"):
        explain(head, images[0], reference=broken, output=None)


def test_the_sheet_of_an_earlier_run_stays_and_stale_overlays_are_told(fitted, tmp_path, monkeypatch):
    _, head, images = fitted
    monkeypatch.chdir(tmp_path)
    assert explain(head, images[0]).sheet == "explained.png"
    second = explain(head, *images[:2])
    assert second.sheet == "explained-2.png"
    assert [note.code for note in second.notes if "sheet" in note.code] == ["sheet-numbered"]
    assert len(list(Path("explained").iterdir())) == 1
    third = explain(head, images[0], output="explained-2.png")
    assert "has 2 files of before" in next(n.message for n in third.notes if n.code == "overlays-of-before")


def test_an_image_of_several_frames_is_explained_by_its_first_and_said_so(fitted, tmp_path):
    _, head, images = fitted
    first, second = Image.open(images[0]), Image.open(images[1])
    first.save(tmp_path / "two.png", save_all=True, append_images=[second])
    result = explain(head, tmp_path / "two.png", output=None)
    assert [note.code for note in result.notes if "frame" in note.code] == ["image-first-frame"]


def test_a_sheet_that_is_not_whole_says_so(fitted, tmp_path):
    _, head, images = fitted
    result = explain(head, *images, class_names=["bees", "개미"], output=tmp_path / "s.png")
    (note,) = (note for note in result.notes if note.code == "sheet-shortened")
    assert "20 of 24 overlays" in note.message
    assert len(list((tmp_path / "s").iterdir())) == 24


def test_images_of_the_same_name_in_two_folders_are_told_apart(fitted, tmp_path):
    """Their pictures were drawn in one strip, and the failures of both were one."""
    _, head, images = fitted
    for folder, path in zip("ab", images[:2], strict=True):
        (tmp_path / folder).mkdir()
        shutil.copy(path, tmp_path / folder / "1.png")
        (tmp_path / folder / "2.png").write_bytes(b"broken")
    folders = [tmp_path / "a", tmp_path / "b"]
    result = explain(head, *folders, output=tmp_path / "s.png")
    alone = [explain(head, folder, output=None).maps[0] for folder in folders]
    assert [one.images for one in alone] == [("1.png",)] * 2
    assert [one.images for one in result.maps] == [(str(folder / "1.png"),) for folder in folders]
    assert [one.logit for one in result.maps] == [one.logit for one in alone]
    assert list(result.failed) == [str(folder / "2.png") for folder in folders]
    with Image.open(tmp_path / "s.png") as both:
        explain(head, folders[0], output=tmp_path / "one.png")
        with Image.open(tmp_path / "one.png") as one:
            assert both.height > 1.5 * one.height  # a strip for each
