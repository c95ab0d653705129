"""TIFFs with any number of bands, which Pillow cannot read: satellite and microscope pictures.

The bands are the samples of the first page, stored pixel by pixel or band by band. Where a page has one sample, they
are pages, as `tifffile.imwrite` leaves an array; the rule for arrays then says which axis they are.

Three grey pages may be three bands or a document: for 3 channels they are bands where the file itself says that it is
one array (a note of tifffile, or an axis of channels in OME's or ImageJ's); else its first page is the picture.
"""

import io
import logging

import numpy as np
import tifffile
from jaxtyping import UInt8
from torch import Tensor

from moce.images.arrays import MAX_PIXELS, UnreadableImage, other_channels, picture_of, picture_of_bands

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it has to say of a picture is its exception


def for_pillow(data: bytes, channels: int) -> bool:
    """Whether Pillow should read a TIFF, being grey or colour: it has more compressions, and turns it upright."""
    if channels not in (1, 3):
        return False
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            if channels == 3 and file.pages.first.samplesperpixel == 1 and len(file.pages) > 1:
                return not _says_bands(file, channels)
            return file.pages.first.samplesperpixel <= 4
    except Exception:  # as many classes as broken bytes have ways; Pillow may be more patient
        return True


def _says_bands(file: tifffile.TiffFile, channels: int) -> bool:
    series = file.series[0]
    noted = file.is_shaped or "C" in series.axes
    return noted and len(series.shape) == 3 and channels in (series.shape[0], series.shape[2])


def decode_bands(data: bytes, channels: int) -> UInt8[Tensor, "channels rows columns"]:
    """All bands of a TIFF, uint8 or uint16 scaled to it. Raises `UnreadableImage`."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        rows, columns, samples = page.imagelength, page.imagewidth, page.samplesperpixel
        if rows * columns > MAX_PIXELS:
            raise UnreadableImage(f"{columns} x {rows} pixels are more than {MAX_PIXELS:,}")
        if samples > 1 and samples != channels:
            raise other_channels(samples, channels)
        stored = page if samples > 1 or len(file.pages) == 1 else file.series[0]
        if int(np.prod(stored.shape, dtype=np.int64)) > MAX_PIXELS * channels:
            raise UnreadableImage(f"its {len(file.pages)} pages are too much for one picture")
        try:
            array = stored.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise UnreadableImage(
                f"{tifffile.COMPRESSION(page.compression).name} compression needs the package imagecodecs; save it "
                "uncompressed or with deflate"
            ) from error
    if samples > 1:  # the file says which axis the bands are
        separate = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE
        return picture_of_bands(array if separate else np.moveaxis(array, -1, 0))
    return picture_of(array, channels)
