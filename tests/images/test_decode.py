"""Every odd format ends as 8-bit grey or RGB, upright; broken bytes end as UnreadableImage."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from moce.images import decode as module
from moce.images.decode import UnreadableImage, decode


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def wedge(height: int = 6, width: int = 9) -> np.ndarray:
    """uint8[height, width, 3], every pixel different."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 30, x * 25, (y + x) * 15], -1).astype(np.uint8)


def test_rgb_comes_back_as_it_was() -> None:
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert torch.equal(
            decode(encoded(Image.fromarray(wedge()), kind)), torch.from_numpy(wedge()).permute(2, 0, 1)
        ), kind
    webp = decode(encoded(Image.fromarray(wedge()), "WEBP", lossless=True))
    assert torch.equal(webp, torch.from_numpy(wedge()).permute(2, 0, 1))
    assert webp.permute(1, 2, 0).is_contiguous()


def test_grey_and_rgb_turn_into_each_other() -> None:
    grey = Image.fromarray(wedge()[..., 0])
    assert decode(encoded(grey, "PNG"), channels=1).shape == (1, 6, 9)
    rgb = decode(encoded(grey, "PNG"))
    assert rgb.shape == (3, 6, 9) and (rgb == torch.from_numpy(wedge()[..., 0])).all()
    luma = np.array(Image.fromarray(wedge()).convert("L"))
    assert torch.equal(decode(encoded(Image.fromarray(wedge()), "PNG"), 1)[0], torch.from_numpy(luma))
    bits = decode(encoded(Image.fromarray(wedge()[..., 0] > 60), "PNG"), 1)
    assert sorted(bits.unique().tolist()) == [0, 255]


def test_transparency_is_laid_on_white() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = [0, 128, 255]  # black: invisible, half, solid
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        image = decode(encoded(Image.fromarray(pixels), kind, **options))
        assert image[:, 0].tolist() == [[255, 127, 0]] * 3, kind
    la = Image.fromarray(pixels).convert("LA")
    assert decode(encoded(la, "PNG"), 1).tolist() == [[[255, 127, 0]]]


def test_a_transparent_palette_entry_or_colour_turns_white() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    solid = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert decode(encoded(palette, "PNG"))[:, 0].T.tolist() == solid
    for kind in ("PNG", "GIF"):
        image = decode(encoded(palette, kind, transparency=1))
        assert image[:, 0].T.tolist() == [solid[0], [255, 255, 255], solid[2]], kind
    rgb = Image.fromarray(np.array([[[0, 0, 0], [9, 9, 9]]], np.uint8))
    assert decode(encoded(rgb, "PNG", transparency=(0, 0, 0)))[0].tolist() == [[255, 9]]


def test_cmyk_becomes_rgb() -> None:
    ink = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        red, green, blue = decode(encoded(ink, kind)).float().mean((1, 2)).tolist()
        assert red < 5 and green > 250 and blue > 250, kind


def test_sixteen_bit_grey_is_scaled_not_cut() -> None:
    deep = np.array([[0, 257 * 100, 257 * 100 + 128, 257 * 100 + 129, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        assert decode(encoded(Image.fromarray(deep), kind), 1).tolist() == [[[0, 100, 100, 101, 255]]], kind
        assert decode(encoded(Image.fromarray(deep), kind))[2].tolist() == [[0, 100, 100, 101, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    halves = Image.fromarray(np.repeat(np.array([[0] * 24 + [255] * 24]), 16, 0).astype(np.uint8)).convert(
        "RGB"
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it upright
    image = decode(encoded(halves, kind, exif=exif)).float()
    assert image.shape == (3, 48, 16)
    assert image[:, :20].mean() < 20 and image[:, -20:].mean() > 235


def test_damaged_exif_does_not_cost_the_picture() -> None:
    data = encoded(Image.fromarray(wedge()), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05")
    assert decode(data).shape == (3, 6, 9)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = decode(data).float().mean((1, 2)).tolist()
    assert red > 240 and green < 15 and blue < 15


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (100, 101)), "PNG")
    monkeypatch.setattr(module, "MAX_PIXELS", 100 * 100)
    with pytest.raises(UnreadableImage, match="100 x 101 pixels"):
        decode(data)


def test_pillows_own_bomb_limits_end_as_unreadable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (100, 101)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="bomb"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_cut_off_files_are_unreadable(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(UnreadableImage):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"not a picture at all", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_no_picture_at_all(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match="bytes"):
        decode(data)


def test_floating_point_pixels_are_refused_with_the_reason() -> None:
    with pytest.raises(UnreadableImage, match="range"):
        decode(encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"))
