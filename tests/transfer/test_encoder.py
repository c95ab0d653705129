import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from moce.engine.files import write_json
from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD, finish
from moce.model.assigner import Assigner
from moce.model.autoencoder import AutoencoderShape, MaskedAutoencoder
from moce.model.experts import ClusterGate, ExpertAutoencoder, ExpertShape
from moce.model.weights import save_model
from moce.transfer.encoder import Encoder, is_customised, load_encoder

CPU = torch.device("cpu")
SHAPE = AutoencoderShape("test_vit", (16, 16), (4, 4), decoder_depth=1, decoder_width=32, decoder_heads=2)
ABOUT = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def pictures(count: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)


def run_folder(path: Path, verb: str, options: dict[str, Any], model: MaskedAutoencoder, method: str) -> Path:
    path.mkdir()
    write_json(path / "config.json", {"verb": verb, "options": options})
    write_json(path / "result.json", {})
    save_model(path / "model.safetensors", model, {**ABOUT, "method": method})
    return path


@pytest.fixture(scope="module")
def dense() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(SHAPE).eval()


@pytest.fixture(scope="module")
def token(dense: MaskedAutoencoder) -> ExpertAutoencoder:
    torch.manual_seed(1)
    model = ExpertAutoencoder.from_dense(dense, ExpertShape((2, 4), 3, "token", 0, 0)).eval()
    for layer in (2, 4):  # experts that differ, as after training
        for parameter in model.encoder.blocks[layer].mlp.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def folders(
    dense: MaskedAutoencoder, token: ExpertAutoencoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "MAE": run_folder(root / "mae", "pretrain", {}, dense, "MAE"),
        "MAE*": run_folder(root / "star", "train-experts", {"gate": "none"}, dense, "MAE*"),
        "TokenMoE": run_folder(
            root / "token", "train-experts", {"gate": "token", "balance": 0.02}, token, "TokenMoE"
        ),
        "MoCE": customised_folder(root / "custom", dense),
    }


def customised_folder(path: Path, dense: MaskedAutoencoder) -> Path:
    """As `moce customize` writes it."""
    path.mkdir()
    content = {
        "architecture": SHAPE.architecture,
        "num_classes": 0,
        "num_features": 64,
        "model_args": {"img_size": [16, 16], "patch_size": 4, "global_pool": "avg", "fc_norm": False},
        "pretrained_cfg": {
            "input_size": [3, 16, 16],
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (path / "config.json").write_text(json.dumps(content))
    (path / "choice.json").write_text(json.dumps({"strategy": "vote", "cluster": 2, "votes": [0, 1, 9]}))
    save_file({n: t.contiguous() for n, t in dense.encoder.state_dict().items()}, path / "model.safetensors")
    return path


def opened(folders: dict[str, Path], method: str) -> Encoder:
    return load_encoder(str(folders[method]), CPU, quiet=True)


METHODS = ["MAE", "MAE*", "TokenMoE", "MoCE"]


@pytest.mark.parametrize("method", METHODS)
def test_features_are_the_same_to_the_digit_each_time(folders: dict[str, Path], method: str) -> None:
    """Masking that stays on, or noise on a gate, would show here."""
    encoder = opened(folders, method)
    assert isinstance(encoder, Encoder)
    assert encoder.method == method
    first = encoder.features(pictures())
    assert first.dtype == torch.float32
    assert first.shape == (5, 64)
    torch.manual_seed(123)
    assert first.equal(encoder.features(pictures()))
    again = opened(folders, method)
    assert first.equal(again.features(pictures()))
    assert encoder.fingerprint == again.fingerprint
    assert len(encoder.fingerprint) == 16


@pytest.mark.parametrize("method", ["MAE", "MAE*", "MoCE"])
def test_features_are_those_of_the_weights_in_the_folder(
    folders: dict[str, Path], dense: MaskedAutoencoder, method: str
) -> None:
    """A load that found no weights would give the features of another, random network."""
    wanted = dense.features(finish(pictures(), None)).detach()
    torch.testing.assert_close(opened(folders, method).features(pictures()), wanted, atol=1e-5, rtol=0)


def test_token_gates_are_transferred_whole(
    folders: dict[str, Path], token: ExpertAutoencoder, dense: MaskedAutoencoder
) -> None:
    features = opened(folders, "TokenMoE").features(pictures())
    wanted = token.features(finish(pictures(), None), token.router()).detach()
    torch.testing.assert_close(features, wanted, atol=1e-5, rtol=0)
    assert (features - dense.features(finish(pictures(), None))).abs().max() > 1e-2


def test_fingerprints_tell_weights_apart(folders: dict[str, Path]) -> None:
    prints = {method: opened(folders, method).fingerprint for method in METHODS}
    assert prints["MAE"] == prints["MAE*"] == prints["MoCE"]  # the same encoder three times
    assert prints["TokenMoE"] != prints["MAE"]


@pytest.mark.parametrize("method", ["MAE", "TokenMoE"])
def test_a_trainable_copy_starts_as_the_encoder_and_leaves_it_alone(
    folders: dict[str, Path], method: str
) -> None:
    encoder = opened(folders, method)
    before = encoder.features(pictures())
    network = encoder.trainable()
    assert network.training
    torch.testing.assert_close(network(finish(pictures(), None)).detach(), before, atol=1e-6, rtol=0)
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert any("pos_embed" in name for name in names)
    assert not any("decoder" in name or "mask_token" in name for name in names)
    loss = network(finish(pictures(), None)).square().sum()
    auxiliary = network.auxiliary_loss()
    assert (auxiliary is None) == (method == "MAE")
    (loss if auxiliary is None else loss + auxiliary).backward()
    for name, parameter in network.named_parameters():
        if name in names:
            assert parameter.grad is not None, name
            parameter.data += parameter.grad
    assert before.equal(encoder.features(pictures()))
    assert not encoder.trainable().layer_of("vit.norm.weight") < network.num_layers


def test_layers_count_from_the_pixels_up(folders: dict[str, Path]) -> None:
    plain, routed = (opened(folders, method).trainable() for method in ("MAE", "TokenMoE"))
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert plain.layer_of(f"vit.{name}") == routed.layer_of(f"model.encoder.{name}") == 0
    assert plain.layer_of("vit.blocks.0.norm1.weight") == 1
    assert plain.layer_of("vit.blocks.5.attn.qkv.weight") == 6
    assert routed.layer_of("model.encoder.blocks.4.mlp.w1_EDF") == 5
    assert routed.layer_of("model.gate.weight_LED") == 5
    assert plain.layer_of("vit.norm.weight") == routed.layer_of("model.encoder.norm.weight") == 7
    assert plain.num_layers == routed.num_layers == 7


def test_the_balance_loss_is_weighted_as_in_training(
    folders: dict[str, Path], token: ExpertAutoencoder
) -> None:
    from moce.model.experts import importance_loss

    network = opened(folders, "TokenMoE").trainable()
    network(finish(pictures(), None))
    loss = network.auxiliary_loss()
    assert loss is not None
    router = token.router()
    token.features(finish(pictures(), None), router)
    importance = torch.stack([importance_loss(x.softmax(dim=1)) for x in router.logits.values()]).mean()
    assert loss.item() >= 0.02 / 2 * importance.item() * 0.999  # and the load on top
    assert loss.item() < 0.02 * 3  # each part is at most experts - 1


def test_a_customised_folder_says_what_was_chosen(folders: dict[str, Path]) -> None:
    encoder = opened(folders, "MoCE")
    assert encoder.about == {"choice": {"strategy": "vote", "cluster": 2}}
    assert encoder.crop_pct == 0.9
    assert encoder.image_size == (16, 16)
    assert is_customised(folders["MoCE"])
    assert not is_customised(folders["MAE"])


def test_a_customised_folder_is_a_plain_timm_model(folders: dict[str, Path]) -> None:
    model = timm.create_model(f"local-dir:{folders['MoCE']}", pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        wanted = model.forward_features(finish(pictures(), None))[:, 1:].mean(dim=1)
    torch.testing.assert_close(opened(folders, "MoCE").features(pictures()), wanted, atol=1e-5, rtol=0)


def test_weights_that_do_not_fit_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(folders["MoCE"] / "model.safetensors")
    folder = tmp_path / "custom"
    folder.mkdir()
    (folder / "config.json").write_text((folders["MoCE"] / "config.json").read_text())
    for wrong in (
        {f"encoder.{name}": tensor for name, tensor in weights.items()},  # nothing fits
        {name: tensor for name, tensor in weights.items() if name != "norm.bias"},  # one is missing
        {**weights, "head.weight": torch.zeros(2, 64)},  # one too many
    ):
        save_file(wrong, folder / "model.safetensors")
        with pytest.raises(UserError, match="missing"):
            load_encoder(str(folder), CPU, quiet=True)


def test_sentences_about_models_that_are_not_there(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'token'"):
        load_encoder(str(folders["MAE"].parent / "tokens"), CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a run folder"):
        load_encoder(str(tmp_path / "empty"), CPU)
    (tmp_path / "clusters").mkdir()
    write_json(tmp_path / "clusters" / "config.json", {"verb": "cluster", "options": {}})
    with pytest.raises(UserError, match="a run of `moce pretrain`"):
        load_encoder(str(tmp_path / "clusters"), CPU)
    (tmp_path / "half").mkdir()
    write_json(tmp_path / "half" / "config.json", {"verb": "pretrain", "options": {}})
    with pytest.raises(UserError, match="not finished"):
        load_encoder(str(tmp_path / "half"), CPU)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folders["MoCE"] / "config.json").read_text())
    (broken / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="not a model that timm can load"):
        load_encoder(str(broken), CPU)


# ------------------------------------------------------------------------------------------------- cluster gates


class UnlabelledPictures:
    """A source in memory that knows no labels."""

    classes = labels = None

    def __init__(self, images: torch.Tensor) -> None:
        self.uri, self.images = f"memory:{images.float().mean():.6f}", images

    def __len__(self) -> int:
        return len(self.images)

    def get(self, index: int) -> tuple[torch.Tensor, int | None]:
        return self.images[index], None

    def shards(self) -> list[range]:
        return [range(len(self))]

    def name(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return "0" * 16


@pytest.fixture(scope="module")
def moce(
    dense: MaskedAutoencoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ExpertAutoencoder, Assigner]:
    """A run with two clusters, around dark and bright pictures, whose gates pick different experts for them."""
    torch.manual_seed(2)
    model = ExpertAutoencoder.from_dense(dense, ExpertShape((2, 4), 3, "cluster", 2, 64)).eval()
    for layer in (2, 4):
        for parameter in model.encoder.blocks[layer].mlp.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    features = torch.stack(
        [dense.features(finish(images, None)).mean(dim=0) for images in (DARK, BRIGHT)]
    ).detach()
    mean = features.mean(dim=0)
    centroids = torch.nn.functional.normalize(features - mean, dim=1)
    assert isinstance(model.gate, ClusterGate)
    model.gate.centroids_KD.copy_(centroids)
    for gate_ED, experts in zip(model.gate.weight_LED.data, ((0, 2), (1, 0))):
        gate_ED.zero_()
        gate_ED[experts[0]], gate_ED[experts[1]] = centroids[0], centroids[1]
    assigner = Assigner(
        encoder=dense,
        centroids=centroids,
        potentials=torch.zeros(2),
        mean=mean,
        eps=0.05,
        crop_pct=1.0,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        images_fingerprint="0" * 16,
        encoder_fingerprint="1" * 16,
        cosine_quantiles=torch.linspace(-1, 0, 1001),
        sizes=torch.tensor([10, 10]),
    )
    options = {"gate": "cluster", "balance": 0.01}
    folder = run_folder(tmp_path_factory.mktemp("moce") / "run", "train-experts", options, model, "MoCE")
    assigner.save(folder / "clusters.safetensors")
    return folder, model, assigner


DARK, BRIGHT = pictures(9, seed=5) // 8, 255 - pictures(9, seed=6) // 8


@pytest.mark.parametrize("images, cluster, experts", [(DARK, 0, (0, 1)), (BRIGHT, 1, (2, 0))])
def test_a_cluster_gate_is_sliced_by_the_vote_of_the_task(
    moce: tuple[Path, ExpertAutoencoder, Assigner],
    images: torch.Tensor,
    cluster: int,
    experts: tuple[int, int],
) -> None:
    folder, model, _ = moce
    encoder = load_encoder(str(folder), CPU, UnlabelledPictures(images), quiet=True)
    assert encoder.method == "MoCE"
    choice = encoder.about["choice"]
    assert choice["cluster"] == cluster
    assert choice["experts"] == {"2": experts[0], "4": experts[1]}
    assert {"margin", "entropy", "fit", "warning"} <= choice.keys()
    router = model.router(torch.full((5,), cluster))
    wanted = model.features(finish(pictures(), None), router).detach()
    torch.testing.assert_close(encoder.features(pictures()), wanted, atol=1e-5, rtol=0)


def test_two_tasks_get_two_models(moce: tuple[Path, ExpertAutoencoder, Assigner]) -> None:
    folder, _, _ = moce
    prints = {
        load_encoder(str(folder), CPU, UnlabelledPictures(i), quiet=True).fingerprint for i in (DARK, BRIGHT)
    }
    assert len(prints) == 2
