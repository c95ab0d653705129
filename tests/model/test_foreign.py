import argparse
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import moce
from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD
from moce.images.normalise import IMAGENET
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.foreign import load_foreign, read_foreign, shape_of
from moce.model.resize import resize
from moce.model.weights import load_model
from moce.stages.pretrain import starting_weights
from moce.study.bench.peers import twin

SHAPE = AutoencoderShape("test_vit", (32, 32), (8, 8), decoder_depth=1, decoder_width=32, decoder_heads=2)


def new_model(seed: int, size: tuple[int, int] = (32, 32)) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    shape = AutoencoderShape(**{**SHAPE.__dict__, "image_size": size})
    model = MaskedAutoencoder(shape).eval()
    for parameter in model.parameters():  # biases, norms and positions that are nobody's defaults
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def loss(model: MaskedAutoencoder) -> float:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, *model.shape.image_size, generator=generator)
    noise = torch.rand(4, model.shape.num_patches, generator=generator)
    return float(model(images, noise).loss.detach())


def official(model: MaskedAutoencoder) -> dict[str, Tensor]:
    """Under the names of the official MAE code, whose predicted pixels have the channel last."""
    tensors = {n.removeprefix("encoder."): t.clone() for n, t in model.state_dict().items()}
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        own = tensors[name]
        tensors[name] = torch.stack(
            [own[c * 64 + y * 8 + x] for y in range(8) for x in range(8) for c in range(3)]
        )
    return tensors


def test_a_full_file_of_the_official_code_is_the_same_autoencoder(tmp_path: Path) -> None:
    trained, model = new_model(1), new_model(2)
    args = argparse.Namespace(model="mae_vit", lr=1e-3)  # as the official training script saves it
    torch.save({"model": official(trained), "epoch": 7, "args": args}, tmp_path / "full.pth")
    start = starting_weights(model, str(tmp_path / "full.pth"), quiet=True)
    assert start.pixels == IMAGENET
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert loss(model) == loss(trained)


def test_a_file_without_decoder_fills_the_encoder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    trained, model, before = new_model(1), new_model(2), new_model(2)
    tensors = {n: t for n, t in official(trained).items() if not n.startswith(("decoder", "mask"))}
    tensors["head.weight"], tensors["head.bias"] = torch.zeros(5, 64), torch.zeros(5)
    save_file(tensors, tmp_path / "encoder.safetensors")
    starting_weights(model, str(tmp_path / "encoder.safetensors"), quiet=False)
    for name, tensor in model.state_dict().items():
        source = trained if name.startswith("encoder.") else before
        assert torch.equal(tensor, source.state_dict()[name]), name
    said = capsys.readouterr().err
    assert f"loaded {len(tensors) - 2}" in said
    assert "it has no decoder: ours starts untrained" in said
    assert "left out 2" in said


def test_positions_of_another_size_are_resampled_as_for_a_run_of_ours(tmp_path: Path) -> None:
    trained, model = new_model(1), new_model(2, (48, 64))
    torch.save(official(trained), tmp_path / "full.pth")
    starting_weights(model, str(tmp_path / "full.pth"), quiet=True)
    resize(trained, (48, 64))
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_a_vit_of_timm_brings_its_normalisation() -> None:
    model = new_model(2, (160, 160))
    model_16 = MaskedAutoencoder(AutoencoderShape(**{**SHAPE.__dict__, "patch_size": (16, 16)}))
    with pytest.raises(UserError, match="has --patch-size 16, not 8; give the same options"):
        starting_weights(model, "timm:test_vit?pretrained=false", quiet=True)
    start = starting_weights(model_16, "timm:test_vit?pretrained=false", quiet=True)
    assert start.pixels is not None and start.pixels.mean == (0.5, 0.5, 0.5)
    theirs = read_foreign("timm:test_vit?pretrained=false").tensors
    assert torch.equal(model_16.encoder.blocks[3].attn.qkv.weight, theirs["encoder.blocks.3.attn.qkv.weight"])
    assert model_16.encoder.pos_embed.shape[1] == 5
    assert theirs["encoder.pos_embed"].shape[1] == 101


@pytest.mark.parametrize("norm_target", [True, False])
def test_a_vitmae_with_its_decoder_has_the_loss_of_transformers(tmp_path: Path, norm_target: bool) -> None:
    pytest.importorskip("transformers")
    shape = AutoencoderShape(**{**SHAPE.__dict__, "norm_target": norm_target})
    trained, model = MaskedAutoencoder(shape), MaskedAutoencoder(shape)
    trained.load_state_dict(new_model(1).state_dict())
    theirs, _ = twin(trained)
    theirs.save_pretrained(tmp_path)
    found = read_foreign(f"hf:{tmp_path}")
    assert found.known == {"image_size": (32, 32), "heads": 2, "decoder_heads": 2, "norm_target": norm_target}
    load_foreign(model, found, "hf:x")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    images, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
    with torch.no_grad():
        wanted = theirs(pixel_values=images, noise=noise).loss
        assert abs(model(images, noise).loss - wanted) < 1e-5


def test_a_start_of_another_shape_is_one_sentence_with_all_options(tmp_path: Path) -> None:
    shape = AutoencoderShape("vit_tiny_patch16_224", (32, 32), (16, 16), 1, 2, 48, 3)
    torch.manual_seed(0)
    torch.save(official_shape(MaskedAutoencoder(shape)), tmp_path / "other.pth")
    with pytest.raises(UserError) as told:
        starting_weights(new_model(1), str(tmp_path / "other.pth"), quiet=True)
    assert str(told.value).endswith(
        "has --model vit_tiny, not test_vit; --patch-size 16, not 8; --channels 1, not 3; --decoder-depth 2, not 1; "
        "--decoder-width 48, not 32; give the same options."
    )


def official_shape(model: MaskedAutoencoder) -> dict[str, Tensor]:
    return {n.removeprefix("encoder."): t for n, t in model.state_dict().items()}


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda t: t.pop("norm.bias"), "missing 1.*encoder.norm.bias"),
        (lambda t: t.pop("decoder_norm.bias"), "missing 1.*decoder_norm.bias"),
        (lambda t: t.update({"blocks.0.ls1.gamma": torch.ones(64)}), "unexpected 1.*blocks.0.ls1.gamma"),
        (lambda t: t.update({"norm.bias": torch.ones(3)}), "other shape 1.*encoder.norm.bias"),
        (lambda t: t.update({"pos_embed": torch.ones(1, 15, 64)}), "positions of 14 patches"),
    ],
)
def test_files_that_fit_in_part_are_refused(tmp_path: Path, change, first: str) -> None:
    tensors = official(new_model(1))
    change(tensors)
    torch.save(tensors, tmp_path / "part.pth")
    model = new_model(2)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(UserError, match=first):
        starting_weights(model, str(tmp_path / "part.pth"), quiet=True)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_models_that_are_no_plain_vits_cannot_be_a_start(tmp_path: Path) -> None:
    for name in ("test_resnet", "test_vit2", "test_vit4"):
        with pytest.raises(UserError, match="is not a plain ViT"):
            read_foreign(f"timm:{name}?pretrained=false")
    save_file({"vit.embeddings.cls_token": torch.zeros(1, 1, 8)}, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match="give models of transformers as hf:FOLDER"):
        read_foreign(str(tmp_path / "theirs.safetensors"))


def test_heads_are_compared_where_somebody_says_their_number() -> None:
    model = new_model(1)
    found = read_foreign("timm:test_vit?pretrained=false")
    other = found._replace(known={**found.known, "heads": 8})
    assert shape_of(found, model)["architecture"] == "test_vit"
    assert "8 heads" in shape_of(other, model)["architecture"]


def test_public_weights_become_stage_0_without_training(tmp_path: Path) -> None:
    """What `--epochs 0` writes is the file's model to the digit, and the later stages take it."""
    trained = new_model(1)
    torch.save({"model": official(trained)}, tmp_path / "mae.pth")
    images, out = "toyworld://all?split=train&num=64&size=32", tmp_path / "mae"
    options = {"images": images, "preset": "debug", "quiet": True}
    result = moce.pretrain(init=tmp_path / "mae.pth", epochs=0, out=out, **options)
    assert (result["steps"], result["loss"]) == (0, None)
    model, header = load_model(out)
    assert (tuple(header["about"]["mean"]), tuple(header["about"]["std"])) == (IMAGENET_MEAN, IMAGENET_STD)
    assert loss(model) == loss(trained)
    assert moce.pretrain(init=tmp_path / "mae.pth", epochs=0, out=out, **options) == result
    moce.cluster(out, images=images, out=tmp_path / "clusters", num_clusters=4, quiet=True)
    moce.train_experts(out, tmp_path / "clusters", images=images, epochs=1, out=tmp_path / "moce", quiet=True)
    moce.report((out, tmp_path / "moce"), out=tmp_path / "report.html", quiet=True)
    torch.save({"model": official(new_model(5))}, tmp_path / "mae.pth")
    with pytest.raises(UserError, match="other options: .*not the same weights of --init"):
        moce.pretrain(init=tmp_path / "mae.pth", epochs=0, out=out, **options)
