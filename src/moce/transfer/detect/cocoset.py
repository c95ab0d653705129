"""A set in COCO's format as pictures with boxes and masks; its pictures are a source like any other."""

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from moce.engine.files import sha256_of
from moce.errors import UserError
from moce.images.decode import UnreadableImage, decode
from moce.images.sources import even_shards
from moce.transfer.detect.annotations import Split, is_numbers, read_split
from moce.transfer.detect.coco_map import mask_library
from moce.transfer.detect.cocofiles import coco_folder, find_pictures, train_and_test


class CocoSet:
    """The pictures of a split by index, with their annotations; a `Source` without labels."""

    labels: Int64[np.ndarray, "images"] | None = None

    def __init__(self, folder: Path, split: Split, channels: int = 3) -> None:
        self.uri, self.split, self.channels = str(split.path), split, channels
        self.names = [image["file_name"] for image in split.images]
        self.pictures = find_pictures(folder, split.path, self.names)
        self.classes = list(split.categories.values())
        self.number = {category: label for label, category in enumerate(split.categories, start=1)}

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Its file_name."""
        return self.names[index]

    def shards(self) -> list[range]:
        """Runs of neighbours."""
        return even_shards(len(self))

    def fingerprint(self) -> str:
        """Of the JSON file, which says the pictures' names and sizes."""
        return sha256_of(self.split.path.read_bytes())

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a picture, as the JSON has it."""
        image = self.split.images[index]
        return image["height"], image["width"]

    def get(self, index: int) -> tuple[UInt8[Tensor, "channels rows columns"], int | None]:
        """The picture, and no label. Raises `UnreadableImage`; UserError for one of another size than the JSON says."""
        image = decode(self.pictures.read(self.names[index]), self.channels)
        height, width = self.size(index)
        if tuple(image.shape[1:]) != (height, width):
            raise UserError(
                f"'{self.names[index]}' has {image.shape[2]} x {image.shape[1]} pixels and {self.uri} says {width} x "
                f"{height}: pictures and annotations are not of one set."
            )
        return image, None

    def instances(
        self, index: int
    ) -> tuple[UInt8[Tensor, "instances rows columns"], Int64[Tensor, "instances"]]:
        """(masks, labels from 1 on) of what one can learn from in a picture."""
        height, width = self.size(index)
        usable = self.split.usable[index]
        masks = [
            torch.from_numpy(np.ascontiguousarray(mask_of(a["segmentation"], height, width))) for a in usable
        ]
        labels = torch.tensor([self.number[a["category_id"]] for a in usable], dtype=torch.int64)
        return torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.uint8), labels

    def ground_truth(self, indices: list[int]) -> dict[str, Any]:
        """COCO's JSON of these pictures, ready to be scored: annotations numbered from 1, each with an area.

        Nothing is left out of it, so that the numbers are those that others get.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in indices:
            image = self.split.images[index]
            images.append({key: image[key] for key in ("id", "file_name", "height", "width")})
            for found in self.split.annotations[index]:
                mask = run_length_mask(found["segmentation"], *self.size(index))
                known = {key: found[key] for key in ("image_id", "category_id", "bbox")}
                area = found.get("area")
                if not is_numbers([area]):
                    area = float(mask_library().area(mask))
                more = {"segmentation": mask, "area": area, "iscrowd": int(bool(found.get("iscrowd")))}
                annotations.append({"id": len(annotations) + 1, **known, **more})
        categories = [{"id": number, "name": name} for number, name in self.split.categories.items()]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def run_length_mask(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A mask as compressed run lengths, whichever of the three ways it was written in."""
    library = mask_library()
    if isinstance(segmentation, list):
        return library.merge(library.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return library.frPyObjects(segmentation, height, width)
    return segmentation


def mask_of(segmentation: Any, height: int, width: int) -> UInt8[np.ndarray, "rows columns"]:
    """A mask as pixels, 0 or 1."""
    return mask_library().decode(run_length_mask(segmentation, height, width))


class CocoTask(NamedTuple):
    """What is learned from and what is tested on."""

    name: str
    train: CocoSet
    test: CocoSet
    tested_on: str  # the split


def open_coco(task: str, root: str | None, channels: int = 3) -> CocoTask:
    """The set of `--task`: train, and test or else val, as COCO's own results are on val.

    UserError where a split is missing, cannot be used, shares pictures with the other, or test has a category that
    train lacks.
    """
    folder = coco_folder(task, root)
    *files, tested_on = train_and_test(folder)
    train, test = (read_split(path) for path in files)
    if unknown := [(n, name) for n, name in test.categories.items() if train.categories.get(n) != name]:
        number, name = unknown[0]
        raise UserError(f"{test.path} has the category {number} '{name}', which {train.path} lacks.")
    if not any(train.usable):
        raise UserError(
            f"{train.path} has no object to learn from: no annotation but crowds and boxes without an area."
        )
    if not any(test.annotations):
        raise UserError(f"{test.path} has no annotation, so there is nothing to compare with.")
    numbered = test._replace(categories=train.categories)  # alike in both
    sets = CocoSet(folder, train, channels), CocoSet(folder, numbered, channels)
    require_apart(*sets)
    return CocoTask(folder.resolve().name, *sets, tested_on)


def require_apart(train: CocoSet, test: CocoSet) -> None:
    """UserError where a picture of test is one of train: the same file, byte for byte, under the same name or id.

    Names or ids alone say nothing: most sets number the pictures of each split from 1.
    """
    where: dict[object, int] = {}
    for index in range(len(train)):
        where |= dict.fromkeys(known_by(train, index), index)
    shared = [
        index
        for index in range(len(test))
        if any(
            same_picture(train, other, test, index)
            for other in {where[key] for key in known_by(test, index) if key in where}
        )
    ]
    if shared:
        raise UserError(
            f"{len(shared)} of the {len(test)} pictures of {test.uri} are also in {train.uri} (first: "
            f"{test.names[shared[0]]}): what is tested must not be learned from; take them out of one of the files."
        )


def known_by(source: CocoSet, index: int) -> tuple[object, ...]:
    """What another split may know a picture by: its path, its name in whichever folder, its id."""
    path = PurePosixPath(source.names[index])
    return path, path.name, source.split.images[index]["id"]


def same_picture(train: CocoSet, of_train: int, test: CocoSet, of_test: int) -> bool:
    """Whether both are the same readable file; it is not read where its length says that it is another."""
    name, other = train.names[of_train], test.names[of_test]
    if train.pictures.num_bytes(name) != test.pictures.num_bytes(other):
        return False
    try:
        content = train.pictures.read(name)
        if content != test.pictures.read(other):
            return False
        decode(content, train.channels)
    except UnreadableImage:  # the same error page twice is no picture
        return False
    return True
