"""COCO's mean average precision of boxes and masks, computed by faster-coco-eval.

Average precision over overlaps of 0.50 to 0.95 and categories; for small, medium and large ones of areas below 32^2,
below 96^2 and above; at most 100 detections a picture. Crowds count neither way.
"""

import copy
from types import ModuleType
from typing import Any

import numpy as np

from moce.errors import UserError

KINDS = {"box": "bbox", "mask": "segm"}
VALUES = {
    "": "AP_all",
    "_50": "AP_50",
    "_75": "AP_75",
    "_small": "AP_small",
    "_medium": "AP_medium",
    "_large": "AP_large",
}  # suffix of our name: faster-coco-eval's


def library() -> ModuleType:
    """faster-coco-eval; UserError where it is not installed."""
    try:
        import faster_coco_eval
    except ImportError:
        raise UserError(
            "--protocol detect needs the library faster-coco-eval: pip install 'moce[detection]'."
        ) from None
    return faster_coco_eval


def mask_library() -> ModuleType:
    """Its masks: run lengths, polygons, areas."""
    library()
    from faster_coco_eval.core import mask

    return mask


def coco_map(
    truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[dict[str, float | None], list[float | None]]:
    """(scores, box mAP of each category) of results in COCO's format.

    Scores are box_map, box_map_50, box_map_75, box_map_small, box_map_medium, box_map_large and the same of mask_map,
    0 to 1; None where there is nothing of that kind to find.
    """
    found = library()
    scores: dict[str, float | None] = {}
    of_categories: list[float | None] = []
    for kind, name in KINDS.items():
        own = copy.deepcopy(results)
        if kind == "mask":
            for row in own:  # else the area of a detection would be that of its box
                del row["bbox"]
        there = found.COCO(copy.deepcopy(truth))
        judged = found.COCOeval_faster(there, there.loadRes(own), name)
        judged.run()
        values = judged.stats_as_dict
        scores |= {f"{kind}_map{suffix}": known(values[label]) for suffix, label in VALUES.items()}
        if kind == "box":
            precision = judged.eval["precision"][:, :, :, 0, -1]  # overlaps, recalls, categories; all areas
            for number in range(precision.shape[2]):
                there_is = precision[:, :, number][precision[:, :, number] > -1]
                of_categories.append(known(float(np.mean(there_is)) if there_is.size else -1.0))
    return scores, of_categories


def known(value: float) -> float | None:
    """COCO's -1 says that there is nothing to find."""
    return None if value < 0 else float(value)
