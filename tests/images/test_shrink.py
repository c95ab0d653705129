"""What prepared pictures look like: small, never enlarged, a small JPEG byte for byte."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moce.images.decode import UnreadableImage, decode
from moce.images.packing import tar_key
from moce.images.shrink import Small, can_stay, jpeg, shrunk, small_jpeg, small_square
from moce.images.sources import FolderImages


def smooth(height: int, width: int) -> Image.Image:
    """A picture that JPEG keeps well."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 100 * np.sin(x / a + y / b) for a, b in ((9, 14), (17, 8), (12, 30))]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def folder_with(tmp_path: Path, **files: bytes) -> FolderImages:
    for name, data in files.items():
        (tmp_path / name.replace("_", ".")).write_bytes(data)
    return FolderImages(str(tmp_path))


@pytest.mark.parametrize(
    ("size", "wanted"), [((60, 90), (32, 48)), ((90, 60), (48, 32)), ((61, 40), (49, 32))]
)
def test_the_short_side_becomes_n_and_the_ratio_stays(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = decode(encoded(smooth(*size), "PNG"))
    small = shrunk(image, 32)
    assert small.shape == (3, *wanted)
    by_pillow = np.array(smooth(*size).resize(wanted[::-1], Image.Resampling.BICUBIC))
    assert (small.permute(1, 2, 0).numpy().astype(int) - by_pillow).__abs__().max() <= 1


def test_what_is_small_enough_is_not_enlarged_and_a_small_jpeg_stays_byte_for_byte(tmp_path: Path) -> None:
    data = encoded(smooth(30, 50), quality=61)
    source = folder_with(tmp_path, a_jpg=data, b_png=encoded(smooth(30, 50), "PNG"))
    kept, made = (small_jpeg(source, index, 32, 90) for index in (0, 1))
    assert kept.data == data and kept.copied and kept.bytes_before == len(data)
    assert not made.copied and Image.open(io.BytesIO(made.data)).format == "JPEG"
    assert decode(made.data).shape == (3, 30, 50)
    assert (decode(made.data).int() - source.get(1)[0].int()).abs().float().mean() < 3


def test_a_jpeg_that_needs_a_change_is_encoded_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    cases = {
        "turned": encoded(smooth(20, 30), exif=exif),
        "cmyk": encoded(smooth(20, 30).convert("CMYK")),
        "several": encoded(smooth(20, 30), "MPO", save_all=True, append_images=[smooth(20, 30)]),
        "cut off": encoded(smooth(20, 30))[:-200],
        "large": encoded(smooth(33, 40)),
    }
    assert can_stay(encoded(smooth(20, 30)), 32) and can_stay(encoded(smooth(20, 30).convert("L")), 32)
    assert [name for name, data in cases.items() if can_stay(data, 32)] == []


def test_a_turned_jpeg_comes_out_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = folder_with(tmp_path, a_jpg=encoded(smooth(40, 60), exif=exif))
    made = Image.open(io.BytesIO(small_jpeg(source, 0, 32, 90).data))
    assert made.size == (32, 48) and 0x0112 not in made.getexif()


def test_grey_stays_grey() -> None:
    grey = decode(encoded(smooth(20, 20).convert("L"), "PNG"))
    assert grey.shape[0] == 3
    assert Image.open(io.BytesIO(jpeg(grey, 90))).mode == "L"
    assert Image.open(io.BytesIO(jpeg(grey[:1], 90))).mode == "L"
    assert Image.open(io.BytesIO(jpeg(decode(encoded(smooth(20, 20), "PNG")), 90))).mode == "RGB"


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (3, 4000), (700, 1)])
def test_thin_pictures(tmp_path: Path, shape: tuple[int, int]) -> None:
    source = folder_with(tmp_path, a_png=encoded(smooth(*shape), "PNG"))
    assert decode(small_jpeg(source, 0, 2, 90).data).shape[1:] == shrunk(source.get(0)[0], 2).shape[1:]
    assert len(small_square(source, 0, 8, 3).data) == 3 * 8 * 8


def test_a_picture_too_long_for_jpeg_says_so() -> None:
    with pytest.raises(UnreadableImage, match="70,000 pixels, is too long for JPEG"):
        jpeg(torch.zeros(3, 1, 70_000, dtype=torch.uint8), 90)


def test_squares_are_the_middle_and_small_ones_are_enlarged(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    wide[:, 16:32] = 255
    source = folder_with(tmp_path, a_png=encoded(Image.fromarray(wide), "PNG"))
    for side in (16, 8, 40):
        square = torch.frombuffer(bytearray(small_square(source, 0, side, 3).data), dtype=torch.uint8)
        inner = square.view(3, side, side)[:, :, side // 8 : -side // 8]
        assert inner.min() > 235, side
    assert len(small_square(source, 0, 8, 1).data) == 64


@pytest.mark.parametrize(
    ("size", "scale"), [((192, 256), 8), ((96, 128), 4), ((48, 66), 2), ((97, 128), 1), ((46, 64), 1)]
)
def test_a_decoder_shrinks_only_where_pixels_stay_aligned_and_three_times_the_side_is_left(
    size: tuple[int, int], scale: int
) -> None:
    data = encoded(smooth(*size), quality=95, subsampling=0)
    drafted, whole = decode(data, short_side=8), decode(data)
    assert drafted.shape == (3, size[0] // scale, size[1] // scale)
    assert (shrunk(drafted, 8).int() - shrunk(whole, 8).int()).abs().max() <= 6


def test_tar_keys_are_unique_short_and_without_dots() -> None:
    assert tar_key(Small(12, "cats/tom.v2.jpeg")) == "000000012-cats_tom_v2"
    assert tar_key(Small(3, "train.parquet row 7")) == "000000003-train_parquet_row_7"
    assert len(tar_key(Small(0, "x/" * 300 + "y.png"))) <= 90
