"""Two decoders, one result: which of them reads a photograph cannot be seen in its pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from bottleneck.data import decode
from bottleneck.data.decode import EncodedImage, as_array, decode_image


def photograph(mode="RGB", size=(90, 61)):
    generator = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]]
    pixels = np.stack([2 * x, 3 * y, x + y], axis=-1) + generator.normal(0, 20, (*size[::-1], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(mode="RGB", **options):
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
    data = encoded(**KINDS[name])
    mode = KINDS[name].get("mode", "RGB")
    fast = decode.jpeg_array(data, Image.open(io.BytesIO(data)), mode)
    assert fast is not None
    np.testing.assert_array_equal(fast, as_array(decode_image(data, mode)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_both_turn_by_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(exif=exif)
    np.testing.assert_array_equal(EncodedImage(data).array("RGB"), as_array(decode_image(data)))


@pytest.mark.parametrize(("stored", "wanted"), [("CMYK", "RGB"), ("L", "RGB"), ("RGB", "L"), ("RGB", "RGBA")])
def test_what_is_converted_is_left_to_pillow(stored, wanted):
    data = encoded(stored)
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
        data = bytearray(encoded(**list(KINDS.values())[number % 5]))
        start = data.index(b"\xff\xda")  # beyond the header, which Pillow reads for both
        if number % 2:
            del data[generator.integers(start + 20, len(data)) :]
        else:
            data[generator.integers(start + 20, len(data))] ^= 1 << generator.integers(8)
        fast = decode.jpeg_array(bytes(data), Image.open(io.BytesIO(data)), "RGB")
        try:
            slow = as_array(decode_image(bytes(data)))
        except decode.ImageError:
            assert fast is None
            refused += 1
        else:
            assert fast is None or np.array_equal(fast, slow)
            accepted += fast is not None
    assert min(accepted, refused) > 50


def test_without_torchvisions_decoder_pillow_does_it(monkeypatch):
    monkeypatch.setattr(decode, "_decoder", lambda: None)
    np.testing.assert_array_equal(EncodedImage(encoded()).array("RGB"), as_array(decode_image(encoded())))
