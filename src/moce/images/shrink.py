"""One picture as prepared files hold it: a JPEG whose short side is at most N, or a square of pixels.

    short side > N                  resized to N, aspect ratio kept, encoded
    short side <= N, not a JPEG     encoded at its own size: nothing is enlarged
    short side <= N, a plain JPEG   its bytes as they are: encoding again would only lose

The cubic with antialiasing is that of every other crop here (see augment.py). A JPEG of more than six times
the size that is wanted may be shrunk by its decoder first (`decode` says when).
"""

import contextlib
import io
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from moce.images.augment import centre_crop, crop_and_resize
from moce.images.decode import MAX_PIXELS, UnreadableImage, decode
from moce.images.sources import Source

LONGEST = 65_500  # what libjpeg takes; the format itself ends at 65,535
ORIENTATION = 0x0112  # of EXIF


class Small(NamedTuple):
    """A prepared picture: the JPEG or the pixels as bytes; or, where `reason` is not empty, why there is none."""

    number: int  # its index in the source
    name: str
    data: bytes = b""
    copied: bool = False
    bytes_before: int | None = None
    reason: str = ""


def small_jpeg(source: Source, index: int, short_side: int, quality: int) -> Small:
    """Picture `index` as a JPEG whose short side is at most `short_side`."""
    data = _encoded(source, index)
    name = original_name(source, index)
    before = None if data is None else len(data)
    if data is not None and can_stay(data, short_side):
        return Small(index, name, data, True, before)
    image = source.get(index)[0] if data is None else decode(data, short_side=short_side)
    return Small(index, name, jpeg(shrunk(image, short_side), quality), False, before)


def small_square(source: Source, index: int, side: int, channels: int) -> Small:
    """The central square of picture `index`, resized to `side`: channels x side x side bytes."""
    data = _encoded(source, index)
    image = source.get(index)[0] if data is None else decode(data, channels, short_side=side)
    pixels = centre_crop(image, (side, side)).numpy().tobytes()
    return Small(index, original_name(source, index), pixels, False, None if data is None else len(data))


def _encoded(source: Source, index: int) -> bytes | None:
    """The picture's file; None where the source makes its pictures itself."""
    encoded = getattr(source, "encoded", None)
    return None if encoded is None else encoded(index)


def original_name(source: Source, index: int) -> str:
    """The path that the source keeps beside the picture, else what it calls the picture."""
    path = getattr(source, "path", None)
    name = (path(index) if path is not None else None) or source.name(index)
    return name.encode("utf-8", "backslashreplace").decode()  # a file's name need not be text


def can_stay(data: bytes, short_side: int) -> bool:
    """Whether these bytes are a small enough JPEG, upright, grey or RGB, that can be decoded to its end."""
    with contextlib.suppress(Exception):  # what is broken is said when it is decoded
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if min(image.size) > short_side or image.width * image.height > MAX_PIXELS:
                return False
            # A multi-picture file of a phone (MPO) is a JPEG with others behind it; those would only cost room.
            if image.format != "JPEG" or image.mode not in ("L", "RGB"):
                return False
            if image.getexif().get(ORIENTATION, 1) != 1:
                return False
            image.load()
            return True
    return False


def shrunk(image: UInt8[Tensor, "channels rows columns"], short_side: int) -> UInt8[Tensor, "channels h w"]:
    """The picture with its short side at `short_side`, or as it is when that is no larger."""
    height, width = image.shape[-2:]
    shorter = min(height, width)
    if shorter <= short_side:
        return image
    size = (round(height * short_side / shorter), round(width * short_side / shorter))
    return crop_and_resize(image, (0, 0, height, width), size)


def jpeg(image: UInt8[Tensor, "channels rows columns"], quality: int) -> bytes:
    """The picture encoded (baseline, colour at half resolution); grey where its channels are equal."""
    if max(image.shape[-2:]) > LONGEST:
        raise UnreadableImage(f"its longer side, {max(image.shape[-2:]):,} pixels, is too long for JPEG")
    grey = image.shape[0] == 1 or (torch.equal(image[0], image[1]) and torch.equal(image[1], image[2]))
    pixels = image[0].numpy() if grey else np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
