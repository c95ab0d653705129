"""Masks: pictures whose pixels are class numbers. From a file's bytes to numbers, and from numbers to classes."""

import io
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int16, Int64
from PIL import ExifTags, Image
from torch import Tensor

from moce.errors import UserError, first_line
from moce.images.decode import FORMATS

IGNORE = -1  # the class of pixels that are neither learned nor counted
UNLABELLED = 255  # a number that means so in every layout
NOT_SCORED = ("void", "ignore", "unlabelled", "unlabeled")  # names of classes that are not scored
# Pillow's modes of one whole number per pixel; P holds places in a palette, whose colours do not matter.
ONE_NUMBER = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
MOST_CLASSES = 32_000
# Formats that give back the numbers that were stored. Those that are lossy only sometimes (WebP, AVIF, JPEG 2000) do
# not say whether they were, and writers of GIF, Pillow among them, number the colours anew (M).
EXACT = ("PNG", "TIFF", "BMP", "PPM")
INEXACT_TIFF = ("jpeg", "tiff_jpeg", "webp")  # Pillow's names of compressions inside of a TIFF
UPRIGHT = (0, 1)  # orientation tags that turn nothing; 0 is no orientation, and common


def class_numbers(data: bytes, name: str) -> Int64[np.ndarray, "rows columns"]:
    """The numbers in a mask as they are stored. UserError, naming it, for a file that is no such picture."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            require_exact(image, name)
            if image.mode not in ONE_NUMBER:
                raise UserError(
                    f"The mask {name} is in colour ({image.mode}): a mask has one number per pixel, the class; "
                    "store it as a PNG of grey levels or of a palette."
                )
            image.load()
            return np.asarray(image).astype(np.int64)
    except UserError:
        raise
    except Exception as error:  # whatever Pillow's readers raise on broken bytes
        raise UserError(f"The mask {name} cannot be read ({first_line(error)}); put it right.") from None


def require_exact(image: Image.Image, name: str) -> None:
    """UserError for a mask whose format may have changed its numbers, or that an orientation tag would turn."""
    packed = image.info.get("compression")
    if image.format not in EXACT or packed in INEXACT_TIFF:
        kind = f"TIFF compressed as {packed}" if image.format in EXACT else f"{image.format} file"
        raise UserError(
            f"The mask {name} is a {kind}, which may change numbers when it is stored: make it again from the original "
            "as PNG, TIFF, BMP or PPM."
        )
    # Pillow turns some formats when it reads them and others not, and nobody knows what the writer meant.
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in UPRIGHT:
        raise UserError(
            f"The mask {name} has an orientation tag: store it upright, as its picture is shown, and without the tag."
        )


@dataclass(frozen=True)
class Classes:
    """What the numbers in the masks of a task mean."""

    names: list[str]  # of the classes that are scored, in their order
    first: int = 0  # the number of the first class; lower ones are not scored
    unscored: tuple[int, ...] = (UNLABELLED,)  # further numbers that are not scored
    source: str = "the train split"  # where the classes were learned of

    @property
    def last(self) -> int:
        """The highest number that means something, but for 255."""
        inner = [number for number in self.unscored if number != UNLABELLED]
        return self.first + len(self.names) + sum(number >= self.first for number in inner) - 1

    def table(self) -> Int16[np.ndarray, "numbers"]:
        """The class of each number; IGNORE where it is not scored."""
        table = np.full(max(self.last, UNLABELLED) + 1, IGNORE, np.int16)
        meant = [n for n in range(self.first, self.last + 1) if n not in self.unscored]
        table[meant] = np.arange(len(meant))
        return table

    def of(self, numbers: Int64[np.ndarray, "rows columns"], name: str) -> Int16[Tensor, "rows columns"]:
        """The classes of a mask's pixels. UserError for a number that means nothing."""
        wrong = ((numbers > self.last) & (numbers != UNLABELLED)) | (numbers < 0)
        if wrong.any():
            raise UserError(
                f"The mask {name} has the class number {numbers[wrong].flat[0]}: by {self.source} they end at "
                f"{self.last} ({UNLABELLED} is not scored)."
            )
        return torch.from_numpy(self.table()[numbers])


def named(names: list[str], first: int, source: str) -> Classes:
    """Classes by their names, numbered from `first` on; void ones are not scored."""
    void = tuple(first + i for i, name in enumerate(names) if name.lower() in NOT_SCORED)
    scored = [name for name in names if name.lower() not in NOT_SCORED]
    return Classes(scored, first, (UNLABELLED, *void), source)


def counted(highest: int, first: int) -> Classes:
    """As many classes without names as the masks show, up to this number."""
    return Classes([str(number) for number in range(first, highest + 1)], first)
