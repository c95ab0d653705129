"""Which pictures a run read: by names, sizes and number, and where it is asked for by what they hold, byte by byte."""

import hashlib

import torch
from jaxtyping import UInt8
from torch import Tensor

from moce.engine.processes import group
from moce.engine.progress import track
from moce.images.decode import UnreadableImage
from moce.images.sources import Source

IMAGES, BYTES = "images", "bytes of the images"  # what config.json calls the two fingerprints
DIGEST = 32  # bytes of SHA-256


def picture_inputs(source: Source, hash_content: bool = False, quiet: bool = True) -> dict[str, str]:
    """The fingerprints by which a run knows its pictures again."""
    found = {IMAGES: source.fingerprint()}
    return {**found, BYTES: content_fingerprint(source, quiet)} if hash_content else found


def content_fingerprint(source: Source, quiet: bool = True) -> str:
    """16 hex digits of all bytes of all pictures, in order; each process reads its part.

    Of a picture that lies in no file (arrays, `toyworld://`, sets of torchvision) its shape and pixels count,
    and of one that cannot be read that it cannot.
    """
    processes = group()
    own = processes.share(len(source))
    digests = torch.empty(len(own), DIGEST, dtype=torch.uint8)
    with track(len(source), "bytes of the pictures", quiet=quiet) as bar:
        for row, index in enumerate(own):
            digests[row] = _digest(source, index)
            bar.advance(processes.world)  # the others are as far, more or less
    return hashlib.sha256(processes.gather(digests).numpy().tobytes()).hexdigest()[:16]


def _digest(source: Source, index: int) -> UInt8[Tensor, " bytes"]:
    encoded = getattr(source, "encoded", None)
    try:
        data = encoded(index) if encoded else None
        if data is None:
            pixels = source.get(index)[0]
            data = str(tuple(pixels.shape)).encode() + pixels.contiguous().numpy().tobytes()
    except UnreadableImage:
        data = b"unreadable"
    return torch.frombuffer(bytearray(hashlib.sha256(data).digest()), dtype=torch.uint8)
