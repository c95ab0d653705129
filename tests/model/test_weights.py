"""Model files: the header rebuilds the model, and weights that do not fit are refused loudly."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moce.errors import UserError
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ExpertAutoencoder, ExpertShape
from moce.model.weights import fingerprint, load_model, load_strictly, read_header, save_model, write_tensors

SHAPE = AutoencoderShape("test_vit", (16, 24), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)
EXPERTS = ExpertShape((0, 5), 3, "cluster", num_clusters=4, cluster_width=64, output_scale="raw")


@pytest.mark.parametrize("experts", [False, True])
def test_a_file_alone_rebuilds_the_model(tmp_path: Path, experts: bool) -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SHAPE)
    if experts:
        model = ExpertAutoencoder.from_dense(model, EXPERTS)
    save_model(tmp_path / "model.safetensors", model, {"method": "MAE", "mean": [0.5]})
    again, header = load_model(tmp_path)
    assert type(again) is type(model) and again.shape == SHAPE and not again.training
    assert fingerprint(again) == fingerprint(model)
    assert header["about"] == {"method": "MAE", "mean": [0.5]}
    if isinstance(again, ExpertAutoencoder):
        assert again.expert_shape == EXPERTS


def test_a_fingerprint_sees_every_value() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(SHAPE)
    before = fingerprint(model)
    with torch.no_grad():
        model.encoder.blocks[3].mlp.fc1.bias[7] += 1e-3
    assert fingerprint(model) != before


def test_weights_that_load_almost_nothing_are_refused() -> None:
    model = MaskedAutoencoder(SHAPE)
    prefixed = {f"backbone.{n}": t for n, t in model.state_dict().items()}
    with pytest.raises(UserError, match=r"loaded 0, missing \d+, unexpected \d+"):
        load_strictly(model, prefixed, "somewhere")


def test_one_tensor_of_another_shape_is_refused() -> None:
    model = MaskedAutoencoder(SHAPE)
    state = dict(model.state_dict())
    state["decoder_pred.bias"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"other shape 1 \(first: decoder_pred.bias\)"):
        load_strictly(model, state, "somewhere")
    assert "missing 0, unexpected 0" in load_strictly(model, model.state_dict(), "somewhere")


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        read_header(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="not a readable safetensors"):
        read_header(tmp_path / "broken.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match="not written by moce"):
        read_header(tmp_path / "foreign.safetensors")
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(2)}, {"kind": "assigner"})
    with pytest.raises(UserError, match="holds 'assigner', not a model"):
        load_model(tmp_path / "other.safetensors")
