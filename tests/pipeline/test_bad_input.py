"""Bad input, through the command line: one sentence on stderr, exit code 2, nothing half-written."""

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
        (["export", "runs/moce", "--out", "y"], ["`moce export` is not there yet"]),
        (["study", "compair", "--out", "y"], ["kind cannot be 'compair'", "Did you mean 'compare'"]),
        (
            ["bench", "--only", "step-dens,loader"],
            ["--only cannot be 'step-dens'", "Did you mean 'step-dense'"],
        ),
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


def test_parquet_files_that_cannot_be(command, tmp_path: Path) -> None:
    table = pa.table({"image": [np.random.default_rng(0).bytes(500)] * 9, "label": list(range(9))})
    pq.write_table(table, tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-40])
    pq.write_table(table.drop_columns("image"), tmp_path / "numbers.parquet")
    (tmp_path / "empty").mkdir()
    for uri, words in {
        "cut.parquet": ["cut.parquet", "is cut off"],
        "numbers.parquet": ["has no image column", "label (int64)"],
        "empty/*.parquet": ["No file matches", "empty/*.parquet"],
        "empty": ["is empty"],
    }.items():
        refused(command("pretrain", "--images", tmp_path / uri, "--out", tmp_path / "out", *DEBUG), *words)
    assert not (tmp_path / "out").exists()


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOCE_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("cache")
def test_tar_files_that_cannot_be(command, tmp_path: Path) -> None:
    tar_of(tmp_path / "climbs.tar", {"1.png": b"x", "../up.png": b"x"})
    tar_of(tmp_path / "texts.tar", {"1.txt": b"x", "2.json": b"{}"})
    tar_of(tmp_path / "cut.tar", {"1.png": bytes(5000), "2.png": bytes(5000)})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:8000])
    (tmp_path / "packed.tar.gz").write_bytes(gzip.compress((tmp_path / "texts.tar").read_bytes()))
    for uri, words in {
        "climbs.tar": ["'../up.png'", "not to be trusted"],
        "texts.tar": ["texts.tar", "holds no picture"],
        "cut.tar": ["cut.tar", "is cut off"],
        "packed.tar.gz": ["compressed (gzip)", "unpack"],
        "none-*.tar": ["No file matches"],
        "cut-{0..3}.tar": ["No file matches", "cut-0.tar"],
    }.items():
        images = f"wds:{tmp_path / uri}"
        refused(command("pretrain", "--images", images, "--out", tmp_path / "out", *DEBUG), *words)
    assert not (tmp_path / "out").exists() and not (tmp_path / "up.png").exists()


@pytest.mark.usefixtures("cache")
def test_broken_pictures_in_a_tar_are_skipped_and_listed(command, tmp_path: Path) -> None:
    good = io.BytesIO()
    Image.new("RGB", (40, 32), (90, 80, 70)).save(good, "JPEG")
    members = {f"a{number:03d}.jpg": good.getvalue() for number in range(39)}
    tar_of(tmp_path / "a.tar", members | {"z.jpg": b"no picture", "z.txt": b"a text"})
    images = f"wds:{tmp_path}/a.tar"
    done = command("pretrain", "--images", images, "--out", tmp_path / "out", *DEBUG)
    assert done.code == 0, done.stderr
    assert "1 picture cannot be read" in done.stderr
    assert (tmp_path / "out" / "unreadable.txt").read_text().split() == ["39", "a.tar", "z.jpg"]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://somebody/pictures", ["somebody/pictures", "local cache"]),
        ("hf://{here}/none", ["there is no folder", "none"]),
        ("hf://{here}?split=trian", ["Unknown split", "'train'"]),
        ("hf://{here}?column=imgae", ["'imgae'", "Did you mean 'image'?"]),
        ("hf://{here}?streaming=true", ["stream"]),
        (
            "torchvision://CIFAR10?root={here}&train=true",
            ["not on disk", "cifar-10-batches-py", "download=true"],
        ),
        ("torchvision://CIFAR11?root={here}", ["Did you mean 'CIFAR10'?"]),
        ("torchvision://CIFAR10?root={here}&split=train", ["'split'", "root, train, download"]),
        ("ftp://pictures", ["not supported", "wds:GLOB"]),
    ],
)
def test_named_pictures_that_are_not_there(
    command, tmp_path: Path, uri: str, words: list[str], monkeypatch
) -> None:
    if uri.startswith("hf:"):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    (tmp_path / "here" / "train" / "a").mkdir(parents=True)
    Image.new("RGB", (40, 32)).save(tmp_path / "here" / "train" / "a" / "1.png")
    images = uri.format(here=tmp_path / "here")
    refused(command("pretrain", "--images", images, "--out", tmp_path / "out", *DEBUG), *words)
    assert not (tmp_path / "out").exists()


# Shapes and models


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image-size", "30"], ["--image-size 30", "multiple of --patch-size 8"]),
        (["--model", "vit_tinny"], ["vit_tinny", "Did you mean 'vit_tiny'"]),
        (["--model", "resnet18"], ["resnet18"]),
        (["--model", "test_vit2"], ["--model test_vit2 is not a plain ViT (class token"]),
        (["--image-size", "100x64", "--patch-size", "16"], ["--image-size 100x64", "96x64 or 112x64"]),
        (["--image-size", "3x4x5"], ["--image-size", "HEIGHTxWIDTH"]),
        (["--channels", "65"], ["--channels must be at most 64"]),
        (["--channels", "13"], ["All 24 pictures", "it has 3 channels and the model takes 13 (--channels)"]),
        (
            ["--init", "timm:test_vit"],
            ["timm:test_vit: timm cannot load its weights", "not in the local cache"],
        ),
        (["--init", "timm:vit_tinny"], ["timm has no model 'vit_tinny'"]),
        (
            ["--init", "timm:test_vit?pretrained=false"],
            ["--init timm:test_vit?pretrained=false has --patch-size 16, not 8; give the same options"],
        ),
        (["--init", "timm:test_resnet?pretrained=false"], ["is not a plain ViT"]),
        (["--init", "hf:nobody/nothing"], ["hf:nobody/nothing", "no model of this name can be had"]),
        (["--init", __file__], ["test_bad_input.py is no file of weights", "torch.save"]),
        (["--epochs", "0"], ["--epochs 0 trains nothing", "--init"]),
        (["--device", "gpu"], ["--device"]),
    ],
)
def test_models_that_cannot_be(
    command, tmp_path: Path, tiny_folder: Path, options: list[str], words: list[str]
) -> None:
    refused(command("pretrain", "--images", tiny_folder, "--out", tmp_path / "out", *DEBUG, *options), *words)
    assert not (tmp_path / "out").exists()


def test_arrays_of_another_number_of_channels_or_of_numbers_nobody_knows(command, tmp_path: Path) -> None:
    for name, array in {"bands": np.zeros((5, 9, 9), np.uint8), "floats": np.zeros((13, 9, 9))}.items():
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", array)
    line = ["pretrain", "--out", tmp_path / "out", *DEBUG, "--channels", "13", "--images"]
    refused(command(*line, tmp_path / "bands"), "0.npy", "5 x 9 x 9", "the 13 channels", "--channels")
    refused(command(*line, tmp_path / "floats"), "0.npy", "float64", "store uint8 or uint16")
    refused(command(*line, "toyworld://all"), "3 channels or 1, not of 13")
    assert not (tmp_path / "out").exists()


def test_a_run_does_not_replace_the_weights_that_it_starts_from(command, tmp_path: Path, small_runs) -> None:
    shutil.copytree(small_runs.mae, tmp_path / "mae")
    before = (tmp_path / "mae" / "model.safetensors").read_bytes()
    line = ["pretrain", "--images", small_runs.images, "--out", tmp_path / "mae", *DEBUG, "--overwrite"]
    for init in (tmp_path / "mae", tmp_path / "mae" / "model.safetensors"):
        refused(command(*line, "--init", init), "lies in --out", "choose another --out")
    assert (tmp_path / "mae" / "model.safetensors").read_bytes() == before


def test_a_model_of_others_lies_in_no_folder_of_ours(command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = [
        "pretrain",
        "--images",
        "toyworld://digits?num=9",
        "--out",
        ".",
        "--init",
        "timm:test_resnet?pretrained=false",
    ]
    refused(command(*line, *DEBUG), "is not a plain ViT")


def test_weights_to_start_from_that_do_not_fit(command, tmp_path: Path, small_runs) -> None:
    line = ["pretrain", "--images", small_runs.images, "--out", tmp_path / "out", *DEBUG, "--init"]
    refused(command(*line, small_runs.mae, "--decoder-width", "48"), "--decoder-width 32, not 48")
    refused(command(*line, small_runs.mae, "--channels", "1"), "--channels 3, not 1")
    refused(command(*line, small_runs.moce), "does not fit the model", "missing", "unexpected")
    refused(command(*line, small_runs.clusters), "`moce cluster`")
    refused(command(*line, small_runs.mae / "model.safetensors"), "is a model of moce: give the run folder")
    assert not (tmp_path / "out").exists()


def test_sizes_that_a_trained_model_cannot_take(command, tmp_path: Path, small_runs) -> None:
    size = ["--image-size", "36"]
    for model in (small_runs.mae, small_runs.moce, small_runs.token_moce):
        done = command("evaluate", model, "--task", "toyworld://digits?num=12&size=16", *size)
        refused(done, "--image-size 36", "--patch-size 8", "32 or 40")
    done = command("customize", small_runs.moce, "--strategy", "cluster:0", "--out", tmp_path / "out", *size)
    refused(done, "--image-size 36", "32 or 40")
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


def test_an_out_folder_that_holds_the_pictures(command, tmp_path: Path, tiny_folder: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "run" / "pictures")
    words = ["holds the pictures of --images", "name another folder"]
    for images in (tmp_path / "run", tmp_path / "run" / "pictures"):
        refused(
            command("pretrain", "--images", images, "--out", tmp_path / "run", *DEBUG, "--overwrite"), *words
        )
    assert len(list((tmp_path / "run" / "pictures").rglob("*.*"))) == 24


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
    public = "`moce pretrain --init timm:test_vit --epochs 0` makes one"
    refused(command("cluster", "timm:test_vit", *out), "is no run folder", public)
    refused(command("customize", small_runs.mae, *out), "`moce train-experts`")
    refused(command("customize", small_runs.mae_star, *out), "--gate none")
    assert not (tmp_path / "out").exists()


def test_controls_that_cannot_be(command, tmp_path: Path, small_runs) -> None:
    line = ["train-experts", small_runs.mae, small_runs.clusters, "--images", small_runs.images]
    line += ["--out", tmp_path / "out"]
    refused(command(*line, "--only-clusters", "1,8", "--gate", "none"), "name some from 0 to 7")
    refused(command(*line, "--only-clusters", "1"), "give --gate none, not cluster")
    refused(
        command(*line, "--only-clusters", "one", "--gate", "none"), "--only-clusters must be a whole number"
    )
    refused(command(*line, "--shuffle-clusters", "--gate", "sdr"), "--shuffle-clusters is for --gate cluster")
    refused(command(*line, "--gate", "sdr", "--num-experts", "9"), "more than the 8 clusters")
    refused(command(*line, "--embedding", "learnt"), "Did you mean 'learned'")
    refused(command(*line, "--distill-until", "1.5"), "--distill-until must be at most 1")
    assert not (tmp_path / "out").exists()
    one = command("evaluate", small_runs.mae, "--task", "toyworld://digits", "--strategy", "oracle")
    refused(one, "is one model")


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
        "no folder 'toyworld://digits' of a set in COCO's format",
    )


def test_data_sets_of_the_field_that_are_not_there(command, tmp_path: Path, small_runs) -> None:
    there = ["--data-root", tmp_path]
    refused(command("evaluate", small_runs.mae, "--task", "cars"), "--data-root")
    refused(command("evaluate", small_runs.mae, "--task", "cars", *there), "cars_meta.mat", "by hand")
    refused(command("evaluate", small_runs.mae, "--task", "dtd", *there), "train1.txt", "--download")
    refused(
        command("evaluate", small_runs.mae, "--task", "toyworld://digits", "--download"),
        "--download is for the data sets that torchvision has",
    )
    assert list(tmp_path.iterdir()) == []


def test_shots_that_cannot_be(command, small_runs) -> None:
    task = ["--task", "toyworld://digits?num=12&size=16", "--protocol", "knn"]
    refused(
        command("evaluate", small_runs.mae, *task, "--shots", "3"), "--shots 3", "2 pictures of the class"
    )
    refused(command("evaluate", small_runs.mae, *task, "--shots", "0"), "--shots must be at least 1")
    alone = command("evaluate", small_runs.moce, *task, "--shots", "1", "--strategy", "knn")
    refused(alone, "--shots 1", "--strategy knn", "vote")


def test_labels_needed_and_none_there(command, tmp_path: Path, small_runs) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, 12, 0)
    refused(command("evaluate", small_runs.mae, "--task", tmp_path), "label")
