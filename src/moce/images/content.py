"""Which pictures these are by what they hold, byte by byte, where names, sizes and number are not enough."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import UInt8
from torch import Tensor

from moce.engine.processes import group
from moce.engine.progress import track
from moce.images.decode import UnreadableImage
from moce.images.reading import CHUNK, cores
from moce.images.sources import Source

DIGEST = 32  # bytes of SHA-256


def content_fingerprint(source: Source, quiet: bool = True) -> str:
    """16 hex digits of all bytes of all pictures, in order; each process reads its part.

    Of a picture that is no file (arrays, `toyworld://`) or comes as pixels (sets of torchvision) its shape and pixels
    count, and of one that cannot be read that it cannot.
    """
    processes = group()
    own = processes.share(len(source))
    chunks = [own[start : start + CHUNK] for start in range(0, len(own), CHUNK)]
    parts = [torch.empty(0, DIGEST, dtype=torch.uint8)]
    with (
        track(len(source), "bytes of the pictures", quiet=quiet) as bar,
        ThreadPoolExecutor(cores()) as pool,
    ):
        for digests in pool.map(lambda chunk: _digests(source, chunk), chunks):
            parts.append(digests)
            bar.advance(len(digests) * processes.world)  # the others are as far, more or less
    return hashlib.sha256(processes.gather(torch.cat(parts)).numpy().tobytes()).hexdigest()[:16]


def _digests(source: Source, chunk: range) -> UInt8[Tensor, "images bytes"]:
    found = b"".join(hashlib.sha256(_bytes(source, index)).digest() for index in chunk)
    return torch.frombuffer(bytearray(found), dtype=torch.uint8).view(-1, DIGEST)


def _bytes(source: Source, index: int) -> bytes:
    encoded = getattr(source, "encoded", None)
    try:
        data: bytes | None = encoded(index) if encoded else None
        if data is not None:
            return data
        pixels = source.get(index)[0]
        return str(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()
    except UnreadableImage:
        return b"unreadable"
