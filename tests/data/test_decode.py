"""Bytes to pixels: every mode, every orientation, and no harm from any bytes."""

import contextlib
import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bottleneck.data import decode
from bottleneck.data.decode import EncodedImage, decode_image, pixels_from_bytes
from bottleneck.data.image_header import FORMATS
from bottleneck.data.modes import as_array
from bottleneck.data.preprocess import Preprocess
from bottleneck.errors import ImageError

PREPROCESS = Preprocess(32, 36, "bicubic", (0.5,) * 3, (0.5,) * 3)


def encoded(image, kind, **options):
    """The bytes of an image in a format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(width, height, seed=0):
    """A photograph-like RGB image: low frequencies and a little noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((width, height), 3)
    noise = random.integers(-6, 7, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def colour(data, mode="RGB"):
    """The one colour of an image that has one."""
    pixels = np.asarray(decode_image(data, mode))
    pixels = pixels.reshape(-1, 1) if pixels.ndim == 2 else pixels.reshape(-1, pixels.shape[-1])
    assert (pixels == pixels[0]).all()
    return tuple(pixels[0].tolist())


def plain(mode, value, **info):
    image = Image.new(mode, (8, 8), value)
    image.info.update(info)
    return image


def palette(alpha=None):
    """A palette image of colour (10, 20, 30)."""
    image = plain("P", 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(image, "PNG", **({} if alpha is None else {"transparency": bytes([255, alpha])}))


GOLDEN = {
    "1 black": (lambda: encoded(plain("1", 0), "PNG"), (0, 0, 0)),
    "1 white": (lambda: encoded(plain("1", 1), "TIFF"), (255, 255, 255)),
    "L": (lambda: encoded(plain("L", 77), "PNG"), (77, 77, 77)),
    "L with a transparent grey": (lambda: encoded(plain("L", 77), "PNG", transparency=77), (77, 77, 77)),
    "LA half over white": (lambda: encoded(plain("LA", (0, 128)), "PNG"), (127, 127, 127)),
    "LA clear": (lambda: encoded(plain("LA", (0, 0)), "PNG"), (0, 0, 0)),
    "RGB": (lambda: encoded(plain("RGB", (10, 20, 30)), "BMP"), (10, 20, 30)),
    "RGB ppm": (lambda: encoded(plain("RGB", (10, 20, 30)), "PPM"), (10, 20, 30)),
    "RGB with a transparent colour": (
        lambda: encoded(plain("RGB", (10, 20, 30)), "PNG", transparency=(10, 20, 30)),
        (10, 20, 30),
    ),
    "RGBA opaque": (lambda: encoded(plain("RGBA", (10, 20, 30, 255)), "PNG"), (10, 20, 30)),
    "RGBA half over white": (lambda: encoded(plain("RGBA", (255, 0, 0, 128)), "PNG"), (255, 127, 127)),
    "RGBA webp": (lambda: encoded(plain("RGBA", (0, 0, 0, 0)), "WEBP", lossless=True), (0, 0, 0)),
    "RGB webp": (lambda: encoded(plain("RGB", (10, 20, 30)), "WEBP", lossless=True), (10, 20, 30)),
    "P": (palette, (10, 20, 30)),
    "P with alpha": (lambda: palette(alpha=0), (10, 20, 30)),
    "P half alpha": (lambda: palette(alpha=128), (132, 137, 142)),
    "CMYK tiff": (lambda: encoded(plain("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    "CMYK tiff black": (lambda: encoded(plain("CMYK", (0, 0, 0, 255)), "TIFF"), (0, 0, 0)),
    "YCbCr tiff": (lambda: encoded(plain("YCbCr", (76, 85, 255)), "TIFF"), (254, 0, 0)),
    "LAB tiff white": (lambda: encoded(plain("LAB", (255, 128, 128)), "TIFF"), (255, 255, 255)),
    "I;16 png": (lambda: encoded(plain("I;16", 32896), "PNG"), (128, 128, 128)),
    "I;16 tiff": (lambda: encoded(plain("I;16", 32896), "TIFF"), (128, 128, 128)),
    "I;16B tiff": (lambda: encoded(plain("I;16B", 32896), "TIFF"), (128, 128, 128)),
    "16-bit pgm": (lambda: b"P5 2 2 65535\n" + struct.pack(">4H", *[32896] * 4), (128, 128, 128)),
    "I tiff": (lambda: encoded(plain("I", 65535), "TIFF"), (255, 255, 255)),
    "F tiff to 1": (lambda: encoded(plain("F", 0.5), "TIFF"), (128, 128, 128)),
    "F tiff to 255": (lambda: encoded(plain("F", 77.0), "TIFF"), (77, 77, 77)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_each_mode_shows_its_golden_colour(name):
    make, golden = GOLDEN[name]
    assert colour(make()) == pytest.approx(golden, abs=1)


def test_transparency_survives_where_it_is_asked_for():
    assert colour(encoded(plain("RGBA", (255, 0, 0, 128)), "PNG"), "RGBA") == (255, 0, 0, 128)
    assert colour(palette(alpha=128), "RGBA") == (10, 20, 30, 128)
    assert colour(encoded(plain("L", 7), "PNG"), "RGBA") == (7, 7, 7, 255)


def test_grey_is_asked_for_of_any_mode():
    assert colour(encoded(plain("RGB", (255, 255, 255)), "PNG"), "L") == (255,)
    assert colour(encoded(plain("LAB", (0, 128, 128)), "TIFF"), "L") == (0,)
    assert colour(encoded(plain("I;16", 32896), "PNG"), "L") == (128,)
    assert colour(encoded(plain("LA", (0, 0)), "PNG"), "L") == (0,)


def transparent(mode, alpha):
    """A picture of (10, 20, 30), or 10 in grey, whose alpha is 0 but for `alpha` at its first pixel."""
    image = Image.new(mode, (8, 8), {"LA": (10, 0), "RGBA": (10, 20, 30, 0)}[mode])
    image.putpixel((0, 0), (*image.getpixel((0, 0))[:-1], alpha))
    return encoded(image, "PNG")


@pytest.mark.parametrize(("mode", "shown"), [("LA", [10] * 3), ("RGBA", [10, 20, 30])])
def test_a_picture_that_is_transparent_everywhere_shows_its_colours_with_a_note(mode, shown):
    image = EncodedImage(transparent(mode, alpha=0))
    assert (np.asarray(image.decode("RGB")) == shown).all()
    assert image.notes == ["image-transparent"]


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("frames", [1, 3])
def test_the_first_of_several_frames_is_the_picture_with_a_note(form, frames):
    first, *more = [Image.new("RGB", (8, 8), (level, level, level)) for level in (50, 150, 250)[:frames]]
    exact = {"lossless": True} if form == "WEBP" else {}
    image = EncodedImage(encoded(first, form, save_all=True, append_images=more, **exact))
    assert (np.asarray(image.decode("RGB")) == 50).all()
    assert image.notes == (["image-first-frame"] if frames > 1 else [])


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_one_pixel_that_is_not_transparent_is_the_picture(mode):
    image = EncodedImage(transparent(mode, alpha=1))
    assert (np.asarray(image.decode("RGB"))[1:] == 255).all()
    assert image.notes == []


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_white_is_zero_is_inverted_at_any_depth(order, bits, photometric):
    """Levels 0, a quarter and all of the range, written by hand; 0 is white where photometric is 0."""
    end = {"II": "<", "MM": ">"}[order]
    values = [0, (1 << bits) // 4, (1 << bits) - 1, 0]
    raw = struct.pack(end + "4" + {8: "B", 16: "H"}[bits], *values)
    tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 122), (277, 1), (278, 1)]
    entries = [struct.pack(end + "HHIHH", tag, 3, 1, value, 0) for tag, value in [*tags, (279, len(raw))]]
    header = order.encode() + struct.pack(end + "HIH", 42, 8, len(entries)) + b"".join(entries) + bytes(4)
    shown = [0, 64, 255, 0] if photometric else [255, 191, 0, 255]
    levels = np.asarray(decode_image(header.ljust(122, b"\0") + raw, "L"))[0].tolist()
    assert levels == pytest.approx(shown, abs=1)


def png_with(*chunks):
    """A photograph as PNG with more chunks (kind, data) before its pixels."""
    data = encoded(smooth(40, 30), "PNG")
    extra = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:33] + extra + data[33:]


MEGABYTES = bytes(5 << 20)
TEXTS = {
    "profile": (b"iCCP", b"icc\0\0" + zlib.compress(MEGABYTES)),
    "packed text": (b"zTXt", b"Comment\0\0" + zlib.compress(MEGABYTES)),
    "packed unicode": (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(MEGABYTES)),
    "text": (b"tEXt", b"Comment\0" + b"x" * (70 << 20)),
    "EXIF too large": (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(MEGABYTES)),
    "a bomb": (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20))),
    "garbage": (b"iCCP", b"icc\0\0no zlib"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_megabytes_of_profile_or_text_lose_no_png(name):
    np.testing.assert_array_equal(np.asarray(decode_image(png_with(TEXTS[name]))), np.asarray(smooth(40, 30)))


def test_exif_in_a_pngs_text_still_turns_it():
    exif = Image.Exif()
    exif[0x0112] = 3
    text = f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n".encode()
    turned = decode_image(png_with((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))))
    expected = smooth(40, 30).transpose(Image.Transpose.ROTATE_180)
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(expected))


def test_a_damaged_scan_is_a_note_and_libjpeg_prints_nothing(capfd):
    data = bytearray(encoded(smooth(64, 64), "JPEG"))
    start = data.rindex(b"\xff\xda") + 60
    data[start : start + 8] = b"\x55" * 8
    damaged, sound = EncodedImage(bytes(data)), EncodedImage(encoded(smooth(64, 64), "JPEG"))
    damaged.array("RGB")
    sound.array("RGB")
    assert (damaged.notes, sound.notes) == (["image-scan-damaged"], [])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_damaged_scan_is_told_at_part_of_its_size_and_never_decoded_whole(scale, monkeypatch):
    """Its memory is reserved for that part."""
    data = bytearray(encoded(smooth(640, 480), "JPEG"))
    start = data.rindex(b"\xff\xda") + 600
    data[start : start + 8] = b"\x55" * 8
    decoded, original = [], simplejpeg.decode_jpeg

    def spy(*arguments, **options):
        pixels = original(*arguments, **options)
        decoded.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    image = EncodedImage(bytes(data))
    assert image.array("RGB", scale).shape == (480 // scale, 640 // scale, 3)
    assert image.notes == ["image-scan-damaged"]
    assert decoded == [(480 // scale, 640 // scale)]


@pytest.mark.parametrize("colour_name", ["red", "white", "black"])
def test_cmyk_jpeg_is_not_inverted(colour_name):
    picture = Image.new("RGB", (16, 16), colour_name).convert("CMYK")
    shown = np.asarray(decode_image(encoded(picture, "JPEG", quality=95)), int)
    assert np.abs(shown - np.asarray(Image.new("RGB", (16, 16), colour_name))).max() <= 8


@pytest.mark.parametrize(
    ("mode", "kind"), [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "PPM")]
)
def test_a_16_bit_ramp_keeps_its_levels(mode, kind):
    ramp = np.linspace(0, 65535, 4096).round().reshape(64, 64)
    picture = Image.fromarray(ramp.astype({"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]))
    levels = np.asarray(decode_image(encoded(picture, kind), "L"))
    assert len(np.unique(levels)) == 256
    assert np.array_equal(levels, np.rint(ramp / 257))


def test_12_bits_of_a_tiff_use_the_whole_range():
    header = struct.pack("<2sHI", b"II", 42, 8)
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    body = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    data = (header + body).ljust(122, b"\0") + bytes([0xFF, 0xF0, 0x00])  # 4095 and 0
    assert np.asarray(decode_image(data, "L")).tolist() == [[255, 0]]


@pytest.mark.parametrize("value", [-1.0, 300.0, float("nan")])
def test_float_pixels_out_of_range_are_refused(value):
    with pytest.raises(ImageError, match="float pixels"):
        decode_image(encoded(plain("F", value), "TIFF"))


def test_integers_beyond_16_bits_are_refused():
    with pytest.raises(ImageError, match="expected 0 to 65535"):
        decode_image(encoded(plain("I", 70000), "TIFF"))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_of_an_animation_is_shown(kind):
    frames = [Image.new("RGB", (8, 8), name) for name in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert colour(data) == pytest.approx((255, 0, 0), abs=2)


ORIENTED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # what a camera held that way stores


def oriented(picture, orientation, kind, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = ORIENTED[orientation]
    return encoded(picture if turn is None else picture.transpose(turn), kind, exif=exif, **options)


def test_the_orientation_of_a_jpeg_is_also_found_in_its_xmp():
    plain = encoded(smooth(40, 24), "JPEG")
    turned = encoded(smooth(40, 24), "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="3"/>')
    upright, half_turn = (EncodedImage(data).array("RGB") for data in (plain, turned))
    np.testing.assert_array_equal(half_turn, upright[::-1, ::-1])


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 40), ("PNG", 0), ("TIFF", 0), ("WEBP", 0)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_eight_orientations_agree(orientation, kind, tolerance):
    picture = smooth(48, 40)
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True}
    data = oriented(picture, orientation, kind, **options)
    upright = decode_image(data)
    assert upright.size == (48, 40)
    assert np.abs(np.asarray(upright, int) - np.asarray(picture)).max() <= tolerance


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_out_of_range_turns_nothing(value):
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(smooth(20, 10), "JPEG", exif=exif)
    assert decode_image(data).size == (20, 10)


def test_unreadable_exif_loses_no_photograph():
    data = encoded(smooth(20, 10), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xffgarbage")
    assert decode_image(data).size == (20, 10)
    assert pixels_from_bytes(data, PREPROCESS).shape == (32, 32, 3)


BAD = {
    "zero bytes": (b"", "empty"),
    "text": (b"hello, I am no image", "none of JPEG, PNG"),
    "nothing after the magic": (b"\xff\xd8\xff", "none of JPEG, PNG"),
    "a PDF": (b"%PDF-1.7 ...", "none of JPEG, PNG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "none of JPEG, PNG"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused_with_a_reason(name):
    data, reason = BAD[name]
    with pytest.raises(ImageError, match=reason) as error:
        pixels_from_bytes(data, PREPROCESS)
    assert "\n" not in str(error.value)
    assert str(error.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM"])
def test_truncated_files_are_refused(kind):
    data = encoded(smooth(64, 64), kind)
    for share in (0.3, 0.6, 0.9):
        cut = data[: int(len(data) * share)]
        with pytest.raises(ImageError):
            decode_image(cut)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_bytes_raise_image_errors_and_nothing_else(data):
    kind = data.draw(st.sampled_from(FORMATS))
    raw = bytearray(encoded(smooth(24, 16), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        pixels = pixels_from_bytes(bytes(raw), PREPROCESS)
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8


def png_of(width, height):
    """A PNG that claims a size and holds almost nothing."""
    small = encoded(Image.new("L", (1, 1)), "PNG")
    header = struct.pack(">II", width, height) + small[24:29]
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return small[:16] + header + crc + small[33:]


@pytest.mark.parametrize(
    ("width", "height", "pixels"),
    [
        (18000, 12000, "216,000,000"),  # above Pillow's own bound, as is the next
        (1 << 30, 1 << 30, "1,152,921,504,606,846,976"),
        (10001, 10000, "10001 × 10000 = 100,010,000"),
    ],
)
def test_bombs_are_refused_from_their_header(width, height, pixels):
    with pytest.raises(ImageError) as refused:
        decode_image(png_of(width, height))
    assert str(refused.value) == f"has {pixels} pixels, and 100,000,000 are allowed: scale it down"


LARGE = Preprocess(32, 36, "bilinear", (0.5,) * 3, (0.5,) * 3)


def gradient(mode, side=600):
    """A picture of slow ramps in any mode, its largest value 250."""
    y, x = np.mgrid[:side, :side] * 250 / side
    rgb = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).round().astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((x * 257).round().astype(np.uint16))
    if mode == "RGBA":
        rgb.putalpha(Image.fromarray(y.round().astype(np.uint8)))
    return rgb.quantize(200) if mode == "P" else rgb if mode == "RGBA" else rgb.convert(mode)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"),
        ("CMYK", "JPEG"),
        ("L", "PNG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("I;16", "PNG"),
    ],
)
def test_a_large_image_is_reduced_to_nearly_the_same_pixels(mode, kind, orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(mode), kind, exif=exif)
    whole = EncodedImage(data).pixels(LARGE).astype(int)
    for name, value in {"WHOLE": 10_000, "WHOLE_JPEG": 10_000, "REDUCED": 10_000, "BAND": 2_000}.items():
        monkeypatch.setattr(decode, name, value)
    image = EncodedImage(data)
    assert max(image.image(LARGE).size) <= 150  # 4 × 36 pixels, or as many as libjpeg gives
    assert np.abs(EncodedImage(data).pixels(LARGE) - whole).mean() < 2


def test_a_large_image_is_not_reduced_below_twice_the_wanted_size(monkeypatch):
    monkeypatch.setattr(decode, "WHOLE", 10_000)
    monkeypatch.setattr(decode, "REDUCED", 100)
    assert EncodedImage(encoded(gradient("L"), "PNG")).image(LARGE).size == (75, 75)  # by 8: 2 × 36 fit in


def test_the_pixel_limit_can_be_set():
    data = encoded(smooth(50, 40), "PNG")
    assert decode_image(data, max_pixels=2000).size == (50, 40)
    with pytest.raises(ImageError, match="50 × 40"):
        decode_image(data, max_pixels=1999)


def test_a_progressive_jpeg_of_absurdly_many_scans_is_refused():
    data = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        decode_image(data[:-2] + data[scan:-2] * 700 + data[-2:])


def test_warnings_stay_inside_and_those_of_others_do_not(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(smooth(12, 10), "PNG")  # 120 pixels: Pillow warns of a bomb
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode_image(data)
        warnings.warn("of others", stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["of others"]


def test_pillow_alone_needs_no_torch():
    code = (
        "import sys, io; from PIL import Image; from bottleneck.data.decode import decode_image;"
        "f = io.BytesIO(); Image.new('RGB', (4, 4)).save(f, 'JPEG'); decode_image(f.getvalue());"
        "import bottleneck.data.source, bottleneck.data.loader; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Two decoders, one result: which of them reads a photograph cannot be seen in its pixels.


def photograph(mode="RGB", size=(90, 61)):
    generator = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([2 * x, 3 * y, x + y], axis=-1) + generator.normal(0, 20, (*size[::-1], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(mode="RGB", **options):
    buffer = io.BytesIO()
    photograph(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


KINDS = {
    "plain": {},
    "fine": {"quality": 98, "subsampling": 0},
    "coarse": {"quality": 30, "subsampling": 2},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
}


@pytest.mark.parametrize("name", KINDS)
def test_both_decoders_give_the_same_pixels(name):
    data = jpeg(**KINDS[name])
    mode = KINDS[name].get("mode", "RGB")
    fast = decode.jpeg_array(data, Image.open(io.BytesIO(data)), mode)
    assert fast is not None
    np.testing.assert_array_equal(fast, as_array(decode_image(data, mode)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_both_turn_by_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(exif=exif)
    np.testing.assert_array_equal(EncodedImage(data).array("RGB"), as_array(decode_image(data)))


@pytest.mark.parametrize(("stored", "wanted"), [("CMYK", "RGB"), ("L", "RGB"), ("RGB", "L"), ("RGB", "RGBA")])
def test_what_is_converted_is_left_to_pillow(stored, wanted):
    data = jpeg(stored)
    assert decode.jpeg_array(data, Image.open(io.BytesIO(data)), wanted) is None
    np.testing.assert_array_equal(EncodedImage(data).array(wanted), as_array(decode_image(data, wanted)))


def test_other_formats_are_left_to_pillow():
    buffer = io.BytesIO()
    photograph().save(buffer, "PNG")
    assert decode.jpeg_array(buffer.getvalue(), Image.open(buffer), "RGB") is None


def test_damage_is_judged_alike():
    """Cut or changed anywhere, a file gives the same pixels by both or is refused by both."""
    generator, accepted, refused = np.random.default_rng(0), 0, 0
    for number in range(300):
        data = bytearray(jpeg(**list(KINDS.values())[number % 5]))
        start = data.index(b"\xff\xda")  # beyond the header, which Pillow reads for both
        if number % 2:
            del data[generator.integers(start + 20, len(data)) :]
        else:
            data[generator.integers(start + 20, len(data))] ^= 1 << generator.integers(8)
        fast = decode.jpeg_array(bytes(data), Image.open(io.BytesIO(data)), "RGB")
        try:
            slow = as_array(decode_image(bytes(data)))
        except ImageError:
            assert fast is None
            refused += 1
        else:
            assert fast is None or np.array_equal(fast, slow)
            accepted += fast is not None
    assert min(accepted, refused) > 50
