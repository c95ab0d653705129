"""The data sets of the field in miniature: their real folders and annotation formats, every class, few small pictures.

The grey of a picture is the number of its class (modulo 250), so that a label can be held against what it labels.
"""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from source_checks import picture


def jpeg(path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(label % 250, "JPEG", (8, 8)))


def text(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def aircraft(root: Path, patch: pytest.MonkeyPatch) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ["707-320", "F/A-18", "Cessna 172", *(f"Boeing 7{number:02}-100" for number in range(97))]
    text(data / "variants.txt", variants)
    for place, split in enumerate(("train", "val", "test")):
        names = [f"{1000 * place + label:07}" for label in range(100)]
        text(data / f"images_variant_{split}.txt", [" ".join(pair) for pair in zip(names, variants)])
        for label, name in enumerate(names):
            jpeg(data / "images" / f"{name}.jpg", label)


def caltech101(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = sorted(
        ["BACKGROUND_Google", "Faces", "accordion", *(f"thing_{number:02}" for number in range(99))]
    )
    for label, name in enumerate(names):
        for number in range(1, 33 if name == "accordion" else 32):
            jpeg(root / "caltech101" / "101_ObjectCategories" / name / f"image_{number:04}.jpg", label)


def cars(root: Path, patch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array([f"Make Model {number} 2012" for number in range(196)], object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        rows = [(1, 1, 8, 8, label + 1, f"{label + 1:05}.jpg") for label in range(196)][::-1]
        savemat(folder / file, {"annotations": np.array(rows, [(field, object) for field in fields])})
        for label in range(196):
            jpeg(folder / f"cars_{split}" / f"{label + 1:05}.jpg", label)


def _cifar(folder: Path, files: list[str], key: str, num_classes: int) -> None:
    folder.mkdir()
    labels = list(range(num_classes)) * 2
    data = np.repeat(np.array(labels, np.uint8)[:, None], 3072, axis=1)
    for name in files:
        (folder / name).write_bytes(pickle.dumps({"data": data, key: labels}))


def cifar10(root: Path, patch: pytest.MonkeyPatch) -> None:
    files = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    _cifar(root / "cifar-10-batches-py", files, "labels", 10)
    names = {"label_names": list("abcdefghij")}
    (root / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps(names))
    _without_checksums(patch)


def cifar100(root: Path, patch: pytest.MonkeyPatch) -> None:
    _cifar(root / "cifar-100-python", ["train", "test"], "fine_labels", 100)
    names = {"fine_label_names": [f"name {number}" for number in range(100)]}
    (root / "cifar-100-python" / "meta").write_bytes(pickle.dumps(names))
    _without_checksums(patch)


def _without_checksums(patch: pytest.MonkeyPatch) -> None:
    """Those of the real files cannot hold for these."""
    patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


def dtd(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = sorted(["banded", "zigzagged", *(f"kind{number:02}" for number in range(45))])
    for split in ("train", "val", "test"):
        files = [f"{name}/{name}_{split}.jpg" for name in names]
        text(root / "dtd/dtd/labels" / f"{split}1.txt", files[::-1])
        for label, file in enumerate(files):
            jpeg(root / "dtd/dtd/images" / file, label)


def flowers102(root: Path, patch: pytest.MonkeyPatch) -> None:
    import torchvision
    from scipy.io import savemat

    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    numbers = np.arange(1, 409)
    labels = (numbers - 1) % 102 + 1
    savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    ids = {"trnid": numbers[:102], "valid": numbers[102:204], "tstid": numbers[204:]}
    savemat(folder / "setid.mat", {name: part[None].astype(np.uint16) for name, part in ids.items()})
    for number, label in zip(numbers, labels):
        jpeg(folder / "jpg" / f"image_{number:05}.jpg", label - 1)
    sums = {
        name: (file, hashlib.md5((folder / file).read_bytes()).hexdigest())
        for name, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    patch.setattr(torchvision.datasets.Flowers102, "_file_dict", sums)


def food101(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = sorted(["apple_pie", "waffles", *(f"dish_{number:02}" for number in range(99))])
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    for place, split in enumerate(("train", "test")):
        listed = {name: [f"{name}/{1000 * place + label}"] for label, name in enumerate(names)}
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        for label, (file,) in enumerate(listed.values()):
            jpeg(folder / "images" / f"{file}.jpg", label)


def pets(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = ["Abyssinian", "american_bulldog", *(f"breed_{number:02}" for number in range(35))]
    folder = root / "oxford-iiit-pet"
    for place, split in enumerate(("trainval", "test")):
        files = [f"{name}_{100 + place}" for name in names]
        lines = [f"{file} {label + 1} {1 + label % 2} {label}" for label, file in enumerate(files)]
        text(folder / "annotations" / f"{split}.txt", lines)
        for label, file in enumerate(files):
            jpeg(folder / "images" / f"{file}.jpg", label)


def sun397(root: Path, patch: pytest.MonkeyPatch) -> None:
    names = ["/a/abbey", "/a/apse/indoor", *(f"/b/place_{number:03}" for number in range(395))]
    folder = root / "SUN397"
    text(folder / "ClassName.txt", names)
    for split in ("Training", "Testing"):
        files = [f"{name}/sun_{split.lower()}.jpg" for name in names]
        text(folder / "Partitions" / f"{split}_01.txt", files)
        for label, file in enumerate(files):
            jpeg(folder / file[1:], label)


def voc_annotation(objects: list[tuple[str, bool]]) -> str:
    """What the archive holds of a picture, without what nobody reads."""
    parts = "".join(
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{int(difficult)}</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></object>"
        for name, difficult in objects
    )
    return f"<annotation><folder>VOC2007</folder><filename>x.jpg</filename>{parts}</annotation>"


def voc2007(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Picture i of a split shows class i and the next one; the last picture shows but a difficult sheep."""
    from moce.images.voc import VOC_CLASSES

    folder = root / "VOCdevkit" / "VOC2007"
    (folder / "Annotations").mkdir(parents=True)
    for place, split in enumerate(("train", "val", "test")):
        names = [f"{100 * place + number:06}" for number in range(21)]
        text(folder / "ImageSets" / "Main" / f"{split}.txt", names)
        for label, name in enumerate(names):
            both = [(VOC_CLASSES[label % 20], False), (VOC_CLASSES[(label + 1) % 20], False)]
            objects = both if label < 20 else [("sheep", True)]
            (folder / "Annotations" / f"{name}.xml").write_text(voc_annotation(objects))
            jpeg(folder / "JPEGImages" / f"{name}.jpg", 10 * label)


def imagenet1k(root: Path, patch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        for label in range(1000):
            jpeg(root / "imagenet1k" / split / f"n{1440764 + label:08}" / f"{split}_1.JPEG", label)


BUILDERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    build.__name__: build
    for build in (
        aircraft, caltech101, cars, cifar10, cifar100, dtd, flowers102, food101, pets, sun397, voc2007, imagenet1k,
    )
}  # fmt: skip
