"""The annotations of a set in COCO's format, checked: boxes, categories and masks that can be learned from.

A box may reach out of its picture, but one of which less than half lies inside is refused, and so is a width or height
below 0. Boxes without an area (COCO itself has a few of width 0) are counted and not learned from. Masks are polygons,
run lengths as a list, or run lengths as COCO's text.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

from moce.engine.files import read_json
from moce.errors import UserError

SHOWN = 12  # categories in a sentence
INSIDE = 0.5  # least share of a box that has to lie in its picture


class Split(NamedTuple):
    """The content of one JSON file, by picture."""

    path: Path
    images: list[dict[str, Any]]
    annotations: list[list[dict[str, Any]]]  # by index of the picture; all of them, as they stand
    usable: list[list[dict[str, Any]]]  # those that one can learn from: an area, and no crowd
    categories: dict[int, str]  # name by id, in the order of the ids
    num_flat: int  # boxes without an area


def read_split(path: Path) -> Split:
    """A split's JSON; UserError, naming the annotation, for whatever cannot be used."""
    content = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} is not in COCO's format: it has no list '{key}'.")
    images, categories = (
        by_id(content["images"], path, "image"),
        by_id(content["categories"], path, "category"),
    )
    for number, image in images.items():
        check_image(image, f"{path}: image {number}")
    if not images:
        raise UserError(f"{path} lists no picture.")
    place = {of: index for index, of in enumerate(images)}
    everything: list[list[dict[str, Any]]] = [[] for _ in images]
    usable: list[list[dict[str, Any]]] = [[] for _ in images]
    num_flat = 0
    for annotation in content["annotations"]:
        if not isinstance(annotation, dict):
            raise UserError(
                f"{path} has the annotation {str(annotation)[:40]}, which is no entry with an image_id."
            )
        who = f"{path}: annotation {annotation.get('id')}"
        of, category = annotation.get("image_id"), annotation.get("category_id")
        if not isinstance(of, int) or of not in place:
            raise UserError(f"{who} is of image {of}, which the file does not list.")
        if not isinstance(category, int) or category not in categories:
            some = ", ".join(map(str, sorted(categories)[:SHOWN])) + (
                ", ..." if len(categories) > SHOWN else ""
            )
            raise UserError(f"{who} has the category {category}; the file lists {some}.")
        index, image = place[of], images[of]
        everything[index].append(annotation)
        area = check_box(annotation.get("bbox"), image["height"], image["width"], who)
        check_mask(annotation.get("segmentation"), image["height"], image["width"], who)
        if area <= 0:
            num_flat += 1
        elif not annotation.get("iscrowd"):
            usable[index].append(annotation)
    names = {number: str(categories[number].get("name", number)) for number in sorted(categories)}
    return Split(path, list(images.values()), everything, usable, names, num_flat)


def by_id(rows: list[Any], path: Path, what: str) -> dict[int, dict[str, Any]]:
    """Rows of a list by their id; UserError for a row without one, or with one that is there already."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        number = row.get("id") if isinstance(row, dict) else None
        if not isinstance(number, int):
            raise UserError(f"{path} has a {what} without a whole number as its id.")
        if number in found:
            raise UserError(f"{path} has the {what} id {number} twice.")
        found[number] = row
    return found


def check_image(image: dict[str, Any], who: str) -> None:
    """UserError for a picture without a name or a size."""
    for key in ("height", "width"):
        if isinstance(image.get(key), str):
            raise UserError(
                f"{who} has the {key} '{image[key]}' as a text: write it as a number, without quotes."
            )
    size = (image.get("height"), image.get("width"))
    if not isinstance(image.get("file_name"), str) or not all(isinstance(s, int) and s > 0 for s in size):
        raise UserError(f"{who} needs a file_name, and a height and width that are whole numbers above 0.")


def check_box(box: Any, height: int, width: int, who: str) -> float:
    """The area of a box's part that lies in the picture, 0 for a line or a point.

    UserError for a side below 0, and where less than half of the box lies in the picture.
    """
    if not is_numbers(box) or len(box) != 4:
        raise UserError(f"{who} needs a bbox of four numbers (left, top, width, height), not {box}.")
    left, top, wide, high = box
    if wide < 0 or high < 0:
        side = f"a width of {wide}" if wide < 0 else f"a height of {high}"
        raise UserError(
            f"{who} has the box {box}, with {side}: write left, top, width, height, which of corners x1, y1, x2, "
            "y2 are x1, y1, x2 - x1, y2 - y1."
        )
    if wide == 0 or high == 0:
        return 0.0
    inside = max(min(left + wide, width) - max(left, 0), 0) * max(min(top + high, height) - max(top, 0), 0)
    if inside < INSIDE * wide * high:
        raise UserError(
            f"{who} has the box {box}, of which less than half lies in its picture of {width} x {height}: is it left, "
            "top, width, height in pixels of this picture?"
        )
    return inside


def check_mask(mask: Any, height: int, width: int, who: str) -> None:
    """UserError for a mask that is none, or one of a picture of another size."""
    if isinstance(mask, dict):
        if mask.get("size") != [height, width]:
            raise UserError(
                f"{who} has a mask of {mask.get('size')}; its picture is [{height}, {width}] (height, width)."
            )
        counts = mask.get("counts")
        runs = run_lengths(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
            raise UserError(f"{who} has run lengths that are no whole numbers from 0 on.")
        if sum(runs) != height * width:
            raise UserError(f"{who} has a mask of {sum(runs)} pixels; its picture has {height * width}.")
        return
    polygons = mask if isinstance(mask, list) else []
    if not polygons or not all(
        is_numbers(part) and len(part) >= 6 and len(part) % 2 == 0 for part in polygons
    ):
        raise UserError(
            f"{who} has no mask: segmentation must be run lengths, or polygons of at least three points (x, y, x, "
            "y, ...)."
        )


def is_numbers(values: Any) -> bool:
    """Whether these are finite numbers."""
    return isinstance(values, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )


def run_lengths(text: str) -> list[int] | None:
    """What COCO's text of run lengths says: six bits a character, lowest first, from the third on as differences.

    None where it breaks off; the library itself would read on behind its end.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs
