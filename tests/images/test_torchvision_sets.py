"""Data sets of torchvision, in the files that it reads: pictures, labels without opening any, options by type."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from source_checks import check_fork, check_protocol, picture, refusal, values

from moce.images.decode import UnreadableImage
from moce.images.sources import open_images


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 with four pictures a file; the real checksums cannot hold for it."""
    made = torchvision.datasets.CIFAR10
    folder = tmp_path / made.base_folder
    folder.mkdir()
    for number, (name, _) in enumerate([*made.train_list, *made.test_list]):
        data = np.repeat(np.arange(4, dtype=np.uint8)[:, None] + 10 * number, 3072, axis=1)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [3, 1, 0, 2]}))
    names = ["plane", "car", "bird", "cat", *"abcdef"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(made, "_check_integrity", lambda self: folder.exists())
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path


def test_cifar10(cifar: Path) -> None:
    source = open_images(f"torchvision://CIFAR10?root={cifar}&train=true")
    check_protocol(source)
    check_fork(source)
    assert values(source) == [10 * file + i for file in range(5) for i in range(4)]
    assert source.labels is not None and source.labels.tolist() == [3, 1, 0, 2] * 5
    assert source.classes is not None and source.classes[:4] == ["plane", "car", "bird", "cat"]
    assert source.get(0)[0].shape == (3, 32, 32) and source.name(7) == "CIFAR10 7"
    test = open_images(f"torchvision://CIFAR10?root={cifar}&train=false")
    assert values(test) == [50, 51, 52, 53] and test.fingerprint() != source.fingerprint()


def test_mnist_is_grey(tmp_path: Path) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.repeat(np.array([7, 9], np.uint8), 28 * 28)
    for name, data in {
        "t10k-images-idx3-ubyte": struct.pack(">IIII", 0x803, 2, 28, 28) + pixels.tobytes(),
        "t10k-labels-idx1-ubyte": struct.pack(">II", 0x801, 2) + bytes([4, 1]),
    }.items():
        (folder / name).write_bytes(data)
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    for name in ("images-idx3", "labels-idx1"):
        (folder / f"train-{name}-ubyte").write_bytes(b"")
    uri = f"torchvision://MNIST?root={tmp_path}&train=false"
    source = open_images(uri)
    check_protocol(source)
    assert values(source) == [7, 9] and source.get(1)[0].shape == (3, 28, 28)
    assert source.labels is not None and source.labels.tolist() == [4, 1]
    assert source.classes is not None and source.classes[4] == "4 - four"
    assert open_images(uri, channels=1).get(0)[0].shape == (1, 28, 28)


def test_sets_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value, name in enumerate(["x/a.png", "x/b.png", "ünï/c.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(value))
    source = open_images(f"torchvision://ImageFolder?root={tmp_path}/set")
    check_protocol(source)
    assert source.classes == sorted(["x", "ünï"]) and source.labels is not None
    assert (
        source.labels.tolist() == [0, 0, 1] and source.name(2) == "ünï/c.png" and values(source) == [0, 1, 2]
    )
    monkeypatch.chdir(tmp_path)
    again = open_images("torchvision://ImageFolder?root=set")
    assert again.fingerprint() == source.fingerprint()
    monkeypatch.chdir("/")
    assert values(again) == [0, 1, 2]  # the root was that of the place where it was opened
    (tmp_path / "set" / "x" / "b.png").write_bytes(b"rubbish")
    with pytest.raises(UnreadableImage):
        again.get(1)
    assert open_images(f"torchvision://ImageFolder?root={tmp_path}/set").fingerprint() != source.fingerprint()


def test_labels_of_sets_that_keep_them_elsewhere(tmp_path: Path) -> None:
    # GTSRB: pairs of file and number; DTD: files beside numbers, in its own words.
    for name in ("00000/1", "00002/5"):
        file = tmp_path / "gtsrb/GTSRB/Training" / f"{name}.ppm"
        file.parent.mkdir(parents=True)
        file.write_bytes(picture(int(name[-1]), "PPM"))
    signs = open_images(f"torchvision://GTSRB?root={tmp_path}")
    check_protocol(signs)
    assert values(signs) == [1, 5] and signs.labels is not None and signs.labels.tolist() == [0, 1]
    for kind in ("wavy", "dotted"):
        (tmp_path / "dtd/dtd/images" / kind).mkdir(parents=True)
        (tmp_path / "dtd/dtd/images" / kind / "1.jpg").write_bytes(picture(20, "JPEG"))
    (tmp_path / "dtd/dtd/labels").mkdir()
    (tmp_path / "dtd/dtd/labels/train3.txt").write_text("wavy/1.jpg\ndotted/1.jpg\n")
    textures = open_images(f"torchvision://DTD?root={tmp_path}&split=train&partition=3")
    assert textures.labels is not None and textures.labels.tolist() == [1, 0]
    assert textures.classes == ["dotted", "wavy"]
    assert textures.name(0) == "dtd/dtd/images/wavy/1.jpg"


def test_options_have_the_types_of_the_class() -> None:
    source = open_images("torchvision://FakeData?size=5&image_size=3,8,6&num_classes=2")
    check_protocol(source)
    assert len(source) == 5 and source.get(0)[0].shape == (3, 8, 6)
    assert source.labels is None  # known only by making the picture
    assert torch.equal(source.get(3)[0], source.get(3)[0])
    assert "size must be a whole number" in refusal("torchvision://FakeData?size=many")
    assert "image_size must be whole numbers" in refusal("torchvision://FakeData?image_size=a,b")
    assert "only size, image_size" in refusal("torchvision://FakeData?sise=3")
    assert "train must be true or false" in refusal("torchvision://CIFAR10?root=x&train=yes")
    # One whose option has no type in the code: a word such as 'false' must not count as yes.
    assert "is not on disk" in refusal("torchvision://Imagenette?root=none&download=false")


def test_sets_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "MovingMNIST").mkdir()
    np.save(tmp_path / "MovingMNIST" / "mnist_test_seq.npy", np.zeros((20, 2, 64, 64), np.uint8))
    assert "is no single picture" in refusal(f"torchvision://MovingMNIST?root={tmp_path}")
    assert "has no pictures" in refusal("torchvision://FakeData?size=0")


def test_sets_that_are_not_there(tmp_path: Path) -> None:
    text = refusal(f"torchvision://CIFAR10?root={tmp_path}&train=true")
    assert f"{tmp_path}/cifar-10-batches-py" in text and "download=true" in text and "not on disk" in text
    assert f"'{tmp_path}/MNIST/raw'" in refusal(f"torchvision://MNIST?root={tmp_path}")
    assert f"'{tmp_path}/flowers-102'" in refusal(f"torchvision://Flowers102?root={tmp_path}")
    assert f"'{tmp_path}/none'" in refusal(f"torchvision://ImageFolder?root={tmp_path}/none")
    assert list(tmp_path.iterdir()) == []
    assert "Did you mean 'CIFAR10'?" in refusal("torchvision://Cifar10")
    assert "needs the option root" in refusal("torchvision://CIFAR10")
    assert "'train', 'val', 'test'" in refusal(f"torchvision://Flowers102?root={tmp_path}&split=trian")
    assert "write torchvision://" in refusal("torchvision:CIFAR10")
