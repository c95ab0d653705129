"""Which pictures these are by what they hold, byte by byte, where names, sizes and number are not enough."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from jaxtyping import UInt8
from torch import Tensor

from moce.engine.launch import usable_cores
from moce.engine.processes import group
from moce.engine.progress import track
from moce.images.decode import UnreadableImage
from moce.images.reading import CHUNK, Decoded, read_all
from moce.images.sources import Source

DIGEST = 32  # bytes of SHA-256


def content_fingerprint(source: Source, quiet: bool = True) -> str:
    """16 hex digits of all bytes of all pictures, in order; each process reads its part.

    Of a picture that is no file (arrays, `toyworld://`) or comes as pixels (sets of torchvision) its shape and pixels
    count, and of one that cannot be read that it cannot.
    """
    processes = group()
    own = processes.share(len(source))
    made = read_all(source, quiet, only_if_cheap=True) if hasattr(source, "array") else None
    # What comes as pixels may be made by code that only one thread at a time may run.
    threads = usable_cores() if _in_files(source) else 1
    chunks = [own[start : start + CHUNK] for start in range(0, len(own), CHUNK)]
    parts = [torch.empty(0, DIGEST, dtype=torch.uint8)]
    with (
        track(len(source), "bytes of the pictures", quiet=quiet) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        for digests in pool.map(lambda chunk: _digests(source, made, chunk), chunks):
            parts.append(digests)
            bar.advance(len(digests) * processes.world)  # the others are as far, more or less
    return hashlib.sha256(processes.gather(torch.cat(parts)).numpy().tobytes()).hexdigest()[:16]


def _digests(source: Source, made: Decoded | None, chunk: range) -> UInt8[Tensor, "images bytes"]:
    read = partial(_bytes, source) if made is None else lambda index: _pixels(made.images[index])
    found = b"".join(hashlib.sha256(read(index)).digest() for index in chunk)
    return torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, DIGEST)


def _in_files(source: Source) -> bool:
    """Whether its pictures are files, as the first one is; also where what it is a part of says so."""
    encoded = getattr(source, "encoded", None)
    try:
        return encoded is not None and encoded(0) is not None
    except UnreadableImage:
        return True


def _bytes(source: Source, index: int) -> bytes:
    encoded = getattr(source, "encoded", None)
    try:
        data: bytes | None = encoded(index) if encoded else None
        if data is not None:
            return data
        return _pixels(source.get(index)[0])
    except UnreadableImage:
        return b"unreadable"


def _pixels(image: UInt8[Tensor, "channels rows columns"]) -> bytes:
    return str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()
