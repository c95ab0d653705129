"""The masked autoencoder (MAE; He et al., CVPR 2022, arXiv 2111.06377), in the order in which a picture passes it.

    pictures -> patches -> a random quarter of them -> encoder (a timm ViT) -> decoder -> pixels of the other patches

What differs from the textbook, none of it in the result:
- only visible patches are embedded: a patch embedding is one linear map, so masking before it is the same;
- the decoder never restores the order of the patches: attention does not see order, positions are added by index;
- only masked patches are predicted, since only they enter the loss;
- attention is written out on the CPU, where at these lengths it beats the fused kernel in bf16.

Shape letters: B images, N patches, V visible patches, T tokens (class token and patches), D width, P pixels of a patch.
"""

import dataclasses
import functools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import timm
import torch
from jaxtyping import Bool, Float, Int64
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from moce.errors import UserError, did_you_mean
from moce.options import spelled_size

NORM_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderShape:
    """What has to be known to rebuild an autoencoder; JSON-able.

    `architecture` is the timm name of the encoder; image and patch size are (height, width) in pixels.
    """

    architecture: str
    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    channels: int = 3
    decoder_depth: int = 4
    decoder_width: int = 96
    decoder_heads: int = 3
    mask_ratio: float = 0.75
    norm_target: bool = True

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "AutoencoderShape":
        """The shape that `dataclasses.asdict` was written from."""
        pairs = {name: tuple(content[name]) for name in ("image_size", "patch_size")}
        return cls(**{**content, **pairs})

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per (column, row)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        """Patches of a picture (N)."""
        return self.grid[0] * self.grid[1]

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees in training (V)."""
        return int(self.num_patches * (1 - self.mask_ratio))


def encoder_architecture(name: str) -> str:
    """timm's full name of an encoder: 'vit_tiny' stands for 'vit_tiny_patch16_224'. UserError when there is none."""
    known = [n for n in timm.list_models("*vit*") if "." not in n]
    for candidate in (name, f"{name}_patch16_224"):
        if candidate in known:
            return candidate
    plain = [n for n in known if re.fullmatch(r"(vit_[a-z]+_patch\d+_\d+|test_vit)", n)]
    short = [*plain, *(n.removesuffix("_patch16_224") for n in plain)]
    raise UserError(f"timm has no model '{name}'; --model takes its plain ViTs.{did_you_mean(name, short)}")


def require_whole_patches(image_size: tuple[int, int], patch_size: tuple[int, int]) -> None:
    """UserError, with the nearest sizes that work, unless patches fill a picture."""
    sides = list(zip(image_size, patch_size, strict=True))
    if all(side % patch == 0 for side, patch in sides):
        return
    smaller = spelled_size(*(max(side // patch, 1) * patch for side, patch in sides))
    larger = spelled_size(*(-(-side // patch) * patch for side, patch in sides))
    nearest = smaller if smaller == larger else f"{smaller} or {larger}"
    raise UserError(
        f"--image-size {spelled_size(*image_size)} is not a multiple of --patch-size {spelled_size(*patch_size)}; the "
        f"nearest that fit: {nearest}."
    )


def is_plain(encoder: Any) -> bool:
    """Whether a network is a ViT with class token, a position for each token, and MLPs; nothing added."""
    return (
        isinstance(encoder, VisionTransformer)
        and encoder.cls_token is not None
        and encoder.num_prefix_tokens == 1
        and encoder.pos_embed is not None
        and encoder.pos_embed.shape[1] == encoder.patch_embed.num_patches + 1
        and isinstance(encoder.norm_pre, nn.Identity)
        and all(type(b) is Block and type(b.mlp) is Mlp and type(b.attn) is Attention for b in encoder.blocks)
    )


def build_encoder(shape: AutoencoderShape) -> VisionTransformer:
    """timm's ViT of this shape, without head. UserError when it is no plain ViT or the sizes do not fit."""
    require_whole_patches(shape.image_size, shape.patch_size)
    try:
        encoder = timm.create_model(
            shape.architecture,
            img_size=shape.image_size,
            patch_size=shape.patch_size,
            in_chans=shape.channels,
            num_classes=0,
            global_pool="avg",
            fc_norm=False,
        )
    except (TypeError, AssertionError):  # timm's own words for a model that has no such arguments
        encoder = None
    if not is_plain(encoder) or encoder.pos_embed.shape[1] != shape.num_patches + 1:
        raise UserError(
            f"--model {shape.architecture} is not a plain ViT (class token, learned positions, MLPs); take vit_tiny, "
            "vit_small, vit_base, vit_large or the like."
        )
    return encoder


def sincos_positions(width: int, grid: tuple[int, int]) -> Float[Tensor, "1 tokens width"]:
    """Fixed 2-D sine-cosine positions, zero for the class token: half of the channels say x, half say y."""
    frequencies = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")

    def encode(places: Tensor) -> Tensor:
        angles = places.reshape(-1, 1).double() * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    table = torch.cat([encode(columns), encode(rows)], dim=1)
    return torch.cat([torch.zeros(1, width), table.float()])[None]


def fuses_attention(device: torch.device) -> bool:
    """Whether attention is torch's fused kernel here, or written out.

    On a CPU the kernel's backward pass is slow at these lengths; its forward pass is not (M).
    """
    return device.type != "cpu" or not torch.is_grad_enabled()


@runtime_checkable
class Router(Protocol):
    """Chooses the experts of a pass; see model/experts.py."""

    def choose(self, layer: int, tokens: Tensor) -> Any:
        """The choice of block `layer`, for the normalised tokens that enter its MLP."""


def rows_of(
    patches: Float[Tensor, "images patches pixels"], chosen_BV: Int64[Tensor, "images chosen"]
) -> Float[Tensor, "images chosen pixels"]:
    """The chosen patches of every picture; whole rows, which is faster than a gather of elements."""
    images, patches_each, pixels = patches.shape
    first = torch.arange(images, device=patches.device)[:, None] * patches_each
    return patches.reshape(-1, pixels).index_select(0, (chosen_BV + first).flatten()).view(images, -1, pixels)


class Output(NamedTuple):
    """What one masked pass gives."""

    loss: Float[Tensor, ""]
    latent: Float[Tensor, "images visible+1 width"]  # last block, before the final norm; class token first
    prediction: Float[Tensor, "images masked pixels"]
    visible: Int64[Tensor, "images visible"]  # which patches were seen, in the order of `latent`
    masked: Int64[Tensor, "images masked"]


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder.

    Initialisers: linear maps Xavier uniform with zero bias, the patch embedding as a linear map, class and mask token
    N(0, 0.02), norms 1 and 0, positions fixed sine-cosine (not trained).
    """

    def __init__(self, shape: AutoencoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = build_encoder(shape)
        width, decoder_width = self.encoder.embed_dim, shape.decoder_width
        if width % 4 or decoder_width % 4 or decoder_width % shape.decoder_heads:
            raise UserError(
                f"--decoder-width {decoder_width} must be divisible by 4 and by its {shape.decoder_heads} heads."
            )
        if not 0 < shape.num_visible < shape.num_patches:
            raise UserError(
                f"Of {shape.num_patches} patches {shape.num_visible} would be visible; choose another "
                "--mask-ratio, --image-size or --patch-size."
            )
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(
            sincos_positions(decoder_width, shape.grid), requires_grad=False
        )
        norm = functools.partial(nn.LayerNorm, eps=NORM_EPS)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, shape.decoder_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm)
            for _ in range(shape.decoder_depth)
        )
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(
            decoder_width, shape.channels * shape.patch_size[0] * shape.patch_size[1]
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.encoder.patch_embed.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.encoder.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        self.encoder.pos_embed.data.copy_(sincos_positions(self.encoder.embed_dim, self.shape.grid))
        self.encoder.pos_embed.requires_grad = False

    # Pictures and patches

    def patchify(
        self, images: Float[Tensor, "images channels rows columns"]
    ) -> Float[Tensor, "images patches pixels"]:
        """Cut pictures into patches, row by row; pixels of a patch in the order channel, row, column."""
        (rows, columns), (high, wide) = self.shape.grid, self.shape.patch_size
        cut = images.reshape(images.shape[0], images.shape[1], rows, high, columns, wide)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(images.shape[0], rows * columns, -1)

    def unpatchify(
        self, patches: Float[Tensor, "images patches pixels"]
    ) -> Float[Tensor, "images channels rows columns"]:
        """The inverse of `patchify`."""
        (rows, columns), (high, wide) = self.shape.grid, self.shape.patch_size
        cut = patches.reshape(-1, rows, columns, self.shape.channels, high, wide).permute(0, 3, 1, 4, 2, 5)
        return cut.reshape(-1, self.shape.channels, rows * high, columns * wide)

    # Encoder

    def _embed(self, patches: Tensor) -> Tensor:
        """Linear patch embedding, without positions."""
        projection = self.encoder.patch_embed.proj
        return F.linear(patches, projection.weight.flatten(1), projection.bias)

    def _blocks(self, tokens: Tensor, router: Router | None) -> Tensor:
        """The encoder's blocks, up to but without the final norm."""
        fused = fuses_attention(tokens.device)
        for layer, block in enumerate(self.encoder.blocks):
            block.attn.fused_attn = fused
            tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
            inner = block.norm2(tokens)
            if isinstance(block.mlp, Mlp):
                tokens = tokens + block.ls2(block.mlp(inner))
            else:
                assert router is not None, "a model with experts needs a router"
                tokens = tokens + block.ls2(block.mlp(inner, router.choose(layer, inner)))
        return tokens

    def encode_visible(
        self,
        patches: Float[Tensor, "images patches pixels"],
        visible: Int64[Tensor, "images visible"],
        router: Router | None = None,
    ) -> Float[Tensor, "images visible+1 width"]:
        """Latents of class token and visible patches, before the final norm."""
        positions = self.encoder.pos_embed[0]
        tokens = self._embed(rows_of(patches, visible)) + positions[1:][visible]
        first = (self.encoder.cls_token + positions[:1]).expand(len(patches), -1, -1)
        return self._blocks(torch.cat([first.to(tokens.dtype), tokens], dim=1).float(), router)

    def tokens(
        self, images: Float[Tensor, "images channels rows columns"], router: Router | None = None
    ) -> Float[Tensor, "images tokens width"]:
        """Class token and all patches after the final norm, nothing masked: timm's `forward_features`."""
        patches = self.patchify(images)
        everything = torch.arange(self.shape.num_patches, device=images.device).expand(len(images), -1)
        return self.encoder.norm(self.encode_visible(patches, everything, router))

    def features(
        self, images: Float[Tensor, "images channels rows columns"], router: Router | None = None
    ) -> Float[Tensor, "images width"]:
        """One vector per picture: the mean of the patch tokens after the final norm, nothing masked."""
        return self.tokens(images, router)[:, 1:].float().mean(dim=1)

    # Decoder and loss

    def split(self, noise: Float[Tensor, "images patches"]) -> tuple[Tensor, Tensor]:
        """(visible, masked) patch indices: the patches with the least noise are seen."""
        order = noise.argsort(dim=1, stable=True)
        return order[:, : self.shape.num_visible], order[:, self.shape.num_visible :]

    def target(
        self, patches: Float[Tensor, "images patches pixels"]
    ) -> Float[Tensor, "images patches pixels"]:
        """Pixels to predict: normalised within each patch where the shape says so."""
        if not self.shape.norm_target:
            return patches
        centred = patches - patches.mean(dim=-1, keepdim=True)
        # The unbiased variance, as in the official code; torch's own var is twenty times slower on a CPU (M).
        variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
        return centred / (variance + 1e-6).sqrt()

    def decode(
        self, latent: Tensor, visible: Int64[Tensor, "images visible"], masked: Int64[Tensor, "images masked"]
    ) -> Float[Tensor, "images masked pixels"]:
        """Predicted (normalised) pixels of the masked patches."""
        seen = self.decoder_embed(self.encoder.norm(latent)).float()
        positions = self.decoder_pos_embed[0]
        hidden = self.mask_token + positions[1:][masked]
        tokens = torch.cat([seen[:, :1] + positions[:1], seen[:, 1:] + positions[1:][visible], hidden], dim=1)
        for block in self.decoder_blocks:
            assert isinstance(block, Block)
            block.attn.fused_attn = fuses_attention(tokens.device)
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens[:, seen.shape[1] :]))

    def forward(
        self,
        images: Float[Tensor, "images channels rows columns"],
        noise: Float[Tensor, "images patches"],
        router: Router | None = None,
    ) -> Output:
        """One masked pass: mean squared error on the masked patches (He et al., section 3).

        `images` are normalised; `noise` decides the mask, so that a mask is a function of whatever drew the noise.
        """
        patches = self.patchify(images)
        visible, masked = self.split(noise)
        latent = self.encode_visible(patches, visible, router)
        prediction = self.decode(latent, visible, masked).float()
        wanted = self.target(rows_of(patches, masked))
        return Output(F.mse_loss(prediction, wanted), latent, prediction, visible, masked)

    @torch.no_grad()
    def reconstruct(
        self,
        images: Float[Tensor, "images channels rows columns"],
        noise: Float[Tensor, "images patches"],
        router: Router | None = None,
    ) -> tuple[Float[Tensor, "images channels rows columns"], Bool[Tensor, "images patches"]]:
        """(pictures with the masked patches filled in, which patches were masked), in normalised pixels."""
        output = self(images, noise, router)
        patches = self.patchify(images).clone()
        places = output.masked[:, :, None].expand(-1, -1, patches.shape[2])
        filled = output.prediction.to(patches.dtype)
        if self.shape.norm_target:  # a prediction is relative to its own patch's mean and spread
            own = patches.gather(1, places)
            filled = filled * (own.var(dim=-1, keepdim=True) + 1e-6).sqrt() + own.mean(dim=-1, keepdim=True)
        patches.scatter_(1, places, filled)
        hidden = torch.zeros(patches.shape[:2], dtype=torch.bool, device=images.device)
        return self.unpatchify(patches), hidden.scatter_(1, output.masked, True)

    # Size and cost

    def parts(self) -> list[nn.Module]:
        """What holds most weights: attention and MLP of every block, each a module that is only used by calling it."""
        blocks = [*self.encoder.blocks, *self.decoder_blocks]
        return [part for block in blocks for part in (block.attn, block.mlp)]

    def flops_per_image(self) -> int:
        """Multiply-adds times two of one masked forward pass of one picture, counted from the matrix products.

        A training step costs three times that (forward, and twice backward).
        """
        shape, width = self.shape, self.encoder.embed_dim
        pixels = self.decoder_pred.out_features
        every = shape.num_patches + 1
        decoder = len(self.decoder_blocks) * block_flops(every, shape.decoder_width, 4 * shape.decoder_width)
        ends = 2 * (shape.num_visible + 1) * width * shape.decoder_width
        ends += 2 * (shape.num_patches - shape.num_visible) * shape.decoder_width * pixels
        return self.encoder_flops(shape.num_visible) + decoder + ends

    def encoder_flops(self, num_seen: int) -> int:
        """The encoder's part of it when it sees so many patches; all of them are what `features` costs."""
        width = self.encoder.embed_dim
        pixels = self.encoder.patch_embed.proj.weight[0].numel()
        blocks = len(self.encoder.blocks) * block_flops(
            num_seen + 1, width, int(width * mlp_ratio(self.encoder))
        )
        return blocks + 2 * num_seen * pixels * width


def block_flops(tokens: int, width: int, hidden: int) -> int:
    """Multiply-adds times two of a transformer block: projections, MLP, and both products of attention."""
    attention = 2 * tokens * 4 * width * width + 4 * tokens * tokens * width
    return attention + mlp_flops(tokens, width, hidden)


def mlp_flops(tokens: int, width: int, hidden: int) -> int:
    """Multiply-adds times two of a block's MLP."""
    return 2 * tokens * 2 * width * hidden


def mlp_ratio(encoder: VisionTransformer) -> float:
    """Hidden width of the encoder's dense MLPs over its width."""
    for block in encoder.blocks:
        if isinstance(block.mlp, Mlp):
            return block.mlp.fc1.out_features / encoder.embed_dim
    return encoder.blocks[0].mlp.hidden / encoder.embed_dim


def shape_json(shape: AutoencoderShape) -> dict[str, Any]:
    """The shape as JSON."""
    return dataclasses.asdict(shape)
