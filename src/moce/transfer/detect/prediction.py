"""What a detector finds on the pictures of a split, as COCO's results JSON has it, and what that looks like.

Boxes and masks are brought back to the original pictures by torchvision's own functions, a few masks at a time: the
hundred of a picture of twelve megapixels would be five gigabytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from moce.engine.files import write_whole
from moce.engine.processes import group
from moce.engine.progress import track
from moce.images.augment import finish
from moce.images.loader import in_workers
from moce.images.shown import tint, to_rgb
from moce.transfer.detect.coco_map import mask_library
from moce.transfer.detect.cocoset import CocoSet, mask_of
from moce.transfer.detect.detector import Detector
from moce.transfer.detect.jitter import FramedPictures
from moce.transfer.encoder import Encoder

BATCH = 8
PASTED = 8  # masks of the original picture's size that are held at a time
SHOWN = 12  # pictures that are drawn
SURE = 0.5  # least score of what is drawn
LONGEST = 384  # side of a drawn picture, in pixels


@torch.no_grad()
def predict(
    detector: Detector, encoder: Encoder, source: CocoSet, device: torch.device, num_workers: int, quiet: bool
) -> tuple[list[dict[str, Any]], list[int]]:
    """(COCO's results, indices of the pictures that could be read), of all processes in the first one."""
    detector.eval()
    processes = group()
    own = processes.share(len(source))
    side = encoder.image_size[0]
    pictures = in_workers(FramedPictures(source, side, encoder.mean), own, num_workers)
    results: list[dict[str, Any]] = []
    read: list[int] = []
    held: list[tuple[int, Tensor, tuple[int, int]]] = []

    def clear() -> None:
        images = finish(
            torch.stack([image for _, image, _ in held]).to(device), None, encoder.mean, encoder.std
        )
        sizes = [size for _, _, size in held]
        found, _ = detector(images, sizes)
        for (index, _, size), own in zip(held, found, strict=True):
            results.extend(rows(own, size, source, index))
            read.append(index)
        held.clear()

    with track(len(source), f"objects of {source.uri}", quiet=quiet) as bar:
        for index, image, size in pictures:
            if image is not None:
                held.append((index, image, tuple(size)))
            if len(held) == BATCH:
                clear()
            bar.advance(processes.world)  # the others are as far, more or less
        if held:
            clear()
    return processes.collect(results), processes.collect(read)


def rows(
    found: dict[str, Tensor], size: tuple[int, int], source: CocoSet, index: int
) -> list[dict[str, Any]]:
    """The detections of a picture in COCO's format: boxes as left, top, width, height, masks as run lengths.

    `size` is the (height, width) that the detector saw the picture in. What is found refers to that, a mask to its box.
    """
    categories = list(source.split.categories)
    edges = resize_boxes(found["boxes"], size, source.size(index))
    boxes = edges.double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    masks = packed_masks(found["masks"], edges, source.size(index))
    return [
        {
            "image_id": source.split.images[index]["id"],
            "category_id": categories[label - 1],
            "bbox": [round(side, 3) for side in box],
            "score": score,
            "segmentation": mask,
        }
        for box, score, label, mask in zip(
            boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), masks, strict=True
        )
    ]


def packed_masks(
    masks: Float[Tensor, "instances 1 side side"], boxes: Float[Tensor, "instances 4"], size: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Masks of boxes as run lengths of a picture of (height, width) `size`."""
    for some, around in zip(masks.split(PASTED), boxes.split(PASTED), strict=True):
        pixels = (paste_masks_in_image(some, around, size)[:, 0] > 0.5).byte().cpu().numpy()
        for mask in pixels:
            runs = mask_library().encode(mask.copy(order="F"))
            counts = runs["counts"]
            yield {
                "size": list(runs["size"]),
                "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
            }


def draw(source: CocoSet, read: list[int], results: list[dict[str, Any]], folder: Path) -> list[str]:
    """Names of at most 12 pictures written to `folder`: an evenly chosen one each, as annotated and as predicted."""
    by_image: dict[int, list[dict[str, Any]]] = {}
    for row in results:
        if row["score"] >= SURE:
            by_image.setdefault(row["image_id"], []).append(row)
    names = []
    for number in range(min(SHOWN, len(read))):
        index = read[number * len(read) // min(SHOWN, len(read))]
        image = torch.from_numpy(to_rgb(source.get(index)[0])).movedim(-1, 0).contiguous()
        found = by_image.get(source.split.images[index]["id"], [])
        halves = [drawn(image, objects, source) for objects in (source.split.annotations[index], found)]
        both = Image.fromarray(torch.cat(halves, dim=2).movedim(0, -1).numpy())
        both.thumbnail((2 * LONGEST, LONGEST), Image.Resampling.LANCZOS)
        names.append(f"predictions-{number:02d}.png")
        with write_whole(folder / names[-1]) as temporary:
            both.save(temporary, format="PNG")
    return names


def drawn(
    image: UInt8[Tensor, "3 rows columns"], objects: list[dict[str, Any]], source: CocoSet
) -> UInt8[Tensor, "3 rows columns"]:
    """A picture with the boxes and masks of COCO's annotations or results."""
    kept = [o for o in objects if not o.get("iscrowd") and min(o["bbox"][2:]) > 0]
    if not kept:
        return image
    colours = [
        tint(source.number[o["category_id"]] - 1 if len(source.number) > 1 else i) for i, o in enumerate(kept)
    ]
    masks = torch.stack([torch.from_numpy(mask_of(o["segmentation"], *image.shape[1:])) for o in kept]).bool()
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (o["bbox"] for o in kept)])
    texts = [text(o, source) for o in kept]
    return draw_bounding_boxes(draw_segmentation_masks(image, masks, 0.5, colours), boxes, texts, colours)


def text(found: dict[str, Any], source: CocoSet) -> str:
    """What stands beside a box: the category, and the score of a prediction."""
    name = source.split.categories[found["category_id"]]
    return f"{name} {100 * found['score']:.0f}" if "score" in found else name
