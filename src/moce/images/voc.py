"""PASCAL VOC2007 as a classification task: which of 20 kinds of things a picture shows, several at once.

An annotation lists objects. A class is shown (1) where an object of it is not marked `difficult`, not judged (-1) where
all of them are, and else absent (0), as in the lists of the challenge itself (ImageSets/Main/CLASS_*.txt).
"""

from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError, parse

import numpy as np
from jaxtyping import Int64

from moce.errors import UserError
from moce.images.torchvision_sets import TorchvisionImages

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class VOCImages(TorchvisionImages):
    """The pictures of one split. No `labels`, which would be one class each, but `targets`: 1, 0 or -1 for each class.

    `uri` names torchvision's VOCDetection. UserError for an annotation that is missing or is none.
    """

    def __init__(self, uri: str, channels: int = 3) -> None:
        super().__init__(uri, channels)
        self.classes = list(VOC_CLASSES)
        self.targets: Int64[np.ndarray, "images classes"] = np.stack(
            [shown(Path(file)) for file in self._set.annotations]
        )


def shown(annotation: Path) -> Int64[np.ndarray, "classes"]:
    """What an annotation says of each class: 1 shown, 0 absent, -1 difficult to see. UserError where it is none."""
    from torchvision.datasets import VOCDetection

    try:
        content = VOCDetection.parse_voc_xml(parse(annotation).getroot())["annotation"]
        objects: list[dict[str, Any]] = content["object"]
        found = [(VOC_CLASSES.index(one["name"]), one.get("difficult", "0") == "1") for one in objects]
    except FileNotFoundError:
        raise UserError(
            f"There is no annotation {annotation}: VOC2007 is not unpacked completely; unpack its archives again."
        ) from None
    except (ParseError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{annotation} is not an annotation of VOC2007 ({error}); unpack it again.") from None
    target = np.zeros(len(VOC_CLASSES), np.int64)
    for number, difficult in found:
        target[number] = 1 if not difficult or target[number] == 1 else -1
    return target
