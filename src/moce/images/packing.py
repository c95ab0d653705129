"""Files of many prepared pictures: parquet, tar, or one array.

Each function takes pictures from an iterator until it ends and leaves one whole file (or, of the array, so many more
rows). Nothing in a file depends on when, where or by how many processes it was written.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from moce.engine.files import told_why, write_whole
from moce.images.shrink import Small

ROW_GROUP = 64  # pictures: what one random access reads
KEY_LENGTH = 80  # characters of a name in a tar key; old tar headers end at 100

Labels = Int64[np.ndarray, "images"] | None
"""Class numbers by index of the source."""


def stored_bytes(picture: Small, format: str, labelled: bool) -> int:
    """Room that a picture takes in a file: tar puts 512 bytes before each member and fills it up to a multiple."""
    if format == "tar":
        return 512 + -(-len(picture.data) // 512) * 512 + 1024 * labelled
    return len(picture.data) + (len(picture.name) + 16) * (format == "parquet")


def write_parquet(path: Path, pictures: Iterator[Small], labels: Labels, classes: list[str] | None) -> None:
    """Rows {image: {bytes, path}, label}, in the schema that the `datasets` library writes and reads.

    Not compressed, since JPEGs are, and without statistics of the pictures, which would be pictures.
    """
    fields = [pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))]
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if labels is not None:
        fields.append(pa.field("label", pa.int64()))
        features["label"] = {"names": classes, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(fields, metadata=metadata)
    with write_whole(path) as temporary, pq.ParquetWriter(
        temporary, schema, compression="none", use_dictionary=False, write_statistics=["label"]
    ) as writer:  # fmt: skip
        while group := list(islice(pictures, ROW_GROUP)):
            columns = [pa.array([{"bytes": p.data, "path": p.name} for p in group], fields[0].type)]
            if labels is not None:
                columns.append(pa.array([int(labels[p.number]) for p in group], pa.int64()))
            writer.write_batch(pa.record_batch(columns, schema=schema), row_group_size=ROW_GROUP)


def write_tar(path: Path, pictures: Iterator[Small], labels: Labels) -> None:
    """Members KEY.jpg and KEY.cls, as the `webdataset` library reads them."""
    with write_whole(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for picture in pictures:
            _add_member(tar, f"{tar_key(picture)}.jpg", picture.data)
            if labels is not None:
                _add_member(tar, f"{tar_key(picture)}.cls", b"%d" % labels[picture.number])


def tar_key(picture: Small) -> str:
    """'000000012-cats_tom': the index in the source, which makes it unique, and the name without dots and slashes."""
    stem = re.sub(r"\.\w{1,5}$", "", picture.name)
    return f"{picture.number:09d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', stem)[-KEY_LENGTH:]}"


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # belongs to nobody and is from 1970: the same file whoever writes it
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def append_rows(path: Path, pictures: Iterable[Small], shape: tuple[int, int, int], num_before: int) -> None:
    """Add pixels to an array of `num_before` pictures; what lies behind those (of a process that died) is dropped.

    The header says 0 pictures until `finish_array`.
    """
    with told_why(path), open(path, "r+b" if num_before else "w+b") as file:
        if not num_before:
            _write_header(file, 0, shape)
        else:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            file.truncate(file.tell() + num_before * int(np.prod(shape)))
            file.seek(0, io.SEEK_END)
        for picture in pictures:
            file.write(picture.data)
        _to_disk(file)


def finish_array(path: Path, num_images: int, shape: tuple[int, int, int]) -> None:
    """Write the number of pictures into the header, whose length does not depend on it."""
    with told_why(path), open(path, "r+b") as file:
        _write_header(file, num_images, shape)
        _to_disk(file)


def append_names(path: Path, names: Iterable[str], num_before: int) -> None:
    """Add names, one a line, to those of `num_before` pictures; what lies behind those is dropped."""
    earlier = path.read_bytes().split(b"\n")[:num_before] if num_before else []
    lines = [*earlier, *(re.sub(r"[\r\n]", " ", name).encode() for name in names)]
    with write_whole(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))


def _write_header(file: IO[bytes], num_images: int, shape: tuple[int, int, int]) -> None:
    file.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
