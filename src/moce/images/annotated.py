"""What the pictures of a folder or a parquet file are annotated with: classes, boxes or masks.

Each is a task of other protocols of `moce evaluate`; a set that is clearly of another kind is refused with the protocol
that takes it, and not for what it lacks.
"""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moce.errors import UserError

TAKEN_BY = {"classes": "knn, linear or finetune", "boxes": "detect", "masks": "segment"}
COCO_FILE = re.compile(r"instances_(train|val|test)(\d{4})?\.json")
MASK_COLUMNS = ("mask", "annotation")
ADE_PARTS = ("training", "validation")
SPLITS = ("train", "val", "test")


def refuse_other_kind(place: Path, needed: str) -> None:
    """UserError where a set is annotated, but not with what is `needed`: classes, boxes or masks."""
    found = annotations_of(place)
    if found and needed not in found:
        kind = found[0]
        raise UserError(
            f"The pictures of {place} have {kind} and no {needed}: give --protocol {TAKEN_BY[kind]}."
        )


def annotations_of(place: Path) -> list[str]:
    """Those of classes, boxes and masks that a set clearly has, by its files' names and columns; most often one."""
    if place.is_file():
        return columns_of(place) if place.suffix == ".parquet" else []
    if not place.is_dir():
        return []
    found = [kind for split in SPLITS for kind in columns_of(place / f"{split}.parquet")]
    if any(COCO_FILE.fullmatch(p.name) for p in [*place.glob("*"), *place.glob("annotations/*")]):
        found.append("boxes")
    if any((place / "annotations" / part).is_dir() for part in ADE_PARTS):
        found.append("masks")
    if any(p.is_dir() for split in ("train", "test") for p in place.glob(f"{split}/*")):
        found.append("classes")
    return list(dict.fromkeys(found))


def columns_of(path: Path) -> list[str]:
    """What the columns of a parquet file are annotations of; [] for a file that is not there or cannot be read."""
    if not path.is_file():
        return []
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return []  # which is said where the file is opened
    masks = [schema.field(name).type for name in MASK_COLUMNS if name in schema.names]
    found = ["masks"] if any(map(holds_bytes, masks)) else []
    if "label" in schema.names and pa.types.is_integer(schema.field("label").type):
        found.append("classes")
    return found


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column may hold files: struct {bytes, path} as on the Hugging Face hub, or plain binary."""
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
