"""Where the pictures of a tar file lie in it: read once, and kept as a small file for the next opening.

A tar has no table of contents, so finding its members means going through the whole file. The index is kept in
$MOCE_CACHE (else $XDG_CACHE_HOME/moce, else ~/.cache/moce) under the tar's absolute path, together with size, times
and inode of the tar; any difference, and a damaged or missing index, means going through the tar again. Nothing is
lost when the folder is deleted or cannot be written to.
"""

import json
import os
import re
import tarfile
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from moce.engine.files import sha256_of, write_whole
from moce.errors import UserError
from moce.images.sources import EXTENSIONS

PICTURES = [extension[1:] for extension in EXTENSIONS]
# Of the index and of what it looks for: one of another version is made again.
VERSION = zlib.crc32(f"2 {PICTURES}".encode())
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
BLOCK = 512
LARGEST_NOTE = 2**20  # bytes; a larger .cls or .json member is no label
SETTLED = 2.0  # seconds; a file may change once more within one tick of its clock

# webdataset's split: a key ends at the first dot of the file's name. Hidden files and names without a dot have none.
MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
META = re.compile(r"__[^/]*__($|/)")


class TarIndex(NamedTuple):
    """The pictures of one tar in its order. `labels` are texts as they stand there, empty where there is none."""

    stamp: Int64[np.ndarray, "5"]  # of the tar: size, mtime, ctime, inode, and the index's version
    names: np.ndarray  # bytes
    offsets: Int64[np.ndarray, "pictures"]
    sizes: Int64[np.ndarray, "pictures"]
    labels: np.ndarray  # texts


def index_of(path: Path) -> TarIndex:
    """The index of a tar, kept or made. UserError when it is no plain tar, cut off, or not to be trusted."""
    try:
        stamp = _stamp(path)
        kept = _kept(path)
        if kept is not None:
            # A damaged index raises nearly anything.
            with suppress(Exception), open(kept, "rb") as opened, np.load(opened) as file:
                if np.array_equal(file["stamp"], stamp):
                    return TarIndex(*(file[name] for name in TarIndex._fields))
        made = _read(path, stamp)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error}).") from error
    unsettled = time.time() - stamp[1:3].max() / 1e9 < SETTLED
    if kept is not None and not unsettled and np.array_equal(_stamp(path), stamp):
        with suppress(OSError, UserError), write_whole(kept) as temporary, open(temporary, "wb") as file:
            np.savez(file, **made._asdict())
    return made


def cache_folder() -> Path | None:
    """Where small files are kept from one run to the next; None on an account without a home."""
    for variable, below in (("MOCE_CACHE", ""), ("XDG_CACHE_HOME", "moce"), ("HOME", ".cache/moce")):
        if os.environ.get(variable):
            return (Path(os.environ[variable]).expanduser() / below).absolute()
    return None


def _kept(path: Path) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"tar-{sha256_of(os.fsencode(path.absolute()))}.npz"


def _stamp(path: Path) -> Int64[np.ndarray, "5"]:
    """What changes when the file does. The change time (the third) cannot be set back by a program."""
    status = os.stat(path)
    # An inode may use all 64 bits.
    inode = np.uint64(status.st_ino).astype(np.int64)
    return np.array([status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode, VERSION], np.int64)


def _read(path: Path, stamp: Int64[np.ndarray, "5"]) -> TarIndex:
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"'{path}' is compressed ({kind}), so its pictures cannot be picked out: unpack it to a plain tar file."
            )
    try:
        with tarfile.open(path, "r:") as archive:
            found = _members(path, archive)
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(BLOCK) != bytes(BLOCK):
                # tarfile ends quietly at a header that it cannot read, and at the end of the file.
                raise tarfile.ReadError(f"no end mark at byte {archive.offset:,}")
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"'{path}' is not a tar file or is cut off: {str(error).rstrip('.')}.") from error
    if not found:
        raise UserError(f"'{path}' holds no picture (looked for {', '.join(PICTURES)}).")
    names, offsets, sizes, labels = zip(*found)
    return TarIndex(
        stamp, np.array(names), np.array(offsets, np.int64), np.array(sizes, np.int64), np.array(labels)
    )


def _members(path: Path, archive: tarfile.TarFile) -> list[tuple[bytes, int, int, str]]:
    """(name, offset, size, label) of the picture of every key that has one."""
    seen: set[str] = set()
    pictures: dict[str, tuple[tuple[int, int], tarfile.TarInfo]] = {}
    labels: dict[str, str] = {}
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them, a kilobyte each
        name = member.name.removeprefix("./")
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(
                f"'{path}' has a member '{member.name}', whose path leads out of it; such a file is not to be trusted."
            )
        match = MEMBER.fullmatch(name)
        if not member.isreg() or match is None or META.match(name):
            continue
        key, extension = match[1], match[2].lower()
        if f"{key}.{extension}" in seen:
            raise UserError(f"'{path}' has the member '{name}' twice: the pictures of a key must be its own.")
        seen.add(f"{key}.{extension}")
        kind = extension.rpartition(".")[2]
        if kind in PICTURES:
            if member.issparse():
                raise UserError(f"'{path}' has '{name}' as a sparse file: write the tar without --sparse.")
            # Of several pictures of a key the plainest: a.jpg before a.png, and both before a mask called a.seg.png.
            rank = (extension.count("."), PICTURES.index(kind))
            if key not in pictures or rank < pictures[key][0]:
                pictures[key] = (rank, member)
        elif extension in ("cls", "json") and member.size <= LARGEST_NOTE:
            file = archive.extractfile(member)
            assert file is not None, "only links have no contents"
            label = _label(path, name, extension, file.read())
            if label and (extension == "cls" or key not in labels):
                labels[key] = label
    return [
        (os.fsencode(member.name.removeprefix("./")), member.offset_data, member.size, labels.get(key, ""))
        for key, (_, member) in pictures.items()
    ]


def _label(path: Path, name: str, extension: str, data: bytes) -> str:
    """The text of a .cls member; "label" or "cls" of a .json one where that is a whole number or a text."""
    try:
        text = data.decode().strip()
        if extension == "cls":
            return text
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "text" if extension == "cls" else "JSON"
        raise UserError(f"'{path}' has the member '{name}', which is no {kind}: {error}.") from error
    found = [content.get(key) for key in ("label", "cls")] if isinstance(content, dict) else []
    return next((str(v) for v in found if isinstance(v, int | str) and not isinstance(v, bool)), "")
