"""The one protocol that every evaluation takes, whoever trained the model, and the loaders of our own models.

An encoder turns uint8 pictures of its own size into one vector each: the mean of the patch tokens after the final norm,
nothing masked, float32, the same to the digit each time. `trainable()` is a fresh copy of the network for fine-tuning.

    MAE        a pretrain run: the dense model
    MAE*       a train-experts run with gate none: the dense model trained on
    TokenMoE   a train-experts run with gate token: transferred whole, without noise, fine-tuned with its balance loss
    MoCE, SDR  a train-experts run with gate cluster or sdr, sliced in memory for the task (submodels.py); or a
               customised folder, sliced earlier

Other people's models are in rivals.py.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import timm
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from moce.engine.files import read_json
from moce.engine.processes import group
from moce.engine.progress import say
from moce.engine.runs import CONFIG, RunInfo, read_run
from moce.errors import UserError, did_you_mean
from moce.images.augment import finish
from moce.images.sources import Source
from moce.model.autoencoder import MaskedAutoencoder, fuses_attention
from moce.model.experts import ExpertAutoencoder, TokenRouter, batch_sums, squared_variation
from moce.model.foreign import is_foreign
from moce.model.resize import resize, resize_encoder
from moce.model.weights import fingerprint, load_model, load_strictly, read_header
from moce.model.windows import last_map

CROP_PCT = 1.0  # of the runs of moce; a customised folder says its own


class Trainable(nn.Module):
    """A network from normalised pictures to features, with what layer-wise learning rates need to know."""

    num_layers: int  # layer 0 is all before the first block, block i is layer i + 1, the final norm is layer num_layers
    patch_size: tuple[int, int] | None = (
        None  # height and width; None where there are no patches to make a map of
    )
    all_used = True  # whether features depend on every parameter that is trained

    def layer_of(self, name: str) -> int:
        """The layer of a parameter, by its name in this module."""
        raise NotImplementedError

    def auxiliary_loss(self) -> Float[Tensor, ""] | None:
        """What the last forward pass adds to the loss, already weighted; None where there is no such loss."""
        return None

    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters that fine-tuning moves."""
        return self.parameters()

    def feature_map(
        self, images: Float[Tensor, "images channels h w"], window: int = 0
    ) -> Float[Tensor, "images width rows columns"]:
        """The patch tokens after the final norm, where they lie; only where there is a `patch_size`.

        With a window only four blocks see all patches, the others windows of so many x so many (model/windows.py).
        """
        raise NotImplementedError

    def block_maps(
        self, images: Float[Tensor, "images channels h w"], blocks: Sequence[int]
    ) -> list[Float[Tensor, "images width rows columns"]]:
        """The patch tokens that these blocks give, where they lie, unnormed; only where there is a `patch_size`."""
        raise NotImplementedError


@runtime_checkable
class Encoder(Protocol):
    """What an evaluation has to know of a model."""

    name: str
    method: str
    fingerprint: str
    width: int
    image_size: tuple[int, int]  # height and width in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str  # of central crops: bicubic or bilinear
    about: dict[str, Any]  # further facts for the JSON of a result, such as the cluster that a task was given

    def features(self, images: UInt8[Tensor, "images channels h w"]) -> Float32[Tensor, "images width"]:
        """One vector per picture, on the CPU."""

    def trainable(self) -> Trainable:
        """A fresh copy of the network, every parameter trainable."""


class Frozen:
    """The encoder that a network is."""

    def __init__(
        self,
        network: Trainable,
        *,
        name: str,
        method: str,
        fingerprint: str,
        width: int,
        image_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop_pct: float,
        device: torch.device,
        interpolation: str = "bicubic",
        about: dict[str, Any] | None = None,
    ) -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.name, self.method, self.fingerprint, self.width = name, method, fingerprint, width
        self.image_size, self.mean, self.std, self.crop_pct = image_size, mean, std, crop_pct
        self.device, self.interpolation, self.about = device, interpolation, about or {}

    @torch.no_grad()
    def features(self, images: UInt8[Tensor, "images channels h w"]) -> Float32[Tensor, "images width"]:
        """One vector per picture, on the CPU."""
        assert images.shape[-2:] == self.image_size, (
            f"{self.name} sees {self.image_size}, got {tuple(images.shape)}"
        )
        # TF32, which convolutions use by default, has 10 bits: two encoders that are equal would not look so.
        with torch.backends.cudnn.flags(allow_tf32=False):
            return self.network(finish(images.to(self.device), None, self.mean, self.std)).float().cpu()

    def trainable(self) -> Trainable:
        """A fresh copy of the network, every parameter trainable."""
        network = copy.deepcopy(self.network).train()
        for parameter in network.trained():
            parameter.requires_grad = True
        return network


class PlainViT(Trainable):
    """A plain ViT of timm."""

    vit: VisionTransformer

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit
        self.num_layers = len(vit.blocks) + 1
        self.patch_size = tuple(vit.patch_embed.patch_size)

    def forward(self, images: Float[Tensor, "images channels h w"]) -> Float[Tensor, "images width"]:
        fused = fuses_attention(images.device)
        for block in self.vit.blocks:
            block.attn.fused_attn = fused
        return self.vit.forward_features(images)[:, self.vit.num_prefix_tokens :].float().mean(dim=1)

    def feature_map(
        self, images: Float[Tensor, "images channels h w"], window: int = 0
    ) -> Float[Tensor, "images width rows columns"]:
        return last_map(self.vit, window, lambda: self(images))

    def block_maps(
        self, images: Float[Tensor, "images channels h w"], blocks: Sequence[int]
    ) -> list[Float[Tensor, "images width rows columns"]]:
        return overheard(self.vit, blocks, lambda: self(images))

    def layer_of(self, name: str) -> int:
        return vit_layer(name.removeprefix("vit."), self.num_layers)


def overheard(
    vit: VisionTransformer, blocks: Sequence[int], run: Callable[[], Tensor]
) -> list[Float[Tensor, "images width rows columns"]]:
    """What these blocks give in a pass, as maps of the patches: what enters the first norm of the block after each.

    Read there, nothing has to be known of how the pass goes through the blocks, with experts or without.
    """
    found: dict[int, Tensor] = {}

    def keep(block: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[block] = inputs[0]

    after = [*(block.norm1 for block in vit.blocks[1:]), vit.norm]
    hooks = [after[b].register_forward_pre_hook(functools.partial(keep, b)) for b in blocks]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    rows, columns = vit.patch_embed.grid_size
    return [
        found[b][:, vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, (rows, columns)) for b in blocks
    ]


def vit_layer(name: str, num_layers: int) -> int:
    """The layer of a parameter of timm's ViT: embeddings 0, block i is i + 1, what comes after them the last."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return (
        0
        if name.split(".")[0] in ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")
        else num_layers
    )


class RoutedViT(Trainable):
    """An encoder with token-gated experts, whole and without noise."""

    def __init__(self, model: ExpertAutoencoder, balance: float) -> None:
        super().__init__()
        assert model.expert_shape.gate == "token", "only token gates can do without a cluster"
        self.model, self.balance = model, balance
        self.num_layers = len(model.encoder.blocks) + 1
        self.patch_size = model.shape.patch_size
        self._router: TokenRouter | None = None

    def forward(self, images: Float[Tensor, "images channels h w"]) -> Float[Tensor, "images width"]:
        router = self.model.router()
        assert isinstance(router, TokenRouter)
        features = self.model.features(images, router)
        # What a router holds is a graph of this pass: nothing to carry along where no gradient is asked for.
        self._router = router if torch.is_grad_enabled() else None
        return features

    def feature_map(
        self, images: Float[Tensor, "images channels h w"], window: int = 0
    ) -> Float[Tensor, "images width rows columns"]:
        return last_map(self.model.encoder, window, lambda: self(images))

    def block_maps(
        self, images: Float[Tensor, "images channels h w"], blocks: Sequence[int]
    ) -> list[Float[Tensor, "images width rows columns"]]:
        return overheard(self.model.encoder, blocks, lambda: self(images))

    def layer_of(self, name: str) -> int:
        if name.startswith("model.gate."):  # one tensor for all expert layers; it goes with the last of them
            return max(self.model.expert_shape.layers) + 1
        return vit_layer(name.removeprefix("model.encoder."), self.num_layers)

    def trained(self) -> Iterator[nn.Parameter]:
        """Without the decoder, which no feature passes through."""
        yield from self.model.encoder.parameters()
        yield from self.model.gate.parameters()

    def auxiliary_loss(self) -> Float[Tensor, ""]:
        """Importance and load of the clean gates, half of the weight each, mean of the expert layers."""
        assert self._router is not None, "no forward pass yet"
        sums = [batch_sums(x, x, self.model.expert_shape) for x in self._router.logits.values()]
        # Of the batch of all processes, like the losses that the gates were trained with.
        return self.balance * squared_variation(group().total(torch.stack(sums))).mean()


def require_map(encoder: Encoder, protocol: str) -> Trainable:
    """A fresh copy of an encoder that gives a map of its patches; UserError for one that does not."""
    network = encoder.trainable()
    if network.patch_size is None:
        raise UserError(
            f"{encoder.name} gives no map of patches, which --protocol {protocol} needs: take a plain ViT (ours, "
            "timm's with a norm after its last block, or a ViTMAE)."
        )
    return network


# ---------------------------------------------------------------------------------------------------------- loaders


def model_folder(path: str) -> Path:
    """The folder that `path` names; UserError when there is none."""
    folder = Path(path)
    if not folder.is_dir():
        beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"There is no model folder {path}.{did_you_mean(folder.name, beside)}")
    return folder


def finished_run(folder: Path) -> RunInfo:
    """The run in a folder, with a model; UserError where it holds none or is not finished."""
    info = read_run(folder, ("pretrain", "train-experts"))
    info.result()
    return info


def channels_of(path: str) -> int:
    """Channels of the pictures that a model takes, without loading it; UserError as for `load_encoder`."""
    if is_foreign(path):
        from moce.transfer.rivals import foreign_encoder  # which is made of what stands here

        return len(foreign_encoder(path, torch.device("cpu"), quiet=True).mean)
    folder = model_folder(path)
    if is_customised(folder):
        return int(read_json(folder / CONFIG)["pretrained_cfg"]["input_size"][0])
    finished_run(folder)
    return int(read_header(folder / "model.safetensors")["shape"]["channels"])


def routed_by(path: str) -> tuple[str, int] | None:
    """(gate, clusters) of a run with sub-models to choose from, without loading it; None for any other model."""
    folder = Path(path)
    if not folder.is_dir() or is_customised(folder):
        return None
    finished_run(folder)
    experts = read_header(folder / "model.safetensors").get("experts")
    return (experts["gate"], experts["num_clusters"]) if experts and experts["gate"] != "token" else None


def load_encoder(
    path: str,
    device: torch.device,
    task_train: Source | None = None,
    num_workers: int = 0,
    quiet: bool = False,
    image_size: tuple[int, int] | None = None,
    strategy: str | None = None,
    seed: int = 0,
    task: str = "",
) -> Encoder:
    """The encoder that `path` names, for pictures of `image_size`, by default of its own size: that of a run folder, of
    a customised folder, or somebody else's (timm:NAME, hf:NAME).

    `task_train` are the task's training pictures; an experts' run with a cluster gate is sliced by `strategy`, by
    default their vote, for which neither their labels nor any other picture is looked at, and at the size of
    pre-training whatever `image_size` says. Strategies that read labels (knn, oracle) are `SubModels.by_score`'s.
    `seed` and the task's name say which sub-model a random one is. UserError when there is no such model.
    """
    if is_foreign(path):
        from moce.transfer.rivals import foreign_encoder

        return group().leading(lambda: foreign_encoder(path, device, quiet, image_size))
    folder = model_folder(path)
    if routed_by(path) is not None:
        from moce.transfer.submodels import open_submodels  # which makes its encoders of what stands here

        assert task_train is not None, "a cluster gate needs the task's pictures"
        there = open_submodels(path, device, image_size)
        return there.by_votes(strategy or there.default, task_train, seed, task, num_workers, quiet)
    refuse_strategy(path, strategy)
    if is_customised(folder):
        return customised_encoder(folder, device, quiet, image_size)
    info = finished_run(folder)
    model, header = load_model(folder)
    facts = facts_of(path, header["about"], device)
    if image_size is not None:
        resize(model, image_size)
    if not isinstance(model, ExpertAutoencoder):
        return dense_encoder(model, **facts)
    network = RoutedViT(model, balance=info.config["balance"])
    return Frozen(network, fingerprint=fingerprint(model), **sizes(model), **facts)


def facts_of(name: str, about: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What `Frozen` has to be told of a model of ours, from its header's `about`."""
    pixels = {key: tuple(about[key]) for key in ("mean", "std")}
    return {"name": name, "method": about["method"], **pixels, "device": device}


def refuse_strategy(path: str, strategy: str | None) -> None:
    """UserError where a strategy is asked for and there is nothing to choose from."""
    if strategy is not None:
        raise UserError(
            f"--strategy {strategy}: {path} is one model; only a run with a cluster gate, or of SDR, has sub-models to "
            "choose from."
        )


def sizes(model: MaskedAutoencoder) -> dict[str, Any]:
    """What an encoder says about its input and output."""
    return {"width": model.encoder.embed_dim, "image_size": model.shape.image_size, "crop_pct": CROP_PCT}


def dense_encoder(model: MaskedAutoencoder, **facts: Any) -> Encoder:
    """The encoder half of a masked autoencoder."""
    return Frozen(PlainViT(model.encoder), fingerprint=fingerprint(model.encoder), **sizes(model), **facts)


def is_customised(folder: Path) -> bool:
    """Whether a folder is one that timm loads with `local-dir:`, as `moce customize` writes it."""
    path = folder / CONFIG
    return path.is_file() and "architecture" in read_json(path)


def customised_encoder(
    folder: Path, device: torch.device, quiet: bool = False, image_size: tuple[int, int] | None = None
) -> Encoder:
    """A customised folder, through timm; every weight of the file must find its place and none may be missing."""
    content = read_json(folder / CONFIG)
    try:
        vit = timm.create_model(f"local-dir:{folder}", pretrained=False, num_classes=0)
        weights = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder} is not a model that timm can load: {error}") from None
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"{folder} holds a {content['architecture']}, which is no plain ViT.")
    say(f"{folder}: {load_strictly(vit, weights, str(folder))}", quiet)
    about: dict[str, Any] = {}
    if (folder / "choice.json").is_file():
        about["choice"] = chosen(read_json(folder / "choice.json"))
    given = content["pretrained_cfg"]
    size = image_size or tuple(given["input_size"][1:])
    resize_encoder(vit, size)
    return Frozen(
        PlainViT(vit),
        name=str(folder),
        method=about["choice"].get("method", "MoCE") if about else content["architecture"],
        fingerprint=fingerprint(vit),
        width=vit.embed_dim,
        image_size=size,
        mean=tuple(given["mean"]),
        std=tuple(given["std"]),
        crop_pct=given["crop_pct"],
        device=device,
        about=about,
    )


def chosen(choice: dict[str, Any]) -> dict[str, Any]:
    """What of a choice belongs beside a result: votes of every cluster and shares of every expert do not."""
    return {name: value for name, value in choice.items() if name not in ("votes", "shares")}
