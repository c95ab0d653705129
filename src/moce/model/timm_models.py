"""timm:NAME, any model of timm without its head: timm's weights, random ones, or those of a file.

    timm:vit_base_patch16_224.mae                     timm's weights, from the local cache or the hub
    timm:vit_base_patch16_224?pretrained=false        random ones, the same each time
    timm:vit_base_patch16_224.mae?checkpoint=FILE     those of a file, with the normalisation of that name
    timm:local-dir:DIR, timm:hf-hub:OWNER/NAME        timm's spelling of a folder and of anybody's repository

A file is safetensors or what torch.save wrote, read as tensors alone. It says its own patch size, channels and, where
the positions make up a square, size (else --image-size has to be theirs); where a config.json of timm's
lies beside it, normalisation and size are those.
"""

import math
import pickle
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.models import VisionTransformer, load_state_dict
from torch import Tensor

from moce.engine.files import read_json
from moce.engine.progress import say
from moce.errors import UserError, did_you_mean, first_line
from moce.images.uris import parts_of, refuse_unknown, switch
from moce.model.hub import asked_once, why_not
from moce.model.resize import resize_encoder
from moce.model.weights import load_strictly
from moce.options import spelled_size

OPTIONS = ["pretrained", "checkpoint"]
SEED = 0  # of random weights
HEADS = ("head", "head_dist", "head_drop", "fc", "fc_norm", "classifier")
DECODER = ("mask_token", "decoder_")  # of a masked autoencoder's file
REFUSALS = (
    AssertionError,
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
INPUT = (
    "input_size",
    "mean",
    "std",
    "crop_pct",
    "interpolation",
)  # what a model's config says of its pictures


class TimmModel(NamedTuple):
    """A network that ends in tokens or a map, and how its pictures come."""

    network: Any  # a module
    name: str  # architecture, and the tag of timm's weights, or whose weights they are
    weights: str  # pretrained, random, or the file
    image_size: tuple[int, int]
    width: int  # of timm's pooled features
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float
    interpolation: str


def open_timm(uri: str, image_size: tuple[int, int] | None = None, quiet: bool = False) -> TimmModel:
    """The model that `uri` names, for pictures of (height, width) pixels, by default of its own size.

    UserError for a name timm has not, weights that cannot be had or do not fit, and a size it cannot take.
    """
    name, options = parts_of(uri, "timm", ":")
    refuse_unknown(uri, options, OPTIONS)
    file = options.get("checkpoint")
    wanted = switch(uri, "pretrained", options.get("pretrained", "false" if file else "true"))
    if file and wanted:
        raise UserError(f"{uri}: give pretrained=true or a checkpoint, not both.")
    if name.startswith("local-dir:") and wanted:
        file, wanted = weights_in(Path(name.removeprefix("local-dir:")), uri), False
    if ":" not in name:
        refuse_unknown_name(uri, name)
    if file:
        network = from_file(uri, name, Path(file), image_size, quiet)
        weights, shown = file, f"{architecture_of(network)} ({Path(file).stem})"
    else:
        network = built(uri, name, pretrained=wanted)
        tag = network.pretrained_cfg.get("tag")
        shown = architecture_of(network) + (f".{tag}" if wanted and tag else "")
        weights = "pretrained" if wanted else "random"
        shown += "" if wanted else " (random weights)"
    config = resolve_model_data_config(network)
    network.eval()
    if isinstance(network, VisionTransformer):  # a file's own size may be another one
        config["input_size"] = (network.patch_embed.proj.in_channels, *network.patch_embed.img_size)
    channels, *own_size = config["input_size"]
    if len(config["mean"]) != channels:
        raise UserError(
            f"{uri} takes {channels} channels, whose mean and deviation nobody says: put the config.json of its "
            "folder beside the file."
        )
    size = image_size or (own_size[0], own_size[1])
    if size != tuple(own_size):
        take_size(uri, network, size)
    return TimmModel(
        network,
        shown,
        weights,
        size,
        width_of(uri, network, channels, size),
        tuple(config["mean"]),
        tuple(config["std"]),
        float(config["crop_pct"]),
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def architecture_of(network: Any) -> str:
    """timm's name of an architecture, without a tag."""
    return str(network.pretrained_cfg["architecture"])


def refuse_unknown_name(uri: str, name: str) -> None:
    """UserError, with the nearest name, unless timm has this architecture, and weights with this tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(
            f"{uri}: timm has no model '{architecture}'.{did_you_mean(architecture, timm.list_models())}"
        )
    tags = [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        there = f"has {', '.join(tags)}" if tags else "has none"
        raise UserError(
            f"{uri}: of the weights of {architecture} timm {there}, not '{tag}'.{did_you_mean(tag, tags)}"
        )


def built(uri: str, name: str, pretrained: bool = False, **arguments: Any) -> Any:
    """timm's model without head; random weights are the same each time."""
    of_the_hub = pretrained or name.startswith("hf-hub:")
    with torch.random.fork_rng(devices=[]), asked_once() if of_the_hub else nullcontext():
        torch.manual_seed(SEED)
        try:
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **arguments)
        except TypeError:  # an argument that this architecture has not
            raise
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
            if not pretrained:
                raise UserError(f"{uri} is not a model that timm can build: {why_not(error)}.") from None
            raise UserError(
                f"{uri}: timm cannot load its weights: {why_not(error)}; add ?checkpoint=FILE, or ?pretrained=false "
                "for random ones."
            ) from None


# Files --------------------------------------------------------------------------------------------------------------


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a file, without running what else a pickle may hold; UserError where it has none."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}.")
    try:
        found: Any = load_state_dict(str(path), weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        EOFError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"{path} is no file of weights ({first_line(error)}): give safetensors, or what torch.save wrote of "
            "tensors alone."
        ) from None
    tensors = {n: t for n, t in found.items() if isinstance(t, Tensor)} if isinstance(found, dict) else {}
    if not tensors:
        raise UserError(f"{path} is no file of weights: it holds no tensors by name.")
    return tensors


def weights_in(folder: Path, uri: str) -> str:
    """The file of weights in a folder laid out like one of timm's."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / "config.json").is_file() and (folder / name).is_file():
            return str(folder / name)
    raise UserError(f"{uri}: {folder} is no folder with a config.json and a model.safetensors.")


def left_out(name: str) -> bool:
    """Whether a tensor of a file is none of an encoder's: a head, a decoder."""
    return name.split(".")[0] in HEADS or name.startswith(DECODER)


def from_file(uri: str, name: str, file: Path, image_size: tuple[int, int] | None, quiet: bool) -> Any:
    """The model with a file's weights, of which every one must find its place and none be missing."""
    tensors = read_weights(file)
    beside = file.parent / "config.json"
    about = read_json(beside).get("pretrained_cfg", {}) if beside.is_file() else {}
    arguments: dict[str, Any] = {"pretrained_cfg_overlay": {n: about[n] for n in INPUT if n in about}}
    if ":" in name:
        arguments = {}  # timm reads that config itself
    patches = tensors.get("patch_embed.proj.weight")
    own: dict[str, Any] = {}
    if patches is not None and patches.ndim == 4:
        sides = tuple(patches.shape[2:])
        own = {"patch_size": sides[0] if sides[0] == sides[1] else sides, "in_chans": patches.shape[1]}
        # timm takes the size from here, and a patch may not divide the architecture's.
        if "input_size" not in about:
            grid = square_of(tensors)
            own["img_size"] = (grid * sides[0], grid * sides[1]) if grid else image_size
    try:
        network = built(uri, name, **{**arguments, **own})
    except TypeError:
        network = built(uri, name, **arguments)
    kept = network.state_dict().keys()
    fitting = {n: t for n, t in tensors.items() if n in kept or not left_out(n)}
    counts = load_strictly(network, fitting, str(file))
    say(f"{file}: {counts}, left out {len(tensors) - len(fitting)}", quiet)
    return network


def square_of(tensors: Mapping[str, Tensor]) -> int:
    """Patches a side of a file whose positions are of a class token and a square; 0 where they are not."""
    positions, prefix = tensors.get("pos_embed"), "cls_token" in tensors
    if positions is None or positions.ndim != 3:
        return 0
    patches = positions.shape[1] - prefix
    side = math.isqrt(patches)
    return side if side**2 == patches else 0


# Sizes --------------------------------------------------------------------------------------------------------------


def take_size(uri: str, network: Any, size: tuple[int, int]) -> None:
    """Make a network take pictures of this size, by timm's own ways; UserError where it has none."""
    if isinstance(network, VisionTransformer):
        resize_encoder(network, size)
    elif hasattr(network, "set_input_size"):
        try:
            network.set_input_size(img_size=size)
        except REFUSALS as error:
            raise UserError(refused(uri, size, error)) from None
    elif network.pretrained_cfg.get("fixed_input_size"):
        raise UserError(refused(uri, size, "its size is fixed"))


def refused(uri: str, size: tuple[int, int], why: object) -> str:
    """The sentence for a size that cannot be."""
    text = first_line(why) if isinstance(why, BaseException) else why
    return f"{uri} does not take pictures of --image-size {spelled_size(*size)} ({text})."


@torch.no_grad()
def width_of(uri: str, network: Any, channels: int, size: tuple[int, int]) -> int:
    """Length of timm's pooled features of a picture; UserError where the network does not take this size."""
    try:
        return pooled(network, torch.zeros(1, channels, *size)).shape[1]
    except REFUSALS as error:
        raise UserError(refused(uri, size, error)) from None


def pooled(network: Any, images: Tensor) -> Tensor:
    """timm's own pooled features, before any classifier."""
    return network.forward_head(network.forward_features(images), pre_logits=True).flatten(1)
