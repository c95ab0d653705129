"""A miniature of ADE20K, and a small model with random weights."""

from pathlib import Path

import pytest
import torch
from drawn_ade import write_ade

from moce.engine.files import write_json
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.weights import save_model

SHAPE = AutoencoderShape("test_vit", (32, 32), (4, 4), decoder_depth=1, decoder_width=32, decoder_heads=2)


@pytest.fixture(scope="session")
def tiny_ade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 pictures to learn from, 6 to test on; copy it before changing it."""
    return write_ade(tmp_path_factory.mktemp("tiny") / "tiny-ade")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pretrain run with random weights."""
    folder = tmp_path_factory.mktemp("mae")
    torch.manual_seed(0)
    write_json(folder / "config.json", {"verb": "pretrain", "options": {}})
    write_json(folder / "result.json", {})
    about = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "method": "MAE"}
    save_model(folder / "model.safetensors", MaskedAutoencoder(SHAPE), about)
    return folder
