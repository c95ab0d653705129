"""Pictures of any shape, from the first command to the last: channels, heights and widths, patches.

Every case runs through all stages; the customised folder, loaded by timm alone, must then equal the routed model, at
the size of training and at another one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import timm
import torch
from PIL import Image
from timm.layers import resample_abs_pos_embed

from moce.images.augment import centre_crop, finish
from moce.images.reading import read_all
from moce.images.sources import open_images
from moce.images.tasks import open_tasks
from moce.model.weights import load_model
from moce.transfer.encoder import load_encoder
from moce.transfer.pictures import Joined

CPU = torch.device("cpu")
CLASSES = ("dark", "light")
SPLITS = {"train": 8, "test": 3}  # pictures of a class
Write = Callable[[Path, dict[str, list[np.ndarray]]], None]


def draw(label: int, rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """uint8 [height, width, channels]: noise around a level that the class fixes; every channel has its own."""
    level = 60 + 100 * label + 90 * np.arange(channels) / channels
    return (level + rng.normal(0, 20, (height, width, channels))).clip(0, 255).astype(np.uint8)


def as_files(save: Callable[[Path, np.ndarray], None], ending: str) -> Write:
    def write(split: Path, pictures: dict[str, list[np.ndarray]]) -> None:
        for name, own in pictures.items():
            (split / name).mkdir(parents=True)
            for number, pixels in enumerate(own):
                save(split / name / f"{number}.{ending}", pixels)

    return write


def as_parquet(split: Path, pictures: dict[str, list[np.ndarray]]) -> None:
    """Channels first, in nested lists, with the metadata that `datasets` leaves of an Array3D."""
    arrays = [pixels.transpose(2, 0, 1) for own in pictures.values() for pixels in own]
    labels = [label for label, own in enumerate(pictures.values()) for _ in own]
    kind = pa.list_(pa.list_(pa.list_(pa.uint8())))
    features = {
        "image": {"shape": list(arrays[0].shape), "dtype": "uint8", "_type": "Array3D"},
        "label": {"names": list(pictures), "_type": "ClassLabel"},
    }
    table = pa.table({"image": pa.array([a.tolist() for a in arrays], kind), "label": labels})
    split.parent.mkdir(exist_ok=True)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), f"{split}.parquet", row_group_size=5)


PNG = as_files(lambda path, pixels: Image.fromarray(pixels).save(path), "png")
TIFF = as_files(
    lambda path, pixels: tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig"),
    "tif",
)


@dataclass(frozen=True)
class Case:
    """Pictures as they are stored, and the options of a model of them."""

    drawn: tuple[int, int, int]  # height, width, channels
    write: Write
    channels: int
    image_size: str
    patch_size: str
    other_size: tuple[int, int]  # that the model was not trained at


CASES = {
    "grey, made of colour": Case((24, 20, 3), PNG, 1, "16", "8", (24, 32)),
    "colour with alpha": Case((18, 18, 4), PNG, 4, "16", "4", (24, 24)),
    "13 bands in parquet": Case((20, 16, 13), as_parquet, 13, "16", "8", (32, 16)),
    "5 bands in TIFF, wide": Case((16, 30, 5), TIFF, 5, "16x24", "8", (24, 16)),
    "high colour": Case((100, 70, 3), PNG, 3, "96x64", "16", (64, 96)),
    "patches of 7": Case((30, 25, 3), PNG, 3, "28x21", "7", (21, 28)),
    "patches of 8 x 4": Case((20, 20, 3), PNG, 3, "16", "8x4", (24, 16)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_stage_and_timm_take_the_same_shape(command, tmp_path: Path, case: Case) -> None:
    task = tmp_path / "task"
    for number, (split, count) in enumerate(SPLITS.items()):
        rng = np.random.default_rng(number)
        drawn = {
            name: [draw(label, rng, *case.drawn) for _ in range(count)] for label, name in enumerate(CLASSES)
        }
        case.write(task / split, drawn)
    train = str(task / ("train.parquet" if case.write is as_parquet else "train"))

    def moce(*arguments: object) -> None:
        done = command(*arguments, "--quiet", "--device", "cpu")
        assert done.code == 0, done.stderr

    mae, clusters, experts, own = (tmp_path / name for name in ("mae", "clusters", "experts", "own"))
    shape = ["--channels", case.channels, "--image-size", case.image_size, "--patch-size", case.patch_size]
    short = ["--epochs", 1, "--batch-size", 8, "--base-lr", 0.2, "--images", train]
    moce("pretrain", "--preset", "debug", *short, *shape, "--out", mae)
    moce("cluster", mae, "--images", train, "--num-clusters", 2, "--out", clusters)
    gates = ["--gate-start", "random", "--num-experts", 2]
    moce("train-experts", mae, clusters, *short, *gates, "--out", experts)
    moce("customize", experts, "--images", train, "--out", own)
    for model in (mae, experts, own):
        moce("evaluate", model, "--task", task, "--json", tmp_path / f"{model.name}.json")
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("mae", "experts", "own")]
    assert all(r["num_test"] == 2 * SPLITS["test"] and 0 <= r["value"] <= 1 for r in results)
    moce("report", mae, clusters, experts, own, tmp_path / "own.json", "--out", tmp_path / "page.html")
    moce("inspect", own)

    content = json.loads((own / "config.json").read_text())["pretrained_cfg"]
    model, header = load_model(experts)
    assert content["input_size"] == [case.channels, *model.shape.image_size]
    assert len(content["mean"]) == len(content["std"]) == case.channels
    assert content["mean"] == header["about"]["mean"]
    with Image.open(
        own / "nearest.webp"
    ) as beside:  # more channels than a screen has are shown by the first three
        assert beside.mode == "RGB" and beside.size[0] > beside.size[1] / 4
    plain = timm.create_model(f"local-dir:{own}", pretrained=True).eval()
    images = pixels_of(train, case.channels, model.shape.image_size, content)
    cluster = json.loads((own / "choice.json").read_text())["cluster"]
    with torch.no_grad():
        routed = model.tokens(images, model.router(torch.full((len(images),), cluster)))
        assert (plain.forward_features(images) - routed).abs().max() <= 1e-5
        assert routed.std() > 0.1

    same_at_another_size(command, own, case, train, content)


def same_at_another_size(command, own: Path, case: Case, train: str, content: dict) -> None:
    """timm's resizing, ours of an evaluation, and a folder customised for that size are one model."""
    spelled = "x".join(map(str, case.other_size))
    written = own.with_name("resized")
    options = ["--strategy", "vote", "--image-size", spelled, "--images", train, "--quiet"]
    done = command("customize", own.with_name("experts"), *options, "--out", written)
    assert done.code == 0, done.stderr
    bytes_ = torch.randint(0, 256, (3, case.channels, *case.other_size), dtype=torch.uint8)
    images = finish(bytes_, None, content["mean"], content["std"])
    theirs = timm.create_model(f"local-dir:{own}", pretrained=True, img_size=case.other_size).eval()
    native = timm.create_model(f"local-dir:{written}", pretrained=True).eval()
    with torch.no_grad():
        wanted = theirs.forward_features(images)
        assert torch.equal(native.forward_features(images), wanted)
    encoder = load_encoder(str(own), CPU, quiet=True, image_size=case.other_size)
    assert encoder.image_size == case.other_size
    assert (encoder.features(bytes_) - wanted[:, 1:].mean(dim=1)).abs().max() <= 1e-5


def pixels_of(uri: str, channels: int, size: tuple[int, int], content: dict) -> torch.Tensor:
    """Four pictures as the model takes them."""
    source = open_images(uri, channels)
    crops = torch.stack([centre_crop(source.get(index)[0], size) for index in (0, 5, 10, 15)])
    return finish(crops, None, content["mean"], content["std"])


# One model at several sizes, and one process with several counts of channels


def test_a_run_starts_from_one_of_another_size(command, tmp_path: Path, small_runs) -> None:
    shape = ["--image-size", "40x32", "--epochs", "1", "--base-lr", "0"]
    line = ["pretrain", "--preset", "debug", "--images", small_runs.images, "--out", tmp_path / "mae"]
    done = command(*line, *shape, "--init", small_runs.mae)
    assert done.code == 0, done.stderr
    assert "positions resampled from 32 to 40x32 pixels" in done.stderr
    (before, header), (after, new_header) = load_model(small_runs.mae), load_model(tmp_path / "mae")
    assert f"loaded {len(before.state_dict())}, missing 0, unexpected 0" in done.stderr
    assert new_header["about"]["mean"] == header["about"]["mean"]
    for old, new in [
        (before.encoder.pos_embed, after.encoder.pos_embed),
        (before.decoder_pos_embed, after.decoder_pos_embed),
    ]:
        assert torch.equal(new, resample_abs_pos_embed(old, [5, 4], [4, 4]))
    assert torch.equal(before.encoder.patch_embed.proj.weight, after.encoder.patch_embed.proj.weight)


def test_every_kind_of_model_is_evaluated_at_another_size(command, tmp_path: Path, small_runs) -> None:
    for run in (small_runs.mae, small_runs.token_moce, small_runs.moce):
        line = ["evaluate", run, "--task", "toyworld://digits?num=24&size=32", "--image-size", "24x40"]
        done = command(*line, "--json", tmp_path / "result.json", "--quiet")
        assert done.code == 0, done.stderr
        assert json.loads((tmp_path / "result.json").read_text())["settings"]["image_size"] == [24, 40]


def test_pictures_in_grey_and_in_colour_do_not_get_mixed_up(tmp_path: Path) -> None:
    for split, names in {"train": CLASSES, "val": CLASSES[::-1], "test": CLASSES[1:]}.items():
        PNG(tmp_path / split, {name: [np.full((9, 9, 3), (0, 90, 200), np.uint8)] * 3 for name in names})
    for channels in (3, 1, 3):
        task = open_tasks(str(tmp_path), channels=channels)[0]
        assert task.val is not None
        for source in (Joined([task.train, task.val]), task.train, task.test):
            decoded = read_all(source, quiet=True)
            assert decoded is not None and decoded.images.shape[1:] == (channels, 9, 9)
