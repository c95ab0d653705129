"""Bytes to a uint8 tensor of the wanted channels, upright, first frame; or `UnreadableImage` with the reason.

Every odd format ends as grey or RGB of 8 bits: EXIF orientation is applied, transparency is laid on white,
palettes and CMYK become RGB, 16-bit grey is scaled (not cut off) to 8 bits, colour profiles (ICC) are ignored. With
2 or 4 channels transparency is kept as the last one. Pillow does the work; the format is limited to those below,
since Pillow would otherwise try some forty readers, several of which start other programs. What Pillow cannot read
are arrays (arrays.py) and TIFFs of other channels (tiff.py).

The shape is channels first, but in memory the channels of a pixel lie side by side, as decoders write them: putting
them apart costs a fifth of what decoding does, and torch's integer kernel is faster on them as they are (M).
"""

import contextlib
import io

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, features
from torch import Tensor

from moce.images.arrays import MAX_PIXELS, NPY, UnreadableImage, from_npy, other_channels, to_bytes

FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
if features.check("avif"):  # from Pillow 11.3 on
    FORMATS += ("AVIF",)
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how one starts; the last two are large ones
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's names, by channels
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def decode(
    data: bytes, channels: int = 3, short_side: int | None = None
) -> UInt8[Tensor, "channels rows columns"]:
    """The picture as 1 (grey), 3 (RGB) or other channels at its own size, upright. Raises `UnreadableImage`.

    With `short_side`, a JPEG may come at a half, quarter or eighth, where three times that is left (see `_draft`).
    """
    try:
        if data.startswith(NPY):
            return from_npy(data, channels)
        if data.startswith(TIFF):
            from moce.images.tiff import decode_bands, for_pillow  # seldom needed

            if not for_pillow(data, channels):
                return decode_bands(data, channels)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
            if short_side is not None:
                _draft(image, short_side)
            return pixels_of(image, channels)
    except UnreadableImage:
        raise
    except Exception as error:
        # Pillow's readers raise nearly every class there is on broken bytes (OSError, SyntaxError, struct.error, ...).
        unknown = isinstance(error, Image.UnidentifiedImageError | LookupError)
        reason = "not a picture" if unknown else str(error).lower()
        raise UnreadableImage(f"{reason or type(error).__name__} ({len(data)} bytes)") from error


def pixels_of(image: Image.Image, channels: int = 3) -> UInt8[Tensor, "channels rows columns"]:
    """A picture that Pillow has opened, as `decode` gives it. Raises what Pillow's readers raise on broken bytes."""
    image.load()
    tensor = torch.from_numpy(np.array(_plain(_upright(image), channels)))
    return tensor[None] if channels == 1 else tensor.permute(2, 0, 1)


def _draft(image: Image.Image, short_side: int) -> None:
    """Let a JPEG's decoder shrink, where its pixels stay aligned and three times `short_side` is left.

    Resized to `short_side`, no value then differs by more than a few grey levels from that of the whole picture, which
    is less than encoding changes.
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


def _plain(image: Image.Image, channels: int) -> Image.Image:
    """Any mode of Pillow to that of so many channels."""
    transparent = image.mode in WITH_ALPHA or "transparency" in image.info
    if channels not in MODES or (channels in (2, 4) and not transparent):
        grey = image.mode.rstrip("Aa") in ("1", "L", "F") or image.mode.startswith("I")
        raise other_channels((1 if grey else 3) + transparent, channels)
    if image.mode.startswith("I"):
        image = Image.fromarray(to_bytes(np.asarray(image).clip(0, 65535).astype(np.uint16)))
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels, whose range nobody knows")
    elif transparent:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        if channels in (1, 3):
            white = Image.new("RGBA", image.size, "white")
            white.alpha_composite(image)
            image = white
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])
