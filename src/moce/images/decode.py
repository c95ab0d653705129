"""Bytes to a uint8 tensor, upright, without transparency, first frame; or `UnreadableImage` with the reason.

Every odd format ends as grey or RGB of 8 bits: EXIF orientation is applied, transparency is laid on white,
palettes and CMYK become RGB, 16-bit grey is scaled (not cut off) to 8 bits, colour profiles (ICC) are ignored.
Pillow does the work; the format is limited to those below, since Pillow would otherwise try some forty readers,
several of which start other programs.
"""

import contextlib
import io

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, features
from torch import Tensor

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
if features.check("avif"):  # from Pillow 11.3 on
    FORMATS += ("AVIF",)
MAX_PIXELS = 2**26
"""Larger pictures (8192 x 8192) are refused: a few hundred bytes can claim to be gigabytes."""


class UnreadableImage(ValueError):
    """These bytes are no picture that we can read; the text says why."""


def decode(
    data: bytes, channels: int = 3, short_side: int | None = None
) -> UInt8[Tensor, "channels rows columns"]:
    """The picture as 1 (grey) or 3 (RGB) channels at its own size, upright. Raises `UnreadableImage`.

    With `short_side`, a JPEG may come at a half, quarter or eighth, where three times that is left (see `_draft`).
    """
    assert channels in (1, 3), channels
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            if short_side is not None:
                _draft(image, short_side)
            image.load()
            pixels = np.array(_plain(_upright(image), "L" if channels == 1 else "RGB"))
    except UnreadableImage:
        raise
    except Exception as error:
        # Pillow's readers raise nearly every class there is on broken bytes (OSError, SyntaxError, struct.error, ...).
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else str(error).lower()
        raise UnreadableImage(f"{reason or type(error).__name__} ({len(data)} bytes)") from error
    tensor = torch.from_numpy(pixels)
    return tensor[None] if channels == 1 else tensor.permute(2, 0, 1).contiguous()


def _draft(image: Image.Image, short_side: int) -> None:
    """Let a JPEG's decoder shrink, where its pixels stay aligned and three times `short_side` is left.

    Resized to `short_side`, no value then differs by more than a few grey levels from that of the whole picture, which
    is less than encoding changes; a photograph of 12 megapixels is read eight times as fast (M).
    """
    for scale in (8, 4, 2):
        if min(image.size) >= 3 * scale * short_side and not image.width % scale and not image.height % scale:
            image.draft(None, (image.width // scale, image.height // scale))
            return


def _upright(image: Image.Image) -> Image.Image:
    """The EXIF orientation applied. Damaged EXIF is ignored, the picture itself being fine."""
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _plain(image: Image.Image, mode: str) -> Image.Image:
    """Any mode of Pillow to "L" or "RGB"."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range nobody knows")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image if image.mode == mode else image.convert(mode)
