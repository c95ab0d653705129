"""transformers' masked autoencoder (ViTMAE) and ours: the same arithmetic under other names.

Theirs has q, k and v apart, and the pixels of a predicted patch with the channel last; LayerNorm's eps, 1e-12 unless a
config says otherwise, is 1e-6 here. `hf:NAME` is a folder that `save_pretrained` wrote or a name on the hub.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moce.errors import UserError, first_line
from moce.images.normalise import IMAGENET, Normalisation
from moce.model.hub import asked_once, hub_json

RENAMED = (
    ("vit.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj"),
    ("vit.embeddings.cls_token", "encoder.cls_token"),
    ("vit.embeddings.position_embeddings", "encoder.pos_embed"),
    ("vit.layernorm", "encoder.norm"),
    ("vit.layers", "encoder.blocks"),
    ("decoder.decoder_layers", "decoder_blocks"),
    ("decoder.", ""),
    ("attention.o_proj", "attn.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
)


class Origin(NamedTuple):
    """Where a parameter of theirs lies in ours: a name, which third of its rows, and whether its rows are pixels."""

    name: str
    third: int | None
    pixels: bool


def origin(name: str) -> Origin:
    """Where the parameter `name` of transformers' model lies in ours."""
    ours = name
    for theirs, own in RENAMED:
        ours = ours.replace(theirs, own)
    third = None
    for place, letter in enumerate("qkv"):
        if f"attention.{letter}_proj" in ours:
            third = place
            ours = ours.replace(f"attention.{letter}_proj", "attn.qkv")
    return Origin(ours, third, name.startswith("decoder.decoder_pred"))


def as_theirs(own: Mapping[str, Tensor], origin: Origin, patch_size: tuple[int, int]) -> Tensor:
    """Our tensor in their layout."""
    tensor = own[origin.name] if origin.third is None else own[origin.name].chunk(3)[origin.third]
    if origin.pixels:
        tensor = tensor.reshape(-1, *patch_size, tensor[0].numel()).permute(1, 2, 0, 3).reshape(tensor.shape)
    return tensor


def as_ours(theirs: Mapping[str, Tensor], patch_size: tuple[int, int]) -> dict[str, Tensor]:
    """Their tensors under our names, in our layout."""
    found: dict[str, Tensor] = {}
    thirds: dict[str, list[Tensor]] = {}
    for name, tensor in theirs.items():
        place = origin(name)
        if place.third is not None:
            thirds.setdefault(place.name, [tensor] * 3)[place.third] = tensor
        else:
            found[place.name] = pixels_first(tensor, patch_size) if place.pixels else tensor
    return found | {name: torch.cat(parts) for name, parts in thirds.items()}


def pixels_first(tensor: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Rows in the order channel, row, column, of rows in the order row, column, channel."""
    channels = len(tensor) // (patch_size[0] * patch_size[1])
    apart = tensor.reshape(*patch_size, channels, tensor[0].numel())
    return apart.permute(2, 0, 1, 3).reshape(tensor.shape)


# Reading ------------------------------------------------------------------------------------------------------------


class ViTMAE(NamedTuple):
    """A model of theirs in our names, and what its tensors do not say."""

    tensors: dict[str, Tensor]
    config: Any
    pixels: Normalisation

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return sides(self.config.image_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return sides(self.config.patch_size)


def sides(size: Any) -> tuple[int, int]:
    """(height, width) of a number or two."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def open_vitmae(uri: str) -> ViTMAE:
    """The ViTMAE that hf:NAME names, with its decoder where it has one.

    UserError where there is none, transformers is not installed, or it is another kind of model.
    """
    kind = hub_json(uri, "config.json").get("model_type")
    if kind != "vit_mae":
        raise UserError(
            f"{uri} is a model of type '{kind}'; of those of transformers only vit_mae is taken, others by timm:NAME."
        )
    theirs, missing = from_pretrained(uri)
    config = theirs.config
    if config.hidden_act != "gelu" or not config.qkv_bias:
        raise UserError(f"{uri} has no GELU or no bias of q, k and v; such a ViTMAE is not taken.")
    tensors = {n: p.detach().float() for n, p in theirs.named_parameters()}
    decoder = {n for n in tensors if not n.startswith("vit.")}
    if decoder <= missing:  # a ViTMAEModel, which has none
        missing -= decoder
        tensors = {n: t for n, t in tensors.items() if n not in decoder}
    if missing:
        raise UserError(f"{uri} lacks {len(missing)} of its weights (first: {min(missing)}).")
    about = hub_json(uri, "preprocessor_config.json", needed=False)
    pixels = IMAGENET
    if "image_mean" in about and "image_std" in about:
        pixels = Normalisation(tuple(about["image_mean"]), tuple(about["image_std"]))
    return ViTMAE(as_ours(tensors, sides(config.patch_size)), config, pixels)


def from_pretrained(uri: str) -> tuple[Any, set[str]]:
    """(transformers' model, the names of weights that it did not find)."""
    try:
        from transformers import ViTMAEForPreTraining  # slow to import, and not always there
        from transformers.utils import logging
    except ImportError:
        raise UserError(f"{uri} needs the library transformers: pip install 'moce[transformers]'.") from None
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # what is missing is said by us
    logging.disable_progress_bar()
    try:
        with asked_once() if not Path(uri.removeprefix("hf:")).is_dir() else nullcontext():
            model, info = ViTMAEForPreTraining.from_pretrained(
                uri.removeprefix("hf:"), output_loading_info=True, dtype=torch.float32
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{uri} cannot be loaded: {first_line(error)}.") from None
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
    return model, set(info["missing_keys"])
