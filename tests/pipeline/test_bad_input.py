"""Bad input, through the command line: one sentence on stderr, exit code 2, nothing half-written."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

DEBUG = ["--preset", "debug", "--epochs", "1"]


def refused(finished, *words: str) -> None:
    """Exit code 2, one line that says all of `words`, nothing on stdout."""
    assert finished.code == 2, finished
    assert finished.stdout == ""
    lines = [line for line in finished.stderr.splitlines() if line.startswith("moce: ")]
    assert len(lines) == 1 and "Traceback" not in finished.stderr, finished.stderr
    for word in words:
        assert word in lines[0], f"'{word}' is not in: {lines[0]}"


# What the command line says before torch is imported


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrian"], ["'pretrian'", "Did you mean 'pretrain'"]),
        (["pretrain", "--epoch", "3"], ["'--epoch'", "Did you mean '--epochs'"]),
        (
            ["pretrain", "--images", "x", "--out", "y", "--preset", "tinyimagenet"],
            ["Did you mean 'tiny-imagenet'"],
        ),
        (
            ["pretrain", "--images", "x", "--out", "y", "--epochs", "many"],
            ["--epochs must be a whole number"],
        ),
        (
            ["pretrain", "--images", "x", "--out", "y", "--batch-size", "0"],
            ["--batch-size must be at least 1"],
        ),
        (["pretrain", "--out", "y"], ["--images must be given"]),
        (
            ["train-experts", "m", "c", "--images", "x", "--out", "y", "--num-experts", "1"],
            ["--num-experts", "at least 2"],
        ),
        (
            ["train-experts", "m", "c", "--images", "x", "--out", "y", "--gate", "clusters"],
            ["Did you mean 'cluster'"],
        ),
        (
            ["cluster", "m", "--images", "x", "--out", "y", "--num-clusters", "1"],
            ["--num-clusters", "at least 2"],
        ),
        (["study", "compare", "--out", "y"], ["`moce study` is not there yet"]),
        (["prepare", "--images", "x"], ["--out, --short-side must be given"]),
    ],
)
def test_commands_that_cannot_be(cli, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    refused(cli(*arguments, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


# Pictures


def test_no_such_path_in_a_real_process(cli, tmp_path: Path) -> None:
    refused(cli("pretrain", "--images", tmp_path / "none", "--out", tmp_path / "out", *DEBUG), "none")
    assert not (tmp_path / "out").exists()


def test_an_empty_folder(command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(command("pretrain", "--images", tmp_path / "empty", "--out", tmp_path / "out", *DEBUG), "empty")
    assert not (tmp_path / "out").exists()


def test_no_readable_picture(command, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(b"no picture")
    refused(
        command("pretrain", "--images", tmp_path / "pictures", "--out", tmp_path / "out", *DEBUG), "pictures"
    )
    assert not (tmp_path / "out").exists()


def pictures(folder: Path, good: int, broken: int) -> Path:
    folder.mkdir()
    for number in range(good):
        Image.new("RGB", (32 + number % 5, 32), (number % 256, 80, 90)).save(
            folder / f"good-{number:03d}.png"
        )
    for number in range(broken):
        (folder / f"broken-{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n but not really")
    return folder


def test_some_broken_pictures_are_skipped_counted_and_listed(command, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", 60, 2)
    done = command(
        "pretrain", "--images", folder, "--out", tmp_path / "out", "--json", tmp_path / "r.json", *DEBUG
    )
    assert done.code == 0, done.stderr
    assert "2 pictures cannot be read" in done.stderr
    listed = (tmp_path / "out" / "unreadable.txt").read_text()
    assert "broken-000.png" in listed and "broken-001.png" in listed and "good" not in listed
    assert '"unreadable": 2' in (tmp_path / "r.json").read_text()


def test_many_broken_pictures_stop(command, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", 40, 4)
    refused(
        command("pretrain", "--images", folder, "--out", tmp_path / "out", *DEBUG),
        "4 of 44",
        "broken-000.png",
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "uri", ["wds:x.tar", "hf://somebody/pictures", "torchvision://CIFAR10?root=x&train=true"]
)
def test_sources_that_are_not_there_yet(command, tmp_path: Path, uri: str) -> None:
    refused(command("pretrain", "--images", uri, "--out", tmp_path / "out", *DEBUG), uri.split(":")[0], "not")
    assert not (tmp_path / "out").exists()


# Shapes and models


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image-size", "30"], ["--image-size 30", "multiple of --patch-size 8"]),
        (["--model", "vit_tinny"], ["vit_tinny", "Did you mean 'vit_tiny'"]),
        (["--model", "resnet18"], ["resnet18"]),
        (["--init", "timm:vit_tiny_patch16_224"], ["not supported yet"]),
        (["--device", "gpu"], ["--device"]),
    ],
)
def test_models_that_cannot_be(
    command, tmp_path: Path, tiny_folder: Path, options: list[str], words: list[str]
) -> None:
    refused(command("pretrain", "--images", tiny_folder, "--out", tmp_path / "out", *DEBUG, *options), *words)
    assert not (tmp_path / "out").exists()


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    command, tmp_path: Path, tiny_folder: Path
) -> None:
    options = [
        "--base-lr",
        "1e30",
        "--epochs",
        "40",
        "--checkpoint-steps",
        "1",
        "--precision",
        "fp32",
        "--batch-size",
        "8",
    ]
    done = command(
        "pretrain", "--images", tiny_folder, "--out", tmp_path / "out", "--preset", "debug", *options
    )
    refused(done, "not finite", "--base-lr")
    assert not (tmp_path / "out" / "model.safetensors").exists()


# Runs


def test_an_out_folder_that_holds_something_else(command, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    refused(
        command("pretrain", "--images", tiny_folder, "--out", tmp_path, *DEBUG, "--overwrite"), "holds no run"
    )
    assert (tmp_path / "letters.txt").read_text() == "mine"


def test_an_out_folder_that_cannot_be_made(command, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(command("pretrain", "--images", tiny_folder, "--out", tmp_path / "file", *DEBUG), "is a file")
    refused(command("pretrain", "--images", tiny_folder, "--out", tmp_path / "file" / "x", *DEBUG), "--out")


def test_more_clusters_than_pictures(command, tmp_path: Path, small_runs) -> None:
    options = ["--images", small_runs.images, "--out", tmp_path / "out", "--num-clusters", "300"]
    refused(command("cluster", small_runs.mae, *options), "300", "256")
    assert not (tmp_path / "out").exists()


def test_clusters_of_other_pictures_or_of_another_encoder(
    command, tmp_path: Path, small_runs, tiny_folder: Path
) -> None:
    line = ["train-experts", small_runs.mae, small_runs.clusters, "--out", tmp_path / "out"]
    refused(command(*line, "--images", tiny_folder), "other pictures")
    other = command(
        "pretrain", "--images", small_runs.images, "--out", tmp_path / "mae", *DEBUG, "--seed", "7"
    )
    assert other.code == 0, other.stderr
    line[1] = tmp_path / "mae"
    refused(command(*line, "--images", small_runs.images), "another encoder")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_run_or_another_kind(command, tmp_path: Path, small_runs) -> None:
    out = ["--images", small_runs.images, "--out", tmp_path / "out"]
    refused(command("cluster", tmp_path / "none", *out), "There is no folder")
    refused(command("cluster", tmp_path, *out), "is not a run folder")
    refused(command("cluster", small_runs.clusters, *out), "a run of `moce cluster`", "`moce pretrain`")
    refused(command("train-experts", small_runs.clusters, small_runs.clusters, *out), "`moce pretrain`")
    refused(command("train-experts", small_runs.mae, small_runs.mae, *out), "`moce cluster`")
    refused(command("customize", small_runs.mae, *out), "`moce train-experts`")
    refused(command("customize", small_runs.mae_star, *out), "--gate none")
    assert not (tmp_path / "out").exists()


def test_a_model_file_that_is_cut_off(command, tmp_path: Path, small_runs) -> None:
    shutil.copytree(small_runs.mae, tmp_path / "mae")
    whole = (tmp_path / "mae" / "model.safetensors").read_bytes()
    (tmp_path / "mae" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    out = ["--images", small_runs.images, "--out", tmp_path / "out"]
    refused(command("cluster", tmp_path / "mae", *out), "model.safetensors", "not a readable safetensors")
    assert not (tmp_path / "out").exists()


# Tasks


def test_tasks_that_cannot_be(command, tmp_path: Path, small_runs, tiny_folder: Path) -> None:
    refused(command("evaluate", small_runs.mae, "--task", "toyworld://digitts"), "Did you mean 'digits'")
    refused(command("evaluate", small_runs.mae, "--task", tmp_path / "none"), "none")
    refused(command("evaluate", small_runs.mae, "--task", tiny_folder), "tiny-folder")
    refused(
        command("evaluate", small_runs.mae, "--task", "toyworld://digits", "--protocol", "lineer"),
        "Did you mean 'linear'",
    )
    refused(
        command("evaluate", small_runs.mae, "--task", "toyworld://digits", "--protocol", "detect"),
        "not there yet",
    )


def test_labels_needed_and_none_there(command, tmp_path: Path, small_runs) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, 12, 0)
    refused(command("evaluate", small_runs.mae, "--task", tmp_path), "label")
