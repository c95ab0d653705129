"""Files that are written whole or not at all, and what identifies them."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from moce.errors import Busy, UserError

LOCK = ".lock"  # of a run folder; it stays


@contextmanager
def told_why(path: str | Path) -> Iterator[None]:
    """What keeps the block from writing `path` becomes a UserError: a full disk, a missing permission."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # No space left, quota exceeded, file too large; safetensors has the number in its text alone.
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if any(
            number == getattr(error, "errno", None) or f"os error {number})" in str(error) for number in full
        ):
            raise UserError(
                f"Cannot write {path}: the disk is full; free some space and run again."
            ) from None
        if isinstance(error, IsADirectoryError | NotADirectoryError | PermissionError):
            raise UserError(f"Cannot write {path}: {error.strerror}; choose another place.") from None
        raise


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; choose another place.") from None
    os.close(handle)
    temporary = Path(name)
    try:
        with told_why(path):
            yield temporary
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def locked(path: str | Path, wait: bool = False) -> IO[str]:
    """A lock file that this process holds until it is closed; it goes with the process, however that ends.

    Raises Busy where another process holds it, unless it is waited for, and UserError where there can be none.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")  # noqa: SIM115 - held until it is closed
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}; choose another place.") from None
    # A forked worker holds the lock as well, and may outlive a killed process by seconds.
    os.register_at_fork(after_in_child=lock.close)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if isinstance(error, BlockingIOError):
            raise Busy(
                f"Another process is working in {path.parent}; wait for it or choose another --out."
            ) from None
        raise UserError(f"{path} cannot be locked: {error.strerror}; choose another place.") from None
    return lock


@contextmanager
def held(path: str | Path, wait: bool = True) -> Iterator[None]:
    """Keep other processes that ask for the same out of the block, by a lock file at `path`, which stays."""
    with locked(path, wait):
        yield


def drop_leftovers(folder: Path) -> None:
    """Remove temporary files that a killed process left in a run folder; the folder's lock must be held.

    Not those in folders that have a lock of their own: other runs, in which others may work.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if not (path / LOCK).exists():
                drop_leftovers(path)
        elif path.name.startswith(".") and path.name.endswith(".part"):
            path.unlink(missing_ok=True)


def require_writable(path: str | Path) -> None:
    """UserError when a file could not be written at `path`; asked before the work whose result it will hold."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"Cannot write {path}: it is a folder; name a file.")
    if path.exists() and not path.is_file():
        raise UserError(f"Cannot write {path}: it is a device or a pipe; name a file.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(
            f"Cannot write {path}: {above} is no folder that can be written to; choose another place."
        )


# A raw line break occurs in no JSON string, so this finds lists of numbers alone.
NUMBERS = re.compile(r"\[\n\s*([-+.\deE]+(?:,\n\s*[-+.\deE]+)*)\n\s*\]")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, a list of numbers on one line, whole or not at all."""
    with write_whole(path) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; UserError when it is missing or broken."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from None


def sha256_of(*parts: bytes | str) -> str:
    """16 hex digits that identify `parts`, whose boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]


def require_space(folder: str | Path, num_bytes: int) -> None:
    """UserError when the disk of `folder` has less than `num_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"The disk of {folder} has {free / 2**20:,.0f} MiB free and this needs about {num_bytes / 2**20:,.0f} MiB; "
            "free some space or choose another --out."
        )
