"""The toy world: every picture is a function of its name, whoever draws it, and colour says nothing about the class."""

import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from shared import PATIENCE

from moce.errors import UserError
from moce.images.sources import Source, open_images
from moce.images.toyworld import KINDS, MADE, NATURAL, ToyWorld, contact_sheet, picture, world
from moce.images.toyworld.writing import DIGITS, handwritten

CLASSES = [(kind, name) for kind, names in KINDS.items() for name in names]


def test_there_are_two_equal_halves_of_kinds_with_six_classes_each() -> None:
    assert len(KINDS) >= 8 and len(NATURAL) == len(MADE)
    assert sorted([*NATURAL, *MADE]) == sorted(KINDS)
    assert all(len(names) == len(set(names)) == 6 for names in KINDS.values())


@pytest.mark.parametrize(("kind", "name"), CLASSES)
def test_a_picture_is_a_function_of_its_name(kind: str, name: str) -> None:
    first = picture(kind, name, "train", 3, 32, 0)
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and first.std() > 8
    assert np.array_equal(first, picture(kind, name, "train", 3, 32, 0))
    others = [
        picture(kind, name, "train", 4, 32, 0),
        picture(kind, name, "test", 3, 32, 0),
        picture(kind, name, "train", 3, 32, 1),
    ]
    assert all(not np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_shows_the_same_scene(kind: str) -> None:
    for name in KINDS[kind]:
        small = picture(kind, name, "test", 0, 32).astype(float)
        large = picture(kind, name, "test", 0, 64).astype(float).reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.corrcoef(small.ravel(), large.ravel())[0, 1] > 0.9, name


def test_the_largest_and_the_smallest_size() -> None:
    assert ToyWorld("toyworld://plants?size=256&num=1").get(0)[0].shape == (3, 256, 256)
    assert ToyWorld("toyworld://plants?size=16&num=1").get(0)[0].shape == (3, 16, 16)


def test_it_is_a_source() -> None:
    toys = open_images("toyworld://creatures?split=test&num=15")
    assert isinstance(toys, ToyWorld) and isinstance(toys, Source)
    assert toys.classes == KINDS["creatures"]
    assert toys.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1, 2]
    image, label = toys.get(13)
    assert image.dtype == torch.uint8 and image.shape == (3, 32, 32) and label == 1
    assert toys.name(13) == "creatures/owl/test-000002"
    assert [i for shard in toys.shards() for i in shard] == list(range(15))
    with pytest.raises(IndexError):
        toys.get(15)


def test_all_kinds_are_numbered_kind_after_kind() -> None:
    toys = ToyWorld("toyworld://all?num=144&size=16")
    assert len(toys.classes) == len(set(toys.classes)) == 6 * len(KINDS)
    assert toys.kind_names == list(KINDS) and toys.kinds.tolist() == [i // 6 % len(KINDS) for i in range(144)]
    assert toys.classes[7] == f"{list(KINDS)[1]}/{KINDS[list(KINDS)[1]][1]}"
    assert np.bincount(toys.labels).tolist() == [2] * len(toys.classes)
    for half, kinds in (("natural", NATURAL), ("made", MADE)):
        part = ToyWorld(f"toyworld://{half}")
        assert part.kind_names == kinds and {c.split("/")[0] for c in part.classes} == set(kinds)


def test_a_kind_shows_the_same_pictures_alone_and_among_all() -> None:
    every, own = ToyWorld("toyworld://all?num=144"), ToyWorld("toyworld://vehicles?num=12")
    by_name = {every.name(i): i for i in range(len(every))}
    assert torch.equal(every.get(by_name[own.name(7)])[0], own.get(7)[0])


def test_a_smaller_number_is_the_beginning_of_a_larger_one() -> None:
    few, many = (ToyWorld(f"toyworld://shapes?num={num}&size=16").array(1) for num in (6, 20))
    assert torch.equal(few, many[:6])


def test_the_number_of_processes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "_SERIAL", 0)
    monkeypatch.setattr(world, "_CHUNK", 50)
    uri = "toyworld://shapes?num=120&size=16"
    toys = ToyWorld(uri)
    together = toys.array(2)
    assert together.shape == (120, 3, 16, 16)
    assert torch.equal(together, ToyWorld(uri).array(1))
    assert toys.array() is together, "drawn once"
    for index in (0, 49, 50, 119):
        assert torch.equal(ToyWorld(uri).get(index)[0], together[index])
    assert torch.equal(toys.get(119)[0], together[119])


def test_processes_that_draw_end_at_sigterm_whatever_this_one_makes_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def _draw_part(self: ToyWorld, start: int) -> np.ndarray:
        as_usual = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        return np.full((50, 3, 16, 16), as_usual, np.uint8)

    monkeypatch.setattr(world, "_SERIAL", 0)
    monkeypatch.setattr(world, "_CHUNK", 50)
    monkeypatch.setattr(ToyWorld, "_draw_part", _draw_part)  # by the name that workers ask for
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        assert ToyWorld("toyworld://shapes?num=100&size=16").array(2).all()
    finally:
        signal.signal(signal.SIGTERM, before)


SLOW_TO_BEGIN = """
import os, signal, sys, time
from moce.images.toyworld import world

world._SERIAL, world._CHUNK, forks = 0, 50, []

def begin():
    if len(forks) == 2:  # the second process still begins when the first has drawn everything
        time.sleep(1)

os.register_at_fork(before=lambda: forks.append(0), after_in_child=begin)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print(tuple(world.ToyWorld("toyworld://shapes?num=100&size=16").array(2).shape))
"""


def test_a_process_that_has_not_begun_when_all_is_drawn_ends_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SLOW_TO_BEGIN], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout == "(100, 3, 16, 16)\n" and not done.stderr


def test_what_is_drawn_does_not_travel_to_worker_processes() -> None:
    toys = ToyWorld("toyworld://shapes?num=600&size=16")
    drawn = toys.array(1)
    sent = pickle.dumps(toys)
    assert len(sent) < 100_000
    assert torch.equal(pickle.loads(sent).get(5)[0], drawn[5])


def test_train_and_test_share_no_picture_and_no_handwriting() -> None:
    splits = [
        ToyWorld(f"toyworld://digits?split={split}&num=300&size=16").array(1) for split in ("train", "test")
    ]
    seen = {picture.numpy().tobytes() for picture in splits[0]}
    assert len(seen) == 300 and not seen & {picture.numpy().tobytes() for picture in splits[1]}
    for digit in DIGITS.values():
        train, test = ({scan.tobytes() for scan in handwritten(digit, split)} for split in ("train", "test"))
        assert train and test and not train & test


@pytest.mark.parametrize("kind", KINDS)
def test_colour_does_not_give_the_class_away(kind: str) -> None:
    train, test = (
        ToyWorld(f"toyworld://{kind}?split={split}&num=300&size=16") for split in ("train", "test")
    )
    known, asked = (toys.array(1).float().mean((2, 3)) for toys in (train, test))
    nearest = torch.cdist(asked, known).topk(15, largest=False).indices
    guess = torch.from_numpy(train.labels)[nearest].mode(1).values.numpy()
    assert (guess == test.labels).mean() < 0.33, "one in six by chance"


def test_fingerprints_tell_options_apart() -> None:
    uris = [
        "toyworld://maps?num=12", "toyworld://maps?num=13", "toyworld://maps?num=12&seed=1",
        "toyworld://maps?num=12&size=64", "toyworld://maps?num=12&split=test", "toyworld://sky?num=12",
    ]  # fmt: skip
    prints = {ToyWorld(uri).fingerprint() for uri in uris}
    assert len(prints) == len(uris) and all(len(p) == 16 for p in prints)
    same = ToyWorld("toyworld://maps?size=32&num=12&seed=0&split=train")
    assert same.fingerprint() == ToyWorld(uris[0]).fingerprint()


def test_the_contact_sheet_has_every_class() -> None:
    sheet = contact_sheet(16, 1)
    assert sheet.height > len(KINDS) // 2 * 6 * 16
    assert contact_sheet(16, 2, ["maps"]).width < sheet.width


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("toyworld://lettres", "no kind 'lettres'.*Did you mean 'letters'"),
        ("toyworld://", "names nothing"),
        ("toyworld://letters?size=32&size=64", "gives an option twice"),
        ("toyworld:letters", "with two slashes"),
        ("toyworld://letters?spilt=test", "no option 'spilt'.*Did you mean 'split'"),
        ("toyworld://letters?split=tset", "no split 'tset'.*Did you mean 'test'"),
        ("toyworld://letters?size=8", "whole number from 16 to 256"),
        ("toyworld://letters?num=0", "whole number from 1"),
        ("toyworld://letters?num=many", "whole number"),
        ("toyworld://letters?seed=-1", "whole number from 0"),
    ],
)
def test_what_it_cannot_show(uri: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        ToyWorld(uri)
    assert uri in str(caught.value), "the sentence names what was asked for"
