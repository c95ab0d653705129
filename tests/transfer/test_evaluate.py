import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import moce
from moce.config import EvaluateConfig
from moce.engine.files import write_json
from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.images.reading import forget
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.weights import save_model
from moce.transfer import pictures
from moce.transfer.evaluate import as_read
from moce.verbs import resolve

SHAPE = AutoencoderShape("test_vit", (16, 16), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
CLASSES = {"blue": (30, 30, 200), "green": (30, 180, 40), "red": (200, 40, 30)}
KEYS = [
    "schema",
    "model",
    "model_fingerprint",
    "method",
    "task",
    "protocol",
    "metric",
    "value",
    "per_class",
    "num_train",
    "num_val",
    "num_test",
    "seed",
    "settings",
    "chosen_on",
    "seconds",
    "peak_rss_bytes",
    "commit",
    "torch",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretrain run with random weights."""
    folder = tmp_path_factory.mktemp("mae")
    torch.manual_seed(0)
    write_json(folder / "config.json", {"verb": "pretrain", "options": {}})
    write_json(folder / "result.json", {})
    about = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "method": "MAE"}
    save_model(folder / "model.safetensors", MaskedAutoencoder(SHAPE), about)
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder task: three colours, noisy, of various sizes; without a validation split."""
    folder = tmp_path_factory.mktemp("colours")
    for split, count in (("train", 10), ("test", 4)):
        for number, (name, colour) in enumerate(CLASSES.items()):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                draw = np.random.default_rng([number, i, split == "test"])
                height, width = draw.integers(16, 28, 2)
                pixels = np.array(colour) + draw.normal(0, 25, (height, width, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


def run(model: Path, task: Path, protocol: str, **options: Any) -> dict[str, Any]:
    found = moce.evaluate(str(model), task=str(task), protocol=protocol, num_workers=0, quiet=True, **options)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("protocol", ["knn", "linear", "finetune"])
def test_a_protocol_gives_the_contract_s_json(model: Path, task: Path, protocol: str) -> None:
    options = {"epochs": 4, "batch_size": 8, "lrs": (1e-3,)} if protocol == "finetune" else {}
    result = run(model, task, protocol, **options)
    assert set(KEYS) <= result.keys()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["schema"] == 1
    assert result["protocol"] == protocol
    assert (result["method"], result["metric"], result["chosen_on"]) == ("MAE", "top1", "val")
    assert (result["num_train"], result["num_val"], result["num_test"]) == (24, 6, 12)
    assert len(result["per_class"]) == 3
    assert result["value"] == pytest.approx(np.mean(result["per_class"]))
    assert result["value"] > 0.6  # colours are easy, even for random weights
    assert result["settings"]["grid"]
    assert result["peak_rss_bytes"] > 2**20


@pytest.mark.parametrize("protocol", ["knn", "linear", "finetune"])
def test_the_same_call_gives_the_same_numbers_to_the_digit(model: Path, task: Path, protocol: str) -> None:
    options = {"epochs": 2, "batch_size": 8, "lrs": (1e-4, 1e-3)} if protocol == "finetune" else {}
    first = run(model, task, protocol, **options)
    pictures._kept.clear()
    torch.manual_seed(9)
    second = run(model, task, protocol, **options)
    for key in set(KEYS) - {"seconds", "peak_rss_bytes"}:
        assert first[key] == second[key], key


def test_features_are_extracted_once(model: Path, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moce.transfer.encoder import Frozen

    calls = []
    features = Frozen.features
    monkeypatch.setattr(
        Frozen, "features", lambda self, images: calls.append(len(images)) or features(self, images)
    )
    pictures._kept.clear()
    run(model, task, "knn")
    assert sum(calls) == 42
    run(model, task, "linear")
    assert sum(calls) == 42


def test_several_protocols_share_one_call(model: Path, task: Path) -> None:
    both = moce.evaluate(str(model), task=str(task), protocol="knn,linear", num_workers=0, quiet=True)
    assert isinstance(both, list)
    assert [result["protocol"] for result in both] == ["knn", "linear"]
    for result in both:
        alone = run(model, task, result["protocol"])
        assert (alone["value"], alone["settings"]) == (result["value"], result["settings"])


def test_a_validation_split_on_disk_is_used(model: Path, task: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(task / split)
    (tmp_path / "val").symlink_to(task / "test")
    result = run(model, tmp_path, "linear")
    assert (result["num_train"], result["num_val"], result["num_test"]) == (30, 12, 12)


def test_results_are_listed_on_stderr_alone(
    model: Path, task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moce.evaluate(str(model), task=str(task), protocol="knn", num_workers=0)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "top1" in printed.err
    assert "knn" in printed.err


def test_sentences_about_what_is_not_there(model: Path, task: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        run(model, task, "linaer")
    with pytest.raises(UserError, match="no model folder"):
        run(tmp_path / "nothing", task, "knn")
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / split / "0.png")
    with pytest.raises(UserError, match="label"):
        run(model, tmp_path, "knn")


def test_pictures_that_cannot_be_read_are_left_out(model: Path, task: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(task, tmp_path / "task")
    (tmp_path / "task" / "train" / "blue" / "3.png").write_bytes(b"no picture")
    for protocol, options in (("linear", {}), ("finetune", {"epochs": 1, "batch_size": 8, "lrs": (1e-3,)})):
        result = run(model, tmp_path / "task", protocol, **options)
        assert result["unreadable"] == 1
    assert result["num_test"] == 12
    (tmp_path / "task" / "test" / "blue" / "extra.png").write_bytes(b"no picture")
    for number in range(20):  # so that one is less than 5 %
        shutil.copy(
            task / "test" / "red" / "1.png", tmp_path / "task" / "test" / "red" / f"copy-{number}.png"
        )
    forget()
    for protocol, options in (("knn", {}), ("finetune", {"epochs": 1, "batch_size": 8, "lrs": (1e-3,)})):
        result = run(model, tmp_path / "task", protocol, **options)
        assert result["labels"] == [0] * 4 + [-1] + [1] * 4 + [2] * 24  # "extra" comes fifth
        assert [i for i, found in enumerate(result["predicted"]) if found < 0] == [4]
    for number in range(20):
        (tmp_path / "task" / "test" / "red" / f"copy-{number}.png").unlink()
    (tmp_path / "task" / "test" / "blue" / "extra.png").unlink()
    (tmp_path / "task" / "test" / "red" / "0.png").write_bytes(b"no picture")  # 1 of 12: too many
    forget()
    with pytest.raises(UserError, match="cannot be read"):
        run(model, tmp_path / "task", "knn")


def test_the_probes_of_a_model_predict_what_scikit_learn_predicts(model: Path, task: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    from moce.images.sources import open_images
    from moce.transfer.encoder import load_encoder
    from moce.transfer.pictures import Pictures, labelled

    cpu = torch.device("cpu")
    found = [
        labelled(Pictures(open_images(str(task / split)), load_encoder(str(model), cpu), cpu, quiet=True))
        for split in ("train", "test")
    ]
    (x, y), (queries, _) = ((part.features.double().numpy(), part.labels.numpy()) for part in found)
    near, straight = run(model, task, "knn"), run(model, task, "linear")
    t = near["settings"]["temperature"]
    theirs = KNeighborsClassifier(
        near["settings"]["k"], metric="cosine", weights=lambda distance: np.exp((1 - distance) / t)
    )
    assert (theirs.fit(x, y).predict(queries) != near["predicted"]).sum() <= 1
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=straight["settings"]["C"], tol=1e-8, max_iter=10_000)
    theirs.fit(scaler.transform(x), y)
    assert (theirs.predict(scaler.transform(queries)) != straight["predicted"]).sum() <= 1


def test_one_encoder_given_twice_gives_the_same_numbers(model: Path, task: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "again")
    for protocol in ("knn", "linear"):
        pictures._kept.clear()
        first = run(model, task, protocol)
        pictures._kept.clear()
        second = run(tmp_path / "again", task, protocol)
        different = {key for key in first if first[key] != second[key]}
        assert different <= {"model", "seconds", "peak_rss_bytes"}


@pytest.mark.parametrize("protocol", ["knn", "linear", "finetune"])
def test_pictures_that_show_several_classes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    from miniatures import voc2007

    voc2007(tmp_path, monkeypatch)
    options = {"epochs": 1, "batch_size": 8, "lrs": (1e-3,)} if protocol == "finetune" else {}
    result = run(model, Path("voc2007"), protocol, data_root=str(tmp_path), **options)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["task"], result["metric"]) == ("voc2007", "mAP11")
    assert (result["num_train"], result["num_val"], result["num_test"]) == (21, 21, 21)
    assert result["num_test_per_class"] == [2] * 20 and len(result["per_class"]) == 20
    assert result["value"] == pytest.approx(np.mean(result["per_class"]))
    assert [len(row) for row in result["predicted"]] == [20] * 21
    assert result["labels"][0] == [1, 1] + [0] * 18 and min(result["labels"][20]) == -1
    from moce.transfer.metrics import score

    again = score("mAP11", torch.tensor(result["predicted"]), torch.tensor(result["labels"]), 20)
    assert again == pytest.approx(result["value"])


def test_few_shots(model: Path, task: Path) -> None:
    for shots, protocol in ((1, "knn"), (5, "knn"), (1, "linear"), (5, "linear"), (5, "finetune")):
        options = {"epochs": 2, "batch_size": 8} if protocol == "finetune" else {}
        result = run(model, task, protocol, shots=shots, **options)
        assert (result["num_train"], result["num_val"], result["num_test"]) == (3 * shots, 0, 12)
        assert result["settings"]["shots"] == shots and result["value"] > 0.3
        chosen = "shots left out in turn" if shots > 1 and protocol != "finetune" else "nothing"
        assert result["chosen_on"] == chosen
        assert (result["settings"]["val_score"] is None) == (chosen == "nothing")
    assert result["settings"]["lr"] == 1e-3
    with pytest.raises(UserError, match="--shots 11 is more than the 10 pictures"):
        run(model, task, "knn", shots=11)


def test_a_pass_that_takes_long_is_announced(
    model: Path, task: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SAMPLE", 1)
    monkeypatch.setattr(pictures, "LONG", 0.0)
    pictures._kept.clear()
    moce.evaluate(str(model), task=str(task), protocol="knn", num_workers=0)
    assert "train: 30 pictures once, at most about 0:0" in capsys.readouterr().err
    monkeypatch.setattr("moce.transfer.evaluate.LONG", 0.0)
    moce.evaluate(str(model), task=str(task), protocol="linear", num_workers=0)
    assert "15 fits to 24 pictures, about 0:0" in capsys.readouterr().err


def test_options_that_a_protocol_does_not_read_are_told_and_do_not_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"model": "m", "task": "t", "k": 5, "steps": 9, "window": 14}
    plain = resolve(EvaluateConfig, {"model": "m", "task": "t"})
    for protocols, strategy, unread in [
        (["finetune"], "vote", {"k", "steps", "window"}),
        (["finetune"], "knn", {"steps", "window"}),  # which looks at neighbours to choose
        (["linear", "knn"], None, {"steps", "window"}),
        (["detect"], None, {"k", "steps"}),
    ]:
        found = as_read(resolve(EvaluateConfig, given), protocols, strategy, quiet=False)
        assert {name for name in given if getattr(found, name) == getattr(plain, name)} - {
            "model",
            "task",
        } == unread
        said = capsys.readouterr().err
        assert all((f"--{name}" in said) == (name in unread) for name in ("k", "steps", "window"))
    assert as_read(plain, ["linear"], None, quiet=False) == plain and not capsys.readouterr().err
