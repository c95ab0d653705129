"""Files of every format as they lie in people's folders, against what Pillow itself says; and what is no picture."""

import io
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, features
from torch import Tensor

import moce
from moce.images.augment import centre_crop, crop_and_resize, crop_boxes, resize_crops_by_products
from moce.images.decode import UnreadableImage, decode
from moce.images.sources import EXTENSIONS, open_images


def drawn(height: int = 30, width: int = 44, channels: int = 3) -> Image.Image:
    """Waves: lossy formats keep them, and no two channels, rows or columns are alike."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 110 * np.sin(x / a + y / b + a) for a, b in ((9, 14), (17, 8), (12, 30), (25, 11))]
    pixels = np.stack(waves[:channels], -1).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> UInt8[Tensor, "channels rows columns"]:
    """Pillow's own RGB, upright, laid on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def palette() -> Image.Image:
    return drawn().quantize(16)


def interlaced_png(image: Image.Image) -> bytes:
    """Adam7, which Pillow reads but does not write."""
    pixels = np.array(image)
    lines = b""
    for top, left, down, right in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
    ):  # fmt: skip
        for row in pixels[top::down, left::right]:
            lines += b"\0" + row.tobytes() if len(row) else b""
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 1)
    return png([(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    whole = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        whole += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return whole


def without_adobe_marker(data: bytes) -> bytes:
    """A CMYK JPEG without the segment that says by whose conventions it was written."""
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + int.from_bytes(data[start + 2 : start + 4], "big") :]


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(drawn(), "JPEG", quality=95, exif=exif)


def frames(kind: str, **options: object) -> bytes:
    others = [Image.new("RGB", (44, 30), colour) for colour in ("red", "lime")]
    return encoded(drawn(), kind, save_all=True, append_images=others, **options)


def with_profile(kind: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    return encoded(drawn(), kind, icc_profile=profile)


FILES: dict[str, Callable[[], bytes]] = {
    "grey.jpg": lambda: encoded(drawn(channels=1), "JPEG"),
    "grey.png": lambda: encoded(drawn(channels=1), "PNG"),
    "grey-alpha.png": lambda: encoded(drawn(channels=4).convert("LA"), "PNG"),
    "rgba.png": lambda: encoded(drawn(channels=4), "PNG"),
    "rgba.tif": lambda: encoded(drawn(channels=4), "TIFF"),
    "rgba.webp": lambda: encoded(drawn(channels=4), "WEBP"),
    "cmyk.jpg": lambda: encoded(drawn(channels=4).convert("RGB").convert("CMYK"), "JPEG"),
    "cmyk-no-adobe.jpg": lambda: without_adobe_marker(encoded(drawn().convert("CMYK"), "JPEG")),
    "cmyk.tif": lambda: encoded(drawn().convert("CMYK"), "TIFF"),
    "ycbcr.jpg": lambda: encoded(drawn().convert("YCbCr"), "JPEG"),
    "ycbcr-in.tif": lambda: encoded(drawn(), "TIFF", compression="jpeg"),
    "full-colour.jpg": lambda: encoded(drawn(), "JPEG", subsampling=0),
    "rgb-inside.jpg": lambda: encoded(drawn(), "JPEG", keep_rgb=True),
    "progressive.jpeg": lambda: encoded(drawn(), "JPEG", progressive=True),
    "palette.png": lambda: encoded(palette(), "PNG"),
    "palette-hole.png": lambda: encoded(palette(), "PNG", transparency=3),
    "palette-alphas.png": lambda: encoded(palette(), "PNG", transparency=bytes(range(0, 256, 16))),
    "palette.gif": lambda: encoded(palette(), "GIF"),
    "palette-hole.gif": lambda: encoded(palette(), "GIF", transparency=3),
    "palette.bmp": lambda: encoded(palette(), "BMP"),
    "palette.tif": lambda: encoded(palette(), "TIFF"),
    "colour-hole.png": lambda: encoded(drawn(), "PNG", transparency=drawn().getpixel((5, 5))),
    "bits.png": lambda: encoded(drawn().convert("1"), "PNG"),
    "bits.bmp": lambda: encoded(drawn().convert("1"), "BMP"),
    "bits.tif": lambda: encoded(drawn().convert("1"), "TIFF", compression="group4"),
    "moving.gif": lambda: frames("GIF"),
    "moving.png": lambda: frames("PNG"),
    "poster-then-moving.png": lambda: frames("PNG", default_image=True),
    "moving.webp": lambda: frames("WEBP"),
    "pages.tiff": lambda: frames("TIFF"),
    "phone.jpg": lambda: frames("MPO"),
    "lossy.webp": lambda: encoded(drawn(), "WEBP", quality=80),
    "lossless.webp": lambda: encoded(drawn(), "WEBP", lossless=True),
    "interlaced.png": lambda: interlaced_png(drawn()),
    "lzw.tif": lambda: encoded(drawn(), "TIFF", compression="tiff_lzw"),
    "deflate.tif": lambda: encoded(drawn(), "TIFF", compression="tiff_adobe_deflate"),
    "plain.bmp": lambda: encoded(drawn(), "BMP"),
    "lossless.jp2": lambda: encoded(drawn(), "JPEG2000"),
    "colour.ppm": lambda: encoded(drawn(), "PPM"),
    "grey.pgm": lambda: encoded(drawn(channels=1), "PPM"),
    "lossy.j2k": lambda: encoded(drawn(), "JPEG2000", irreversible=True, quality_layers=[20], no_jp2=True),
    "profile.jpg": lambda: with_profile("JPEG"),
    "profile.png": lambda: with_profile("PNG"),
    "one-wide.png": lambda: encoded(drawn(50, 1), "PNG"),
    "very-wide.jpg": lambda: encoded(drawn(3, 4000), "JPEG"),
    "one-pixel.gif": lambda: encoded(drawn(1, 1), "GIF"),
    "one-pixel.webp": lambda: encoded(drawn(1, 1), "WEBP"),
    "UPPER.JPG": lambda: encoded(drawn(), "JPEG"),
    "a-png-named.jpg": lambda: encoded(drawn(), "PNG"),
    **{f"turned-{number}.jpg": (lambda number=number: turned(number)) for number in range(1, 9)},
}  # fmt: skip
if features.check("avif"):
    FILES["lossy.avif"] = lambda: encoded(drawn(), "AVIF")
    FILES["rgba.avif"] = lambda: encoded(drawn(channels=4), "AVIF", quality=100)

BROKEN: dict[str, Callable[[], bytes]] = {
    "empty.jpg": lambda: b"",
    "text.jpg": lambda: b"thumbnails are in the other folder\n",
    "page.jpg": lambda: b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
    "cut-off.jpg": lambda: FILES["full-colour.jpg"]()[:-300],
    "cut-off.jp2": lambda: FILES["lossless.jp2"]()[:400],
    "vector.png": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "postscript.jpg": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_every_format_reads_as_pillow_says(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name]())
    image = open_images(str(tmp_path)).get(0)[0]
    assert torch.equal(image, by_pillow((tmp_path / name).read_bytes()))
    grey = open_images(str(tmp_path), channels=1).get(0)[0]
    assert grey.shape == (1, *image.shape[1:])


def test_sixteen_bits_of_grey_become_eight() -> None:
    """Here Pillow's own conversion would cut off everything above 255."""
    deep = np.arange(30 * 44, dtype=np.uint16).reshape(30, 44) * 49
    wanted = torch.from_numpy(np.round(deep / 257).astype(np.uint8))
    for kind, options in (("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}), ("JPEG2000", {})):
        assert torch.equal(decode(encoded(Image.fromarray(deep), kind, **options))[1], wanted), kind


def test_of_lossless_formats_the_pixels_come_back() -> None:
    wanted = torch.from_numpy(np.array(drawn())).permute(2, 0, 1)
    for name in ("lossless.webp", "interlaced.png", "lzw.tif", "deflate.tif", "lossless.jp2", "profile.png"):
        assert torch.equal(decode(FILES[name]()), wanted), name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_ends_upright(orientation: int) -> None:
    """All show the same scene when they are turned as their files say."""
    ways = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = drawn().transpose(ways[orientation]) if orientation in ways else drawn()
    exif = Image.Exif()
    exif[0x0112] = orientation
    wanted = torch.from_numpy(np.array(drawn())).permute(2, 0, 1)
    assert torch.equal(decode(encoded(stored, "PNG", exif=exif)), wanted)


def test_a_profile_is_ignored() -> None:
    assert torch.equal(decode(FILES["profile.jpg"]()), decode(encoded(drawn(), "JPEG")))


def test_every_extension_is_of_a_format_that_is_tested() -> None:
    tested = {Path(name).suffix.lower() for name in FILES}
    assert set(EXTENSIONS) == tested


@pytest.mark.parametrize(("height", "width"), [(1, 1), (50, 1), (3, 4000), (1, 300)])
def test_thin_pictures_pass_through_crops(height: int, width: int) -> None:
    image = decode(encoded(drawn(height, width), "PNG"))
    indices = torch.arange(64)
    sides = torch.full_like(indices, height), torch.full_like(indices, width)
    boxes = crop_boxes(0, indices * 0, indices, *sides, 0.2)
    assert (boxes[:, 2:] >= 1).all() and (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    cut = torch.stack([crop_and_resize(image, box, (16, 16)) for box in boxes[:8].tolist()])
    by_products = resize_crops_by_products(image.expand(8, -1, -1, -1), boxes[:8], (16, 16))
    assert (cut.int() - by_products.int()).abs().max() <= 2
    middle = image[:, height // 2 : height // 2 + 1, width // 2 : width // 2 + 1]
    centre = centre_crop(image, (16, 16))
    assert centre.shape == (3, 16, 16)
    if height == width == 1:
        assert (centre == middle).all()


# What is no picture ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_picture_is_told(name: str) -> None:
    with pytest.raises(UnreadableImage, match=r"\(\d+ bytes\)"):
        decode(BROKEN[name]())


def bomb(kind: str, side: int = 60_000) -> bytes:
    """A file of some bytes that claims to hold `side` x `side` pixels."""
    if kind == "PNG":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        return png([(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6))), (b"IEND", b"")])
    if kind == "GIF":
        screen = struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6)
        return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\0;"
    if kind == "GIF frame":  # a small screen with a large picture on it
        screen = struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
        return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x44\x01\0;"
    if kind == "WEBP":
        size = (side - 1).to_bytes(3, "little")
        still = encoded(drawn(), "WEBP")[12:]
        body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + size + still
        return b"RIFF" + struct.pack("<I", len(body)) + body
    if kind == "JPEG":
        data = encoded(drawn(), "JPEG")
        place = data.index(b"\xff\xc0") + 5
        return data[:place] + struct.pack(">HH", side, side) + data[place + 4 :]
    if kind == "BMP":
        data = encoded(drawn(), "BMP")
        return data[:18] + struct.pack("<ii", side, side) + data[26:]
    data = encoded(drawn(), "TIFF")
    for tag, value in ((256, 44), (257, 30)):  # width, height
        entry = struct.pack("<HHII", tag, 4, 1, value)
        assert entry in data
        data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, side))
    return data


@pytest.mark.parametrize("kind", ["PNG", "GIF", "GIF frame", "WEBP", "JPEG", "BMP", "TIFF"])
def test_bombs_cost_neither_time_nor_memory(kind: str) -> None:
    data = bomb(kind)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UnreadableImage):
        decode(data)
    assert time.process_time() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


# All of them together ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file above, three of them broken (at most 5 % may be)."""
    folder = tmp_path_factory.mktemp("mixed")
    broken = {f"broken-{name}": BROKEN[name] for name in ("empty.jpg", "page.jpg")}
    for name, make in {**FILES, **broken}.items():
        (folder / name).write_bytes(make())
    return folder


def test_training_on_every_format_skips_and_lists_what_is_broken(mixed: Path, tmp_path: Path) -> None:
    result = moce.pretrain(
        images=mixed, out=tmp_path / "run", preset="debug", epochs=1, batch_size=16, num_workers=1, quiet=True
    )
    listed = (tmp_path / "run" / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t")[1] for line in listed] == ["broken-empty.jpg", "broken-page.jpg"]
    assert result["num_images"] == len(FILES) + 2


def test_preparing_every_format_keeps_what_training_would_read(mixed: Path, tmp_path: Path) -> None:
    result = moce.prepare(images=mixed, out=tmp_path / "out", short_side=16, quiet=True)
    assert (result["num_images"], result["unreadable"]) == (len(FILES), 2)
    original, small = open_images(str(mixed)), open_images(str(tmp_path / "out"))
    good = [i for i in range(len(original)) if not original.name(i).startswith("broken")]
    for place, index in enumerate(good):
        assert small.name(place).startswith(original.name(index))
        whole, shrunken = original.get(index)[0], small.get(place)[0]
        assert min(shrunken.shape[1:]) == min(16, *whole.shape[1:])
        assert (whole.float().mean((1, 2)) - shrunken.float().mean((1, 2))).abs().max() < 12, small.name(
            place
        )
