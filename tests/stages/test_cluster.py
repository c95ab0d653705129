"""Stage 1 on pictures: what it writes, what it refuses, and that the assigner gives the labels back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score

import moce
from moce.engine.files import write_json
from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.images.loader import centred_batches
from moce.images.sources import open_images
from moce.model.assigner import Assigner
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.weights import fingerprint, read_tensors, save_model
from moce.stages import features as features_module
from moce.stages.features import embed_in_place, raw_pixels, room_for
from moce.stages.thumbs import choose_members, sheet

SHAPE = AutoencoderShape("test_vit", (32, 32), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
TOY = "toyworld://all?split=train&size=32&num=180"
CLUSTERS = 7


def dense_run(folder: Path, shape: AutoencoderShape = SHAPE, verb: str = "pretrain") -> Path:
    """A finished run folder with an untrained model."""
    folder.mkdir()
    torch.manual_seed(0)
    mean, std = ([*numbers][: shape.channels] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    save_model(folder / "model.safetensors", MaskedAutoencoder(shape), {"mean": mean, "std": std})
    write_json(folder / "config.json", {"verb": verb, "options": {"preset": "debug"}})
    write_json(folder / "result.json", {})
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dense_run(tmp_path_factory.mktemp("dense") / "mae")


@pytest.fixture(scope="module")
def clustered(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("clustered") / "clusters"
    return out, cluster(dense, out)


def cluster(dense: Path, out: Path, images: str = TOY, **options: Any) -> dict[str, Any]:
    settings = {"num_clusters": CLUSTERS, "num_workers": 0, "quiet": True, "device": "cpu", **options}
    return moce.cluster(str(dense), images=images, out=str(out), **settings)


def embedded_again(
    assigner: Assigner, images: str, batch_size: int = 50
) -> tuple[torch.Tensor, torch.Tensor]:
    """(indices, raw features) of all pictures."""
    batches = centred_batches(open_images(images), assigner.image_size, batch_size, quiet=True)
    numbers, features = zip(*((indices, assigner.features(pictures)) for indices, pictures in batches))
    return torch.cat(numbers), torch.cat(features)


# ------------------------------------------------------------------------------------------------- what is written


def test_it_returns_what_it_writes(clustered: tuple[Path, dict[str, Any]]) -> None:
    out, result = clustered
    summary = json.loads((out / "clusters.json").read_text())
    assert result == {"verb": "cluster", "out": str(out), "seed": 0, **summary}
    assert result == json.loads((out / "result.json").read_text())
    assert summary.keys() >= {
        "num_images", "num_clusters", "marginal_error", "size_min", "size_max", "size_min_argmax",
        "size_max_argmax", "moved", "nmi", "purity",
    }  # fmt: skip
    assert summary["num_images"] == 180
    assert summary["num_clusters"] == CLUSTERS
    assert summary["marginal_error"] < 1e-3
    assert summary["unreadable"] == 0
    labels, source = np.load(out / "labels.npy"), open_images(TOY)
    for cluster, named in enumerate(summary["classes"]):
        own = [source.classes[k].split("/")[0] for k in source.labels[labels == cluster]]
        assert 1 <= len(named) <= 3
        for name, share in named:
            assert share == pytest.approx(own.count(name) / len(own), abs=1e-4)
        assert named[0][1] == pytest.approx(max(map(own.count, own)) / len(own), abs=1e-4)


def test_labels_are_balanced_and_agree_with_the_summary(clustered: tuple[Path, dict[str, Any]]) -> None:
    out, result = clustered
    labels = np.load(out / "labels.npy")
    assert labels.dtype == np.int64
    assert labels.shape == (180,)
    sizes = np.bincount(labels, minlength=CLUSTERS)
    assert sizes.max() <= -(-180 // CLUSTERS)
    assert (sizes.min(), sizes.max()) == (result["size_min"], result["size_max"])
    assert Assigner.load(out / "clusters.safetensors").sizes.tolist() == sizes.tolist()
    classes = open_images(TOY).labels
    assert result["nmi"] == pytest.approx(normalized_mutual_info_score(classes, labels))
    assert 0 < result["purity"] <= 1
    assert 0 < result["nmi_raw"] <= 1


def test_the_assigner_gives_the_argmax_labels_back(dense: Path, tmp_path: Path) -> None:
    result = cluster(dense, tmp_path / "argmax", rounding="argmax")
    labels = np.load(tmp_path / "argmax" / "labels.npy")
    assigner = Assigner.load(tmp_path / "argmax" / "clusters.safetensors")
    for batch_size in (50, 256):  # 256 is the stage's
        indices, features = embedded_again(assigner, TOY, batch_size)
        assert assigner.assign(features).numpy().tolist() == labels[indices.numpy()].tolist()
    assert result["moved"] == 0
    assert (result["size_min"], result["size_max"]) == (result["size_min_argmax"], result["size_max_argmax"])


def test_moved_is_the_share_that_rounding_changed(
    clustered: tuple[Path, dict[str, Any]], dense: Path, tmp_path: Path
) -> None:
    out, result = clustered
    argmax = cluster(dense, tmp_path / "argmax", rounding="argmax")
    changed = np.load(out / "labels.npy") != np.load(tmp_path / "argmax" / "labels.npy")
    assert result["moved"] == pytest.approx(changed.mean())
    assert result["size_max_argmax"] == argmax["size_max"]


def test_the_assigner_knows_what_it_was_made_of(clustered: tuple[Path, dict[str, Any]], dense: Path) -> None:
    out, result = clustered
    assigner = Assigner.load(out / "clusters.safetensors")
    torch.manual_seed(0)
    assert assigner.encoder_fingerprint == fingerprint(MaskedAutoencoder(SHAPE))
    assert assigner.images_fingerprint == open_images(TOY).fingerprint()
    assert assigner.image_size == (32, 32)
    assert assigner.pixel_mean == tuple(IMAGENET_MEAN)
    _, features = embedded_again(assigner, TOY)
    assert torch.allclose(assigner.mean, features.mean(dim=0), atol=1e-5)
    embedded = assigner.embed(features)
    fit = assigner.cosines(embedded, assigner.assign(features))
    assert torch.allclose(
        assigner.cosine_quantiles[[0, 500, 1000]], fit.quantile(torch.tensor([0, 0.5, 1.0])), atol=1e-4
    )
    assert result["mean_cosine"] == pytest.approx(float(fit.mean()), abs=1e-4)
    assert torch.allclose(assigner.centroids.norm(dim=1), torch.ones(CLUSTERS), atol=1e-5)


def test_small_pictures_of_every_cluster(clustered: tuple[Path, dict[str, Any]]) -> None:
    out, _ = clustered
    thumbs = read_tensors(out / "thumbs" / "thumbs.safetensors")
    assert thumbs["images"].shape == (CLUSTERS, 16, 3, 32, 32)
    assert thumbs["images"].dtype == torch.uint8
    assert thumbs["features"].shape == (CLUSTERS, 16, 64)
    assert thumbs["features"].dtype == torch.float16
    labels = torch.from_numpy(np.load(out / "labels.npy"))
    indices = thumbs["indices"]
    assert (labels[indices] == torch.arange(CLUSTERS)[:, None]).all()
    assert all(len(row.unique()) == 16 for row in indices)
    source = open_images(TOY)
    assert torch.equal(thumbs["images"][3, 9], source.get(int(indices[3, 9]))[0])
    assigner = Assigner.load(out / "clusters.safetensors")
    fit = (thumbs["features"].float() * assigner.centroids[:, None]).sum(dim=2)
    assert (fit[:, :8].diff() <= 2e-3).all()  # nearest first
    assert (fit[:, 8:].amax(dim=1) <= fit[:, 7] + 2e-3).all()  # and nearer than all others
    for number in range(CLUSTERS):
        with Image.open(out / "thumbs" / f"cluster-{number:04d}.png") as picture:
            assert picture.size == (4 * 32 + 3 * 2, 4 * 32 + 3 * 2)


def test_the_same_command_gives_the_same_files(
    clustered: tuple[Path, dict[str, Any]], dense: Path, tmp_path: Path
) -> None:
    out, _ = clustered
    cluster(dense, tmp_path / "again", batch_size=64)
    assert np.array_equal(np.load(out / "labels.npy"), np.load(tmp_path / "again" / "labels.npy"))
    cluster(dense, tmp_path / "other", seed=1)
    assert not np.array_equal(np.load(out / "labels.npy"), np.load(tmp_path / "other" / "labels.npy"))


def test_a_finished_run_is_left_alone(clustered: tuple[Path, dict[str, Any]], dense: Path) -> None:
    out, result = clustered
    before = (out / "clusters.safetensors").stat().st_mtime_ns
    assert cluster(dense, out) == result
    assert (out / "clusters.safetensors").stat().st_mtime_ns == before


def test_a_person_is_told_sizes_error_and_agreement(
    dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = cluster(dense, tmp_path / "told", quiet=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"180 pictures in 7 clusters of {result['size_min']} to {result['size_max']}" in captured.err
    assert "error of the plan's marginals" in captured.err
    assert f"NMI {result['nmi']:.3f}" in captured.err
    assert f"raw 8 x 8 pixels: NMI {result['nmi_raw']:.3f}" in captured.err


# ------------------------------------------------------------------------------------------------------ odd pictures


def test_pictures_without_classes_have_no_agreement(dense: Path, tiny_folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(p for p in tiny_folder.rglob("*") if p.is_file())):
        shutil.copy(path, flat / f"{number:02d}{path.suffix}")
    result = cluster(dense, tmp_path / "out", str(flat), num_clusters=3)
    assert [result[name] for name in ("nmi", "purity", "nmi_raw", "purity_raw")] == [None] * 4
    assert result["size_max"] == 8


def test_an_unreadable_picture_has_label_minus_one(dense: Path, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(tiny_folder, folder)
    (folder / "rings" / "3.jpg").write_bytes(b"no picture")  # index 11 of 24
    result = cluster(dense, tmp_path / "out", str(folder), num_clusters=4)
    labels = np.load(tmp_path / "out" / "labels.npy")
    assert np.flatnonzero(labels < 0).tolist() == [11]
    assert result["unreadable"] == 1
    assert result["num_images"] == 24
    assert "rings/3.jpg" in (tmp_path / "out" / "unreadable.txt").read_text()
    thumbs = read_tensors(tmp_path / "out" / "thumbs" / "thumbs.safetensors")
    assert 11 not in thumbs["indices"]
    assert (thumbs["indices"][:, 8:] == -1).all()  # clusters of at most six pictures
    assert (thumbs["images"][:, 8:] == 0).all()


def test_grey_pictures_and_oblong_ones(tiny_folder: Path, tmp_path: Path) -> None:
    shape = AutoencoderShape("test_vit", (16, 24), (8, 8), 1, 1, 32, 2)
    result = cluster(dense_run(tmp_path / "mae", shape), tmp_path / "out", str(tiny_folder), num_clusters=2)
    assert result["size_max"] == 12
    thumbs = read_tensors(tmp_path / "out" / "thumbs" / "thumbs.safetensors")
    assert thumbs["images"].shape == (2, 16, 1, 16, 24)


# ------------------------------------------------------------------------------------------------------ wrong input


def test_more_clusters_than_pictures_is_refused_before_anything_is_written(
    dense: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--num-clusters 25 is more than the 24 pictures"):
        cluster(dense, tmp_path / "out", str(tiny_folder), num_clusters=25)
    damaged = shutil.copytree(tiny_folder, tmp_path / "damaged")
    next(path for path in sorted(damaged.rglob("*")) if path.is_file()).write_bytes(b"no picture")
    with pytest.raises(UserError, match="--num-clusters 24 is more than the 23 readable pictures"):
        cluster(dense, tmp_path / "out", str(damaged), num_clusters=24)
    assert not (tmp_path / "out").exists()


def test_one_cluster_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--num-clusters must be at least 2"):
        cluster(dense, tmp_path / "out", num_clusters=1)


def test_eps_zero_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--eps must be above 0"):
        cluster(dense, tmp_path / "out", eps=0)


def test_a_folder_that_is_no_dense_run_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        cluster(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match="is not a run folder"):
        cluster(tiny_folder, tmp_path / "out")
    with pytest.raises(UserError, match="holds a run of `moce cluster`; a run of `moce pretrain`"):
        cluster(dense_run(tmp_path / "other", verb="cluster"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_dense_run_is_refused(tmp_path: Path) -> None:
    run = dense_run(tmp_path / "mae")
    (run / "result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        cluster(run, tmp_path / "out")


def test_another_method_option_is_refused_and_another_speed_option_is_not(
    clustered: tuple[Path, dict[str, Any]], dense: Path
) -> None:
    out, result = clustered
    with pytest.raises(UserError, match=r"--eps was 0\.05 and is now 0\.1"):
        cluster(dense, out, eps=0.1)
    assert cluster(dense, out, batch_size=32) == result


# ----------------------------------------------------------------------------------------------------------- pieces


def test_large_features_lie_in_a_file_that_leaves_nothing_behind(
    clustered: tuple[Path, dict[str, Any]], dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_module, "ON_DISK_FROM", 0)
    room = room_for(10, 4, tmp_path)
    room[3] = 1
    assert room.sum() == 4
    assert list(tmp_path.iterdir()) == []
    cluster(dense, tmp_path / "out")
    out, _ = clustered
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in out.iterdir())
    assert np.array_equal(np.load(out / "labels.npy"), np.load(tmp_path / "out" / "labels.npy"))


def test_embedding_in_place_by_hand() -> None:
    features = torch.tensor([[1.0, 1.0], [5.0, 1.0], [3.0, 4.0]])
    assert embed_in_place(features, rows=2).mean.tolist() == [3.0, 2.0]
    expected = torch.tensor([[-2, -1], [2, -1], [0, 2]]) / torch.tensor([[5**0.5], [5**0.5], [2]])
    assert torch.allclose(features, expected)


def spread(count: int = 4000) -> torch.Tensor:
    """Features whose principal axes, turned at random, have deviations 8, 2 and 0.5, far from zero."""
    generator = torch.Generator().manual_seed(3)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    lengths = torch.tensor([8.0, 2.0, 0.5], dtype=torch.float64)
    return ((torch.randn(count, 3, generator=generator).double() * lengths) @ axes.T + 100).float()


@pytest.mark.parametrize("whiten", [0.0, 0.5, 1.0])
def test_whitening_leaves_every_principal_axis_a_power_of_its_deviation(whiten: float) -> None:
    features = spread()
    mean, scaling = embed_in_place(features.clone(), whiten=whiten)
    centred = (features - mean).double()
    scaled = centred if scaling is None else centred @ scaling.double()
    deviations = torch.linalg.eigvalsh(scaled.T @ scaled / len(scaled)).sqrt().flip(0)
    expected = torch.tensor([8.0, 2.0, 0.5], dtype=torch.float64) ** (1 - whiten) * 8**whiten
    assert torch.allclose(deviations, expected, rtol=0.05)


def test_no_whitening_takes_features_as_they_are() -> None:
    assert embed_in_place(spread(), whiten=0.0).scaling is None


def test_whitened_clusters_assign_their_own_pictures_alike(dense: Path, tmp_path: Path) -> None:
    plain = cluster(dense, tmp_path / "plain", rounding="argmax")
    result = cluster(dense, tmp_path / "out", rounding="argmax", whiten=0.5)
    labels = torch.from_numpy(np.load(tmp_path / "out" / "labels.npy"))
    assigner = Assigner.load(tmp_path / "out" / "clusters.safetensors")
    indices, features = embedded_again(assigner, TOY)
    assert torch.equal(assigner.assign(features), labels[indices])
    assert result["nmi_raw"] == plain["nmi_raw"]  # raw pixels stay as they are
    assert not np.array_equal(labels, np.load(tmp_path / "plain" / "labels.npy"))


def test_raw_pixels_are_means_of_fields() -> None:
    image = torch.arange(8).repeat_interleave(4).expand(1, 3, 32, 32).to(torch.uint8)
    assert raw_pixels(image).view(3, 8, 8)[1, 5].tolist() == list(range(8))


def test_members_of_small_clusters_by_hand() -> None:
    labels = torch.tensor([1, 0, 1, 1] + [2] * 20)
    fit = torch.tensor([0.1, 0.9, 0.3, 0.2] + [i / 20 for i in range(20)])
    chosen = choose_members(labels, fit, 4, seed=0)
    assert chosen[0].tolist() == [1] + [-1] * 15
    assert chosen[1].tolist() == [2, 3, 0] + [-1] * 13
    assert chosen[2, :8].tolist() == list(range(23, 15, -1))
    others = chosen[2, 8:].tolist()
    assert others == sorted(others, reverse=True)
    assert set(others) < set(range(4, 16))
    assert chosen[3].tolist() == [-1] * 16


def test_sheet_by_hand() -> None:
    pictures = torch.stack([torch.full((3, 2, 3), 10 * i, dtype=torch.uint8) for i in range(5)])
    canvas = np.asarray(sheet(pictures))
    assert canvas.shape == (2 * 2 + 2, 4 * 3 + 3 * 2, 3)
    assert canvas[0, ::5, 0].tolist() == [0, 10, 20, 30]
    assert canvas[4, 0, 0] == 40
    assert canvas[4, 6, 0] == 255
