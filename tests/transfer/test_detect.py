"""Detection as a whole: what is trained, what is scored, what is left behind, what is refused."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_coco import draw_set, read, write
from faster_coco_eval.core import mask as masks
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import moce
from moce.errors import UserError
from moce.transfer.detect import cocoset, prediction, protocol
from moce.transfer.detect.coco_map import coco_map
from moce.transfer.detect.cocoset import CocoSet, mask_of, open_coco
from moce.transfer.detect.detector import Detector
from moce.transfer.detect.jitter import JitteredBatches
from moce.transfer.encoder import load_encoder

CPU = torch.device("cpu")
SHORT: dict[str, Any] = {
    "protocol": "detect", "image_size": 64, "epochs": 2, "batch_size": 2, "num_workers": 0, "quiet": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("sets") / "shapes", num_train=6, num_val=3)


@pytest.fixture(scope="module")
def finished(small_runs, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps; its folder."""
    out = tmp_path_factory.mktemp("detect") / "run"
    moce.evaluate(small_runs.mae, task=shapes, out=out, json=out.parent / "result.json", **SHORT)
    return out


# The number


def test_map_is_that_of_pycocotools(shapes: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    task = open_coco(str(shapes), None)
    truth = task.train.ground_truth(list(range(len(task.train))))
    truth["annotations"][3]["iscrowd"] = 1
    random = np.random.default_rng(0)
    results = []
    for annotation in truth["annotations"]:
        for _ in range(3):
            shift = random.integers(-4, 5, 2)
            mask = np.roll(masks.decode(annotation["segmentation"]), shift, (0, 1))
            packed = masks.encode(np.asfortranarray(mask))
            packed["counts"] = (
                packed["counts"].decode() if isinstance(packed["counts"], bytes) else packed["counts"]
            )
            left, top, width, height = annotation["bbox"]
            box = [
                left + float(shift[1]),
                top + float(shift[0]),
                width + float(random.normal()),
                float(height),
            ]
            label = annotation["category_id"] if random.random() < 0.8 else 3
            score = float(random.random())
            results.append(
                {"image_id": annotation["image_id"], "category_id": label, "bbox": box, "score": score}
            )
            results[-1]["segmentation"] = packed
    scores, per_class = coco_map(truth, results)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        there = COCO()
        there.dataset = json.loads(json.dumps(truth, default=lambda b: b.decode()))
        there.createIndex()
        own = json.loads(json.dumps(results))
        if kind == "segm":
            own = [{k: v for k, v in row.items() if k != "bbox"} for row in own]
        judge = COCOeval(there, there.loadRes(own), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        ours = [scores[f"{name}_map{suffix}"] for suffix in ("", "_50", "_75", "_small", "_medium", "_large")]
        theirs = [None if value < 0 else value for value in judge.stats[:6]]
        assert ours == pytest.approx(theirs, abs=1e-9)
        assert 0.05 < ours[0] < 0.95  # type: ignore[operator]
        if name == "box":
            assert np.mean(per_class) == pytest.approx(judge.stats[0])  # type: ignore[arg-type]


def test_nothing_found_scores_nothing(shapes: Path) -> None:
    task = open_coco(str(shapes), None)
    scores, per_class = coco_map(task.test.ground_truth([0, 1, 2]), [])
    assert scores["box_map"] == scores["mask_map"] == 0 and scores["box_map_large"] is None
    assert per_class == [0, 0]


# The way back to the picture

PICTURES = [(100, 200), (300, 90)]  # height, width


@pytest.fixture
def unequal(tmp_path: Path) -> CocoSet:
    """Two pictures that the detector sees at 32 x 64 and 64 x 19; a third one to test on."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate([*PICTURES, (40, 40)], start=1):
        Image.new("RGB", (width, height)).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        box = {"bbox": [0, 0, 9, 9], "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
        annotations.append({"id": number, "image_id": number, "category_id": 7, **box})
    categories = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
    for split in ("train", "val"):
        some = slice(2) if split == "train" else slice(2, None)
        write(
            tmp_path,
            split,
            {"images": images[some], "annotations": annotations[some], "categories": categories},
        )
    return open_coco(str(tmp_path), None).train


class Knowing(Detector):
    """Finds what it is told, in the square's pixels, whatever it sees."""

    def __init__(self, found: list[dict[str, torch.Tensor]]) -> None:
        torch.nn.Module.__init__(self)
        self.found = found
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: Any, sizes: Any, targets: Any = None) -> Any:
        self.sizes += sizes
        return [dict(found) for found in self.found], {}


def test_boxes_and_masks_are_given_in_pixels_of_the_original_picture(small_runs, unequal: CocoSet) -> None:
    encoder = load_encoder(str(small_runs.mae), CPU, image_size=(64, 64))
    left_half = torch.zeros(1, 1, 28, 28)
    left_half[..., :14] = 1.0
    # Edges in the original pictures (left, top, right, bottom), and what a pixel of them is in the square.
    edges = [(50.0, 10.0, 150.0, 70.0), (9.0, 150.0, 81.0, 270.0)]
    scales = [(64 / 200, 32 / 100), (19 / 90, 64 / 300)]
    detector = Knowing(
        [
            {
                "boxes": torch.tensor([box]) * torch.tensor([wide, high, wide, high]),
                "labels": torch.tensor([2]),
                "scores": torch.tensor([0.75]),
                "masks": left_half,
            }
            for box, (wide, high) in zip(edges, scales)
        ]
    )
    found, read_ones = prediction.predict(detector, encoder, unequal, CPU, 0, True)
    assert detector.sizes == [(32, 64), (64, 19)] and read_ones == [0, 1]
    assert [(r["image_id"], r["category_id"], r["score"]) for r in found] == [(1, 7, 0.75), (2, 7, 0.75)]
    for row, (left, top, right, bottom), (height, width) in zip(found, edges, PICTURES):
        assert row["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=0.01)
        assert row["segmentation"]["size"] == [height, width]
        mask = mask_of(row["segmentation"], height, width)
        (first_row, first), (last_row, last) = (ends(np.argwhere(mask), axis=0) for ends in (np.min, np.max))
        middle = (left + right) / 2
        outside = [first - left, first_row - top, last + 1 - middle, last_row + 1 - bottom]
        assert np.abs(outside).max() <= 1
        assert mask[first_row + 1 : last_row, first + 1 : last].all()  # but for rounded corners


def test_masks_pasted_a_few_at_a_time_are_those_of_torchvision(unequal: CocoSet, monkeypatch) -> None:
    random = torch.Generator().manual_seed(0)
    num_found = 2 * prediction.PASTED + 3
    corners = torch.rand(num_found, 2, generator=random) * torch.tensor([40.0, 20.0])
    sides = torch.rand(num_found, 2, generator=random) * torch.tensor([24.0, 12.0])
    found = {
        "boxes": torch.cat([corners, corners + sides], dim=1),
        "labels": torch.arange(num_found) % 2 + 1,
        "scores": torch.rand(num_found, generator=random),
        "masks": torch.rand(num_found, 1, 28, 28, generator=random),
    }
    whole = GeneralizedRCNNTransform(64, 64, [0.0] * 3, [1.0] * 3).eval()
    theirs = whole.postprocess([dict(found)], [(32, 64)], [PICTURES[0]])[0]
    held = []
    paste = prediction.paste_masks_in_image

    def watched(masks_now: torch.Tensor, *others: Any) -> torch.Tensor:
        held.append(len(masks_now))
        return paste(masks_now, *others)

    monkeypatch.setattr(prediction, "paste_masks_in_image", watched)
    ours = prediction.rows(found, (32, 64), unequal, 0)
    assert len(ours) == num_found == sum(held) and max(held) == prediction.PASTED
    for row, box, mask in zip(ours, theirs["boxes"].tolist(), theirs["masks"][:, 0]):
        left, top, right, bottom = box
        assert row["bbox"] == pytest.approx([left, top, right - left, bottom - top], abs=1e-3)
        assert np.array_equal(mask_of(row["segmentation"], *PICTURES[0]), (mask > 0.5).numpy())
    nothing = {name: values[:0] for name, values in found.items()}
    assert prediction.rows(nothing, (32, 64), unequal, 0) == []


# A run


def test_a_run_leaves_its_numbers_predictions_and_pictures(finished: Path, shapes: Path, small_runs) -> None:
    result = json.loads((finished.parent / "result.json").read_text())
    assert result == json.loads((finished / "result.json").read_text())
    assert (result["schema"], result["protocol"], result["metric"], result["task"]) == (
        1,
        "detect",
        "box_map",
        "shapes",
    )
    assert (result["num_train"], result["num_test"], result["num_objects_per_class"]) == (6, 3, [3, 3])
    assert (
        0 <= result["value"] == result["scores"]["box_map"]
        and result["mask_map"] == result["scores"]["mask_map"]
    )
    assert result["training"]["steps"] == 6 and result["settings"]["preset"] == "small"
    rows = json.loads((finished / result["predictions"]).read_text())
    images = {image["id"] for image in read(shapes, "val")["images"]}
    assert all(row["image_id"] in images and row["category_id"] in (3, 7) for row in rows)
    scores, _ = coco_map(open_coco(str(shapes), None).test.ground_truth([0, 1, 2]), rows)
    assert scores == result["scores"]
    assert result["pictures"] == [f"predictions-{n:02d}.png" for n in range(3)]
    with Image.open(finished / result["pictures"][0]) as picture:
        assert picture.size == (128, 56)
    again = moce.evaluate(small_runs.mae, task=shapes, out=finished, **SHORT)
    assert again == result
    with pytest.raises(UserError, match="--epochs was 2 and is now 3"):
        moce.evaluate(small_runs.mae, task=shapes, out=finished, **{**SHORT, "epochs": 3})


def test_the_same_seed_gives_the_same_number_and_a_broken_off_run_goes_on_exactly(
    finished: Path, shapes: Path, small_runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads((finished / "result.json").read_text())
    batches = JitteredBatches.__getitem__

    def pulled(self: JitteredBatches, step: int) -> Any:
        if step == 5:
            raise OSError("somebody pulled the plug")
        return batches(self, step)

    again = {"task": shapes, "out": tmp_path / "run", "checkpoint_steps": 2, **SHORT}
    with monkeypatch.context() as patch:
        patch.setattr(JitteredBatches, "__getitem__", pulled)
        with pytest.raises(OSError, match="plug"):
            moce.evaluate(small_runs.mae, **again)
    assert [p.name for p in sorted((tmp_path / "run" / "checkpoints").iterdir())][-1].startswith(
        "step-000000004"
    )
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "predict", lambda *_: 1 / 0)  # and once more between training and testing
        with pytest.raises(ZeroDivisionError):
            moce.evaluate(small_runs.mae, **again)
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "train", lambda *_, **__: 1 / 0)  # which is not repeated
        result = moce.evaluate(small_runs.mae, **again)
    for key in ("scores", "per_class", "value", "num_train", "num_test", "pictures", "settings"):
        assert result[key] == whole[key], key
    files = ("detector.safetensors", "predictions.json")
    assert all((finished / name).read_bytes() == (tmp_path / "run" / name).read_bytes() for name in files)


def test_without_a_place_for_them_nothing_is_left(
    small_runs, shapes: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = moce.evaluate(
        small_runs.moce, task=shapes, **{**SHORT, "epochs": 1}
    )  # a slice by votes, as elsewhere
    assert not {"pictures", "predictions", "folder"} & result.keys()
    assert (
        result["method"] == "MoCE"
        and result["choice"]["strategy"] == result["settings"]["strategy"] == "vote"
    )
    assert list(tmp_path.iterdir()) == []


def test_token_experts_are_trained_with_their_balance(small_runs, shapes: Path, tmp_path: Path) -> None:
    options = {**SHORT, "epochs": 1, "window": 4}
    moce.evaluate(small_runs.token_moce, task=shapes, json=tmp_path / "result.json", **options)
    line = json.loads((tmp_path / "result" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["balance"] > 0 and line["masks"] > 0
    assert line["loss"] == pytest.approx(
        sum(line[part] for part in ("objectness", "proposals", "classes", "boxes", "masks", "balance")),
        rel=1e-4,
    )


def test_the_page_and_inspect_show_a_run(finished: Path, tmp_path: Path, command) -> None:
    for given in (finished, finished.parent / "result.json"):
        found = moce.report([str(given)], out=tmp_path / "page.html", overwrite=True, quiet=True)
        assert {"results", "predictions"} <= set(found["sections"])
        page = (tmp_path / "page.html").read_text()
        assert page.count("a test picture as annotated and as predicted") == 3
        assert "Detection: the whole model" in page
    shown = command("inspect", finished)
    assert shown.code == 0 and "box_map" in shown.stdout
    moved = tmp_path / "moved"
    shutil.copytree(finished, moved)
    (moved / "predictions-00.png").write_bytes(b"no picture")
    moce.report([str(moved)], out=tmp_path / "page.html", overwrite=True, quiet=True)
    assert (tmp_path / "page.html").read_text().count("a test picture as annotated") == 2


# What is refused


def test_what_detection_cannot_do(small_runs, shapes: Path, tmp_path: Path) -> None:
    for options, words in [
        ({"task": "all", "data_root": shapes.parent}, "name one set in COCO's format"),
        ({"lrs": (1e-3, 1e-4)}, "give one learning rate as --lrs"),
        ({"protocol": "knn,detect"}, "--protocol detect goes alone"),
        ({"protocol": "knn"}, "--out is for --protocol finetune, detect, segment"),
        ({"image_size": 72}, "multiple of 32; give 64"),
        ({"model": "timm:test_convnext?pretrained=false"}, "gives no map of patches"),
        ({"model": small_runs.moce, "strategy": "knn"}, "give --strategy vote"),
        ({"model": small_runs.moce, "strategy": "oracle"}, "would take too long with --protocol detect"),
    ]:
        given = {"model": small_runs.mae, "task": shapes, "out": tmp_path / "run", **SHORT, **options}
        with pytest.raises(UserError, match=words):
            moce.evaluate(**given)
    assert not (tmp_path / "run").exists()


def test_the_library_is_named_where_it_is_missing(small_runs, shapes: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UserError, match=r"pip install 'moce\[detection\]'"):
        moce.evaluate(small_runs.mae, task=shapes, **SHORT)


def test_broken_pictures_are_left_out_of_both_splits(small_runs, shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shapes, folder)
    content = read(folder, "val")
    for number in range(22):  # so that one is less than 5 %
        image = {**content["images"][0], "id": 100 + number, "file_name": f"val/copy-{number}.jpg"}
        shutil.copy(folder / "images" / "val" / "000.jpg", folder / "images" / image["file_name"])
        content["images"].append(image)
    write(folder, "val", content)
    (folder / "images" / "val" / "001.jpg").write_bytes(b"no picture")
    result = moce.evaluate(small_runs.mae, task=folder, out=tmp_path / "run", **{**SHORT, "epochs": 1})
    assert (result["unreadable"], result["num_test"], result["num_objects_per_class"]) == (1, 24, [2, 2])
    (folder / "images" / "train" / "001.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read"):
        moce.evaluate(small_runs.mae, task=folder, out=tmp_path / "other", **SHORT)


# Learning


@pytest.fixture
def by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests what was learned from, which is refused otherwise."""
    monkeypatch.setattr(cocoset, "require_apart", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("by_heart")
def test_eight_drawn_pictures_are_learned_by_heart(small_runs, tmp_path: Path) -> None:
    folder = draw_set(tmp_path / "shapes", num_train=8, same=True)
    options = {**SHORT, "epochs": 60, "batch_size": 4, "lrs": (2e-3,), "layer_decay": 0.9}
    result = moce.evaluate(small_runs.mae, task=folder, out=tmp_path / "run", **options)
    assert result["value"] > 0.5
    assert result["mask_map"] > 0.5


@pytest.mark.slow
@pytest.mark.packs
@pytest.mark.usefixtures("by_heart")
def test_eight_photographs_are_learned_by_heart(small_runs, packs: Path, tmp_path: Path) -> None:
    """Of few and large objects, so that minutes suffice."""
    content = read(packs / "coco-mini")
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    few = [
        number for number, own in by_image.items() if len(own) <= 3 and min(a["area"] for a in own) > 32**2
    ][:8]
    content["images"] = [image for image in content["images"] if image["id"] in few]
    content["annotations"] = [annotation for number in few for annotation in by_image[number]]
    shutil.copy(packs / "coco-mini" / "images.zip", tmp_path)
    for split in ("train", "val"):
        write(tmp_path, split, content)
    options = {**SHORT, "image_size": 224, "epochs": 120, "batch_size": 4, "lrs": (2e-3,), "layer_decay": 0.9}
    result = moce.evaluate(small_runs.mae, task=tmp_path, out=tmp_path / "run", **options)
    assert len(few) == 8 and result["value"] > 0.5
