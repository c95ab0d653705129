"""Weights that other programs trained, under the names of our autoencoder: a start for `moce pretrain --init`.

    timm:NAME     a plain ViT of timm: the encoder
    hf:NAME       transformers' ViTMAE, with its decoder where it has one; or a checkpoint of timm's on the hub
    FILE          safetensors or a torch file of timm's ViT, or of the official MAE code, with or without decoder

What has no counterpart here (heads) is left out and counted. Positions of another grid are resampled as for a run of
ours (resize.py); the official code's pixels of a predicted patch have the channel last, ours first.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from moce.engine.files import sha256_of
from moce.errors import UserError
from moce.images.normalise import IMAGENET, Normalisation
from moce.model.autoencoder import MaskedAutoencoder, is_plain, shape_json
from moce.model.hub import hub_json
from moce.model.timm_models import left_out, open_timm, read_weights
from moce.model.vitmae import open_vitmae, pixels_first

PREFIXES = ("timm:", "hf:")
POSITIONS = ("encoder.pos_embed", "decoder_pos_embed")
NAMES = {192: "vit_tiny", 384: "vit_small", 768: "vit_base", 1024: "vit_large"}  # by width


class Foreign(NamedTuple):
    """Tensors under our names, and what they do not say themselves."""

    tensors: dict[str, Tensor]
    pixels: Normalisation | None  # None: nobody says, so they are measured
    known: dict[str, Any]  # image_size, heads, decoder_heads, norm_target, where somebody says

    def fingerprint(self) -> str:
        """16 hex digits of names, shapes and values."""
        parts: list[bytes | str] = []
        for name, tensor in sorted(self.tensors.items()):
            values = tensor.float().contiguous().view(-1).numpy().tobytes()
            parts += [f"{name}{tuple(tensor.shape)}", values]
        return sha256_of(*parts)


def is_foreign(name: str) -> bool:
    """Whether a model is somebody else's, by its name."""
    return name.startswith(PREFIXES)


def resolved(uri: str) -> str:
    """timm:NAME where an hf: name is one of timm's checkpoints, else the name itself."""
    if not uri.startswith("hf:"):
        return uri
    name, config = uri.removeprefix("hf:"), hub_json(uri, "config.json")
    if "architecture" not in config or "model_type" in config:
        return uri
    return f"timm:local-dir:{name}" if Path(name).is_dir() else f"timm:hf-hub:{name}"


def read_foreign(name: str) -> Foreign:
    """The weights that --init names; UserError where they cannot be had or are of no plain ViT."""
    if not is_foreign(name):
        return from_file(Path(name))
    name = resolved(name)
    if name.startswith("hf:"):
        found = open_vitmae(name)
        config = found.config
        known = {"image_size": found.image_size, "heads": config.num_attention_heads}
        if "decoder_pred.weight" in found.tensors:
            known |= {
                "decoder_heads": config.decoder_num_attention_heads,
                "norm_target": config.norm_pix_loss,
            }
        return Foreign(found.tensors, found.pixels, known)
    opened = open_timm(name, quiet=True)
    vit = opened.network
    plain = is_plain(vit) and not isinstance(vit.norm, nn.Identity) and type(vit.blocks[0].mlp.act) is nn.GELU
    if not plain:
        raise UserError(
            f"--init {name} is not a plain ViT (class token, learned positions, MLPs with GELU, a norm at the end)."
        )
    known = {"image_size": opened.image_size, "heads": vit.blocks[0].attn.num_heads}
    tensors = {f"encoder.{n}": t for n, t in vit.state_dict().items()}
    return Foreign(tensors, Normalisation(opened.mean, opened.std), known)


def from_file(path: Path) -> Foreign:
    """A file of the official MAE code or of timm."""
    content = read_weights(path)
    patches = content.get("patch_embed.proj.weight")
    if "encoder.patch_embed.proj.weight" in content:
        raise UserError(f"--init {path} is a model of moce: give the run folder that it lies in.")
    if patches is None or patches.ndim != 4:
        raise UserError(
            f"--init {path} holds no ViT under the names of timm or of the official MAE code (it has no "
            "patch_embed.proj.weight); give models of transformers as hf:FOLDER."
        )
    ours = {n if n.startswith(("decoder_", "mask_token")) else f"encoder.{n}": t for n, t in content.items()}
    for name in ("decoder_pred.weight", "decoder_pred.bias"):
        if name in ours:
            rows = ours[name].reshape(len(ours[name]), -1)
            ours[name] = pixels_first(rows, (patches.shape[2], patches.shape[3])).reshape(ours[name].shape)
    return Foreign(ours, IMAGENET if patches.shape[1] == 3 else None, {})


# Comparing and loading ----------------------------------------------------------------------------------------------


def shape_of(foreign: Foreign, model: MaskedAutoencoder) -> dict[str, Any]:
    """The shape of the foreign weights, as `shape_json`; what they do not say is the model's own."""
    shape, own = shape_json(model.shape), {n: tuple(t.shape) for n, t in model.state_dict().items()}
    theirs = {n: tuple(t.shape) for n, t in foreign.tensors.items()}
    heads = foreign.known.get("heads", model.encoder.blocks[0].attn.num_heads)
    if (*vit_of(theirs), heads) != (*vit_of(own), model.encoder.blocks[0].attn.num_heads):
        width, depth, hidden = vit_of(theirs)
        usual = depth == (24 if width == 1024 else 12) and hidden == 4 * width
        usual = usual and foreign.known.get("heads", width // 64) == width // 64
        described = f"of width {width}, {depth} blocks, MLPs of {hidden} and {heads} heads"
        shape["architecture"] = NAMES[width] if usual and width in NAMES else described
    patches = theirs["encoder.patch_embed.proj.weight"]
    shape |= {"channels": patches[1], "patch_size": patches[2:]}
    if "decoder_pred.weight" in theirs:
        shape |= {
            "decoder_width": theirs["decoder_pred.weight"][1],
            "decoder_depth": depth_of(theirs, "decoder_blocks"),
        }
        shape["decoder_heads"] = foreign.known.get("decoder_heads", shape["decoder_heads"])
    return shape


def vit_of(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int, int]:
    """(width, depth, hidden width of the MLPs) of an encoder."""
    hidden = shapes.get("encoder.blocks.0.mlp.fc1.weight", (0,))[0]
    return shapes["encoder.patch_embed.proj.weight"][0], depth_of(shapes, "encoder.blocks"), hidden


def depth_of(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    """Number of blocks."""
    return len({n.removeprefix(f"{prefix}.").split(".")[0] for n in shapes if n.startswith(f"{prefix}.")})


@torch.no_grad()
def load_foreign(model: MaskedAutoencoder, foreign: Foreign, init: str) -> str:
    """Load into a model of the same shape, whose pictures may have another size; returns what was done, counted.

    The decoder may be missing as a whole, its table of positions alone as well; heads are left out. UserError for
    anything else that is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    theirs = {
        n: t for n, t in foreign.tensors.items() if n in own or not left_out(n.removeprefix("encoder."))
    }
    for name in POSITIONS:
        if name in theirs:
            theirs[name] = resampled(theirs[name], foreign.known.get("image_size"), model, init)
    missing, unexpected = sorted(own.keys() - theirs.keys()), sorted(theirs.keys() - own.keys())
    other = sorted(n for n in own.keys() & theirs.keys() if own[n].shape != theirs[n].shape)
    decoder = {n for n in own if not n.startswith("encoder.")}
    counts = f"loaded {len(own) - len(missing)}, missing {len(missing)}, unexpected {len(unexpected)}"
    if (
        set(missing) - {"decoder_pos_embed"} not in (set(), decoder - {"decoder_pos_embed"})
        or unexpected
        or other
    ):
        first = ([n for n in missing if n not in decoder] + unexpected + other + missing)[0]
        raise UserError(f"--init {init} does not fit: {counts}, other shape {len(other)} (first: {first}).")
    model.load_state_dict(theirs, strict=False)
    absent = " (it has no decoder: ours starts untrained)" if decoder <= set(missing) else ""
    return (
        f"loaded {len(theirs)}, missing {len(missing)}{absent}, left out {len(foreign.tensors) - len(theirs)}"
    )


def resampled(
    positions: Tensor, image_size: tuple[int, int] | None, model: MaskedAutoencoder, init: str
) -> Tensor:
    """A table of positions for the model's grid; unless somebody says their size, theirs is a square."""
    patch, patches = model.shape.patch_size, positions.shape[1] - 1
    side = math.isqrt(patches)
    grid = [side, side] if image_size is None else [image_size[0] // patch[0], image_size[1] // patch[1]]
    if grid[0] * grid[1] != patches:
        raise UserError(f"--init {init} has positions of {patches} patches, which make up no square.")
    if tuple(grid) == model.shape.grid:
        return positions
    return resample_abs_pos_embed(
        positions.float(), new_size=list(model.shape.grid), old_size=grid, num_prefix_tokens=1
    )
