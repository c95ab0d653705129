"""Pictures of the page as WebP, which is text inside it: sheets of small ones, reconstructions, experts of patches."""

import base64
import io
import math

import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from moce.engine.randomness import uniform
from moce.images.augment import finish
from moce.images.shown import tint, to_rgb
from moce.model.autoencoder import MaskedAutoencoder

GAP = 2  # pixels between pictures of a sheet
PIXEL_BUDGET = 10_000_000  # of all pictures on a page: about 5 MB of photographs


def sheet(
    images: UInt8[Tensor, "images channels height width"], across: int, scale: float = 1.0, gap: int = GAP
) -> Image.Image:
    """Pictures in rows of `across`, with transparent gaps."""
    height, width = (max(round(side * scale), 1) for side in images.shape[-2:])
    down = -(-len(images) // across)
    size = (across * (width + gap) - gap, down * (height + gap) - gap)
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    for place, picture in enumerate(to_rgb(images)):
        shown = Image.fromarray(picture)
        if shown.size != (width, height):
            shown = shown.resize((width, height), Image.Resampling.LANCZOS)
        canvas.paste(shown, ((place % across) * (width + gap), (place // across) * (height + gap)))
    return canvas


def data_uri(image: Image.Image, quality: int = 82) -> str:
    """A picture inside the page."""
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def scale_for(num_pictures: int, height: int, width: int, budget: float = PIXEL_BUDGET) -> float:
    """How much to shrink that many pictures of this size, so that together they have `budget` pixels at most."""
    return min(1.0, math.sqrt(budget / max(num_pictures * height * width, 1)))


@torch.no_grad()
def reconstructions(
    model: MaskedAutoencoder,
    images: UInt8[Tensor, "images channels height width"],
    indices: Int64[Tensor, "images"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> list[UInt8[Tensor, "images channels rows columns"]]:
    """[the pictures, what the model saw of them, what it made of that], uint8 at the model's size.

    The mask is a function of seed and picture. A hidden patch that was not shown is grey.
    """
    wanted = model.shape.image_size
    if tuple(images.shape[-2:]) != wanted:
        resized = torch.nn.functional.interpolate(images.float(), wanted, mode="bicubic", antialias=True)
        images = resized.round().clamp(0, 255).byte()
    noise = uniform(seed, "report", 0, indices, model.shape.num_patches)
    filled, hidden = model.reconstruct(finish(images, None, mean, std), noise)
    patches = model.patchify(images.float())
    patches[hidden] = 127.0
    return [images, model.unpatchify(patches).byte(), to_bytes(filled, mean, std)]


def to_bytes(
    normalised: Float[Tensor, "images channels height width"], mean: tuple[float, ...], std: tuple[float, ...]
) -> UInt8[Tensor, "images channels height width"]:
    """Normalised pixels as bytes."""
    shift, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return ((normalised.float() * spread + shift) * 255).round().clamp(0, 255).byte()


def enlarged(
    images: UInt8[Tensor, "images channels height width"], size: tuple[int, int]
) -> UInt8[Tensor, "images channels rows columns"]:
    """Pictures at another size."""
    resized = torch.nn.functional.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).byte()


def patch_views(
    images: UInt8[Tensor, "images channels height width"],
    experts: Int64[Tensor, "layers images rows columns"],
    patch: int,
) -> list[UInt8[Tensor, "images 3 high wide"]]:
    """[the pictures, the mean colour of each patch, then per layer each patch in the colour of its expert].

    A patch is `patch` pixels wide and high; under its expert's colour the picture shows in grey.
    """
    rows, columns = experts.shape[2:]
    size = (rows * patch, columns * patch)
    plain = enlarged(torch.from_numpy(to_rgb(images)).movedim(-1, -3), size)
    means = torch.nn.functional.avg_pool2d(plain.float(), patch)
    mosaic = means.round().byte().repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    grey = plain.float().mean(dim=1, keepdim=True)
    paints = torch.tensor([tint(e) for e in range(int(experts.max()) + 1)], dtype=torch.float32)
    views = [plain, mosaic]
    for chosen in experts:
        painted = paints[chosen].movedim(-1, 1).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        views.append((0.72 * painted + 0.28 * grey).round().clamp(0, 255).byte())
    return views
