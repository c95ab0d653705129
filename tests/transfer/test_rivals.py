import json
import logging
import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from moce.errors import UserError
from moce.images.augment import IMAGENET_MEAN, IMAGENET_STD, centre_crop, finish
from moce.images.sources import open_images
from moce.model import hub
from moce.model.vitmae import open_vitmae
from moce.transfer.encoder import Encoder, channels_of, load_encoder
from moce.transfer.finetune import Classifier, parameter_groups
from moce.transfer.pictures import Pictures

CPU = torch.device("cpu")


def opened(uri: str, size: tuple[int, int] | None = None) -> Encoder:
    return load_encoder(uri, CPU, quiet=True, image_size=size)


def pictures(encoder: Encoder, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (count, len(encoder.mean), *encoder.image_size)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator)


def normalised(encoder: Encoder, images: torch.Tensor) -> torch.Tensor:
    return finish(images, None, encoder.mean, encoder.std)


# timm ---------------------------------------------------------------------------------------------------------------


def test_a_plain_vit_of_timm_gives_the_mean_of_its_patches() -> None:
    encoder = opened("timm:test_vit?pretrained=false", (32, 48))
    assert isinstance(encoder, Encoder)
    assert (encoder.method, encoder.image_size, encoder.crop_pct) == (
        "test_vit (random weights)",
        (32, 48),
        0.95,
    )
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.5,) * 3)
    images = pictures(encoder)
    network = encoder.trainable().vit.eval()
    with torch.no_grad():
        wanted = network.forward_features(normalised(encoder, images))[:, 1:].mean(dim=1)
    assert torch.equal(encoder.features(images), wanted)
    again = opened("timm:test_vit?pretrained=false", (32, 48))
    assert torch.equal(again.features(images), wanted)  # random weights are the same ones
    assert again.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet", "test_mambaout"])
def test_other_architectures_give_what_timm_pools(name: str) -> None:
    encoder = opened(f"timm:{name}?pretrained=false", (64, 32))
    images = pictures(encoder)
    features = encoder.features(images)
    assert features.shape == (3, encoder.width)
    network = encoder.trainable().network.eval()
    with torch.no_grad():
        seen = network.forward_features(normalised(encoder, images))
        assert torch.equal(network.forward_head(seen, pre_logits=True), features)
    assert encoder.method == f"{name} (random weights)"
    assert channels_of(f"timm:{name}?pretrained=false") == 3


def test_layers_of_any_architecture_learn_more_slowly_the_deeper_they_lie() -> None:
    encoder = opened("timm:test_resnet?pretrained=false", (64, 64))
    network = encoder.trainable()
    groups = parameter_groups(Classifier(network, encoder.width, 3, seed=0), 0.5, 0.05)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters())) + 2
    assert network.layer_of("network.conv1.0.weight") == 0
    order = [network.layer_of(f"network.layer{i}.0.conv1.weight") for i in (1, 2, 3, 4)]
    assert order == sorted(set(order)) and 0 < order[0] and order[-1] < network.num_layers
    assert {group["scale"] for group in groups} == {0.5**n for n in range(network.num_layers + 1)}
    network(normalised(encoder, pictures(encoder))).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("size", [None, (48, 24)])
def test_the_file_of_a_customised_folder_is_the_customised_model(tmp_path: Path, size) -> None:
    folder = customised(tmp_path / "custom")
    wanted = opened(str(folder), size)
    images = pictures(wanted)
    for uri in (
        f"timm:local-dir:{folder}",
        f"timm:test_vit?checkpoint={folder}/model.safetensors",
        f"hf:{folder}",
    ):
        encoder = opened(uri, size)
        assert torch.equal(encoder.features(images), wanted.features(images)), uri
        for name in ("fingerprint", "mean", "std", "crop_pct", "image_size", "width"):
            assert getattr(encoder, name) == getattr(wanted, name), (uri, name)


def customised(folder: Path, channels: int = 3) -> Path:
    """As `moce customize` writes it: patches and size are not the architecture's own."""
    folder.mkdir()
    size = {"img_size": [32, 16], "patch_size": 8}
    torch.manual_seed(3)
    vit = timm.create_model(
        "test_vit", **size, in_chans=channels, num_classes=0, global_pool="avg", fc_norm=False
    )
    pixels = {
        "input_size": [channels, 32, 16],
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }
    if channels != 3:
        pixels |= {"mean": [0.1 * n for n in range(channels)], "std": [0.2] * channels}
    config = {
        "architecture": "test_vit",
        "num_classes": 0,
        "num_features": 64,
        "model_args": {**size, "in_chans": channels, "global_pool": "avg", "fc_norm": False},
        "pretrained_cfg": {**pixels, "crop_pct": 0.8, "first_conv": None, "classifier": "head"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(vit.state_dict(), folder / "model.safetensors")
    return folder


def test_a_file_without_a_config_says_its_own_patches_and_size(tmp_path: Path) -> None:
    torch.manual_seed(4)
    vit = timm.create_model("test_vit", img_size=40, patch_size=8, num_classes=5).eval()
    for name in ("w.safetensors", "w.pth"):  # the second as training code leaves it
        if name.endswith("pth"):
            torch.save({"model": vit.state_dict(), "epoch": 3, "args": {"lr": 1.0}}, tmp_path / name)
        else:
            save_file(vit.state_dict(), tmp_path / name)
        encoder = opened(f"timm:test_vit?checkpoint={tmp_path / name}")
        assert encoder.image_size == (40, 40)
        assert encoder.method == "test_vit (w)"
        with torch.no_grad():
            wanted = vit.forward_features(normalised(encoder, pictures(encoder)))[:, 1:].mean(dim=1)
        torch.testing.assert_close(encoder.features(pictures(encoder)), wanted, atol=1e-6, rtol=0)


def test_files_that_do_not_fit_or_are_not_to_be_trusted_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    own = timm.create_model("test_vit", num_classes=0).state_dict()
    for wrong in (
        {f"encoder.{n}": t for n, t in own.items()},
        {n: t for n, t in own.items() if n != "norm.bias"},
        {**own, "blocks.0.ls1.gamma": torch.zeros(64)},
    ):
        save_file(wrong, file)
        with pytest.raises(UserError, match="does not fit the model: loaded .* missing .* unexpected"):
            opened(f"timm:test_vit?checkpoint={file}")
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match="no file of weights"):
        opened(f"timm:test_vit?checkpoint={file}")
    trap = tmp_path / "trap.pth"
    torch.save({"model": own, "hook": Trap(tmp_path / "sprung")}, trap)
    with pytest.raises(UserError, match="trap.pth is no file of weights"):
        opened(f"timm:test_vit?checkpoint={trap}")
    assert not (tmp_path / "sprung").exists()


class Trap:
    """A pickle that would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (
            "timm:vit_tinny_patch16_224",
            "timm has no model 'vit_tinny_patch16_224'. Did you mean 'vit_tiny_patch16_224'",
        ),
        (
            "timm:test_vit.r161_in1k",
            "of the weights of test_vit .* not 'r161_in1k'. Did you mean 'r160_in1k'",
        ),
        ("timm:vit_tinny", "timm has no model 'vit_tinny'. Did you mean 'vit_tiny_"),
        ("timm:test_vit", "cannot load its weights: it is not in the local cache, .*pretrained=false"),
        ("timm:test_vit?pretrain=false", "no option 'pretrain', only pretrained, checkpoint"),
        ("timm:test_vit?pretrained=true&checkpoint=x", "not both"),
        ("timm:test_vit?checkpoint=nowhere.pth", "There is no file nowhere.pth"),
        ("timm:local-dir:nowhere", "nowhere is no folder with a config.json"),
        ("timm:", "names nothing"),
        ("hf:somebody/no-such-model", "no model of this name can be had: it is not in the local cache"),
        ("hf:./nowhere", "there is no folder ./nowhere"),
    ],
)
def test_sentences_about_models_that_cannot_be_had(uri: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as told:
        opened(uri)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (
            "timm:test_vit",
            "cannot load its weights: it is not in the local cache, and the hub cannot be reached",
        ),
        ("timm:hf-hub:somebody/model", "cannot load its weights: it is not in the local cache, and the hub"),
        ("hf:somebody/model", "no model of this name can be had: it is not in the local cache, and the hub"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_told_in_one_sentence_at_once(
    uri: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client would say twenty lines and wait for most of a minute."""
    from huggingface_hub import constants

    asked, paused, said = [], [], []

    def unreachable(host: object, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(time, "sleep", paused.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(handler)
    hub.answers.cache_clear()
    try:
        with pytest.raises(UserError, match=words):
            opened(uri)
    finally:
        logger.removeHandler(handler)
        hub.answers.cache_clear()
    assert (len(asked), paused, said) == (1, [], [])
    assert constants.HF_HUB_OFFLINE is False


def test_a_size_that_an_architecture_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="mixer_s32_224.* does not take pictures of --image-size 96"):
        opened("timm:mixer_s32_224?pretrained=false", (96, 96))
    with pytest.raises(UserError, match="--image-size 100 is not a multiple of --patch-size 16"):
        opened("timm:test_vit?pretrained=false", (100, 100))


def test_crops_are_resized_as_the_model_is_used_to(tiny_folder: Path) -> None:
    source = open_images(str(tiny_folder))
    encoder = opened("timm:test_vit?pretrained=false", (16, 16))
    for interpolation in ("bilinear", "bicubic"):
        encoder.interpolation = interpolation
        images, indices = next(Pictures(source, encoder, CPU, quiet=True).centred(torch.tensor([5])))
        assert indices.tolist() == [5]
        wanted = centre_crop(source.get(5)[0], (16, 16), encoder.crop_pct, interpolation)
        assert torch.equal(images[0], normalised(encoder, wanted[None])[0])


def in_cache(cache: Path, name: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository as the hub's client keeps it after a download."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / ("0" * 40)).symlink_to(files)


def test_weights_that_were_downloaded_once_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    vit = timm.create_model("test_vit", num_classes=1000).eval()
    (tmp_path / "files").mkdir()
    save_file(vit.state_dict(), tmp_path / "files" / "model.safetensors")
    in_cache(tmp_path / "cache", "timm/test_vit.r160_in1k", tmp_path / "files", monkeypatch)
    for uri in ("timm:test_vit", "timm:test_vit.r160_in1k"):
        encoder = opened(uri)
        assert (encoder.method, encoder.about) == ("test_vit.r160_in1k", {"weights": "pretrained"})
        with torch.no_grad():
            wanted = vit.forward_features(normalised(encoder, pictures(encoder)))[:, 1:].mean(dim=1)
        torch.testing.assert_close(encoder.features(pictures(encoder)), wanted, atol=1e-6, rtol=0)


# transformers -------------------------------------------------------------------------------------------------------


def vitmae_folder(folder: Path, pretraining: bool):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=72,
        image_size=32,
        patch_size=8,
        mask_ratio=0.0,
        layer_norm_eps=1e-6,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=64,
    )
    model = (transformers.ViTMAEForPreTraining if pretraining else transformers.ViTMAEModel)(config).eval()
    for parameter in model.parameters():  # biases and norms would be 0 and 1
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]})
    )
    return model


@pytest.mark.parametrize("pretraining", [True, False])
def test_features_of_a_vitmae_are_those_of_transformers(tmp_path: Path, pretraining: bool) -> None:
    theirs = vitmae_folder(tmp_path, pretraining)
    encoder = opened(f"hf:{tmp_path}")
    assert (encoder.method, encoder.image_size, encoder.width) == ("ViTMAE", (32, 32), 32)
    assert (encoder.mean, encoder.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))
    images = pictures(encoder)
    with torch.no_grad():
        seen = (theirs.vit if pretraining else theirs)(pixel_values=normalised(encoder, images))
    wanted = seen.last_hidden_state[:, 1:].mean(dim=1)
    torch.testing.assert_close(encoder.features(images), wanted, atol=2e-6, rtol=0)
    assert ("decoder_pred.weight" in open_vitmae(f"hf:{tmp_path}").tensors) == pretraining
    network = encoder.trainable()
    assert (network.num_layers, network.layer_of("vit.blocks.1.mlp.fc1.weight")) == (3, 2)
    assert (
        opened(f"hf:{tmp_path}", (48, 32))
        .features(pictures(encoder).repeat(1, 1, 2, 1)[:, :, :48])
        .isfinite()
        .all()
    )


def test_a_vitmae_that_was_downloaded_once_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vitmae_folder(tmp_path / "files", pretraining=True)
    in_cache(tmp_path / "cache", "somebody/mae", tmp_path / "files", monkeypatch)
    named, local = opened("hf:somebody/mae"), opened(f"hf:{tmp_path / 'files'}")
    assert named.fingerprint == local.fingerprint
    assert named.mean == local.mean == (0.4, 0.5, 0.6)


def test_channels_other_than_three_need_a_normalisation(tmp_path: Path) -> None:
    folder = customised(tmp_path / "custom", channels=5)
    alone = tmp_path / "w.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    encoder = opened(f"timm:test_vit?checkpoint={folder}/model.safetensors")
    assert torch.equal(encoder.features(pictures(encoder)), opened(str(folder)).features(pictures(encoder)))
    assert channels_of(f"timm:local-dir:{folder}") == len(encoder.mean) == 5
    with pytest.raises(UserError, match="takes 5 channels, whose mean and deviation nobody says"):
        opened(f"timm:test_vit?checkpoint={alone}", (32, 16))  # 4 x 2 patches, which the file cannot say


def test_a_vitmae_of_other_arithmetic_is_refused(tmp_path: Path) -> None:
    vitmae_folder(tmp_path, pretraining=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(UserError, match="has no GELU"):
        opened(f"hf:{tmp_path}")


def test_other_kinds_of_models_of_transformers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2"}))
    with pytest.raises(UserError, match="of type 'dinov2'; .* only vit_mae is taken"):
        opened(f"hf:{tmp_path}")
    vitmae_folder(tmp_path, pretraining=True)
    weights = load_file(tmp_path / "model.safetensors")
    for part in ("vit.", "decoder."):
        name = next(n for n in weights if n.startswith(part) and n.endswith("bias"))
        kept = {n: t for n, t in weights.items() if n != name}
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="lacks 1 of its weights"):
            opened(f"hf:{tmp_path}")


def test_transformers_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"needs the library transformers: pip install 'moce\[transformers\]'"
    ):
        opened(f"hf:{tmp_path}")


# The verb -----------------------------------------------------------------------------------------------------------


def test_every_protocol_takes_a_rival(command, tmp_path: Path, tiny_folder: Path) -> None:
    task = tmp_path / "task"
    for split in ("train", "test"):
        (task / split).parent.mkdir(exist_ok=True)
        (task / split).symlink_to(tiny_folder)
    line = ["--task", task, "--protocol", "knn,linear,finetune", "--image-size", "32", "--num-workers", "0"]
    line += [
        "--epochs",
        "1",
        "--lrs",
        "1e-3",
        "--batch-size",
        "8",
        "--k",
        "1,3",
        "--json",
        tmp_path / "out.json",
    ]
    for name, interpolation in {"test_vit": "bicubic", "test_resnet": "bilinear"}.items():
        done = command("evaluate", f"timm:{name}?pretrained=false", *line)
        assert done.code == 0, done.stderr
        results = json.loads((tmp_path / "out.json").read_text())
        assert [r["protocol"] for r in results] == ["knn", "linear", "finetune"]
        assert {r["method"] for r in results} == {f"{name} (random weights)"}
        assert done.stderr.count(f"{name} (random weights)") >= 3  # the table
        assert {r["weights"] for r in results} == {"random"}
        assert {r["settings"]["interpolation"] for r in results} == {interpolation}
        assert all(0 <= r["value"] <= 1 and r["num_test"] == 24 for r in results)
