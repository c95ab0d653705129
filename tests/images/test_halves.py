"""Halves of a set of pictures: kinds of things by WordNet id, the toy world's kinds, files; and some classes alone."""

import importlib.resources
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.source_checks import check_protocol, refusal

from moce.errors import UserError
from moce.images.halves import halves_of
from moce.images.sources import FolderImages, open_images
from moce.images.subset import Subset, classes_uri
from moce.images.wordnet import kind_of_thing

TOY = "toyworld://all?num=144&size=16"


def imagenet(file: str) -> list[str]:
    """The ids of ImageNet's classes, as timm has them."""
    return (importlib.resources.files("timm.data") / "_info" / file).read_text().split()


def sentence(source: object, by: str = "auto") -> str:
    with pytest.raises(UserError) as caught:
        halves_of(source, by)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("wnid", "kind"),
    [
        ("n02655020", "animal"),  # puffer, the last animal of ImageNet-1k
        ("n02666196", "artifact"),  # abacus, the first artifact
        ("n04613696", "artifact"),  # yurt
        ("n10148035", "person"),  # groom
        ("n11939491", "plant"),  # daisy
        ("n13054560", "plant"),  # bolete, a fungus
        ("n07747607", None),  # orange, food
        ("n09193705", None),  # alp
        ("n15075141", None),  # toilet tissue
    ],
)
def test_a_wordnet_id_says_what_kind_of_thing_it_is(wnid: str, kind: str | None) -> None:
    assert kind_of_thing(wnid) == kind


def test_the_thousand_classes_of_imagenet() -> None:
    source = open_images("toyworld://digits?num=1000&size=16")
    source.classes, source.labels = imagenet("imagenet_synsets.txt"), np.arange(1000)  # type: ignore[misc]
    found = halves_of(source)
    assert {half: len(own) for half, own in found.items()} == {"A": 416, "B": 518, "C": 66}
    assert max(found["A"][:398]) == "n02655020" and min(found["B"]) == "n02666196"


def test_no_class_lies_close_to_a_limit_but_between_animals_and_artifacts() -> None:
    offsets = np.array([int(name[1:]) for name in imagenet("imagenet22k_synsets.txt")])
    for limit in (1_200_000, 4_616_000, 9_483_000, 11_400_000, 11_527_000, 13_245_000):
        assert np.abs(offsets - limit).min() > 350, limit  # a noun takes about 200 bytes


def test_the_toy_world_falls_into_natural_and_made_kinds() -> None:
    found = halves_of(open_images(TOY))
    assert len(found["A"]) == len(found["B"]) == 36 and not found["C"]
    assert "creatures/cat" in found["A"] and "vehicles/car" in found["B"]


def test_a_file_names_the_halves_of_any_pictures(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "halves.txt"
    file.write_text("# round\nblobs A\n\nstripes\tB\n")
    found = halves_of(FolderImages(str(tiny_folder)), str(file))
    assert found == {"A": ["blobs"], "B": ["stripes"], "C": ["rings"]}


def test_halves_that_cannot_be_told(tiny_folder: Path, tmp_path: Path) -> None:
    source, file = FolderImages(str(tiny_folder)), tmp_path / "halves.txt"
    assert "neither WordNet ids nor kinds of the toy world (blobs, rings, stripes, ...)" in sentence(source)
    assert "are no WordNet ids" in sentence(source, "wordnet")
    assert "there is nothing to compare" in sentence(open_images("toyworld://natural?num=36&size=16"))
    for text, part in {
        "blobs X": "line 1: write a class and A or B, such as 'cat A', not 'blobs X'",
        "blobs": "line 1: write a class",
        "blob A": "line 1: there is no class 'blob'. Did you mean 'blobs'?",
        "blobs A\nblobs B": "line 2: the class 'blobs' is in both halves",
        "blobs A": "No class of",
    }.items():
        file.write_text(text)
        assert part in sentence(source, str(file))
    assert "cannot be read (No such file or directory)" in sentence(source, str(tmp_path / "none"))
    source.labels = None
    assert "have no labels" in sentence(source)


def test_some_classes_are_a_source_of_their_own(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.txt"
    file.write_text("stripes\nblobs\n")
    whole, found = open_images(str(tiny_folder)), open_images(classes_uri(file, str(tiny_folder)))
    check_protocol(found)
    assert len(found) == 16 and found.classes == ["blobs", "stripes"]
    assert found.labels is not None and found.labels.tolist() == [0] * 8 + [1] * 8
    assert found.name(8) == whole.name(16) and torch.equal(found.get(8)[0], whole.get(16)[0])
    assert found.encoded(8) == whole.encoded(16)  # type: ignore[attr-defined]
    assert found.fingerprint() != whole.fingerprint()
    assert tiny_folder in found.places() and file in found.places()  # type: ignore[attr-defined]
    file.write_text("blobs\nstripes\n# in another order and with a comment")
    assert open_images(classes_uri(file, str(tiny_folder))).fingerprint() == found.fingerprint()


def test_classes_of_pictures_that_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "cats.txt"
    file.write_text("creatures/cat\n")
    whole, found = open_images(TOY), open_images(classes_uri(file, TOY))
    check_protocol(found)
    rows = np.flatnonzero(whole.labels == whole.classes.index("creatures/cat"))  # type: ignore[union-attr]
    assert torch.equal(found.array(), whole.array()[rows])  # type: ignore[attr-defined]


def test_shards_of_a_part_are_what_is_left_of_the_whole_s(tiny_folder: Path) -> None:
    class Sharded(FolderImages):
        def shards(self) -> list[range]:
            return [range(0, 8), range(8, 16), range(16, 24)]

    part = Subset("part", Sharded(str(tiny_folder)), np.array([1, 7, 16, 23]))
    assert part.shards() == [range(0, 2), range(2, 4)]


def test_classes_that_cannot_be_chosen(tiny_folder: Path, tmp_path: Path) -> None:
    file, plain = tmp_path / "some.txt", tmp_path / "plain"
    file.write_text("ring\n")
    assert f"{file}, line 1: there is no class 'ring'. Did you mean 'rings'?" in refusal(
        classes_uri(file, str(tiny_folder))
    )
    assert "write classes:FILE:IMAGES" in refusal("classes:some.txt")
    assert "cannot be read" in refusal(classes_uri(tmp_path / "none.txt", str(tiny_folder)))
    plain.mkdir()
    (plain / "a.png").write_bytes((tiny_folder / "blobs" / "0.png").read_bytes())
    assert "have no labels, so none can be chosen by class" in refusal(classes_uri(file, str(plain)))
    file.write_text("# nothing\n")
    assert "names no class" in refusal(classes_uri(file, str(tiny_folder)))
