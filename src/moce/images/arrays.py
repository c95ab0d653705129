"""Pictures that come as arrays of numbers: .npy bytes, nested lists of a parquet file, bands of a TIFF.

Which axis holds the channels is a rule and no guess: the first or the last, whichever is as long as the model has
channels; where both are, the picture is refused. An array of two axes is one channel. Arrays are taken as they are:
grey is not made of colour, nor colour of grey.
"""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import UInt8
from torch import Tensor

MAX_PIXELS = 2**26
"""Larger pictures (8192 x 8192) are refused: a few hundred bytes can claim to be gigabytes."""
NPY = b"\x93NUMPY"
DTYPES = ("uint8", "uint16")


class UnreadableImage(ValueError):
    """These bytes are no picture that we can read; the text says why."""


def other_channels(found: int, wanted: int) -> UnreadableImage:
    """A picture that has another number of channels than the model, and cannot be given the right one."""
    return UnreadableImage(
        f"it has {found} channel{'s' * (found > 1)} and the model takes {wanted} (--channels)"
    )


def picture_of(array: np.ndarray, channels: int) -> UInt8[Tensor, "channels rows columns"]:
    """The picture in an array of [rows, columns], [channels, rows, columns] or [rows, columns, channels].

    Raises `UnreadableImage` where the channels are none of the axes or could be two, and for numbers that are neither
    uint8 nor uint16.
    """
    shape = " x ".join(map(str, array.shape)) or "one number"
    if array.ndim not in (2, 3) or not array.size:
        raise UnreadableImage(f"an array of {shape} is no picture: it needs 2 or 3 axes")
    if array.ndim == 2:
        if channels != 1:
            raise other_channels(1, channels)
        array = array[None]
    else:
        first, last = array.shape[0] == channels, array.shape[2] == channels
        if first and last:
            raise UnreadableImage(
                f"an array of {shape}: its first and its last axis could both be the channels"
            )
        if not first and not last:
            raise UnreadableImage(
                f"an array of {shape}: neither its first nor its last axis has the {channels} channels that the model "
                "takes (--channels)"
            )
        array = array if first else array.transpose(2, 0, 1)
    return picture_of_bands(array)


def picture_of_bands(bands: np.ndarray) -> UInt8[Tensor, "channels rows columns"]:
    """The picture in an array of [channels, rows, columns], of uint8 or uint16."""
    rows, columns = bands.shape[1:]
    if rows * columns > MAX_PIXELS:
        raise UnreadableImage(f"{columns} x {rows} pixels are more than {MAX_PIXELS:,}")
    return torch.from_numpy(np.array(to_bytes(bands), order="C"))


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 scaled (not cut off) so that 65535 becomes 255; `UnreadableImage` for other numbers."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:  # of either byte order
        return ((pixels.astype(np.int32) + 128) // 257).astype(np.uint8)
    raise UnreadableImage(f"{pixels.dtype} values, whose range nobody knows; store uint8 or uint16")


def from_npy(data: bytes, channels: int) -> UInt8[Tensor, "channels rows columns"]:
    """The picture in the bytes of a .npy file; nothing is unpickled."""
    return picture_of(np.load(io.BytesIO(data), allow_pickle=False), channels)


# Parquet -----------------------------------------------------------------------------------------------------------


def numbers_of(kind: pa.DataType) -> pa.DataType | None:
    """The type of the numbers in lists of lists (of lists); None for any other type of column."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return kind if depth in (2, 3) and number else None


def from_lists(values: pa.Array, channels: int) -> UInt8[Tensor, "channels rows columns"]:
    """The picture in nested lists of Arrow, of uint8 or uint16; every list of a level must have the same length."""
    shape = [len(values)]
    while not pa.types.is_integer(values.type):
        if values.null_count:
            raise UnreadableImage("an array with gaps")
        lengths = pc.min_max(pc.list_value_length(values)).as_py()
        if lengths["min"] != lengths["max"]:
            raise UnreadableImage("lists of various lengths, which are no array")
        shape.append(lengths["max"] or 0)
        values = values.flatten()
    if values.null_count:
        raise UnreadableImage("an array with gaps")
    dtype = np.dtype(str(values.type))
    # Not by arrow's own way to numpy, which imports pandas, where there is one, for two seconds.
    buffer = values.buffers()[1] or b""
    flat = np.frombuffer(buffer, dtype, len(values), values.offset * dtype.itemsize)
    return picture_of(flat.reshape(shape), channels)
