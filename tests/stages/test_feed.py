"""Where the pictures of a step are cropped."""

from pathlib import Path

import pytest
import torch

from moce.config import PretrainConfig
from moce.images.loader import survey
from moce.images.sources import open_images
from moce.stages.feed import Feed, list_unreadable, open_feed
from moce.verbs import resolve


def feed(device: str, folder: Path | None = None, **options: int) -> Feed:
    images = "toyworld://digits?split=train&num=40&size=32"
    given = {"images": images, "out": "x", "preset": "debug", "device": device, "quiet": True}
    config = resolve(PretrainConfig, {**given, **options})
    source = open_images(images)
    return open_feed(source, survey(source, quiet=True), (32, 32), config, folder=folder)


def test_a_feed_gives_the_pictures_of_a_step() -> None:
    batch = next(feed("cpu").batches(0, 0, 1))
    assert batch.images.shape == (32, 3, 32, 32) and batch.images.device.type == "cpu"


def test_pictures_that_were_met_are_remembered_by_the_run(tmp_path: Path) -> None:
    """What a survey of a sample did not see and training did, before it was interrupted."""
    (met := feed("cpu", tmp_path))._note({7, 3})
    with open(tmp_path / "unreadable-0.txt", "a", encoding="utf-8") as file:
        file.write("\n1")  # the process was killed within 12\tname
    (tmp_path / "unreadable-1.txt").write_text("\n9\ta\n900\tof other pictures")
    again = feed("cpu", tmp_path)
    assert again.unreadable == {3, 7, 9}
    again._note({9, 12})
    assert feed("cpu", tmp_path).unreadable == {3, 7, 9, 12}
    list_unreadable(tmp_path, met.source, {9, 3}, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["unreadable.txt"]
    lines = (tmp_path / "unreadable.txt").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [[str(i), met.source.name(i)] for i in (3, 9)]


def test_steps_say_how_long_whatever_the_epochs() -> None:
    assert feed("cpu", epochs=2).plan.num_steps == 3  # 80 pictures in batches of 32
    assert feed("cpu", epochs=2, steps=7).plan.num_steps == 7


@pytest.mark.gpu
def test_a_gpu_keeps_and_crops_pictures_of_one_size() -> None:
    here, there = (next(feed(device).batches(0, 0, 1)) for device in ("cpu", "cuda"))
    assert there.images.device.type == "cuda" and there.indices.device.type == "cpu"
    assert torch.equal(here.indices, there.indices)
    assert (here.images.int() - there.images.cpu().int()).abs().max() <= 1  # rounding
