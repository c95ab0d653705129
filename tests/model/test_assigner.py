"""The assigner: one function for training pictures, tasks and routing, and a file that needs nothing else."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.model.assigner import SCALING, TENSORS, Assigner, adjusted_scores, cosines, embed, quantiles
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.weights import fingerprint, save_model, write_tensors

SHAPE = AutoencoderShape("test_vit", (16, 24), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
WIDTH, CLUSTERS = 64, 5


@pytest.fixture(scope="module")
def dense() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SHAPE)


@pytest.fixture(scope="module")
def assigner(dense: MaskedAutoencoder) -> Assigner:
    generator = torch.Generator().manual_seed(1)
    return Assigner(
        encoder=dense,
        centroids=torch.nn.functional.normalize(torch.randn(CLUSTERS, WIDTH, generator=generator)),
        potentials=torch.randn(CLUSTERS, generator=generator),
        mean=torch.randn(WIDTH, generator=generator),
        eps=0.07,
        crop_pct=1.0,
        pixel_mean=tuple(IMAGENET_MEAN),
        pixel_std=tuple(IMAGENET_STD),
        images_fingerprint="0123456789abcdef",
        encoder_fingerprint=fingerprint(dense),
        cosine_quantiles=torch.linspace(-1, 1, 1001),
        sizes=torch.tensor([5, 4, 3, 2, 1]),
    )


@pytest.fixture
def saved(assigner: Assigner, tmp_path: Path) -> Path:
    assigner.save(tmp_path / "clusters.safetensors")
    return tmp_path / "clusters.safetensors"


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 16, 24), dtype=torch.uint8, generator=generator)


# ------------------------------------------------------------------------------------------------------------ scores


def test_embedding_by_hand() -> None:
    found = embed(torch.tensor([[4.0, 6.0], [1.0, 2.0]]), torch.tensor([1.0, 2.0]))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))  # what equals the mean stays zero


def test_scores_by_hand() -> None:
    found = adjusted_scores(torch.tensor([[0.6, 0.8]]), torch.eye(2), torch.tensor([1.0, -1.0]), 0.1)
    assert torch.allclose(found, torch.tensor([[7.0, 7.0]], dtype=torch.float64), atol=1e-5)


def test_the_potential_decides_between_equal_cosines(assigner: Assigner) -> None:
    tilted = dataclasses.replace(assigner, potentials=torch.tensor([0.0, 0.0, 50.0, 0.0, 0.0]))
    assert tilted.assign(torch.randn(20, WIDTH)).tolist() == [2] * 20


def test_a_label_does_not_depend_on_the_batch(assigner: Assigner) -> None:
    features = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(2)) + 1
    at_once = assigner.assign(features)
    for rows in (1, 7, 256):
        assert torch.equal(torch.cat([assigner.assign(part) for part in features.split(rows)]), at_once)


def test_features_are_those_of_the_unmasked_encoder_and_stay_the_same(assigner: Assigner) -> None:
    images = pictures(6)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        tokens = assigner.encoder.encoder.forward_features((images / 255 - mean) / std)
    assert torch.allclose(assigner.features(images), tokens[:, 1:].mean(dim=1), atol=1e-5)
    assert torch.equal(assigner.features(images), assigner.features(images))


def test_pictures_of_another_size_are_a_fault(assigner: Assigner) -> None:
    with pytest.raises(AssertionError, match=r"\(16, 24\)"):
        assigner.features(torch.zeros(1, 3, 24, 16, dtype=torch.uint8))


def test_cosines_are_to_the_centroids_of_the_labels(assigner: Assigner) -> None:
    embedded = assigner.embed(torch.randn(9000, WIDTH))  # more than one chunk
    labels = torch.arange(9000) % CLUSTERS
    expected = (embedded @ assigner.centroids.T)[torch.arange(9000), labels]
    assert torch.allclose(cosines(embedded, assigner.centroids, labels), expected, atol=1e-6)


def test_quantiles_by_hand() -> None:
    found = quantiles(torch.tensor([0.3, 0.1, 0.2]))
    assert found.shape == (1001,)
    assert found[[0, 250, 500, 1000]].tolist() == pytest.approx([0.1, 0.15, 0.2, 0.3])


# -------------------------------------------------------------------------------------------------------------- file


def test_a_file_gives_everything_back(assigner: Assigner, saved: Path) -> None:
    loaded = Assigner.load(saved)
    for field in dataclasses.fields(Assigner):
        before, after = getattr(assigner, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after), field.name
        elif field.name != "encoder":
            assert before == after, field.name
    assert loaded.image_size == (16, 24)
    assert loaded.num_clusters == CLUSTERS
    images = pictures(40)
    assert torch.equal(loaded.features(images), assigner.features(images))
    assert torch.equal(loaded.assign(loaded.features(images)), assigner.assign(assigner.features(images)))


def test_a_file_gives_the_scaling_back_and_what_was_assigned_with_it(
    assigner: Assigner, tmp_path: Path
) -> None:
    half = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    scaled = dataclasses.replace(assigner, scaling=half + half.T)
    scaled.save(tmp_path / "scaled.safetensors")
    loaded = Assigner.load(tmp_path / "scaled.safetensors")
    assert loaded.scaling is not None
    assert torch.equal(loaded.scaling, half + half.T)
    features = torch.randn(40, WIDTH)
    assert torch.equal(loaded.assign(features), scaled.assign(features))
    assert not torch.equal(loaded.assign(features), assigner.assign(features))


def test_a_scaling_of_another_width_is_refused(assigner: Assigner, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    assigner.save(path)
    tensors = {**load_file(path), SCALING: torch.eye(WIDTH - 1)}
    with safe_open(path, "pt") as file:
        write_tensors(path, tensors, json.loads(file.metadata()["moce"]))
    with pytest.raises(UserError, match=rf"{SCALING} has shape \({WIDTH - 1}, {WIDTH - 1}\), not"):
        Assigner.load(path)


def test_the_file_holds_the_encoder_by_timms_names_and_no_decoder(assigner: Assigner, saved: Path) -> None:
    names = set(load_file(saved))
    encoder = {f"encoder.{name}" for name in assigner.encoder.encoder.state_dict()}
    assert names == encoder | set(TENSORS)
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["moce"])
    assert header["shape"]["architecture"] == "test_vit"
    assert header["eps"] == 0.07


def test_a_loaded_encoder_is_frozen_and_cannot_decode(saved: Path) -> None:
    encoder = Assigner.load(saved).encoder
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    with pytest.raises(AttributeError, match="decoder_embed"):
        encoder.reconstruct(torch.zeros(1, 3, 16, 24), torch.rand(1, 6))


def test_a_missing_file_is_the_users_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no file .*nothing"):
        Assigner.load(tmp_path / "nothing")


def test_a_damaged_file_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content[:7],
        b"",
        b"\0" * 100,
        np.random.default_rng(0).bytes(999),
    ):
        saved.write_bytes(damaged)
        with pytest.raises(UserError, match=r"clusters\.safetensors"):
            Assigner.load(saved)


def test_a_foreign_file_is_refused(dense: MaskedAutoencoder, saved: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not written by moce"):
        Assigner.load(tmp_path / "foreign.safetensors")
    save_model(tmp_path / "model.safetensors", dense)
    with pytest.raises(UserError, match="holds 'autoencoder', not the clusters"):
        Assigner.load(tmp_path / "model.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "odd.safetensors", metadata={"moce": "no JSON"})
    with pytest.raises(UserError, match="broken header"):
        Assigner.load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize("name", [*TENSORS, "encoder.blocks.0.mlp.fc1.weight", "eps", "images"])
def test_an_incomplete_file_is_refused(saved: Path, name: str) -> None:
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["moce"])
    tensors = load_file(saved)
    (tensors if name in tensors else header).pop(name)
    write_tensors(saved, tensors, header)
    with pytest.raises(UserError, match=r"incomplete|missing 1"):
        Assigner.load(saved)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_belong_together_are_refused(saved: Path, name: str) -> None:
    with safe_open(saved, "pt") as file:
        header = json.loads(file.metadata()["moce"])
    tensors = load_file(saved)
    tensors[name] = tensors[name][1:]
    write_tensors(saved, tensors, header)
    with pytest.raises(UserError, match="is broken"):
        Assigner.load(saved)
