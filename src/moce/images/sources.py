"""Every way pictures come in, behind one small protocol: an image is its index.

Index = offset of its shard + place in it. Labels and names are known without decoding anything; `get` decodes
one picture at its own size. Sources travel cheaply to worker processes: open files and caches stay behind.
"""

import errno
import glob
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.errors import UserError, require_there
from moce.images.decode import FORMATS, UnreadableImage, decode
from moce.images.parquet import ParquetImages

EXTENSIONS: tuple[str, ...] = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
EXTENSIONS += (".jp2", ".j2k", ".ppm", ".pgm") + ((".avif",) if "AVIF" in FORMATS else ())
ARRAYS = (".npy",)  # pictures of a folder that has no others; elsewhere they may be anything
# What can be wrong with one file; anything else is the disk's or the network's, and may be gone tomorrow.
OF_ONE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO)
OUR_OWN = {".lock", "config.json"}  # what every run folder holds
EVEN_SHARD = 1024  # what has no shards of its own: so many neighbours count as one
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


@runtime_checkable
class Source(Protocol):
    """Pictures by index.

    A source may offer more: `array() -> UInt8 Tensor` all pictures at once, where they need no decoding;
    `encoded(index) -> bytes | None` the file of a picture; `path(index) -> str | None` the name that is kept beside it;
    `places() -> list[Path]` the folders and files that it reads; `whole_shards` True where a shard is read at once;
    `targets` [images, classes], 1 shown, 0 absent, -1 not to be judged, where pictures show several of `classes`.
    """

    @property
    def uri(self) -> str:
        """What a person wrote to open it."""
        ...

    @property
    def classes(self) -> list[str] | None:
        """The classes' names, by label; None without labels."""
        ...

    @property
    def labels(self) -> Int64[np.ndarray, "images"] | None:
        """Class numbers by index."""
        ...

    def __len__(self) -> int: ...

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """The picture at its own size, and its label. Raises `UnreadableImage`."""
        ...

    def shards(self) -> list[range]:
        """Runs of indices that are stored together; they cover 0 to len - 1 in order."""
        ...

    def name(self, index: int) -> str:
        """What to call this picture when talking to people."""
        ...

    def fingerprint(self) -> str:
        """16 hex digits of names, sizes and count: equal for equal pictures, wherever they lie."""
        ...


def open_images(uri: str, channels: int = 3) -> Source:
    """Pictures by what a person writes: see docs/formats.md. `UserError` says what is wrong with `uri`."""
    scheme = uri.partition(":")[0]
    if ":" in uri and scheme in SCHEMES:
        return SCHEMES[scheme](uri, channels)
    if "://" in uri:
        own = {"wds": "wds:GLOB", "classes": "classes:FILE:IMAGES"}
        schemes = ", ".join(own.get(name, f"{name}://NAME") for name in SCHEMES)
        raise UserError(f"'{uri}' is not supported; give a folder, a parquet file or glob, or {schemes}.")
    path = Path(uri).expanduser()
    if path.is_dir():
        from moce.images.prepared import is_prepared, open_prepared

        return open_prepared(uri, path, channels) if is_prepared(path) else FolderImages(uri, channels)
    if uri.lower().endswith(TARS):
        return _tars(uri, channels)
    if path.is_file():
        return _open_file(uri, path, channels)
    require_there(uri)
    if glob.has_magic(uri):
        found = sorted(glob.glob(str(path), recursive=True))
        return ParquetImages(uri, [Path(p) for p in found], channels)
    raise UserError(f"There is no folder or file '{uri}'.")


def _open_file(uri: str, path: Path, channels: int) -> Source:
    if path.suffix.lower() in EXTENSIONS + ARRAYS:
        raise UserError(f"'{uri}' is one picture; give the folder that it lies in.")
    return ParquetImages(uri, [path], channels)


def _toyworld(uri: str, channels: int) -> Source:
    from moce.images.toyworld import ToyWorld

    return ToyWorld(uri, channels)


def _tars(uri: str, channels: int) -> Source:
    from moce.images.tars import open_tars

    return open_tars(uri, channels)


def _hub(uri: str, channels: int) -> Source:
    from moce.images.hub import HubImages

    return HubImages(uri, channels)


def _torchvision(uri: str, channels: int) -> Source:
    from moce.images.torchvision_sets import TorchvisionImages

    return TorchvisionImages(uri, channels)


def _classes(uri: str, channels: int) -> Source:
    from moce.images.subset import open_classes

    return open_classes(uri, channels)


# What stands before the colon, and what opens it; each imports its own when it is asked for.
SCHEMES: dict[str, Callable[[str, int], Source]] = {
    "wds": _tars,
    "classes": _classes,
    "hf": _hub,
    "torchvision": _torchvision,
    "toyworld": _toyworld,
}


def require_apart(source: Source, out: str | Path, below: bool = True) -> None:
    """UserError when --out is or holds what the source reads, or (`below`) lies in a folder that it reads.

    An --out that is overwritten loses all that is in it, and what is written into a folder of pictures becomes one.
    """
    resolved = Path(out).expanduser().resolve()
    places: list[Path] = source.places() if hasattr(source, "places") else []
    for place in places:
        where = place.expanduser().resolve()
        if where.is_relative_to(resolved):
            raise UserError(
                f"--out {out} holds the pictures of --images '{source.uri}'; name another folder."
            )
        if below and resolved.is_relative_to(where):
            raise UserError(
                f"--out {out} lies in the folder of --images '{source.uri}'; name a folder outside of it."
            )


def bytes_of(path: Path) -> bytes:
    """A picture's file. Raises `UnreadableImage` for what is wrong with this one, UserError for a disk that fails."""
    try:
        # A pipe would be waited for.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableImage("not a regular file")
            return file.read()
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in OF_ONE_FILE:
            raise UnreadableImage(reason) from error
        raise UserError(
            f"'{path}' cannot be read ({reason}): see to the disk and run again, or remove the file."
        ) from error


def _identity(folder: Path) -> tuple[int, int] | None:
    """Which folder this is, by device and inode; None where there is none."""
    try:
        found = os.stat(folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"The folder '{folder}' cannot be read ({error.strerror}).") from error
    return found.st_dev, found.st_ino


def even_shards(num_images: int) -> list[range]:
    """Runs of 1024 neighbours, for pictures that have no shards of their own."""
    return [range(i, min(i + EVEN_SHARD, num_images)) for i in range(0, num_images, EVEN_SHARD)]


class FolderImages:
    """All pictures below a folder, in the order of their paths; hidden files are passed over, links followed.

    Where there are none, the .npy files are the pictures. Labels are the first-level sub-folders, when all pictures lie
    in such.
    """

    def __init__(self, uri: str, channels: int = 3) -> None:
        self.uri, self.channels = uri, channels
        self.root = Path(uri).expanduser()
        self._identity = _identity(self.root)
        names = sorted(_pictures_below(self.root)) or sorted(_pictures_below(self.root, ARRAYS))
        if not names:
            raise _no_pictures(uri, self.root)
        # One block of bytes and not a million strings: cheap to send to workers, and never copied by a fork.
        self._names = b"".join(names)
        self._starts = np.cumsum([0] + [len(name) for name in names])
        self.classes: list[str] | None = None
        self.labels: Int64[np.ndarray, "images"] | None = None
        if all(b"/" in name for name in names):
            tops = [name.partition(b"/")[0] for name in names]
            classes = sorted(set(tops))
            number = {top: label for label, top in enumerate(classes)}
            self.classes = [os.fsdecode(top) for top in classes]
            self.labels = np.array([number[top] for top in tops], np.int64)
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self._starts) - 1

    def name(self, index: int) -> str:
        """The path below the folder."""
        return os.fsdecode(self._names[self._starts[index] : self._starts[index + 1]])

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """See `Source`."""
        data = self.encoded(index)
        return decode(data, self.channels), None if self.labels is None else int(self.labels[index])

    def encoded(self, index: int) -> bytes:
        """The file of the picture. Raises `UnreadableImage`."""
        try:
            return bytes_of(self.root / self.name(index))
        except UnreadableImage as error:
            if _identity(self.root) != self._identity:  # a disk that is taken away leaves an empty folder
                raise UserError(
                    f"The folder '{self.root}' was taken away while it was read; bring it back and run again."
                ) from error
            raise

    def places(self) -> list[Path]:
        """The folder."""
        return [self.root]

    def shards(self) -> list[range]:
        """Runs of 1024 neighbours."""
        return even_shards(len(self))

    def fingerprint(self) -> str:
        """Paths below the folder, and the files' sizes; asked of the disk once."""
        if not self._fingerprint:
            digest = hashlib.sha256()
            for name in map(self.name, range(len(self))):
                try:
                    size = os.stat(self.root / name).st_size
                except OSError:  # a broken link: the pictures are still the same ones tomorrow
                    size = -1
                digest.update(os.fsencode(name) + b"\0%d\0" % size)
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def _pictures_below(root: Path, extensions: tuple[str, ...] = EXTENSIONS) -> Iterator[bytes]:
    """Paths relative to `root`, with "/".

    A link that leads back to a folder above itself is not followed again, and run folders of ours, whose small pictures
    are no data, are passed over.
    """
    open_folders: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while open_folders:
        below, above = open_folders.pop()
        try:
            status = os.stat(root / below)
            entries = list(os.scandir(root / below))
        except OSError as error:
            raise UserError(f"The folder '{root / below}' cannot be read ({error.strerror}).") from error
        here = (status.st_dev, status.st_ino)
        if here in above or (below and OUR_OWN <= {entry.name for entry in entries}):
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                open_folders.append((path, (*above, here)))
            elif entry.name.lower().endswith(extensions):
                yield os.fsencode(path)


def _no_pictures(uri: str, root: Path) -> UserError:
    entries = [e.name for e in os.scandir(root)]
    if not entries:
        return UserError(f"The folder '{uri}' is empty.")
    parquet = sorted(name for name in entries if name.endswith(".parquet"))
    tars = sorted(name for name in entries if name.lower().endswith(TARS))
    if tars and not parquet:
        return UserError(
            f"The folder '{uri}' holds no pictures but {', '.join(tars[:3])}; write wds:{Path(uri, '*.tar')}."
        )
    if parquet:
        return UserError(
            f"The folder '{uri}' holds no pictures but {', '.join(parquet[:3])}; name the file or a glob of files."
        )
    kinds = ", ".join(extension[1:] for extension in EXTENSIONS + ARRAYS)
    return UserError(f"No picture is in the folder '{uri}' or below it (looked for {kinds}).")
